"""Captioned images, their token cache, prompts and plain texts."""
