"""Seconds and memory of a training step, references and objectives side by side. Run it by hand.

    python -m tests.bench_training [steps]

Each trains the demo's model for a few steps in a process of its own. Seconds are the median of the
steps; only their ratios mean anything. References must give equal losses.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

FULL = {name: [f"train.reference={name}", "train.tuning=full"] for name in ("copy", "cached")}
LORA = {
    name: [f"train.reference={name}", "train.tuning=lora"] for name in ("copy", "lora", "cached")
}
OBJECTIVES = {
    name: [f"loss.objective={name}", "loss.distill_scale=2.5", "train.reference=copy"]
    for name in ("cca", "dpo", "unlearn", "distill", "nll")
}


def measured(words: list[str]) -> float:
    """Run ``mm-cca`` in a process; its largest resident memory in MB."""
    command = [sys.executable, "-m", "mm_cca.cli", *words]
    quiet = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(sys.executable, command, dict(os.environ), file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"mm-cca {' '.join(words)} failed")
    return usage.ru_maxrss / 1024


def compare(title: str, kinds: dict[str, list[str]], common: list[str], folder: Path) -> None:
    """Print a row for each kind; ratios are to the first."""
    rows = {}
    for name, keys in kinds.items():
        run = folder / f"{title}-{name}"
        words = ["emoji-ablation", *common, *keys, f"run.dir={run}"]
        measured(["prepare", *words])
        megabytes = measured(["train", *words])
        text = (run / "train" / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        seconds = sorted(line["seconds"] for line in lines)[len(lines) // 2]
        rows[name] = (megabytes, seconds, [line["loss"] for line in lines])
    first = rows[next(iter(rows))]
    print(f"{title:12} {'MB':>6} {'s/step':>7} {'ratio':>6}  losses of the first")
    for name, (megabytes, seconds, losses) in rows.items():
        same = "equal" if losses == first[2] else "other"
        print(f"{name:12} {megabytes:6.0f} {seconds:7.2f} {seconds / first[1]:6.2f}  {same}")


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        common = [f"run.tokens_dir={name}/tokens", "train.control=false", "train.trackers=[]"]
        common += [f"train.max_steps={steps}", "train.warmup_steps=0", "data.variants=1"]
        compare("full", FULL, common, Path(name))
        compare("lora", LORA, common, Path(name))
        compare("objective", OBJECTIVES, common, Path(name))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
