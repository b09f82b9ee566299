"""What several test files share: small runs, slow references, tiny networks."""
