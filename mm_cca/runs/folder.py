"""The run folder: its paths, and opening an existing one."""

from dataclasses import dataclass, replace
from pathlib import Path

from mm_cca.config.load import dump, load_config
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import AnyRecipe, Recipe
from mm_cca.errors import UserError
from mm_cca.runs.environment import environment
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.stage import Stage

AVERAGED = "averaged.json"
"""In a run folder that ``mm-cca average`` wrote: which runs, with which weights."""


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

    def describe(self, recipe: AnyRecipe) -> None:
        """Write ``recipe.yaml`` and ``environment.json``."""
        if recipe.run.trained is not None:  # valid from any working directory
            trained = str(Path(recipe.run.trained).resolve())
            recipe = replace(recipe, run=replace(recipe.run, trained=trained))
        write_text(self.root / "recipe.yaml", dump(recipe))
        write_json(self.root / "environment.json", environment())


def open_run(folder: Path) -> tuple[Recipe, RunFolder]:
    """Recipe and paths of an existing run, whose folder may have been moved.

    Raises:
        UserError: not a run folder, or the run of a job that trains no model.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        raise UserError(
            f"{folder} is not a run folder: it has no recipe.yaml. Give the run.dir of a recipe "
            "that was run."
        )
    recipe = load_config(str(path))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder} holds a {recipe.job} run; only finetune runs have a model.")
    run = RunFolder.of(recipe)
    trained = folder if recipe.run.trained is None else run.trained
    return recipe, replace(run, root=folder, trained=trained)


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
        return recipe
    folder = Path(recipe.run.trained)
    if folder.resolve() == Path(recipe.run.dir).resolve():
        raise UserError(
            f"run.trained and run.dir are both {str(folder)!r}; use another run.dir for the new "
            "samples."
        )
    try:
        training, _ = open_run(folder)
    except UserError as error:
        raise UserError(f"run.trained: {error}") from error
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
            ("data.image_size", training.data.image_size, recipe.data.image_size),
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
    return training
