"""A stock engine against our own sampler: pictures per second, in turn. Run it by hand.

    python -m tests.bench_engines --python vllm-env/bin/python [--run RUN --source ARM]
        [--batch 1 8 64] [--rounds 3] [--json FILE]

Without --run, a random Emu3 with a head size that vLLM's kernels for processors take. Both
draw the same number of pictures without guidance, and ours with guidance too; the engine gets them
all at once. Ratios of one round, medians over the rounds, smallest and largest in brackets. The
engine is another process with threads of its own, so only wall time can be compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.cli.commands.engine_process import running_engine
from mm_cca.cli.commands.engine_python import find_engine
from mm_cca.cli.commands.export_engine import export_for_engine
from mm_cca.modeling.draws import image_stream
from mm_cca.modeling.sampler import Sampler, SamplingSettings
from mm_cca.runs.folder import open_run
from mm_cca.sampling.engine_pool import draw_codes
from mm_cca.sampling.engine_requests import ImageRequest, ImageTask, seed_of
from mm_cca.sampling.engine_server import EngineServer
from mm_cca.sampling.weights import load_source
from mm_cca.testing.tiny import write_tiny
from tests.support import runs

SCALE = 3.0
SIDE = 16
"""Codes along a side of the random model's pictures."""
BASELINE = "own, guided"


def random_run(folder: Path) -> Path:
    """A run folder whose base is a small Emu3 with random weights."""
    write_tiny("emu3", folder / "base", side=SIDE, head_size=32)
    values = runs.tiny_recipe(folder, folder / "base", folder / "data.parquet")
    values["data"]["image_size"] = [SIDE * 8, SIDE * 8]
    return runs.write_recipe(folder / "run" / "recipe.yaml", values).parent


def own(model: UnifiedModel, side: tuple[int, int], scale: float) -> Callable[[int], None]:
    """Draws a number of pictures with our sampler."""
    sampler = Sampler(model, side, compiled=False)
    num_codes = model.layout(side).num_codes

    def run(count: int) -> None:
        uniforms = np.stack([image_stream(0, index, num_codes) for index in range(count)])
        sampler.sample(["a red owl"] * count, uniforms, SamplingSettings(scale))[0].cpu()

    return run


def engine(
    model: UnifiedModel, side: tuple[int, int], server: EngineServer
) -> Callable[[int], None]:
    """Draws a number of pictures with a stock engine, all asked for at once."""
    (name,) = server.served
    task = ImageTask(name, model.layout(side), model.engine_codes(), SamplingSettings())
    (ids,) = model.prompt_ids(["a red owl"], side)

    def run(count: int) -> None:
        requests = [ImageRequest(i, ids, seed_of(0, i)) for i in range(count)]
        drawn = sum(map(len, draw_codes([server], task, requests, in_flight=count, most=count)))
        assert drawn == count

    return run


def in_turn(
    contestants: dict[str, Callable[[int], None]], count: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, draw in contestants.items():
            started = time.perf_counter()
            draw(count)
            if number > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(count: int, seconds: dict[str, list[float]]) -> dict[str, object]:
    """Print how many times as fast as guidance each is; returns the figures."""
    figures: dict[str, object] = {"batch": count, "seconds": seconds}
    for name, times in seconds.items():
        ratios = [base / mine for base, mine in zip(seconds[BASELINE], times, strict=True)]
        spread = f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{count:4} pictures  {name:22} {count / statistics.median(times):8.2f}/s  {spread}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, help="the Python of an environment with vllm")
    parser.add_argument("--run", type=Path, help="a run folder; default: a small random Emu3")
    parser.add_argument("--source", default="base", help="its arm: base, cca or control")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = words.run or random_run(folder)
        export = export_for_engine(run, folder / "served", source=words.source)
        recipe, place = open_run(run)
        model = load_source(recipe, place, words.source)
        model.module.eval()
        side = grid_of(model, recipe.data.image_size)
        python = find_engine(words.python, needs_plugin=recipe.model.adapter == "janus")
        with running_engine(python, export.arguments, folder / "engine.log") as process:
            process.wait_until_ready()
            server = EngineServer(process.url, connections=max(words.batch))
            contestants = {
                BASELINE: own(model, side, SCALE),
                "own, guidance-free": own(model, side, 1.0),
                "engine, guidance-free": engine(model, side, server),
            }
            tables = [show(n, in_turn(contestants, n, words.rounds)) for n in words.batch]
    if words.json is not None:
        words.json.write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
