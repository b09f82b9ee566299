"""Captioned images and their token cache, prompt files and text files."""
