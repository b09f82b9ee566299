"""Runs with images of several sizes: what each part does with them, against one size at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from mm_cca import load_adapter, objectives
from mm_cca.adapters.base import grid_of
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.eval.report.curves import read_buckets, read_signals
from mm_cca.modeling.inputs import right_pad
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.prompts import prompts_of
from mm_cca.training.collate import Collator
from mm_cca.training.losses import loss_of
from mm_cca.training.reference import RefScores
from mm_cca.training.schedule import Pairs
from mm_cca.training.validation import heldout_nll
from tests.support import runs
from tests.support.buckets import SHAPES, SIZES, bucketed_recipe
from tests.support.captions import negatives_of
from tests.support.training import assert_same_training, at, schedule_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run that is trained and sampled; its token cache is beside it."""
    folder = tmp_path_factory.mktemp("buckets")
    path = bucketed_recipe(folder, tiny_folder)
    path.write_text(path.read_text().replace("run:\n", f"run:\n  tokens_dir: {folder}/tokens\n"))
    runs.do(path, stages=["prepare", "train", "sample"])
    return path


def _cache(path: Path, split: str = "train") -> TokenCache:
    return open_cache(RunFolder.of(runs.load_recipe(path)).tokens / split, 1)


def _metrics(path: Path, name: str = "train") -> list[dict]:
    return runs.metrics(path.parent / "run" / name)


def test_every_picture_is_encoded_whole_at_its_size(finished: Path, tiny_folder: Path):
    cache, model = _cache(finished), load_adapter("emu3", str(tiny_folder))
    assert cache.sizes is not None
    assert [tuple(size) for size in cache.sizes.tolist()] == [SIZES[i % 3] for i in range(24)]
    for row in range(3):
        (height, width), (shown_height, shown_width) = SIZES[row], SHAPES[row]
        picture = runs.picture(row).resize((shown_width, shown_height))
        small = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None]
        codes = cache.codes(torch.tensor([row]), torch.tensor([0]))
        assert torch.equal(codes, model.encode(pixels))


def test_a_picture_that_fits_no_bucket_is_a_bad_row(tiny_folder: Path, tmp_path: Path):
    long = {"image": runs.png(runs.picture(3).resize((90, 16))), "caption": "a long owl"}
    path = bucketed_recipe(tmp_path, tiny_folder, long | {"split": "train"})
    with pytest.raises(UserError, match=r"16x90 pixels .* fit no bucket.*data.max_bad=1"):
        runs.do(path, stages=["prepare"])
    bad = runs.json_lines(tmp_path / "run" / "tokens" / "train" / "bad_rows.jsonl")
    assert [line["row"] for line in bad] == [24]
    runs.do(path, "data.max_bad=1", stages=["prepare"])
    assert len(_cache(path)) == 24


