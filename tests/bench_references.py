"""Memory and seconds of the three references, side by side. Not a test: run it by hand.

    python -m tests.bench_references [steps]

Each trains the demo's model for a few steps in a process of its own; the losses must be equal.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

KINDS = {
    "full, copy": ["train.tuning=full", "train.reference=copy"],
    "full, cached": ["train.tuning=full", "train.reference=cached"],
    "lora, copy": ["train.tuning=lora", "train.reference=copy"],
    "lora, off": ["train.tuning=lora", "train.reference=lora"],
    "lora, cached": ["train.tuning=lora", "train.reference=cached"],
}


def measured(words: list[str]) -> float:
    """Run ``mm-cca`` in a process; its largest resident memory in MB."""
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "mm_cca.cli", *words], dict(os.environ)
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"mm-cca {' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        common = [f"run.tokens_dir={folder}/tokens", "train.control=false", "train.trackers=[]"]
        common += [f"train.max_steps={steps}", "train.warmup_steps=0", "data.variants=1"]
        rows = {}
        for name, keys in KINDS.items():
            run = f"{folder}/{name.replace(', ', '-')}"
            words = ["emoji-ablation", *common, *keys, f"run.dir={run}"]
            measured(["prepare", *words])
            megabytes = measured(["train", *words])
            text = Path(run, "train", "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            speed = sorted(line["tokens_per_second"] for line in lines)[len(lines) // 2]
            rows[name] = (megabytes, speed, [line["loss"] for line in lines])
        print(f"{'reference':14} {'MB':>7} {'tokens/s':>9}  losses")
        for name, (megabytes, speed, losses) in rows.items():
            shown = " ".join(f"{loss:.6f}" for loss in losses[:4])
            print(f"{name:14} {megabytes:7.0f} {speed:9.0f}  {shown}")
        for first, others in (
            ("full, copy", ["full, cached"]),
            ("lora, copy", ["lora, off", "lora, cached"]),
        ):
            for other in others:
                same = "the same" if rows[first][2] == rows[other][2] else "OTHER"
                print(f"{first} and {other}: {same} losses in all {steps} steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
