"""Flips between model versions, their intervals, and the joins they rest on (numpy only)."""
