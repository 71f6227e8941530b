"""Masks and losses: pure functions that return sums; one outer layer divides."""
