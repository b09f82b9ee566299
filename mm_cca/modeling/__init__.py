"""What a unified model computes: log-probabilities, samples, guidance, dial; knows no recipe."""
