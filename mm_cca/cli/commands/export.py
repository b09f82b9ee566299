"""Export the model of a finished run: weights, generation config, model card."""

import argparse
import shutil
from pathlib import Path

from transformers import GenerationConfig

from mm_cca.cli.commands.card_pictures import copy_pictures
from mm_cca.cli.commands.card_snippets import NEARLY_1, guidance_of, how_to_draw
from mm_cca.cli.commands.export_engine import export_for_engine, refuse_dial, refuse_in_use
from mm_cca.cli.commands.model_card import averaged_from, card_of, dial_in_words
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError
from mm_cca.modeling.lora import bake_lora
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import RunFolder, open_run, recipe_of_training, run_folder_of
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.exported import write_facts
from mm_cca.sampling.weights import load_merged


def export(args: argparse.Namespace) -> int:
    """Run ``mm-cca export``."""
    args.run = run_folder_of(args.run)
    if args.for_engine:
        facts = export_for_engine(args.run, args.folder, source=args.source, dial=args.dial)
        print(f"{facts.served_name} is in {args.folder}; serve it with\n\n  {facts.command}\n")
        return 0
    if args.source != "cca":
        raise UserError(
            f"--source is {args.source}; without --for-engine only the trained model is exported. "
            "Add --for-engine, or leave --source out."
        )
    export_model(args.run, args.folder, merge=args.merge, dial=args.dial)
    print(f"the model of {args.run} is in {args.folder}")
    return 0


def export_model(
    run_folder: Path,
    target: Path,
    *,
    merge: bool = False,
    dial: float = 1.0,
    name: str | None = None,
) -> None:
    """Write the trained model of a run so that plain transformers or peft loads it.

    A full fine-tune becomes a ``save_pretrained`` folder; a LoRA stays an adapter, or with
    ``merge`` becomes such a folder too, in ``model.dtype``. ``dial`` is applied to the weights, or
    to an adapter's scale. The folder is written atomically.

    Args:
        run_folder: of a finished run.
        target: a new or empty folder.
        merge: a LoRA into its base.
        dial: see ``load_source``.
        name: by which the card's lines load it; None: the folder.

    Raises:
        UserError: not a run folder, unfinished training, a target in use, a full fine-tune with
            ``merge``, a dial below 0 or without its base, a full disk.
    """
    recipe, run = open_run(run_folder)
    trained = exportable(recipe, run, merge=merge, dial=dial)
    is_lora = recipe.train.tuning == "lora"
    refuse_in_use(target)
    try:
        with atomic_path(target) as temporary:
            if merge or (not is_lora and dial != 1.0):
                model = load_merged(recipe, run, "cca", dial=dial)
                temporary.mkdir()
                model.save(temporary)
            else:
                shutil.copytree(trained, temporary)
                if dial != 1.0:
                    bake_lora(temporary, dial)
            is_adapter = is_lora and not merge
            _write_generation_config(recipe, temporary)
            write_facts(temporary, recipe, is_lora=is_adapter)
            how = how_to_draw(recipe, name or str(target), is_lora=is_adapter)
            arm = Arm("cca", guidance_of(recipe) or 1.0, dial=dial)
            card = card_of(
                recipe_of_training(recipe),
                run_folder,
                source="cca",
                library="peft" if is_adapter else "transformers",
                how=how if dial == 1.0 else f"{how}\n\n{dial_in_words(dial)}",
                averaged=averaged_from(run.trained),
                pictures=copy_pictures(run.samples / arm.name, temporary),
            )
            card.save(temporary / "README.md")
    except OSError as error:
        raise UserError(f"{target} can't be written: {error}") from error


def exportable(recipe: Recipe, run: RunFolder, *, merge: bool, dial: float) -> Path:
    """The trained model of a run, if it can be exported like this. Raises UserError."""
    refuse_dial(dial)
    trained = run.trained_model("cca")
    if merge and recipe.train.tuning != "lora":
        raise UserError("--merge is for a LoRA; this run trained all weights. Leave it out.")
    return trained


def _write_generation_config(recipe: Recipe, folder: Path) -> None:
    """Write the base's generation config with guidance off, unless the model still needs it."""
    own = (folder / "generation_config.json").exists()
    source = str(folder) if own else shipped(recipe.model.path)
    try:
        config = GenerationConfig.from_pretrained(source)
    except OSError:
        return  # the base has none
    if guidance_of(recipe) is None:
        config.guidance_scale = NEARLY_1 if recipe.model.adapter == "janus" else 1.0
    config.save_pretrained(folder)
