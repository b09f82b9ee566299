"""``env``: versions and devices, for bug reports."""

import argparse


def env(args: argparse.Namespace) -> int:
    """Run ``mm-cca env``."""
    from mm_cca.runs.environment import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
    return 0
