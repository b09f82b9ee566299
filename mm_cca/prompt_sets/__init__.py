"""Prompts that come with the package; ``sample.prompts`` names them without a path."""

from pathlib import Path

SHIPPED = {"attributes": Path(__file__).parent / "attributes.jsonl"}
"""``attributes``: 300 prompts with one attribute each, which ``eval.attributes`` asks about."""
