"""Built-in names: recipes, adapters, the demo's files, prompt sets."""

from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from mm_cca.config.paths import exists, is_file, is_folder
from mm_cca.errors import UserError

_PACKAGE = Path(__file__).parents[1]

ADAPTERS = {
    "emu3": "mm_cca.adapters.emu3:Emu3",
    "emu3p5": "mm_cca.adapters.emu3p5:Emu3p5",
    "chameleon": "mm_cca.adapters.chameleon:Chameleon",
    "janus": "mm_cca.adapters.janus:Janus",
    "lumina-mgpt": "mm_cca.adapters.lumina_mgpt:LuminaMGPT",
    "liquid": "mm_cca.adapters.liquid:Liquid",
    "simplear": "mm_cca.adapters.simplear:SimpleAR",
}

IMAGE_SIZES = {
    "emu3": (720, 720),
    "emu3p5": (1024, 1024),
    "chameleon": (512, 512),
    "janus": (384, 384),
    "lumina-mgpt": (512, 512),
    "liquid": (512, 512),
    "simplear": (1024, 1024),
}
"""Height and width in pixels of what the published checkpoints draw, where nothing else says it."""


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the built-in recipes."""
    folder = Path(str(resources.files("mm_cca.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path_or_name: str) -> Path:
    """A file if it exists, else the built-in recipe of that name, else the recipe of a run folder.

    Raises:
        UserError: none of these.
    """
    if is_file(path_or_name):
        return Path(path_or_name)
    shipped = shipped_recipes()
    if path_or_name in shipped:
        return shipped[path_or_name]
    of_run = f"{path_or_name}/recipe.yaml"
    if is_file(of_run):
        return Path(of_run)
    near = get_close_matches(path_or_name, shipped, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"no recipe {path_or_name[:200]!r}: not a file, not a run folder, and not one of the "
        f"built-in recipes ({', '.join(shipped)}).{hint}"
    )


PROMPT_SETS = {"attributes": _PACKAGE / "data" / "prompt_sets" / "attributes.jsonl"}
"""``attributes``: 300 prompts with one attribute each, for ``eval.attributes``."""


SHIPPED = {
    "emoji": _PACKAGE / "demo" / "emoji.parquet",
    "emu3-emoji": _PACKAGE / "demo" / "emu3-emoji",
    "emoji-clip": _PACKAGE / "demo" / "emoji-clip",
    "judge-vit": _PACKAGE / "demo" / "judge-vit",
    "judge-convnet": _PACKAGE / "demo" / "judge-convnet",
    "judge-efficientnet": _PACKAGE / "demo" / "judge-efficientnet",
}
"""Data, base model, the scorer trained on the train split only, and the judges trained on all."""


def shipped(name: str) -> str:
    """The path of a built-in data set or checkpoint; any other name is returned unchanged."""
    return str(SHIPPED.get(name, name))


LUMINA_TOKENIZER = "Alpha-VLLM/Lumina-mGPT-7B-768"
"""Where Lumina-mGPT's authors take the tokenizer from for all their checkpoints; -512 has none."""


def has_tokenizer(path: str) -> bool:
    """Whether a checkpoint folder has a tokenizer.json, or a hub name, downloaded or reachable."""
    name = "tokenizer.json"
    if is_folder(path):
        return exists(f"{path}/{name}")
    from huggingface_hub import file_exists, try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(path, name), str) or file_exists(path, name)
    except Exception:  # neither a hub name nor reachable, in any of the ways of its HTTP client
        return False


RUNS = "runs"
"""The folder in which the built-in recipes write and look for what they made."""
_BUILT = {"runs/emoji64-data/emoji.parquet": "python -m mm_cca.demo.build_emoji --size 64"}


def command_for(path: str) -> str | None:
    """The command that makes a file or folder which built-in recipes read but nobody ships.

    ``None`` for any other path: only ``runs/RECIPE/...`` of a built-in recipe and the data of the
    emoji64 recipes are known.
    """
    relative = Path(path)
    if path in _BUILT:
        return _BUILT[path]
    if len(relative.parts) > 2 and relative.parts[0] == RUNS:
        recipe = relative.parts[1]
        return f"mm-cca run {recipe}" if recipe in shipped_recipes() else None
    return None


def how_to_make(path: str) -> str:
    """A sentence, after a space, that says how to make a path that is missing; else empty."""
    command = command_for(path)
    if command is None or exists(path):
        return ""
    return f" Make it with: {command}"
