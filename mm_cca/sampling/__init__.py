"""The sample stage: the arms of a recipe, their prompts, and drawing their images."""
