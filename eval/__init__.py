"""Scores, their protocol and the report; installed as ``mm_cca.eval``."""
