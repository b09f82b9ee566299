"""Folders of strangers, made by rule: every one is told in one message or works, and none hangs.

A sample of all runs by default. All of them run, and how many were told and how many taken is
printed, by ``MM_CCA_ALL_FAULTS=1 pytest -s tests/adapters/test_hostile_checkpoints.py``.
"""

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch

from mm_cca import cli, load_adapter
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.adapters.check import check_checkpoint
from mm_cca.config.schema import ModelConfig
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of
from tests.support import runs
from tests.support.hostile_case import Hostile
from tests.support.hostile_checkpoints import hostile
from tests.support.hostile_texts import TEMPLATES

ALL = bool(os.environ.get("MM_CCA_ALL_FAULTS"))
SAMPLE = 4
"""Cases of each folder in the default suite."""
SECONDS = 20
"""Of computing, in which every case must have ended."""
LONGEST = 1_500
"""Characters of a message."""
SIDE = {"emu3": 32}
FOLDERS = [*ADAPTERS, "deepseek"]


@contextmanager
def limited() -> Iterator[None]:
    """Fails what computes for longer than ``SECONDS``."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"it did not end within {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def config_of(family: str, folder: Path) -> ModelConfig:
    return ModelConfig(
        adapter=family,
        path=str(folder),
        dtype="float32",
        image_tokenizer=image_tokenizer_of(family, folder),
        tokenizer=tokenizer_of(family, folder),
    )


def load(config: ModelConfig) -> UnifiedModel:
    return load_adapter(
        config.adapter,
        config.path,
        image_tokenizer=config.image_tokenizer,
        tokenizer=config.tokenizer,
    )


@torch.no_grad()
def use(model: UnifiedModel, side: int) -> None:
    """What preparing, training and sampling ask of a model; the result is finite."""
    model.module.eval()
    grid = grid_of(model, [side, side])
    rows = model.prompt_ids(["a red owl", ""], grid)
    model.unconditional_ids(rows[0], grid)
    codes = model.encode(torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8))
    prompt = model.embed_text(torch.tensor(rows[:1]))
    embeds = torch.cat([prompt, model.embed_codes(codes[:, :4])], dim=1)
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    states = model.hidden_states(embeds, mask, torch.arange(embeds.shape[1])[None])
    assert (states @ model.image_head().weight.T).isfinite().all()
    model.decode(codes, grid)


def outcome(case: Hostile, good: Path, folder: Path, family: str) -> str:
    """``told`` or ``accepted``; anything else is an exception."""
    shutil.copytree(good, folder)
    case.damage(folder)
    config, side = config_of(family, folder), SIDE.get(family, 64)
    messages = []
    with limited():
        try:
            check_checkpoint(config, [side, side])
        except UserError as error:
            messages.append(str(error))
        try:
            use(load(config), side)
        except UserError as error:
            messages.append(str(error))
        else:
            assert not messages, f"mm-cca validate refuses it, but it works: {messages}"
    assert not (folder / "RAN").exists(), "code of the checkpoint ran"
    for message in messages:
        assert len(message) < LONGEST
    shutil.rmtree(folder)
    return "told" if messages else "accepted"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_strangers_folder_is_told_or_works(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
):
    layouts = ("hub_folders", "folders") if name != "deepseek" else ("hub_folders",)
    family, found = ADAPTER.get(name, name), Counter[str]()
    wrong = []
    for layout in layouts if ALL else layouts[:1]:
        good = request.getfixturevalue(layout) / name
        cases = list(hostile(good, family))
        for case in cases if ALL else random.Random(name).sample(cases, SAMPLE):
            try:
                ended = outcome(case, good, tmp_path / "copy", family)
            except Exception as error:  # all of them are told at the end, each with its case
                ended = repr(error)
                shutil.rmtree(tmp_path / "copy")
            found[ended if ended in ("told", "accepted") else "error"] += 1
            if ended != "told" and (ended != "accepted" or case.told):
                wrong.append(f"{layout}, {case.name}: {ended}")
    print(f"{name}: {dict(found)}")
    assert not wrong, "\n".join(wrong)
    assert sum(found.values()) >= SAMPLE


ADAPTER = {"deepseek": "janus"}
WORST = (
    "weights codebook nan",
    "weights image decoder infinite",
    "weights head integers",
    "config .text_config=None",
    "config text_config.num_hidden_layers=1000000000",
    "config deep",
    "quantised  1",
    "attention .attn_implementation='someone/kernels'",
    "index outside",
    "pickle evil pytorch_model.bin",
    "vocabulary all far off",
    "vocabulary one too few",
)


@pytest.mark.parametrize("name", WORST)
def test_the_worst_are_told(name: str, hub_folders: Path, tmp_path: Path):
    good = hub_folders / "emu3"
    case = next(case for case in hostile(good, "emu3") if case.name == name)
    assert outcome(case, good, tmp_path / "copy", "emu3") == "told"


@pytest.mark.parametrize(
    "template", ["endless", "memory", "classes", "syntax", "surrogate", "without the caption"]
)
def test_a_hostile_template_is_told_with_the_file(template: str, hub_folders: Path, tmp_path: Path):
    folder = Path(shutil.copytree(hub_folders / "janus", tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text(TEMPLATES[template])
    with limited(), pytest.raises(UserError, match=r"chat_template\.jinja from deepseek-community"):
        load(config_of("janus", folder))


def test_a_template_that_keeps_spaces_keeps_them(hub_folders: Path, tmp_path: Path):
    """Only a template that trims captions has them trimmed."""
    folder = Path(shutil.copytree(hub_folders / "janus", tmp_path / "copy"))
    (folder / "chat_template.jinja").write_text("U:{{ messages[0]['content'][0]['text'] }}A:")
    trims, keeps = (load(config_of("janus", path)) for path in (hub_folders / "janus", folder))
    for model, same in ((trims, True), (keeps, False)):
        rows = model.prompt_ids([" an owl ", "an owl"], (4, 4))
        assert (rows[0] == rows[1]) == same


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("folder", [*ADAPTERS, "third-party"])
def test_no_family_is_taken_for_another(adapter: str, folder: str, folders: Path):
    """With the image tokenizer and text tokenizer that the adapter itself would need."""
    if adapter == folder:
        return
    config = config_of(adapter, folders / adapter)
    config.path = str(folders / folder)
    with pytest.raises(UserError) as caught:
        load(config)
    assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize("verb", ["validate", "prepare", "train"])
def test_the_commands_say_it_in_one_message(
    verb: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    values = runs.tiny_recipe(tmp_path, tiny_folder, runs.two_splits(tmp_path / "data.parquet"))
    recipe = str(runs.write_recipe(tmp_path / "recipe.yaml", values))
    if verb == "train":
        assert cli.main(["prepare", recipe]) == 0
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    cases = {case.name: case for case in hostile(folder, "emu3")}
    cases["config text_config.hidden_size='32'"].damage(folder)
    capsys.readouterr()
    assert cli.main([verb, recipe, f"model.path={folder}"]) == 2
    said = capsys.readouterr().err
    assert "config.json: text_config.hidden_size is '32'; it must be a whole number" in said
    assert "Traceback" not in said
