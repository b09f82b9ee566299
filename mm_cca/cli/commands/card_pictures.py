"""Sample pictures of a run for the card of its model."""

import shutil
from pathlib import Path

from mm_cca.sampling.manifest import MANIFEST, manifest_of, picture_file, problem_of

PICTURES = 4
FOLDER = "samples"
SHOWN = 80
"""Letters of a prompt below its picture."""


def copy_pictures(arm: Path, target: Path) -> str:
    """Copy some of an arm's pictures, of prompts spread over all, and show them in Markdown.

    Args:
        arm: the folder of a sampled arm.
        target: the exported folder.

    Returns:
        a paragraph after an empty line; empty where the arm was not sampled.

    Raises:
        UserError: the arm's manifest is damaged.
    """
    if not (arm / MANIFEST).exists():
        return ""
    lines = [line for line in manifest_of(arm) if problem_of(arm, line) is None]
    chosen = [lines[number * len(lines) // PICTURES] for number in range(PICTURES)] if lines else []
    chosen = list({line["index"]: line for line in chosen}.values())
    if not chosen:
        return ""
    (target / FOLDER).mkdir()
    cells, captions = [], []
    for line in chosen:
        file = picture_file(arm, line["index"])
        shutil.copyfile(file, target / FOLDER / file.name)
        caption = _plain(line["prompt"])
        cells.append(f"![{caption}]({FOLDER}/{file.name})")
        captions.append(caption)
    table = [f"| {' | '.join(row)} |" for row in (cells, ["---"] * len(cells), captions)]
    return f"\n\nPictures of the arm `{arm.name}`, not chosen by hand:\n\n" + "\n".join(table)


def _plain(prompt: str) -> str:
    """A prompt that breaks neither a table nor a link."""
    text = " ".join(prompt.split())
    text = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return "".join(f"\\{letter}" if letter in "|[]*_`<>\\" else letter for letter in text)
