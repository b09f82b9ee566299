"""What a unified model computes: log-probabilities, samples, guidance, dial. Knows no recipe."""