def test_a_step_has_one_size_and_says_which(finished: Path):
    sizes, schedule = _cache(finished).sizes, schedule_of(finished)
    assert sizes is not None
    lines = _metrics(finished)
    for step, line in enumerate(lines):
        (size,) = {tuple(size) for size in sizes[schedule.step(step).rows].tolist()}
        assert (line["grid_rows"], line["grid_columns"]) == (size[0] // 4, size[1] // 4)
    assert len({(line["grid_rows"], line["grid_columns"]) for line in lines}) == 3


def test_the_loss_of_mixed_lengths_is_the_sum_of_those_of_one(finished: Path, tiny_folder: Path):
    """The held-out loss of the base, each picture scored alone by a policy of its own size."""
    recipe, cache = runs.load_recipe(finished), _cache(finished, "heldout")
    model = load_adapter("emu3", str(tiny_folder))
    assert cache.sizes is not None
    total, count = 0.0, 0
    for row, size in enumerate(cache.sizes.tolist()):
        grid = grid_of(model, size)
        alone = CodeLogProbs(model, model.layout(grid), whole_vocabulary=False).eval()
        ids = right_pad(model.prompt_ids([cache.captions[row]], grid), model.pad_id)
        codes = cache.codes(torch.tensor([row]), torch.tensor([0]))
        with torch.no_grad():
            total -= float(alone(*ids, codes).logps)
        count += codes.numel()
    mixed = CodeLogProbs(model, model.layout((4, 4)), whole_vocabulary=False)
    collate = Collator(model, cache, recipe.data.image_size, CPU, template=None)
    found = heldout_nll(Accelerator(), mixed, collate, recipe)
    assert found == pytest.approx(total / count, rel=1e-6)


def test_beta_is_that_of_the_codes_of_each_size(finished: Path, tiny_folder: Path):
    recipe, cache = runs.load_recipe(finished), _cache(finished)
    model = load_adapter("emu3", str(tiny_folder))
    collate = Collator(model, cache, recipe.data.image_size, CPU, template=None)
    terms = LossTerms.of(LossConfig(objective="cca", beta=0.02, beta_codes=576, lambda_=3.0))
    for row, num_codes in ((0, 16), (1, 15)):
        none = np.zeros(1, dtype=bool)
        negatives = negatives_of([["blue tree"]])
        batch = collate(Pairs(0, np.array([row]), negatives, np.zeros(1, dtype=int), none))
        assert batch.codes.shape == (2, num_codes)
        logps = torch.tensor([-40.0, -50.0])
        scored, ref = Scored(logps[:, None]), RefScores(torch.tensor([-44.0, -45.0]), None)
        loss, _ = loss_of(terms, batch, scored, ref)
        expected, _ = objectives.cca(
            *(logps[i : i + 1] for i in (0, 1)),
            *(ref.logps[i : i + 1] for i in (0, 1)),
            counts_as_positive=torch.tensor([False]),
            beta=0.02 * 576 / num_codes,
            lambda_=3.0,
        )
        assert float(loss) == pytest.approx(float(expected))


def test_micro_batches_and_a_cached_reference_give_the_same_training(
    finished: Path, tmp_path: Path
):
    path = at(finished, tmp_path)
    runs.do(path, "train.micro_batch_size=4", "train.reference=cached")
    ours, theirs = _metrics(path), _metrics(finished)
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3), ("positive_gap", 1e-3)):
        found = [np.array([line[name] for line in lines], float) for lines in (ours, theirs)]
        assert np.nanmax(np.abs(found[0] - found[1])) <= tolerance, name
    assert [line["grid_rows"] for line in ours] == [line["grid_rows"] for line in theirs]


def test_a_resumed_training_is_bit_for_bit_the_same(finished: Path, tmp_path: Path):
    path, folder = at(finished, tmp_path), tmp_path / "run" / "train"
    shutil.copytree(finished.parent / "run" / "train", folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(record | {"done": False}))
    runs.do(path, stages=["train"])
    assert_same_training(folder, finished.parent / "run" / "train")


def test_one_arm_has_pictures_of_every_size(finished: Path, tiny_folder: Path):
    """Each has the size of its prompt's own picture, and the pixels that it has drawn alone."""
    recipe, model = runs.load_recipe(finished), load_adapter("emu3", str(tiny_folder))
    run = RunFolder.of(recipe)
    lines = {line["index"]: line for line in runs.json_lines(run.samples / "base/manifest.jsonl")}
    seen = set()
    for prompt in prompts_of(recipe, run):
        sizes = _cache(finished, prompt.split).sizes
        assert sizes is not None
        size = tuple(sizes[prompt.row].tolist())
        image = Image.open(next((run.samples / "base").glob(f"{prompt.index:06d}.png")))
        assert image.size[::-1] == size == prompt.size == tuple(lines[prompt.index]["image_size"])
        if size in seen:
            continue
        seen.add(size)
        grid = grid_of(model, size)
        stream = image_stream(recipe.sample.seed, prompt.index, grid[0] * grid[1])[None]
        codes, _ = sample_codes(model, [prompt.caption], grid, stream, SamplingSettings())
        alone = model.decode(codes, grid)[0].permute(1, 2, 0).numpy()
        assert np.abs(alone.astype(int) - np.asarray(image).astype(int)).max() <= 1
    assert seen == set(SIZES)


