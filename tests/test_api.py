"""Drawing and scoring from Python: the images and numbers of the command line's own code."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import mm_cca
from mm_cca.adapters.base import UnifiedModel
from mm_cca.api import ImageModel
from mm_cca.cli.commands.export import export_model
from mm_cca.errors import UserError
from mm_cca.sampling.manifest import manifest_of, picture_file
from mm_cca.testing.tiny import image_tokenizer_of, tokenizer_of
from tests.support import runs
from tests.support.closeness import assert_close
from tests.support.naive import span_logps

PROMPTS = ["red owl", "green cat with a very long tail", "blue"]


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The recipe of a run so far from its base that another model gives another image."""
    folder = tmp_path_factory.mktemp(f"api-{request.param}")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["train"].update(max_steps=3, learning_rate=3e-2, tuning=request.param)
    values["sample"] |= {
        "dial": [0.5],
        "cca_scales": [2.0],
        "prompt_template": "{prompt}, noto style",
        "images_per_prompt": 2,
        "seed": 3,
    }
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare", "train", "sample"])
    return folder / "run"


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


@pytest.mark.parametrize("arm", ["base", "base+cfg2", "cca", "cca+cfg2", "cca+dial0.5"])
def test_images_are_those_of_the_arms(trained: Path, arm: str):
    """All of an arm at once, in the batches of ``mm-cca sample``, to the last bit."""
    folder = trained / "samples" / arm
    lines = manifest_of(folder)
    settings = {
        "guidance_scale": 2 if "cfg2" in arm else 1,
        "dial": 0.5 if "dial" in arm else 1,
    }
    model = mm_cca.load_run(trained, source=arm.split("+", maxsplit=1)[0])
    drawn = mm_cca.generate(
        model, [line["prompt"] for line in lines[::2]], seed=3, num_images=2, **settings
    )
    stored = [Image.open(picture_file(folder, line["index"])) for line in lines]
    assert len(drawn) == len(lines) > 4
    assert same(drawn, stored)
    line = lines[-1]
    assert same(mm_cca.generate(model, line["prompt"], seed=line["seed"], **settings), stored[-1:])


def test_arms_differ(trained: Path):
    """Or the test above would compare one model with itself."""
    files = [picture_file(trained / "samples" / arm, 0).read_bytes() for arm in ("base", "cca")]
    assert files[0] != files[1]


def test_an_image_does_not_depend_on_the_batch(trained: Path):
    model = mm_cca.load_run(trained)
    whole = mm_cca.generate(model, PROMPTS, seed=5, num_images=3)
    assert len({image.tobytes() for image in whole}) > 5
    for size in (1, 2, 4):
        assert same(mm_cca.generate(model, PROMPTS, seed=5, num_images=3, batch_size=size), whole)


def test_the_dial_goes_there_and_back(trained: Path):
    model = mm_cca.load_run(trained)
    once = [mm_cca.generate(model, PROMPTS, seed=0, dial=dial) for dial in (1, 0, 0.5, 1)]
    assert same(once[0], once[3])
    assert not same(once[0], once[1])
    base = mm_cca.load_run(trained, source="base")
    assert same(mm_cca.generate(base, PROMPTS, seed=0), once[1])


@pytest.fixture(scope="module")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What ``mm-cca export`` makes of the run: as it is, at dial 0.5, and merged if it can be."""
    root = tmp_path_factory.mktemp("exports")
    export_model(trained, root / "plain")
    export_model(trained, root / "half", dial=0.5)
    made = {"plain": root / "plain", "half": root / "half"}
    if not (root / "plain" / "config.json").exists():
        export_model(trained, root / "merged", merge=True)
        made["merged"] = root / "merged"
    return made


def test_an_exported_folder_draws_as_its_run(trained: Path, exports: dict[str, Path]):
    """With the run's size and template, which no weight says."""
    run = mm_cca.load_run(trained)
    for name, folder in exports.items():
        dial = 0.5 if name == "half" else 1
        expected = mm_cca.generate(run, PROMPTS, seed=2, dial=dial)
        drawn = mm_cca.generate(str(folder), PROMPTS, seed=2)
        if name == "merged":  # a sum that is rounded once instead of two that are not
            pairs = zip(drawn, expected, strict=True)
            near = [np.abs(np.int16(a) - np.int16(b)).max() <= 1 for a, b in pairs]
            assert np.mean(near) > 0.6
        else:
            assert same(drawn, expected), name


def test_a_lora_export_still_has_its_dial(trained: Path, exports: dict[str, Path]):
    if (exports["plain"] / "config.json").exists():
        with pytest.raises(UserError, match=r"dial is 0\.5; allowed for .*: 1, as it is an export"):
            mm_cca.generate(exports["plain"], "owl", seed=0, dial=0.5)
        return
    run, adapter = mm_cca.load_run(trained), mm_cca.load_run(exports["plain"])
    for dial in (0.5, 0):
        expected = mm_cca.generate(run, PROMPTS, seed=2, dial=dial)
        assert same(mm_cca.generate(adapter, PROMPTS, seed=2, dial=dial), expected)


