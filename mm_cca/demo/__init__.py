"""The embedded default: emoji drawings, their builder, and the tiny models trained on them."""
