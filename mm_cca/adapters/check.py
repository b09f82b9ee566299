"""Does a checkpoint fit its adapter? Looked up in its files' headers; no weights are read."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import grid_of
from mm_cca.adapters.headers import download_headers, headers_only
from mm_cca.config.schema import ModelConfig
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError


class UnreachableError(Exception):
    """The hub, or a repository on it, can't be reached."""


def check_checkpoint(config: ModelConfig, image_size: Sequence[int]) -> int:
    """Everything that reading the checkpoint would refuse, told before its weights are read.

    Config, tokenizer and processor are read; index, names and shapes of the weights are compared
    with the model's, and a prompt and the layout of an image are made. Of a hub name only the small
    files and the headers of the weights are downloaded.

    Args:
        image_size: height and width in pixels.

    Returns:
        the number of parameters.

    Raises:
        UserError: what ``load_adapter`` would say, or a size that the checkpoint can't draw.
        UnreachableError: a hub name whose files can't be looked at.
    """
    with _headers_of(shipped(config.path)) as folder, headers_only():
        try:
            model = load_checkpoint(config, folder)
            model.prompt_ids(["a red owl"], grid_of(model, image_size))
            model.layout(grid_of(model, image_size))
        except UserError as error:
            raise UserError(str(error).replace(folder, config.path)) from error
    return sum(parameter.numel() for parameter in model.module.parameters())


@contextmanager
def _headers_of(path: str) -> Iterator[str]:
    """The folder itself, or a temporary one that holds the headers of a hub name's files."""
    if Path(path).is_dir() or "/" not in path or path.count("/") > 1:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            download_headers(path, Path(folder))
        except (OSError, ValueError) as error:  # httpx's and the hub's errors are among them
            raise UnreachableError(str(error).splitlines()[0]) from error
        yield folder
