"""Seconds per image of a run's arms, measured apart from sampling.

The seconds in an arm's manifest mix warm-up, batches of different sizes and whatever else the
machine did then, so arms must not be compared by them.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from mm_cca.adapters.base import grid_of
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run
from mm_cca.sampling.arms import Arm, arms_of
from mm_cca.sampling.draw import draw_images
from mm_cca.sampling.prompts import prompts_of
from mm_cca.sampling.weights import load_source


@dataclass(frozen=True)
class Timing:
    """What an arm costs.

    Attributes:
        forward_passes: per image.
        seconds: per image, one for every round.
    """

    forward_passes: int
    seconds: list[float]

    def ratios(self, other: "Timing") -> list[float]:
        """Its seconds divided by those of another arm in the same round."""
        return [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]


def bench(args: argparse.Namespace) -> int:
    """Run ``mm-cca bench``."""
    _print(bench_run(args.run, num_images=args.images, rounds=args.rounds), args.images)
    return 0


def bench_run(folder: Path, *, num_images: int, rounds: int) -> dict[str, Timing]:
    """Time every arm of a run that costs differently, by name; the base without guidance first.

    Raises:
        UserError: not a run folder, not trained yet, a run without the base, numbers below 1.
    """
    for name, value in (("--images", num_images), ("--rounds", rounds)):
        if value < 1:
            raise UserError(f"{name} is {value}; allowed: 1 or more.")
    recipe, run = open_run(folder)
    arms = timed_arms(recipe)
    if not arms or arms[0] != Arm("base", 1.0):
        raise UserError(
            f"run.sources is {list(recipe.run.sources)}; allowed here: a list with base, as times "
            "are shown relative to it."
        )
    prompts = prompts_of(recipe, run)[:num_images]
    quiet_libraries()
    models = {source: load_source(recipe, run, source) for source in {arm.source for arm in arms}}
    grid = grid_of(models["base"], recipe.data.image_size)

    def draw(arm: Arm) -> int:
        return draw_images(models[arm.source], recipe, arm, prompts, grid)[1]

    return time_in_turns(arms, draw, len(prompts), rounds)


def timed_arms(recipe: Recipe) -> list[Arm]:
    """The unguided arm of every source, and its first guided one."""
    chosen: dict[tuple[str, bool], Arm] = {}
    for arm in arms_of(recipe):
        chosen.setdefault((arm.source, arm.is_guided), arm)
    return list(chosen.values())


def time_in_turns(
    arms: Sequence[Arm],
    draw: Callable[[Arm], int],
    num_images: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time ``draw``, which draws ``num_images`` and returns the forward passes of each.

    One round warms up. Then every round times each arm once, starting with another arm each time,
    so that no arm is always the one after a cheap or a costly one.
    """
    passes: dict[str, int] = {}
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    with tqdm(total=(rounds + 1) * len(arms), desc="timing", unit="batch") as bar:
        for arm in arms:
            passes[arm.name] = draw(arm)
            bar.update()
        for number in range(rounds):
            first = number % len(arms)
            for arm in (*arms[first:], *arms[:first]):
                started = clock()
                draw(arm)
                seconds[arm.name].append((clock() - started) / num_images)
                bar.update()
    return {name: Timing(passes[name], found) for name, found in seconds.items()}


def _print(timings: Mapping[str, Timing], num_images: int) -> None:
    base = next(iter(timings.values()))
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Batches of {num_images} images, medians of {len(base.seconds)} rounds",
    )
    table.add_column("arm")
    for heading in ("forward passes", "seconds per image", "times base", "lowest to highest"):
        table.add_column(heading, justify="right")
    for name, timing in timings.items():
        ratios = timing.ratios(base)
        table.add_row(
            name,
            str(timing.forward_passes),
            f"{median(timing.seconds):.4g}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
        )
    Console().print(table)
