"""``mm-cca plan``: what a training will take, and which switch saves how much."""

import argparse
from collections.abc import Iterator, Sequence

import torch

from mm_cca.adapters.check import loaded_from_headers
from mm_cca.adapters.checkpoint_files import UnreachableError
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.load import load_config
from mm_cca.config.schema import Recipe
from mm_cca.config.schema_train import WITH_REFERENCE
from mm_cca.config.shipped import command_for
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.training.plan import Plan, plan_of
from mm_cca.training.plan_text import Gpu, fits, plan_text
from mm_cca.training.setup import new_policy

GPU = torch.device("cuda")
"""Plans are of a GPU, whether this machine has one or not; nothing is put there."""


def plan(args: argparse.Namespace) -> int:
    """Run ``mm-cca plan``."""
    quiet_libraries()
    gpu = Gpu.of_size(None) if args.gpu is None else Gpu.of(args.gpu)
    recipe = _recipe(args.recipe, args.overrides)
    found = make_plan(recipe)
    print(plan_text(found, gpu))
    rows = []
    for switch in switches(recipe):
        try:
            other = make_plan(_recipe(args.recipe, [*args.overrides, *switch]))
        except UserError:
            continue  # does not go with the recipe's other keys
        rows.append((other, " ".join(switch)))
    print("each switch alone:")
    for other, change_of in sorted(rows, key=lambda row: row[0].total):
        saved = (found.total - other.total) / 1e9
        change = f"{saved:.2f} GB less" if saved >= 0 else f"{-saved:.2f} GB more"
        note = ", fits" if fits(other, gpu) and not fits(found, gpu) else ""
        print(f"  {other.total / 1e9:8.2f} GB ({change}{note}): {change_of}")
    return 0


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe, of whose checkpoint only headers are read.

    Raises:
        UserError: the checkpoint does not fit the recipe, or its files can't be reached.
    """
    try:
        with loaded_from_headers(recipe.model, recipe.data.image_size) as model:
            policy = new_policy(recipe, model, whole_vocabulary=recipe.loss.whole_vocabulary)
            return plan_of(recipe, recipe.loss, policy, GPU, _cache(recipe))
    except UnreachableError as error:
        made = command_for(recipe.model.path)
        advice = f" Make it with: {made}" if made else " Give model.path a folder that is there."
        raise UserError(
            f"model.path {recipe.model.path} can't be planned with: {error}.{advice}"
        ) from error


def switches(recipe: Recipe) -> Iterator[list[str]]:
    """Changes of keys that trade memory for time, or a copy for a cache; each with what it needs.

    Those that don't go with the rest of the recipe are refused by ``load_config``.
    """
    train = recipe.train
    shared = ["train.reference=lora"] if WITH_REFERENCE.holds(recipe) else []
    other = str(not train.gradient_checkpointing).lower()
    yield [f"train.gradient_checkpointing={other}"]
    if train.micro_batch_size > 1:
        yield ["train.micro_batch_size=1"]
    if train.tuning == "full":
        yield ["train.tuning=lora", "model.dtype=bfloat16", *shared]
    if train.optimizer == "adamw":
        yield ["train.optimizer=adamw_8bit"]
        yield ["train.optimizer=adafactor"]
    if recipe.model.quantization is None:
        yield ["model.quantization=nf4", "train.tuning=lora", "model.dtype=bfloat16", *shared]
    if WITH_REFERENCE.holds(recipe) and train.reference == "copy":
        yield ["train.reference=cached"]


def _recipe(name: str, overrides: Sequence[str]) -> Recipe:
    recipe = load_config(name, overrides)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name} is a {recipe.job} recipe; only finetune recipes are planned.")
    return recipe


def _cache(recipe: Recipe) -> TokenCache | None:
    """The token cache, if prepare has run."""
    try:
        folder = RunFolder.of(recipe).tokens / recipe.data.train_split
        return open_cache(folder, recipe.data.variants)
    except UserError:
        return None
