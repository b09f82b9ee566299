"""For authors of adapters and for laptops: the contract suite and tiny random checkpoints."""