def test_the_report_tells_the_sizes_apart(finished: Path):
    runs.do(finished, "eval.metrics=[alignment]", stages=["eval", "report"])
    page = (finished.parent / "run" / "report.html").read_text()
    metrics = finished.parent / "run" / "train" / "metrics.jsonl"
    assert "Image sizes of cca" in page
    lines = _metrics(finished)
    found = read_buckets(metrics)
    assert [(one.rows, one.columns) for one in found] == [(3, 5), (4, 4), (5, 3)]
    for one in found:
        own = [line for line in lines if line["grid_rows"] == one.rows]
        assert one.steps == len(own)
        assert one.last["loss"] == pytest.approx(own[-1]["loss"])
        codes = one.rows * one.columns
        assert one.last["negative_gap"] == pytest.approx(own[-1]["negative_gap"] / codes)
        assert f"{one.rows} x {one.columns}</th>" in page
    gaps = read_signals(metrics, 99)["negative_gap"].values
    codes = [line["grid_rows"] * line["grid_columns"] for line in lines]
    assert gaps == pytest.approx([line["negative_gap"] for line in lines] / np.array(codes))


def test_prompts_of_a_file_name_their_size(finished: Path, tmp_path: Path):
    path, prompts = at(finished, tmp_path), tmp_path / "prompts.jsonl"
    rows = [{"text": "a red owl"}, {"text": "a red owl", "height": 20, "width": 12}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["run.sources=[base]", "sample.guidance_scales=[]", f"sample.prompts={prompts}"]
    keys += ["eval.metrics=[alignment]", "run.stages=[sample]"]
    runs.do(path, *keys, stages=["sample"])
    pictures = sorted((tmp_path / "run" / "samples" / "base").glob("*.png"))
    assert [Image.open(file).size for file in pictures] == [(16, 16), (12, 20)]
    rows[1]["width"] = 20
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"sizes of sample.prompts"):
        runs.do(path, *keys, stages=["sample"])
    with pytest.raises(UserError, match=r"wants an image of 20x20 pixels .*16x16, 12x20, 20x12"):
        runs.do(path, *keys, f"run.dir={tmp_path / 'other'}", stages=["sample"])
    rows[1]["width"] = "wide"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="prompt 2 has height 20 and width 'wide'"):
        runs.do(path, *keys, f"run.dir={tmp_path / 'other'}", stages=["sample"])


def test_a_size_with_too_few_images_for_a_step(finished: Path, tmp_path: Path):
    path = at(finished, tmp_path)
    told = r"3 of 3 sizes of data.buckets have fewer images than train.batch_size \(10\)"
    with pytest.raises(UserError, match=told):
        runs.do(path, "train.batch_size=10", stages=["train"])


def test_sizes_with_few_images_may_be_left_out(finished: Path, tmp_path: Path, tiny_folder: Path):
    """16 held-out pictures: 6, 5 and 5 of each size."""
    path = at(finished, tmp_path)
    keys = ["data.train_split=heldout", "data.heldout_split=null", "train.batch_size=6"]
    with pytest.raises(UserError, match=r"2 of 3 sizes .* data.max_bad=10"):
        runs.do(path, *keys, stages=["train"])
    runs.do(path, *keys, "data.max_bad=10", stages=["train"])
    left_out = runs.json_lines(tmp_path / "run" / "train" / "negatives" / "left_out.jsonl")
    assert len(left_out) == 10
    assert {line["problem"] for line in left_out} == {"its size has fewer images than a batch"}
    assert {line["grid_rows"] for line in _metrics(path)} == {4}