FAMILIES = ("emu3", "emu3p5", "chameleon", "janus", "lumina-mgpt", "liquid", "simplear")


def plain(folders: Path, family: str) -> ImageModel:
    folder = folders / family
    return mm_cca.load_run(
        folder,
        image_tokenizer=image_tokenizer_of(family, folder),
        tokenizer=tokenizer_of(family, folder),
        dtype="float32",
    )


def draws_and_reads_back(folders: Path, family: str) -> None:
    model = plain(folders, family)
    assert model.at().name == family
    size = (4 * model.at().pixels_per_code,) * 2
    drawn = mm_cca.generate(model, "red owl", seed=0, image_size=size)
    assert drawn[0].size == size
    codes = mm_cca.encode(model, drawn)
    assert codes.shape == (1, 16)
    assert mm_cca.decode(model, codes[0], image_size=size)[0].size == size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_a_hub_folder_is_found(hub_folders: Path, family: str):
    draws_and_reads_back(hub_folders, family)


@pytest.mark.parametrize("family", ["chameleon", "lumina-mgpt"])
def test_the_family_of_a_folder_of_todays_transformers_is_found(folders: Path, family: str):
    """Of the two that share a model_type; the other configs are the hub's in this respect."""
    draws_and_reads_back(folders, family)


def test_deepseeks_own_layout_is_found(hub_folders: Path):
    assert mm_cca.load_run(hub_folders / "deepseek").at().name == "janus"


def test_a_model_of_load_adapter_will_do(tiny_model: UnifiedModel, tiny_folder: Path):
    one = mm_cca.generate(tiny_model, PROMPTS, seed=1, image_size=(16, 16))
    other = mm_cca.generate(tiny_folder, PROMPTS, seed=1, image_size=(16, 16))
    assert same(one, other)


def test_codes_and_back(trained: Path):
    """Files and PIL images, of any mode, as ``mm-cca prepare`` reads them."""
    model = mm_cca.load_run(trained)
    files = [picture_file(trained / "samples" / "cca", number) for number in range(3)]
    codes = mm_cca.encode(model, files)
    assert codes.dtype == torch.int64
    assert codes.shape == (3, 16)
    opened = [Image.open(file).convert("RGBA") for file in files]
    assert torch.equal(mm_cca.encode(model, opened), codes)
    assert torch.equal(mm_cca.encode(model, opened[1]), codes[1:2])
    again = mm_cca.decode(model, codes.numpy())
    assert [image.size for image in again] == [(16, 16)] * 3
    own = model.at()
    expected = own.decode(codes[:1], (4, 4))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(again[0]), expected)


@torch.no_grad()
def test_log_probs_are_those_of_stock_transformers(trained: Path):
    """Row by row, from the stock model's logits, renormalised over the image codes."""
    model = mm_cca.load_run(trained)
    files = [picture_file(trained / "samples" / "cca", number) for number in range(3)]
    found = mm_cca.logprobs(model, PROMPTS, files)
    assert found.per_code.shape == (3, 16)
    assert found.total.dtype == torch.float32
    own = model.at()
    layout, codes = own.layout((4, 4)), mm_cca.encode(model, files)
    image_ids = torch.as_tensor(own.engine_codes())
    for row, prompt in enumerate(PROMPTS):
        span = torch.from_numpy(layout.tokens.copy())
        span[layout.free_slots] = image_ids[codes[row]]
        ids = own.prompt_ids([f"{prompt}, noto style"], (4, 4))[0]
        expected = span_logps(own.module, ids, span.tolist(), list(layout.free_slots), image_ids)
        assert_close(found.per_code[row], torch.tensor(expected).float(), 1e-4)
        assert_close(found.total[row], found.per_code[row].sum(), 1e-5)


def test_log_probs_do_not_depend_on_the_batch(trained: Path):
    model = mm_cca.load_run(trained)
    files = [picture_file(trained / "samples" / "cca", number) for number in range(4)]
    whole = mm_cca.logprobs(model, "red owl", files)
    assert_close(
        mm_cca.logprobs(model, ["red owl"] * 4, files, batch_size=1).total, whole.total, 1e-4
    )
    base = mm_cca.logprobs(model, "red owl", files, dial=0).total
    assert (base - whole.total).abs().max() > 0.1
    assert_close(
        mm_cca.logprobs(mm_cca.load_run(trained, source="base"), "red owl", files).total, base, 1e-4
    )


