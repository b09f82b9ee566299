"""Helpers of several test files: small runs, naive references, tiny networks."""
