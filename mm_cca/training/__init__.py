"""Training; start reading at train.py."""
