"""For authors of adapters: the contract suite, and tiny random checkpoints for any laptop."""
