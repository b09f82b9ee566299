"""The arms of a recipe, their prompts, and drawing them."""
