"""A recipe's training run; begin with train.py."""
