"""``mm-cca push``: the exported model of a run to a repository on the hub."""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mm_cca.adapters.checkpoint_files import is_hub_name
from mm_cca.cli.commands.card_pictures import FOLDER
from mm_cca.cli.commands.export import export_model, exportable
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import SHIPPED
from mm_cca.errors import UserError
from mm_cca.runs.folder import open_run, run_folder_of

STALE = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", f"{FOLDER}/*"]
"""Files of an earlier push that do not belong to this one, such as an adapter's beside a whole
model's. Whatever else is in the repository stays."""
FOLDER_OF_PUSH = "push"
"""In a run folder: what is being uploaded."""
UNAUTHORIZED, FORBIDDEN = 401, 403


def push(args: argparse.Namespace) -> int:
    """Run ``mm-cca push``."""
    args.run = run_folder_of(args.run)
    url = push_model(
        args.run, args.repository, public=args.public, merge=args.merge, dial=args.dial
    )
    print(f"the model of {args.run} is at {url}")
    return 0


def push_model(
    run_folder: Path,
    repository: str,
    *,
    public: bool = False,
    merge: bool = False,
    dial: float = 1.0,
) -> str:
    """Upload what ``export_model`` writes, with a card whose lines load it from the hub.

    A file that is there already is not sent again, so an interrupted push resumes when it is
    repeated.

    Args:
        run_folder: of a finished run.
        repository: OWNER/NAME; made if it does not exist.
        public: for everybody; otherwise private.
        merge: see ``export_model``. A LoRA that is not merged needs a base that others can load.
        dial: see ``export_model``.

    Returns:
        the repository's address.

    Raises:
        UserError: what ``export_model`` raises; a name of another form, no token, no right to
            write, a repository that exists and is public without ``public``, no network.
    """
    _refuse_name(repository)
    recipe, run = open_run(run_folder)
    exportable(recipe, run, merge=merge, dial=dial)
    if not merge:
        _refuse_unknown_base(recipe)
    if get_token() is None:
        raise UserError(
            "there is no token of the hub on this machine: log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write."
        )
    api, folder = HfApi(), run_folder / FOLDER_OF_PUSH
    with _told(repository):
        _make_repository(api, repository, public=public)
    shutil.rmtree(folder, ignore_errors=True)  # of a push that was killed
    try:
        export_model(run_folder, folder, merge=merge, dial=dial, name=repository)
        with _told(repository):
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"mm-cca push {run_folder.resolve().name}",
                delete_patterns=STALE,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{constants.ENDPOINT}/{repository}"


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Around calls of the hub: what they raise becomes one sentence."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set; unset it to push to the hub.") from error
    except HfHubHTTPError as error:
        raise UserError(_refused(repository, error)) from error
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        # That of a file comes wrapped in a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(cause, HfHubHTTPError):
            raise UserError(_refused(repository, cause)) from error
        why = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise UserError(
            f"{repository} can't be written: {why}. Run the same command again to resume."
        ) from error


def _make_repository(api: HfApi, repository: str, *, public: bool) -> None:
    """Make the repository, or see that one which is there is as private as was asked for."""
    api.create_repo(repository, private=not public, exist_ok=True)
    is_private = api.model_info(repository).private
    if not is_private and not public:
        raise UserError(
            f"{repository} exists and is public; add --public to push there, or choose another "
            "name."
        )
    if is_private and public:
        api.update_repo_settings(repository, private=False)


def _refuse_name(repository: str) -> None:
    owner, _, name = repository.partition("/")
    try:
        if not owner or not name:
            raise HFValidationError("an owner and a name are needed")
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(
            f"{repository!r} is no name on the hub; allowed: OWNER/NAME of letters, digits, '-', "
            "'_' and '.', such as my-org/my-model."
        ) from error


def _refuse_unknown_base(recipe: Recipe) -> None:
    """Raises UserError for an adapter whose base is only on this machine."""
    base = recipe.model.path
    if recipe.train.tuning == "lora" and not is_hub_name(base) and base not in SHIPPED:
        raise UserError(
            f"this LoRA's base is {base!r} on this machine, where nobody else can load it from; "
            "add --merge to push the whole model."
        )


def _refused(repository: str, error: HfHubHTTPError) -> str:
    """What the hub's answer means, in one sentence."""
    status = error.response.status_code
    if status == UNAUTHORIZED:
        return "the hub does not know your token: log in with `hf auth login`, or renew HF_TOKEN."
    if status == FORBIDDEN:
        owner = repository.partition("/")[0]
        return (
            f"your token may not write to {repository}: it needs the right to write in {owner}, "
            "which its page on the hub shows, or choose another owner."
        )
    told = error.server_message or str(error).splitlines()[0]
    return f"the hub refused to take {repository} ({status}): {told}"
