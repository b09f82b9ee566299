"""A step of training against the reference pattern: speed, memory, losses. Run it by hand.

    python -m tests.bench_training [--rounds 5] [--json FILE] [--cases emoji emu3-vocabulary]
    python -m tests.bench_training --shape [NAME ...] [--json FILE]     on a GPU
    python -m tests.bench_training --references STEPS

The first trains each objective in turns with ours and with ``tests/support/reference_training.py``
(two whole copies, logits of every position over the whole vocabulary), both in one process; only
ratios mean anything. Peak memory is that of a process of its own for each. ``--shape`` takes random
weights at real shapes: steps per second, model FLOPs utilisation (MFU), peak memory.
``--references`` compares ``train.reference`` and objectives in runs of the demo.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.support.processes import measured, own_peak, printed_number
from tests.support.training_cases import CPU, GPU, Case, Kind, Training

OBJECTIVES = ("nll", "cca", "cca_code", "gft")
KINDS: tuple[Kind, ...] = ("ours", "lora", "reference")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 of a GPU by a part of its name."""
FULL = {name: [f"train.reference={name}", "train.tuning=full"] for name in ("copy", "cached")}
LORA = {
    name: [f"train.reference={name}", "train.tuning=lora"] for name in ("copy", "lora", "cached")
}
SUMS = {
    name: [f"loss.objective={name}", "loss.distill_scale=2.5", "train.reference=copy"]
    for name in ("cca", "dpo", "unlearn", "distill", "nll")
}


def kinds_of(objective: str) -> tuple[Kind, ...]:
    """The last is the reference pattern; its nll and cca are over the whole vocabulary."""
    return ("whole", *KINDS) if objective in ("nll", "cca") else KINDS


def in_turns(case: Case, objective: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Losses, wall and processor seconds of every kind, one step of each after the other."""
    cpu = torch.device("cpu")
    kinds = kinds_of(objective)
    gc.collect()  # the models of the objective before refer to themselves
    trained = {kind: Training(case, kind, objective, cpu) for kind in kinds}
    found: dict[str, dict[str, list[float]]] = {
        kind: {"loss": [], "wall": [], "processor": []} for kind in kinds
    }
    for number in range(rounds + 1):
        turn = number % len(kinds)
        for kind in (*kinds[turn:], *kinds[:turn]):
            wall, processor = time.perf_counter(), time.process_time()
            loss = trained[kind].step()
            seconds = time.perf_counter() - wall, time.process_time() - processor
            found[kind]["loss"].append(loss)
            if number:  # the first warms up
                found[kind]["wall"].append(seconds[0])
                found[kind]["processor"].append(seconds[1])
    return found


def compare_with_the_reference(
    name: str, objectives: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Print a table of a case; the reference's seconds divided by each kind's."""
    print(f"{name}: steps per second and memory, relative to the reference pattern")
    imports = printed_number("tests.bench_training", "--child", name, "none", "nll")
    rows = []
    for objective in objectives:
        seconds = in_turns(CPU[name], objective, rounds)
        peak = {
            kind: printed_number("tests.bench_training", "--child", name, kind, objective)
            for kind in kinds_of(objective)
        }
        for kind, megabytes in peak.items():
            row: dict[str, Any] = {"case": name, "objective": objective, "kind": kind}
            row["first_loss"], row["last_loss"] = (seconds[kind]["loss"][i] for i in (0, -1))
            for clock in ("wall", "processor"):
                pairs = zip(seconds["reference"][clock], seconds[kind][clock], strict=True)
                ratios = sorted(theirs / ours for theirs, ours in pairs)
                row[clock] = median(seconds[kind][clock])
                row[f"{clock}_speed"] = median(ratios)
                row[f"{clock}_spread"] = [ratios[0], ratios[-1]]
            row["peak_mb"], row["imports_mb"] = megabytes, imports
            row["memory"] = (megabytes - imports) / (peak["reference"] - imports)
            rows.append(row)
            low, high = row["wall_spread"]
            print(
                f"  {objective:9}{kind:10} wall x{row['wall_speed']:5.2f} ({low:.2f} to "
                f"{high:.2f})  processor x{row['processor_speed']:5.2f}  {row['wall']:6.2f} s  "
                f"peak {megabytes:6.0f} MB, without imports x{row['memory']:.2f}  "
                f"loss {row['first_loss']:.4f} to {row['last_loss']:.4f}",
                flush=True,
            )
    return rows


def child(name: str, kind: Any, objective: str) -> None:
    """Train two steps and print the largest memory of this process; ``none`` only imports."""
    if kind != "none":
        training = Training(CPU[name], kind, objective, torch.device("cpu"))
        training.step()
        training.step()
    print(own_peak())


def at_real_shapes(names: list[str], objectives: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """Print steps per second, MFU and peak memory of every shape and objective, on a GPU."""
    if not torch.cuda.is_available():
        print(f"not run, as there is no GPU: {', '.join(names)}")
        return [{"case": name, "result": "not run"} for name in names]
    gpu = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in gpu), None)
    rows = []
    for name in names:
        case, tuned = GPU[name]
        for objective in objectives:
            for kind in (tuned, "reference"):
                row = {"case": name, "objective": objective, "kind": kind, "gpu": gpu}
                rows.append(row | _on_gpu(case, kind, objective, steps, peak))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def _on_gpu(
    case: Case, kind: Any, objective: str, steps: int, peak: float | None
) -> dict[str, Any]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        training = Training(case, kind, objective, torch.device("cuda"))
        training.step()
        seconds = []
        for _ in range(steps):
            torch.cuda.synchronize()
            started = time.perf_counter()
            training.step()
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    except torch.cuda.OutOfMemoryError:
        return {"result": "out of memory"}
    used = training.flops() / median(seconds)
    return {
        "steps_per_second": 1 / median(seconds),
        "spread": [1 / max(seconds), 1 / min(seconds)],
        "mfu": None if peak is None else used / peak,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def compare(title: str, kinds: dict[str, list[str]], common: list[str], folder: Path) -> None:
    """Print a row for each kind of run of the demo; ratios are to the first."""
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


def compare_references(steps: int) -> None:
    """References and objectives side by side; references must give equal losses."""
    with tempfile.TemporaryDirectory() as name:
        common = [f"run.tokens_dir={name}/tokens", "train.control=false", "train.trackers=[]"]
        common += [f"train.max_steps={steps}", "train.warmup_steps=0", "data.variants=1"]
        compare("full", FULL, common, Path(name))
        compare("lora", LORA, common, Path(name))
        compare("objective", SUMS, common, Path(name))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CPU), default=list(CPU))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--shape", nargs="*", choices=list(GPU), default=None)
    parser.add_argument("--references", type=int, metavar="STEPS")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    if args.references:
        return compare_references(args.references)
    if args.shape is not None:
        rows = at_real_shapes(args.shape or list(GPU), args.objectives, args.rounds)
    else:
        rows = [
            row
            for name in args.cases
            for row in compare_with_the_reference(name, args.objectives, args.rounds)
        ]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
