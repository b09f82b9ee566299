"""Features to numbers: pure functions."""
