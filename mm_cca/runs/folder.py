"""The run folder: its paths, and opening one that was made earlier."""

from dataclasses import dataclass, replace
from pathlib import Path

from mm_cca.config.load import dump, load_config
from mm_cca.config.schema import AnyRecipe, Recipe
from mm_cca.errors import UserError
from mm_cca.runs.environment import environment
from mm_cca.runs.files import write_json, write_text
from mm_cca.runs.stage import Stage


@dataclass(frozen=True)
class RunFolder:
    """Paths inside ``run.dir``, and what several runs may share.

    Attributes:
        root: ``run.dir``.
        tokens: the token cache.
        reference: the cache of ``train.reference=cached``.
        trained: the run whose models are drawn: this one, or ``run.trained``. It has the token
            cache too, if ``run.tokens_dir`` names no other.
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
            UserError: it was not trained to the end.
        """
        folder = {"cca": self.train, "control": self.control}[source]
        # While training is continued to more steps, the model of the earlier end is still there.
        if not (folder / "model").is_dir() or not Stage.ended(folder):
            where = "" if self.trained == self.root else f" in {self.trained} (run.trained)"
            raise UserError(
                f"{folder / 'model'} does not exist or is not complete: train the {source} model "
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
        """The folder that a recipe names."""
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
        if recipe.run.trained is not None:  # found again from any working directory
            trained = str(Path(recipe.run.trained).resolve())
            recipe = replace(recipe, run=replace(recipe.run, trained=trained))
        write_text(self.root / "recipe.yaml", dump(recipe))
        write_json(self.root / "environment.json", environment())


def open_run(folder: Path) -> tuple[Recipe, RunFolder]:
    """A run that was made, wherever its folder lies now.

    Raises:
        UserError: no run folder, or one that holds no model.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        raise UserError(
            f"{folder} is no run folder: it has no recipe.yaml. Name the run.dir of a recipe that "
            "was run."
        )
    recipe = load_config(str(path))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{folder} holds a {recipe.job} run; only finetune runs have a model.")
    run = RunFolder.of(recipe)
    trained = folder if recipe.run.trained is None else run.trained
    return recipe, replace(run, root=folder, trained=trained)


def recipe_of_training(recipe: Recipe) -> Recipe:
    """The recipe that trained what is drawn: this one, or that of ``run.trained``.

    Raises:
        UserError: ``run.trained`` is no finished run, or one of another model.
    """
    if recipe.run.trained is None:
        return recipe
    folder = Path(recipe.run.trained)
    if folder.resolve() == Path(recipe.run.dir).resolve():
        raise UserError(
            f"run.trained and run.dir are both {str(folder)!r}; what is drawn needs a run.dir of "
            "its own."
        )
    try:
        found, _ = open_run(folder)
    except UserError as error:
        raise UserError(f"run.trained: {error}") from error
    if found.run.trained is not None:
        raise UserError(
            f"run.trained is {str(folder)!r}, which trained nothing itself; name "
            f"{found.run.trained!r}, whose models it drew."
        )
    differing = [
        f"  - {key}: {theirs!r} there, {ours!r} here"
        for key, theirs, ours in (
            ("model.adapter", found.model.adapter, recipe.model.adapter),
            ("model.path", found.model.path, recipe.model.path),
            ("data.image_size", found.data.image_size, recipe.data.image_size),
            ("train.tuning", found.train.tuning, recipe.train.tuning),
        )
        if theirs != ours
    ]
    if differing:
        listed = "\n".join(differing)
        raise UserError(
            f"run.trained is {str(folder)!r}, which trained another model:\n{listed}\nTake "
            f"{folder / 'recipe.yaml'} as the recipe, with another run.dir."
        )
    return found
