"""One file per verb; ``mm_cca.cli.main`` imports the one it needs."""
