"""The built-in demo: a data set of emoji, its builder, and the small models trained on it."""
