"""The pages of ``mm-cca vote``: a pair of images without names, and the outcome."""

import base64
from pathlib import Path

from PIL import Image

from mm_cca.eval.comparison_types import Preference
from mm_cca.eval.report.pages import templates
from mm_cca.eval.report.thumbnails import EXACT_SIDE


def pair_page(
    number: int, count: int, prompt: str, pictures: tuple[Path, Path], *, can_undo: bool
) -> str:
    """A page that shows one pair, left and right.

    The images are inside it, so that no address tells the arm.
    """
    with Image.open(pictures[0]) as image:
        exact = max(image.size) <= EXACT_SIDE
    images = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    return (
        templates()
        .get_template("vote.html.j2")
        .render(
            number=number,
            count=count,
            prompt=prompt,
            images=images,
            exact=exact,
            can_undo=can_undo,
            outcome=None,
        )
    )


def outcome_page(names: tuple[str, str], found: Preference, file: Path) -> str:
    """The last page: which arm was preferred, and how often."""
    return (
        templates()
        .get_template("vote.html.j2")
        .render(
            names=names,
            outcome=found,
            sentence=preference_sentence(names, found),
            count=found.first + found.second + found.neither,
            file=str(file),
            can_undo=True,
        )
    )


def preference_sentence(names: tuple[str, str], found: Preference) -> str:
    """The preference in words, with its interval."""
    share, low, high = (f"{100 * found.share[key]:.0f}" for key in ("value", "low", "high"))
    told = f"{share} % prefer {names[0]} to {names[1]} (95 % interval {low} to {high} %)"
    if found.share["low"] <= 0.5 <= found.share["high"]:
        return f"No preference found: {told}."
    better = names[0] if found.share["low"] > 0.5 else names[1]
    return f"{better} is preferred: {told}."
