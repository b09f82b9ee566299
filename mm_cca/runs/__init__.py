"""The run folder on disk: paths, stages, atomic writes, digests, the environment."""
