"""Two real processes do what one does: same training, same images, same scores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mm_cca.errors import UserError
from mm_cca.training.accelerator import refuse_zero3
from tests.support import runs
from tests.support.buckets import bucketed_recipe
from tests.support.closeness import assert_close


def _recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    data = runs.two_splits(tmp_path / "data.parquet")
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["data"]["heldout_split"] = "heldout"
    values["train"].update(micro_batch_size=2, control=True, eval_every=2)
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Emu3DecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What the launch line of emu3-gen-full sets."""


def _launch(*words: str, processes: int = 2, program: str = "mm_cca.cli", **environment: str):
    """``mm-cca WORDS`` under PyTorch's launcher, as ``accelerate launch`` does; one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    launcher += ["--nproc_per_node", str(processes), "-m"]
    return subprocess.run(
        [*launcher, program, *words],
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _scores(folder: Path) -> dict[str, Any]:
    arms = json.loads((folder / "eval" / "summary.json").read_text())["arms"]
    return {arm["name"]: arm["scores"]["emoji-clip"] for arm in arms}


def test_two_ranks_give_the_run_of_one(tmp_path: Path, tiny_folder: Path):
    recipe = _recipe(tmp_path, tiny_folder)
    for processes, name in ((1, "one"), (2, "two")):
        done = _launch("run", str(recipe), f"run.dir={tmp_path / name}", processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    for part in ("train", "control"):
        for mine, theirs in zip(runs.metrics(one / part), runs.metrics(two / part), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
    pictures = {n: x for n, x in runs.files_of(one / "samples").items() if n.endswith(".png")}
    others = runs.files_of(two / "samples")
    differing = [name for name, content in pictures.items() if others[name] != content]
    assert pictures
    assert not differing
    assert _scores(one) == _scores(two)


@pytest.mark.parametrize(
    "keys",
    [
        ["loss.objective=cca + distill", "train.tuning=lora", "train.reference=lora"],
        ["loss.num_negatives=2", "train.reference=cached", "train.ema=0.5"],
    ],
)
def test_two_ranks_train_the_same_with_every_part_of_the_loss(
    tmp_path: Path, tiny_folder: Path, keys: list[str]
):
    """Text rows, a teacher, several negatives; each rank fills its block of a reference cache.

    With train.ema the held-out loss is that of the average.
    """
    recipe = _recipe(tmp_path, tiny_folder)
    keys = [*keys, "loss.text_weight=0.1", "run.stages=[prepare,train]", "train.control=false"]
    for processes, name in ((1, "one"), (2, "two")):
        words = ["run", str(recipe), *keys, f"run.dir={tmp_path / name}"]
        done = _launch(*words, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    lines = [runs.metrics(tmp_path / name / "train") for name in ("one", "two")]
    for mine, theirs in zip(*lines, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert lines[0][-1]["text_nll"] > 0


def test_two_ranks_train_and_draw_the_same_with_buckets(tmp_path: Path, tiny_folder: Path):
    """Both ranks have images of the step's size, and each draws pictures of several."""
    recipe = bucketed_recipe(tmp_path, tiny_folder)
    keys = ["run.stages=[prepare,train,sample]", "train.max_steps=5"]
    for processes, name in ((1, "one"), (2, "two")):
        words = ["run", str(recipe), *keys, f"run.dir={tmp_path / name}"]
        done = _launch(*words, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "one", tmp_path / "two"
    for mine, theirs in zip(runs.metrics(one / "train"), runs.metrics(two / "train"), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    pictures = {n: x for n, x in runs.files_of(one / "samples").items() if n.endswith(".png")}
    others = runs.files_of(two / "samples")
    base = [name for name in pictures if name.startswith("base/")]
    assert base
    assert [name for name in base if others[name] != pictures[name]] == []


def test_scoring_on_two_ranks_gives_the_bits_of_one(tmp_path: Path, tiny_folder: Path):
    """Features are extracted in batches of 3, so both ranks have some; a bad image ends both."""
    recipe = _recipe(tmp_path, tiny_folder)
    keys = ["run.sources=[base]", "run.stages=[prepare,sample,eval]", "eval.batch_size=3"]
    metrics = "alignment,r_at_1,r_at_5,frechet_distance,kernel_distance,precision,recall,cmmd"
    keys.append(f"eval.metrics=[{metrics}]")
    one, two = tmp_path / "one", tmp_path / "two"
    runs.do(recipe, f"run.dir={one}", *keys, stages=["prepare", "sample"])
    shutil.copytree(one, two)
    for processes, folder in ((1, one), (2, two)):
        done = _launch("eval", str(recipe), f"run.dir={folder}", *keys, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((folder / "eval" / "summary.json").read_text()) for folder in (one, two)]
    scores = _scores(one)
    assert set(scores["base"]["train"]) == set(metrics.split(","))
    values = [
        abs(a["value"] - _scores(two)[arm][split][name]["value"])
        for arm, splits in scores.items()
        for split, by_name in splits.items()
        for name, a in by_name.items()
    ]
    print(f"1 and 2 ranks: max difference {max(values):.3g}, mean {sum(values) / len(values):.3g}")
    assert found[0] == found[1]
    shutil.rmtree(two / "eval")
    (two / "samples" / "base" / "000001.png").write_bytes(b"truncated")
    done = _launch("eval", str(recipe), f"run.dir={two}", *keys)
    assert done.returncode != 0
    assert done.stderr.count("base: 1 of 12 images can't be used: 000001.png was changed") == 2


def test_a_users_mistake_ends_all_ranks(tmp_path: Path, tiny_folder: Path):
    recipe = _recipe(tmp_path, tiny_folder)
    done = _launch("run", str(recipe), "train.batch_size=6")
    assert done.returncode != 0
    assert "train.batch_size is 6; with 2 process(es)" in done.stderr


LORA = ["train.tuning=lora", "train.reference=lora", "train.learning_rate=1e-2"]


@pytest.mark.parametrize(
    ("dtype", "precision", "tuning"),
    [
        ("float32", "no", []),
        ("bfloat16", "bf16", LORA),
    ],
)
def test_weights_spread_by_fsdp2_train_the_same(
    tmp_path: Path, tiny_folder: Path, dtype: str, precision: str, tuning: list[str]
):
    """A training whose model is written whole, and that resumes from sharded checkpoints.

    In bfloat16 the log-probabilities must still leave the model in float32, and the gaps start at
    exactly 0. FSDP trains float32 copies of the weights; a LoRA in float32 lies over a base in
    bfloat16, whose shards stay so.
    """
    recipe = _recipe(tmp_path, tiny_folder)
    keys = [
        "run.stages=[prepare,train]",
        "train.control=false",
        "train.gradient_checkpointing=true",
        f"model.dtype={dtype}",
        f"train.mixed_precision={precision}",
        *tuning,
    ]
    words = ["run", str(recipe), *keys, f"run.dir={tmp_path / 'two'}"]
    done = _launch(*words, program="tests.support.fsdp_on_cpu", **FSDP2)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = tmp_path / "one" / "train", tmp_path / "two" / "train"
    first = runs.metrics(two)
    file = "adapter_model.safetensors" if tuning else "model.safetensors"
    assert first[0]["positive_gap"] == first[0]["negative_gap"] == 0
    assert first[1]["positive_gap"] != 0
    if dtype == "float32" or tuning:  # one process refuses to train weights in bfloat16
        runs.do(recipe, *keys, f"run.dir={tmp_path / 'one'}")
        for mine, theirs in zip(runs.metrics(one), first, strict=True):
            numbers = [key for key, value in mine.items() if value is not None]
            found = pytest.approx([theirs[key] for key in numbers], abs=1e-3)
            assert [mine[key] for key in numbers] == found
        _assert_same_weights(one / "model" / file, two / "model" / file)
    written = load_file(two / "model" / file)

    (newest,) = two.glob("checkpoints/step-00000004")
    assert list(newest.glob("pytorch_model_fsdp_0/*.distcp"))
    _forget_the_last_step(two)
    done = _launch(*words, program="tests.support.fsdp_on_cpu", **FSDP2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert runs.metrics(two) == first
    again = load_file(two / "model" / file)
    assert all(torch.equal(value, again[name]) for name, value in written.items())


def test_sharded_weights_are_not_averaged(tmp_path: Path, tiny_folder: Path):
    recipe = _recipe(tmp_path, tiny_folder)
    words = ["run", str(recipe), "train.ema=0.9", "train.control=false"]
    done = _launch(*words, program="tests.support.fsdp_on_cpu", **FSDP2)
    assert done.returncode != 0
    assert "train.ema is 0.9 with FSDP" in done.stderr


def test_the_main_rank_draws_previews_and_the_training_is_the_same(
    tmp_path: Path, tiny_folder: Path
):
    """Bit for bit; weights that are spread over ranks are refused before the first step."""
    recipe = _recipe(tmp_path, tiny_folder)
    keys = ["run.stages=[prepare,train]", "train.control=false", "train.max_steps=3"]
    for name, every in (("on", "1"), ("off", "null")):
        words = ["run", str(recipe), *keys, f"sample.every={every}", f"run.dir={tmp_path / name}"]
        done = _launch(*words)
        assert done.returncode == 0, done.stderr[-3000:]
    on, off = (tmp_path / name / "train" for name in ("on", "off"))
    assert runs.metrics(on) == runs.metrics(off)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (on, off))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    sheets = sorted(path.name for path in on.glob("previews/*.png"))
    assert sheets == [f"step-{step:06d}.png" for step in range(4)]
    words = ["run", str(recipe), *keys, "sample.every=1", f"run.dir={tmp_path / 'sharded'}"]
    done = _launch(*words, program="tests.support.fsdp_on_cpu", **FSDP2)
    assert done.returncode != 0
    assert "sample.every is 1 with FSDP, whose weights the sampler" in done.stderr
    assert not (tmp_path / "sharded").exists(), "images were encoded before it was refused"


ZERO2 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "DS_ACCELERATOR": "cpu",
}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_deepspeed_zero2_trains_the_same(tmp_path: Path, tiny_folder: Path, precision: str):
    """In float32 as one process does; in bfloat16 a resumed run is the uninterrupted one."""
    recipe = _recipe(tmp_path, tiny_folder)
    dtype = "float32" if precision == "no" else "bfloat16"
    keys = ["run.stages=[prepare,train]", "train.control=false", "train.batch_size=8"]
    keys += [f"model.dtype={dtype}", f"train.mixed_precision={precision}"]
    two = tmp_path / "two" / "train"
    words = ["run", str(recipe), *keys, f"run.dir={two.parent}"]
    done = _launch(*words, program="tests.support.deepspeed_on_cpu", **ZERO2)
    assert done.returncode == 0, done.stderr[-3000:]
    first = runs.metrics(two)
    assert first[0]["positive_gap"] == first[0]["negative_gap"] == 0
    if precision == "no":
        runs.do(recipe, *keys, f"run.dir={tmp_path / 'one'}")
        for mine, theirs in zip(runs.metrics(tmp_path / "one" / "train"), first, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        return
    written = load_file(two / "model" / "model.safetensors")
    _forget_the_last_step(two)
    done = _launch(*words, program="tests.support.deepspeed_on_cpu", **ZERO2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert runs.metrics(two) == first
    again = load_file(two / "model" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in written.items())


def _forget_the_last_step(folder: Path) -> None:
    """As if the training had been killed during its last step."""
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    shutil.rmtree(folder / "model")
    stage = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(stage | {"done": False}))


def test_deepspeed_must_not_shard_the_weights():
    refuse_zero3(2)
    with pytest.raises(UserError, match="stage is 3; allowed: 1 or 2"):
        refuse_zero3(3)


def _assert_same_weights(one: Path, two: Path) -> None:
    mine, theirs = load_file(one), load_file(two)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype
        assert_close(value.float(), theirs[name].float(), 1e-5)


def test_two_ranks_measure_one_beta(tmp_path: Path, tiny_folder: Path):
    """``loss.beta: auto``: the number of one process, and the same training with it."""
    data = runs.two_splits(tmp_path / "data.parquet", train=36, heldout=4)
    values = runs.tiny_recipe(tmp_path, tiny_folder, data)
    values["loss"]["beta"] = "auto"
    values["train"].update(micro_batch_size=2, max_steps=2)
    recipe = runs.write_recipe(tmp_path / "recipe.yaml", values)
    found = {}
    for processes, name in ((1, "one"), (2, "two")):
        words = [str(recipe), "run.stages=[prepare,train]", f"run.dir={tmp_path / name}"]
        done = _launch("run", *words, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("loss.beta=auto: log p(x|c) is") == 1
        found[name] = json.loads((tmp_path / name / "train" / "beta.json").read_text())["beta"]
    assert found["two"] == pytest.approx(found["one"], rel=1e-4)
    losses = [[line["loss"] for line in runs.metrics(tmp_path / n / "train")] for n in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
