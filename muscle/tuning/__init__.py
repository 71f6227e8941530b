"""The search for the fewest negative flips at a fixed accuracy; the launcher runs its trials."""
