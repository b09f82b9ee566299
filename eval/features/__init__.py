"""Images and captions to features: scorers, Inception, caches, references."""
