"""The recipe: its keys, reading it, checking it, and the names it may use."""
