"""Average the trained weights of several runs of one base."""

import argparse
import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mm_cca.config.schema import Recipe, RunConfig
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError
from mm_cca.modeling.averaging import average_full, average_loras
from mm_cca.runs.digests import BASE, model_digests, recorded_base
from mm_cca.runs.environment import environment
from mm_cca.runs.files import atomic_path, write_json
from mm_cca.runs.folder import AVERAGED, RunFolder, open_run, run_folder_of
from mm_cca.runs.stage import Stage, recorded


def average(args: argparse.Namespace) -> int:
    """Run ``mm-cca average``."""
    average_runs(args.runs, args.into, args.weights)
    print(
        f"the average of {len(args.runs)} runs is in {args.into}; "
        f"`mm-cca run {args.into / 'recipe.yaml'}` samples it"
    )
    return 0


@dataclass(frozen=True)
class _Training:
    """A finished training to average."""

    folder: Path
    recipe: Recipe
    run: RunFolder
    model: Path
    settings: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Raises UserError if the training is not finished, or is that of another run."""
        recipe, run = open_run(folder)
        if recipe.run.trained is not None:
            raise UserError(
                f"{folder} has no training of its own; average {run.trained}, whose models it "
                "sampled."
            )
        model = run.trained_model("cca")
        stored = recorded(run.train)
        assert stored is not None  # or its model would not be there
        return cls(folder, recipe, run, model, stored["settings"])


def average_runs(folders: Sequence[Path], target: Path, weights: Sequence[float] | None) -> None:
    """Write the weighted mean of the models that the runs trained as a new run folder.

    Args:
        folders: two or more finished runs of one base, all full fine-tunes or all LoRAs.
        target: the new run folder; written atomically. It has the recipe of the first run, without
            its training, and shares its token cache.
        weights: one above 0 for every run, divided by their sum; None: all equal.

    Raises:
        UserError: one run, a run given twice, an unfinished run, runs of different bases, adapters,
            tunings or sizes, weights that do not match, a target in use, a full disk.
    """
    shares = _shares(folders, weights)
    trainings = [_Training.of(run_folder_of(folder)) for folder in folders]
    for one, other in itertools.combinations(trainings, 2):
        if one.model.resolve() == other.model.resolve():
            raise UserError(
                f"{one.folder} and {other.folder} are the same run; give each run once, and "
                "--weights for its share."
            )
    for other in trainings[1:]:
        _refuse_differences(trainings[0], other)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another folder or empty it.")
    try:
        with atomic_path(target) as temporary:
            _write(trainings, shares, temporary, target.resolve())
    except OSError as error:
        raise UserError(f"{target} can't be written: {error}") from error


def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if len(folders) < 2:
        raise UserError(f"{folders[0]} is one run; give two or more to average.")
    given = [1.0] * len(folders) if weights is None else list(weights)
    valid = len(given) == len(folders) and all(0 < weight < math.inf for weight in given)
    if not valid:
        shown = " ".join(f"{weight:g}" for weight in given)
        raise UserError(
            f"--weights is {shown}; allowed: {len(folders)} numbers above 0, one for every run."
        )
    return [weight / sum(given) for weight in given]


def _refuse_differences(one: _Training, other: _Training) -> None:
    ours, theirs = one.recipe, other.recipe
    pairs = {
        "model.adapter": (ours.model.adapter, theirs.model.adapter),
        "model.image_tokenizer": (ours.model.image_tokenizer, theirs.model.image_tokenizer),
        "model.tokenizer": (ours.model.tokenizer, theirs.model.tokenizer),
        "model.dtype": (ours.model.dtype, theirs.model.dtype),
        "model.quantization": (ours.model.quantization, theirs.model.quantization),
        "data.image_size": (ours.data.image_size, theirs.data.image_size),
        "data.buckets": (ours.data.buckets, theirs.data.buckets),
        "train.tuning": (ours.train.tuning, theirs.train.tuning),
    }
    bases = (recorded_base(one.run.train), recorded_base(other.run.train))
    if None in bases:  # trained before it was recorded: all that is known is the path
        pairs["model.path"] = (_place(ours), _place(theirs))
    elif len({ours.model.dtype, theirs.model.dtype}) == 1:
        pairs["sha256 of the base's weights"] = bases
    differing = [
        f"  - {name}: {a!r} in {one.folder}, {b!r} in {other.folder}"
        for name, (a, b) in pairs.items()
        if a != b
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"{one.folder} and {other.folder} can't be averaged, as their weights are not those of "
            f"one model:\n{listed}\nAverage runs that were trained from the same base in the same "
            "way."
        )


def _place(recipe: Recipe) -> str:
    """The base's folder as an absolute path, or its name on the hub."""
    path = Path(shipped(recipe.model.path))
    return str(path.resolve()) if path.is_dir() else recipe.model.path


def _write(
    trainings: Sequence[_Training], shares: Sequence[float], folder: Path, root: Path
) -> None:
    """Fill ``folder``, which becomes ``root``."""
    first = trainings[0]
    model = folder / "train" / "model"
    model.mkdir(parents=True)
    places = [training.model for training in trainings]
    train = replace(first.recipe.train, control=False)
    if train.tuning == "lora":
        rank = average_loras(places, shares, model)
        train = replace(train, lora_rank=rank, lora_alpha=rank)
    else:
        average_full(places, shares, model)
    if all(recorded_base(training.run.train) for training in trainings):
        shutil.copy(first.run.train / BASE, folder / "train" / BASE)  # an average has a base too
    parts = {
        str(training.folder.resolve()): {"weight": share, "training": training.settings}
        for training, share in zip(trainings, shares, strict=True)
    }
    runs = [{"run": name, **part} for name, part in parts.items()]
    write_json(folder / AVERAGED, {"runs": runs})
    # Samples record these settings, so that those of another average are noticed as such.
    stage = Stage(folder / "train", {"averaged": parts})
    stage.begin()
    stage.finish(weights=model_digests(model))
    recipe = replace(first.recipe, train=train, run=_run_config(first, root))
    replace(RunFolder.of(recipe), root=folder).describe(recipe)
    write_json(folder / "environment.json", environment())


def _run_config(first: _Training, root: Path) -> RunConfig:
    """The new run only samples and scores; its prompts come from the first run's tokens."""
    run = first.recipe.run
    tokens = first.run.trained / "tokens" if run.tokens_dir is None else Path(run.tokens_dir)
    return replace(
        run,
        dir=str(root),
        tokens_dir=str(tokens.resolve()),
        reference_dir=None,
        stages=[stage for stage in run.stages if stage not in ("prepare", "train")] or ["sample"],
        sources=[source for source in run.sources if source != "control"],
    )
