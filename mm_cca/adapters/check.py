"""Does a checkpoint fit its adapter? Looked up in its files' headers; no weights are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.adapters.checkpoint_files import UnreachableError, is_hub_name
from mm_cca.adapters.headers import header_folder, headers_only
from mm_cca.config.schema import ModelConfig
from mm_cca.config.shipped import shipped
from mm_cca.errors import UserError


def check_checkpoint(
    config: ModelConfig, image_size: Sequence[int], buckets: Sequence[Sequence[int]] = ()
) -> int:
    """The number of parameters of a checkpoint that fits. Raises as ``loaded_from_headers``."""
    with loaded_from_headers(config, image_size) as model:
        for size in buckets:
            model.layout(grid_of(model, size))
        return sum(parameter.numel() for parameter in model.module.parameters())


@contextmanager
def loaded_from_headers(config: ModelConfig, image_size: Sequence[int]) -> Iterator[UnifiedModel]:
    """Everything that reading the checkpoint would refuse, told before its weights are read.

    Config, tokenizer and processor are read; index, names and shapes of the weights are compared
    with the model's, and a prompt and the layout of an image are made. Of a hub name only the small
    files and the headers of the weights are downloaded.

    Args:
        image_size: height and width in pixels.

    Yields:
        the model, with its weights on the meta device.

    Raises:
        UserError: what ``load_adapter`` would say, or a size that the checkpoint can't draw.
        UnreachableError: a folder that is not there, or a hub name whose files can't be looked at.
        NoHeadersError: a hub name whose config fits, but whose weights show no shapes.
    """
    with headers_only():
        folder = _local(shipped(config.path))
        try:
            model = load_checkpoint(config, folder)
            grid = grid_of(model, image_size)
            model.layout(grid)
            model.prompt_ids(["a red owl"], grid)
        except UnreachableError:
            raise
        except UserError as error:
            raise UserError(str(error).replace(folder, config.path)) from error
        yield model


def _local(path: str) -> str:
    if Path(path).is_dir():
        return path
    if not is_hub_name(path):
        raise UnreachableError("there is no such folder (yet), and it is no name on the hub")
    try:
        return str(header_folder(path))
    except GatedRepoError as error:
        raise UserError(
            f"model.path {path!r} is a repository that asks for consent: accept its conditions on "
            "its page, then log in with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model.path {path!r} is neither a folder nor a repository on the hub that this "
            "machine may read. A private one needs: hf auth login"
        ) from error
    except OSError as error:
        return _downloaded_before(path, error)


def _downloaded_before(path: str, error: OSError) -> str:
    """The folder in the hub's cache: machines with GPUs often have no network."""
    try:
        folder = snapshot_download(path, local_files_only=True)
    except OSError:
        raise UnreachableError(
            f"it was never downloaded here, and the hub: {str(error).splitlines()[0]}"
        ) from error
    if not (Path(folder) / "config.json").exists():
        raise UnreachableError("only parts of it were downloaded, without its config.json")
    return folder
