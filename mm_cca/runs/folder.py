"""The run folder: its paths, and opening an existing one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mm_cca.config.load import dump, load_config, with_values
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.read_files import is_there, reading
from mm_cca.config.schema import AnyRecipe, Recipe
from mm_cca.config.shipped import shipped_recipes
from mm_cca.config.stage_keys import STEPS_DONE, num_steps
from mm_cca.errors import UserError
from mm_cca.runs.digests import refuse_other_files
from mm_cca.runs.environment import environment
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.places import remember
from mm_cca.runs.stage import FILE, Stage, advice_for, recorded

RECIPE = "recipe.yaml"
AVERAGED = "averaged.json"
"""In a run folder that ``mm-cca average`` wrote: which runs, with which weights."""


TRAINED = ("checkpoints/step-*", "model", "best")
"""In a training's folder: what a resumed training goes on from."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside ``run.dir``, and the caches that several runs may share.

    Attributes:
        root: ``run.dir``.
        tokens: the token cache.
        reference: the cache of ``train.reference=cached``.
        trained: the run whose models are sampled: this one, or ``run.trained``. It also holds the
            token cache, unless ``run.tokens_dir`` is set.
    """

    root: Path
    tokens: Path
    reference: Path
    trained: Path

    @property
    def train(self) -> Path:
        return self.trained / "train"

    @property
    def control(self) -> Path:
        return self.trained / "control"

    def trained_model(self, source: str) -> Path:
        """The folder that the training of ``cca`` or ``control`` wrote.

        Raises:
            UserError: the training is not finished.
        """
        folder = {"cca": self.train, "control": self.control}[source]
        # While a finished training is extended, the model of its earlier end is still there.
        if not (folder / "model").is_dir() or not Stage.ended(folder):
            where = "" if self.trained == self.root else f" in {self.trained} (run.trained)"
            raise UserError(
                f"{folder / 'model'} does not exist or is incomplete: train the {source} model "
                f"to the end{where} first: `mm-cca train RECIPE`."
            )
        stored = recorded(folder) or {}
        refuse_other_files(
            folder / "model",
            stored.get("weights", {}),
            f"Restore it, or delete {folder} and train again.",
        )
        return folder / "model"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @classmethod
    def of(cls, recipe: AnyRecipe) -> "RunFolder":
        """The run folder of a recipe."""
        root, run = Path(recipe.run.dir), recipe.run
        trained = root if run.trained is None else Path(run.trained)
        return cls(
            root,
            trained / "tokens" if run.tokens_dir is None else Path(run.tokens_dir),
            root / "reference" if run.reference_dir is None else Path(run.reference_dir),
            trained,
        )

    def holds_training(self) -> bool:
        """Whether a training has begun that is worth keeping."""
        return any(
            not Stage(folder, {}, results=TRAINED).holds_nothing()
            for folder in (self.train, self.control)
        )

    def begin(self, stage: Stage, recipe: AnyRecipe, **more: Any) -> None:
        """Record the recipe and the environment, as a stage that accepted them begins."""
        self.describe(recipe)
        write_json(self.root / "environment.json", environment())
        stage.begin(**more)

    def describe(self, recipe: AnyRecipe) -> None:
        """Write ``recipe.yaml``, unless it is there already, and the digests of its paths."""
        if recipe.run.trained is not None:  # valid from any working directory
            trained = str(Path(recipe.run.trained).resolve())
            recipe = replace(recipe, run=replace(recipe.run, trained=trained))
        text, path = dump(recipe), self.root / RECIPE
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
        remember(self.root)


def open_run(folder: Path) -> tuple[Recipe, RunFolder]:
    """Recipe and paths of an existing run.

    Args:
        folder: of the run, which may have been moved; or a recipe that was run.

    Raises:
        UserError: not a run folder, or the run of a job that trains no model.
    """
    folder = run_folder_of(folder)
    recipe = load_config(str(folder / RECIPE))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder} holds a {recipe.job} run; only finetune runs have a model.")
    run = RunFolder.of(recipe)
    trained = folder if recipe.run.trained is None else run.trained
    return recipe, replace(run, root=folder, trained=trained)


def run_folder_of(run: Path) -> Path:
    """The folder of a run that is given as that folder, or as a recipe: a file or a built-in name.

    Raises:
        UserError: neither, or a recipe that was not run.
    """
    if is_there(run / RECIPE):
        return run
    if run.is_dir() or not (run.is_file() or str(run) in shipped_recipes()):
        raise UserError(
            f"{run} is not a run folder: it has no recipe.yaml. Give the run.dir of a recipe "
            "that was run, or the recipe."
        )
    if run.name == RECIPE and any(run.parent.glob("*/stage.json")):
        return run.parent  # which may have been moved
    folder = Path(load_config(str(run)).run.dir)
    if not is_there(folder / RECIPE):
        raise UserError(
            f"{run} was not run: its run.dir {str(folder)!r} has no recipe.yaml. Run it with "
            f"`mm-cca run {run}`, or give the folder of another run."
        )
    return folder


def terms_of_training(recipe: Recipe) -> LossTerms:
    """The objective of the model that is sampled and scored. Raises as ``recipe_of_training``."""
    training = recipe_of_training(recipe) if "cca" in recipe.run.sources else recipe
    return LossTerms.of(training.loss)


def recipe_of_training(recipe: Recipe) -> Recipe:
    """The recipe that trained the sampled models: this one, or that of ``run.trained``.

    Raises:
        UserError: ``run.trained`` is not a run, has no training of its own, or trained another
            model.
    """
    if recipe.run.trained is None:
        return as_trained(recipe, RunFolder.of(recipe).train)
    folder = Path(recipe.run.trained)
    if folder.resolve() == Path(recipe.run.dir).resolve():
        raise UserError(
            f"run.trained and run.dir are both {str(folder)!r}; use another run.dir for the new "
            "samples."
        )
    try:
        training, opened = open_run(folder)
    except UserError as error:
        raise UserError(f"run.trained: {error}") from error
    if opened.root != folder:
        raise UserError(
            f"run.trained is {str(folder)!r}, a recipe; use its run folder: "
            f"run.trained={opened.root}."
        )
    if training.run.trained is not None:
        raise UserError(
            f"run.trained is {str(folder)!r}, which has no training of its own; use "
            f"run.trained={training.run.trained}."
        )
    differing = [
        f"  - {key}: {theirs!r} there, {ours!r} here"
        for key, theirs, ours in (
            ("model.adapter", training.model.adapter, recipe.model.adapter),
            ("model.path", training.model.path, recipe.model.path),
            ("model.quantization", training.model.quantization, recipe.model.quantization),
            ("data.image_size", training.data.image_size, recipe.data.image_size),
            ("data.buckets", training.data.buckets, recipe.data.buckets),
            ("train.tuning", training.train.tuning, recipe.train.tuning),
        )
        if theirs != ours
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"run.trained is {str(folder)!r}, which trained another model:\n{listed}\nUse "
            f"{folder / 'recipe.yaml'} as the recipe, with another run.dir."
        )
    return as_trained(training, folder / "train")


def as_trained(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the settings that a finished training recorded, whatever it says now."""
    stored = recorded(folder)
    if stored is None or not stored["done"]:
        return recipe
    plain = {
        name: value
        for name, value in stored["settings"].items()
        if name.startswith(("loss.", "train."))
    }
    with reading(folder / FILE, advice_for(folder)):
        trained = with_values(recipe, plain)
        steps = stored["settings"].get(STEPS_DONE, num_steps(trained.train))
        if not isinstance(steps, int):
            raise ValueError(f"{STEPS_DONE!r} is {steps!r}, not a whole number")
    if steps == num_steps(trained.train):
        return trained
    longest = max(steps, trained.train.max_steps)
    stopped = None if steps == longest else steps
    return replace(trained, train=replace(trained.train, max_steps=longest, stop_after=stopped))
