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
parser.add_argument("--no-enable-chunked-prefill", action="store_true")
args = parser.parse_args()
assert "OMP_NUM_THREADS" not in os.environ
assert Path(args.model, "config.json").exists()
print("loading", args.model, flush=True)
print("prompts in parts:", not args.no_enable_chunked_prefill, flush=True)
print("cache:", os.environ.get("VLLM_CPU_KVCACHE_SPACE"), flush=True)
if args.fail:
    print("(Worker pid=7) WARNING 11-28 12:00:26 [utils.py:2] errors like `OSError: [Errno 24]`")
    print("(Worker pid=7) ERROR 11-28 12:00:26 [cpu_worker.py:83] ValueError: no such kernel.")
    print("noise\\n" * 20, flush=True)
    sys.exit("RuntimeError: initialization failed. See root cause above.")
length = int(args.max_model_len or 512)
served = [args.served_model_name]
with fake_engine(served=served, max_model_len=length, port=int(args.port)):
    signal.pause()
'''


def write_fake_vllm(folder: Path, *packages: str, build: str = "vllm-0.32.0") -> Path:
    """An interpreter in ``folder`` that has the packages, such as ``vllm``.

    ``build`` is the distribution's name and version, as a folder of site-packages spells them.
    """
    facts = folder / "site" / f"{build}.dist-info"
    facts.mkdir(parents=True)
    name, _, version = build.partition("-")
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
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
