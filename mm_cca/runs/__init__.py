"""The run folder on disk: paths, stages, files that appear whole, digests, the environment."""
