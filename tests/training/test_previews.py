"""Previews: no influence on training, the pictures of the arms, kept over an interruption."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mm_cca.training.train as training
from mm_cca.adapters.emu3 import Emu3
from mm_cca.errors import Interrupted, UserError
from mm_cca.runs.preview_record import picture_of, read_record, sheet_of
from mm_cca.sampling.manifest import picture_file, read_manifest
from mm_cca.training import previews
from mm_cca.training.previews import refuse_sharded
from mm_cca.training.trackers import log_picture
from tests.support import runs
from tests.support.training import assert_same_training, at, newest

EACH = "sample.every=1"
LORA = ("train.tuning=lora", "train.reference=lora", "train.learning_rate=0.05")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def steps_drawn(training_folder: Path) -> list[int]:
    record = read_record(training_folder)
    return [] if record is None else sorted(record.drawn)


def stop_after(monkeypatch: pytest.MonkeyPatch, path: Path, step: int, *overrides: str) -> None:
    """Train, and stop as if by SIGTERM after so many steps of this process."""
    seen: list[int] = []
    real = training._step

    def counted(*args):
        seen.append(1)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", counted)
        patch.setattr(training, "on_any_rank", lambda *_: len(seen) == step)
        with pytest.raises(Interrupted):
            runs.do(path, *overrides)


@pytest.mark.parametrize(
    "keys", [(), (*LORA, "train.ema=0.5"), ("train.gradient_checkpointing=true",)]
)
def test_training_is_the_same_to_the_last_bit(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...]
):
    """Also the state of torch's generator, with an adapter that uses it for decoding."""
    real = Emu3.decode

    def decode(self, codes, grid):
        torch.rand(3)
        return real(self, codes, grid)

    monkeypatch.setattr(Emu3, "decode", decode)
    for name, more in (("on", (EACH,)), ("off", ())):
        (tmp_path / name).mkdir()
        runs.do(at(prepared, tmp_path / name), *keys, *more)
    on, off = (tmp_path / name / "run" / "train" for name in ("on", "off"))
    assert steps_drawn(on) == [0, 1, 2, 3, 4]
    assert not (off / "previews").exists()
    assert runs.metrics(on) == runs.metrics(off)
    ours, theirs = (runs.files_of(newest(folder)) for folder in (on, off))
    written = [name for name in ours if name.endswith((".safetensors", ".bin"))]
    assert written
    assert [name for name in written if ours[name] != theirs[name]] == []
    states = [
        torch.load(newest(folder) / "random_states_0.pkl", weights_only=False)
        for folder in (on, off)
    ]
    assert torch.equal(states[0]["torch_manual_seed"], states[1]["torch_manual_seed"])
    assert states[0]["random_state"] == states[1]["random_state"]
    models = [runs.files_of(folder / "model") for folder in (on, off)]
    assert models[0] == models[1]


@pytest.mark.parametrize("keys", [(), (*LORA, "train.ema=0.5")])
def test_the_pictures_are_those_of_the_arms(recipe: Path, tmp_path: Path, keys: tuple[str, ...]):
    """First the base's, last those of the model that is written, with train.ema the average."""
    words = (*keys, "sample.every=3", "sample.num_previews=2", "sample.cca_scales=[2.0]")
    runs.do(recipe, *words, "sample.images_per_prompt=2", stages=["train", "sample"])
    folder = tmp_path / "run" / "train"
    assert steps_drawn(folder) == [0, 3, 4]
    samples = tmp_path / "run" / "samples"
    lines = [line for line in read_manifest(samples / "base") if line["split"] == "heldout"][::2]
    record = read_record(folder)
    assert record is not None
    assert record.prompts == [line["prompt"] for line in lines[:2]]
    for step, arm in ((0, "base"), (4, "cca")):
        for row, line in enumerate(lines[:2]):
            for name, guided in ((arm, False), (f"{arm}+cfg2", True)):
                drawn = pixels(picture_of(folder, step, row, guided=guided))
                assert np.array_equal(drawn, pixels(picture_file(samples / name, line["index"])))
    first, last = (pixels(sheet_of(folder, step)) for step in (0, 4))
    assert first.shape == last.shape
    assert not np.array_equal(first, last)


def test_own_prompts_and_a_template(recipe: Path, tmp_path: Path):
    words = ("sample.preview_prompts=[red owl, grey cat]", "sample.num_previews=1", EACH)
    runs.do(recipe, *words, "train.max_steps=1")
    folder = tmp_path / "run" / "train"
    without = pixels(picture_of(folder, 0, 1, guided=False))
    record = read_record(folder)
    assert record is not None
    assert (record.prompts, record.guidance_scale) == (["red owl", "grey cat"], 2.0)
    template = ("sample.prompt_template='{prompt} red'", "run.dir=" + str(tmp_path / "other"))
    runs.do(recipe, *words, *template, "train.max_steps=1", "sample.guidance_scales=[]")
    other = tmp_path / "other" / "train"
    assert not np.array_equal(without, pixels(picture_of(other, 0, 1, guided=False)))
    record = read_record(other)
    assert record is not None
    assert record.prompts == ["red owl", "grey cat"]
    assert record.guidance_scale == Emu3.defaults.guidance_scale


