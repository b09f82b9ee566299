"""What Janus's chat template writes around a caption, found out once per template.

The template is a program that came with the checkpoint: it runs in ``template_process``, with a
marker in place of a caption, and never again.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mm_cca.adapters.checkpoint_files import CheckpointError
from mm_cca.adapters.template_process import TemplateError, render

CAPTION = "\ue000A red Owl's\n<b>Café</b> & 2 more\ue001"
"""In place of a caption: a template that changes letters, line breaks or signs changes this."""
FROM_WHERE = (
    "copy chat_template.jinja from deepseek-community/Janus-Pro-1B (or from the checkpoint that "
    "this one was trained from) into the folder"
)


@dataclass(frozen=True)
class Turn:
    """A user's turn and the start of the model's.

    Attributes:
        before: text before the caption.
        after: text after it.
        trims: whether white space around the caption is left out, as in the authors' template.
        empty: the whole of it for no caption.
    """

    before: str
    after: str
    trims: bool
    empty: str

    def parts(self, caption: str) -> tuple[str, str, str]:
        """What the template writes before the caption, the caption, and after it."""
        if not caption.strip() and (self.trims or not caption):
            return self.empty, "", ""
        return self.before, caption.strip() if self.trims else caption, self.after


def turn_of(processor: Any) -> Turn:
    """Of a ``JanusProcessor``.

    Raises:
        CheckpointError: it has no template, or one that does not work or alters the caption.
    """
    template = processor.chat_template
    if isinstance(template, dict):  # some by name
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise CheckpointError(f"chat_template.jinja is missing or empty: {FROM_WHERE}")
    tokens = processor.tokenizer.special_tokens_map
    named = tuple(sorted((k, v) for k, v in tokens.items() if isinstance(v, str)))
    try:
        return _turn(template, named)
    except TemplateError as error:
        raise CheckpointError(f"the chat template can't be used ({error}): {FROM_WHERE}") from None


@lru_cache(maxsize=8)
def _turn(template: str, tokens: tuple[tuple[str, str], ...]) -> Turn:
    plain, spaced, empty = render(template, [CAPTION, f" {CAPTION} ", ""], dict(tokens))
    if plain.count(CAPTION) != 1:
        raise TemplateError("it does not write the caption once, as it is")
    before, after = plain.split(CAPTION)
    if spaced not in (plain, f"{before} {CAPTION} {after}"):
        raise TemplateError("it does not write the caption as it is")
    return Turn(before, after, spaced == plain, empty)
