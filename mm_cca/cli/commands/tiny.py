"""``tiny``: write a tiny random checkpoint."""

import argparse


def tiny(args: argparse.Namespace) -> int:
    """Run ``mm-cca tiny``."""
    from mm_cca.testing.tiny import write_tiny

    write_tiny(
        args.family,
        args.folder,
        side=args.side,
        layout=args.layout,
        head_size=args.head_size,
    )
    print(f"a tiny {args.family} checkpoint is in {args.folder}")
    return 0