def test_stopped_and_resumed_draws_only_what_is_missing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    runs.do(at(prepared, tmp_path / "whole"), EACH)
    path = at(prepared, tmp_path / "stopped")
    folder, whole = (tmp_path / name / "run" / "train" for name in ("stopped", "whole"))
    stop_after(monkeypatch, path, 2, EACH)
    assert steps_drawn(folder) == [0, 1]  # a stop does not wait for pictures
    before = runs.mtimes_of(folder / "previews")
    runs.do(path, EACH)
    assert steps_drawn(folder) == [0, 1, 2, 3, 4]
    after = runs.mtimes_of(folder / "previews")
    kept = {name for name in before if name.endswith(".png")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert_same_training(folder, whole)
    ours, theirs = (runs.files_of(place / "previews") for place in (folder, whole))
    assert {n: x for n, x in ours.items() if n.endswith("png")} == {
        n: x for n, x in theirs.items() if n.endswith("png")
    }


def test_a_signal_ends_drawing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The base's pictures come with the next start, as no step has been trained."""
    codes: list[int] = []

    def begin(self, done, stopped):
        real_begin(self, done, lambda: codes.append(1) or len(codes) > 3)

    real_begin = previews.Previews.begin
    with monkeypatch.context() as patch:
        patch.setattr(previews.Previews, "begin", begin)
        stop_after(patch, recipe, 1, EACH)
    assert len(codes) == 4
    folder = tmp_path / "run" / "train"
    assert steps_drawn(folder) == []
    assert newest(folder).name == "step-00000001"
    runs.do(recipe, EACH)
    assert steps_drawn(folder) == [1, 2, 3, 4]  # the base is gone with the first step


def test_previews_that_begin_late_show_the_base_of_a_lora(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_after(monkeypatch, recipe, 2, *LORA)
    runs.do(recipe, *LORA, EACH, stages=["train", "sample"])
    folder = tmp_path / "run" / "train"
    assert steps_drawn(folder) == [0, 2, 3, 4]
    samples = tmp_path / "run" / "samples" / "base"
    line = next(line for line in read_manifest(samples) if line["split"] == "heldout")
    base = pixels(picture_of(folder, 0, 0, guided=False))
    assert np.array_equal(base, pixels(picture_file(samples, line["index"])))


def test_other_prompts_put_the_earlier_pictures_aside(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    stop_after(monkeypatch, recipe, 2, EACH)
    folder = tmp_path / "run" / "train"
    before = runs.files_of(folder / "previews")
    runs.do(recipe, EACH, "sample.preview_prompts=[red owl]")
    assert steps_drawn(folder) == [2, 3, 4]
    assert runs.files_of(folder / "previews-1") == before
    assert f"kept in {folder / 'previews-1'}" in capsys.readouterr().err


def test_a_damaged_record_is_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stop_after(monkeypatch, recipe, 2, EACH)
    path = tmp_path / "run" / "train" / "previews" / "previews.json"
    whole = json.loads(path.read_text())
    broken = ({"drawn": {"x": 1}}, {"drawn": {"1": 0}}, {"drawn": {"-1": 1}}, {"every": 0})
    for text in ("", "[]", '{"drawn": {}}', *(json.dumps(whole | other) for other in broken)):
        path.write_text(text)
        with pytest.raises(UserError, match=r"previews\.json can't be read.*Restore it, or delete"):
            runs.do(recipe, EACH)
    runs.do(recipe)  # without previews it is not looked at


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            [f"sample.preview_prompts=['{'owl ' * 4000}']"],
            r"the preview prompt 'owl .*' has \d+ tokens, but an image of \[16, 16\] leaves \d+ of",
        ),
        (
            [f"sample.prompt_template='{{prompt}} {'owl ' * 4000}'"],
            r"has \d+ tokens in sample.prompt_template, but",
        ),
        (
            [f"sample.negative_prompts=['{'owl ' * 4000}']"],
            r"the first of sample.negative_prompts has \d+ tokens, but",
        ),
    ],
)
def test_prompts_that_are_too_long_are_refused_before_training(
    recipe: Path, tmp_path: Path, keys: list[str], said: str
):
    with pytest.raises(UserError, match=said):
        runs.do(recipe, EACH, *keys)
    assert not (tmp_path / "run" / "train" / "stage.json").exists()


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_weights_are_refused(recipe: Path, kind: DistributedType):
    accelerator = SimpleNamespace(distributed_type=kind)
    refuse_sharded(runs.load_recipe(recipe), accelerator)
    with pytest.raises(UserError, match=r"sample.every is 7 with (FSDP|DeepSpeed), whose weights"):
        refuse_sharded(runs.load_recipe(recipe, "sample.every=7"), accelerator)
    plain = SimpleNamespace(distributed_type=DistributedType.MULTI_GPU)
    refuse_sharded(runs.load_recipe(recipe, "sample.every=7"), plain)


def test_tensorboard_and_trackio_get_the_sheets(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a process of its own, as trackio looks for its folder when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    process = runs.start("train", recipe, "sample.every=2", "train.trackers=[tensorboard,trackio]")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    folder = tmp_path / "run" / "train"
    events = EventAccumulator(str(folder / "mm_cca"), size_guidance={"images": 0})
    events.Reload()
    assert events.Tags()["images"] == ["previews"]
    shown = events.Images("previews")
    assert [event.step for event in shown] == [0, 2, 4]
    sheets = {step: pixels(sheet_of(folder, step)) for step in (0, 2, 4)}
    for event in shown:
        with Image.open(io.BytesIO(event.encoded_image_string)) as image:
            assert np.array_equal(np.asarray(image), sheets[event.step])
    media = sorted((tmp_path / "trackio" / "media").rglob("*.png"))
    assert [path.parent.name for path in media] == ["0", "2", "4"]
    for path in media:
        assert np.array_equal(pixels(path)[:, :, :3], sheets[int(path.parent.name)])


def test_wandb_gets_a_list_of_one_picture():
    logged = []
    tracker = SimpleNamespace(
        name="wandb", log_images=lambda values, step: logged.append((values, step))
    )
    sheet = Image.new("RGB", (3, 2))
    log_picture(tracker, "previews", sheet, 7)
    assert logged == [({"previews": [sheet]}, 7)]