MISTAKES = {
    r"'no-such-folder' is neither a folder nor a hub name": lambda c: mm_cca.load_run(
        "no-such-folder"
    ),
    r"holds no model: neither recipe\.yaml": lambda c: mm_cca.load_run(c.empty),
    r"train the cca model to the end first": lambda c: mm_cca.generate(c.untrained, "a", seed=0),
    r"train the control model to the end first": lambda c: mm_cca.load_run(c.run, source="control"),
    r"source is 'best'; allowed: base, cca, control": lambda c: mm_cca.load_run(
        c.run, source="best"
    ),
    r"source is 'base'; allowed for .*, which is no run: cca": lambda c: mm_cca.load_run(
        c.plain, source="base"
    ),
    r"dtype is 'half'; allowed: float32, bfloat16, float16": lambda c: mm_cca.load_run(
        c.plain, dtype="half"
    ),
    r"holds model_type 'bert': no adapter reads that family": lambda c: mm_cca.load_run(c.bert),
    r"mm_cca\.json can't be read .*export the run again": lambda c: mm_cca.load_run(c.damaged),
    r"prompts is empty": lambda c: mm_cca.generate(c.model, [], seed=0),
    r"prompt 1 is '  '; allowed: a text": lambda c: mm_cca.generate(c.model, ["a", "  "], seed=0),
    r"prompt 0: caption too long: \d+ tokens, but an image of "
    r"\[16, 16\] leaves \d+ of \d+; shorten it": lambda c: mm_cca.generate(
        c.model, "owl " * 9000, seed=0
    ),
    r"seed is -1; allowed: a whole number from 0": lambda c: mm_cca.generate(c.model, "a", seed=-1),
    r"seed is 0\.5; allowed": lambda c: mm_cca.generate(c.model, "a", seed=0.5),
    r"seed is \[0, 1, 2\]; allowed": lambda c: mm_cca.generate(c.model, "a", seed=[0, 1, 2]),
    r"guidance_scale is 0\.5; allowed: 1": lambda c: mm_cca.generate(
        c.model, "a", seed=0, guidance_scale=0.5
    ),
    r"dial is -1; allowed: 0 \(the base\)": lambda c: mm_cca.generate(
        c.model, "a", seed=0, dial=-1
    ),
    r"dial is 0; allowed for .*: 1, as it is a plain checkpoint": lambda c: mm_cca.generate(
        c.plain, "a", seed=0, dial=0
    ),
    r"dial is 0; allowed for .*: 1, as source is 'base'": lambda c: mm_cca.generate(
        mm_cca.load_run(c.run, source="base"), "a", seed=0, dial=0
    ),
    r"num_images is 0; allowed": lambda c: mm_cca.generate(c.model, "a", seed=0, num_images=0),
    r"batch_size is 1\.5; allowed": lambda c: mm_cca.generate(c.model, "a", seed=0, batch_size=1.5),
    r"^image_size is \[18, 16\]; allowed for this checkpoint: multiples of 4": lambda c: (
        mm_cca.generate(c.model, "a", seed=0, image_size=(18, 16))
    ),
    r"image_size is 16; allowed: \(height, width\)": lambda c: mm_cca.generate(
        c.model, "a", seed=0, image_size=16
    ),
    r"image 1 is 24 x 12 pixels \(width x height\); allowed here: 16 x 16": lambda c: mm_cca.encode(
        c.model, [Image.new("RGB", (16, 16)), Image.new("RGB", (24, 12))]
    ),
    r"image 0 can't be read: .*none\.png": lambda c: mm_cca.encode(c.model, "none.png"),
    r"image 0 is a int; allowed: a PIL image": lambda c: mm_cca.encode(c.model, [3]),
    r"images is empty": lambda c: mm_cca.encode(c.model, []),
    r"there are 2 prompts and 1 images": lambda c: mm_cca.logprobs(
        c.model, ["a", "b"], Image.new("RGB", (16, 16))
    ),
    r"codes has the shape \[1, 5\]; allowed for images of 16 x 16 pixels": lambda c: mm_cca.decode(
        c.model, [1, 2, 3, 4, 5]
    ),
    r"codes holds 0 to 99; allowed: 0 to 31": lambda c: mm_cca.decode(c.model, [0] * 15 + [99]),
}


@pytest.fixture(scope="module")
def cases(reported: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("mistakes")
    for name in ("empty", "untrained", "bert", "damaged"):
        (root / name).mkdir()
    run = reported.parent / "run"
    (root / "untrained" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    (root / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (root / "damaged" / "mm_cca.json").write_text('{"adapter": "emu3"}')
    return SimpleNamespace(
        model=mm_cca.load_run(run),
        run=run,
        plain=tiny_folder,
        **{name: root / name for name in ("empty", "untrained", "bert", "damaged")},
    )


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(message: str, cases: SimpleNamespace):
    with pytest.raises(UserError, match=message) as caught:
        MISTAKES[message](cases)
    assert "\n" not in str(caught.value)


def test_importing_is_quick():
    """No torch until something is drawn."""
    code = "import sys, mm_cca; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_exist():
    assert all(getattr(mm_cca, name) is not None for name in mm_cca.__all__)
    assert all("Raises" in getattr(mm_cca, name).__doc__ for name in mm_cca.api.__all__[2:])
