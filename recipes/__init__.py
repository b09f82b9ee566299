"""Recipes: one complete YAML per run."""
