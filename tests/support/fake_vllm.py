"""A Python whose ``vllm`` is ``fake_engine``: what ``mm-cca serve`` starts in the tests."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = '''\
"""Serves random codes, or ends at once if the folder of the model says so."""

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.support.fake_engine import fake_engine

parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "dtype", "host", "port", "max-model-len"):
    parser.add_argument(f"--{name}")
parser.add_argument("--fail", action="store_true")
args = parser.parse_args()
assert "OMP_NUM_THREADS" not in os.environ
assert Path(args.model, "config.json").exists()
print("loading", args.model, flush=True)
if args.fail:
    sys.exit("RuntimeError: no such kernel")
length = int(args.max_model_len or 512)
served = [args.served_model_name]
with fake_engine(served=served, max_model_len=length, port=int(args.port)):
    signal.pause()
'''


def write_fake_vllm(folder: Path, *packages: str) -> Path:
    """An interpreter in ``folder`` that has the packages, such as ``vllm``."""
    for package in packages:
        inner = folder / "site" / package / ("entrypoints/openai" if package == "vllm" else "")
        inner.mkdir(parents=True)
        for place in (inner, *inner.parents):
            if folder / "site" in place.parents:
                (place / "__init__.py").write_text("")
        if package == "vllm":
            (inner / "api_server.py").write_text(SERVER)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{folder / "site"}:{ROOT}" exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python
