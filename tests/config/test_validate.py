"""Invalid values, and valid ones at the edge of every key's range."""

from pathlib import Path

import pytest

from mm_cca.config.shipped import ADAPTERS
from tests.support import runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return runs.unread_recipe(tmp_path)


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("run.stages=[prepare, dance]", "prepare, train, sample, eval, report"),
        ("data.image_size=[16, 0]", "[height, width]"),
        ("data.image_size=[]", "[height, width]"),
        ("data.variants=0", "1 to "),
        ("data.max_zoom=0.5", "1 to "),
        ("data.max_shift=1", "at least 0 and below 1"),
        ("data.max_shift=-0.1", "at least 0 and below 1"),
        ("data.max_bad=-1", "0 to "),
        ("data.encode_batch_size=0", "1 to "),
        ("data.rows_per_shard=0", "1 to "),
        ("model.adapter=show-o", f"{', '.join(ADAPTERS)}, or package.module:Class"),
        ("model.dtype=float8", "float32, bfloat16, float16"),
        ("loss.objective=dpoo", "cca, cca_code, nll, dpo"),
        ("loss.objective=cca + -1 nll", "cca, cca_code, nll, dpo"),
        ("loss.negatives=0.5 shuffle + 0.4 hard", "weights that sum to 1; these sum to 0.9"),
        ("loss.negatives=swap", "shuffle, hard, edit"),
        ("loss.num_negatives=0", "1 to "),
        ("loss.max_similarity=1.5", "above 0 and at most 1, or null"),
        ("loss.negatives_embedding=bert", "tfidf, sentence-transformers:NAME_OR_FOLDER"),
        ("loss.distill_scale=1", "above 1"),
        ("loss.gap_floor=1", "0 or less, or null"),
        ("loss.scale_by_relevance=0", "above 0"),
        ("loss.scale_by_relevance=1", "null with loss.objective=cca: only cca_code uses it"),
        ("loss.ddo_images=0", "1 to "),
        ("loss.text_weight=-1", "0 to "),
        ("loss.lambda_=.inf", "0 to "),
        ("sample.dial=.inf", "0 to 100, but not 1"),
        ("sample.temperatures=[0.9, 0]", "above 0 and at most 100, but not sample.temperature"),
        ("sample.temperatures=[0.9, 0.9]", "all values different"),
        ("eval.text_nll=no.txt", "null, or a file that ends in"),
        ("data.text_path=no.txt", "null, or a file that ends in"),
        ("eval.attributes=flavour", "colour, hair"),
        ("data.attribute_words=no.yaml", "a YAML file of word lists"),
        ("run.sources=ours", "base, cca, control"),
        ("loss.beta=0", "above 0"),
        ("loss.beta_codes=0", "1 to "),
        ("loss.lambda_=-1", "0 to "),
        ("loss.uncond_ratio=1", "at least 0 and below 1"),
        ("loss.negatives=hardest", "shuffle"),
        ("train.seed=-1", "0 to "),
        ("train.max_steps=0", "1 to "),
        ("train.ema=0", "above 0 and below 1, or null"),
        ("train.ema=1", "above 0 and below 1, or null"),
        ("train.micro_batch_size=0", "1 to "),
        ("train.batch_size=6", "a multiple of train.micro_batch_size (4)"),
        ("train.batch_size=0", "a multiple of train.micro_batch_size times the number of ranks"),
        ("train.learning_rate=0", "above 0"),
        ("train.schedule=linear", "cosine, constant"),
        ("train.warmup_steps=-1", "0 to "),
        ("train.weight_decay=-0.1", "0 to "),
        ("train.max_grad_norm=0", "above 0"),
        ("train.mixed_precision=fp8", "no, bf16, fp16"),
        ("train.tuning=prefix", "full, lora"),
        (
            "train.reference=lora",
            "copy, cached (computed once by prepare), or lora when train.tuning is lora",
        ),
        ("train.reference=ema", "copy, cached"),
        ("train.lora_rank=0", "1 to "),
        ("train.save_every=0", "1 to "),
        ("train.keep_checkpoints=0", "1 to "),
        ("train.eval_every=-1", "0 to "),
        ("train.keep=first", "last, best"),
        ("train.keep=best", "last, or best with train.eval_every > 0 and a data.heldout_split"),
        ("train.trackers=[mlflow]", "tensorboard, wandb, trackio"),
        ("sample.num_images=3", "4 to "),
        ("sample.guidance_scales=[1.0]", "above 1"),
        ("sample.control_scales=[0.5]", "above 1"),
        ("sample.cca_scales=[2, 1]", "above 1"),
        ("sample.dial=[0.5, 1]", "0 to 100, but not 1, which is the arm cca"),
        ("sample.dial=[-0.5]", "0 to 100, but not 1"),
        ("sample.dial=[0.5, 0.50000001]", "all values different"),
        ("sample.guidance_scales=[2, 3, 2.0]", "all values different"),
        ("sample.control_scales=[2, 2]", "all values different"),
        ("sample.cca_scales=[2, 2]", "all values different"),
        ("sample.negative_prompts=[blurry, blurry]", "all values different"),
        ("sample.negative_prompts=[]", "one or more texts"),
        ("sample.temperature=0", "above 0"),
        ("sample.top_k=0", "1 to "),
        ("sample.top_p=0", "above 0 and at most 1, or null"),
        ("sample.top_p=1.1", "above 0 and at most 1, or null"),
        ("sample.batch_size=0", "1 to "),
        ("sample.every=0", "1 to 1,000,000,000, or auto, or null"),
        ("sample.every=-5", "1 to "),
        ("sample.every=often", "1 to 1,000,000,000, or auto, or null"),
        ("sample.preview_prompts=[' ']", "texts that are not empty"),
        ("sample.num_previews=0", "1 to "),
        ("eval.bootstrap_samples=99", "100 to "),
        ("eval.grid_prompts=0", "1 to "),
    ],
)
def test_value_out_of_range(path: Path, override: str, allowed: str):
    key = override.split("=", maxsplit=1)[0]
    message = runs.message_of(path, override)
    assert f"  - {key} is " in message
    assert f"allowed: {allowed}" in message


@pytest.mark.parametrize(
    "override",
    [
        "data.max_shift=0.99",
        "loss.uncond_ratio=0",
        "loss.lambda_=0",
        "loss.beta_codes=null",
        "sample.top_p=1",
        "sample.top_k=1",
        "model.adapter=some.module:Class",
        "sample.guidance_scales=[]",
        "sample.every=1",
        "sample.every=auto",
        "sample.every=null",
        "sample.dial=[0, 1.5]",
        "sample.negative_prompts=['', blurry]",
        "train.batch_size=8",
        "data.max_zoom=1",
    ],
)
def test_value_at_the_edge_is_accepted(path: Path, override: str):
    runs.load_recipe(path, override)


def test_a_floor_without_cca(path: Path):
    for objective in ("dpo", "cca_code", "nll"):
        message = runs.message_of(path, "loss.gap_floor=-2", f"loss.objective={objective}")
        assert f"allowed: null with loss.objective={objective}: only cca uses it" in message
    runs.load_recipe(path, "loss.gap_floor=-2", "loss.objective=0.5 cca + nll")


def test_auto_beta_needs_negative_captions(path: Path):
    message = runs.message_of(path, "loss.beta=auto", "loss.objective=ddo")
    assert "loss.beta is 'auto'; allowed: a number with loss.objective=ddo" in message
    runs.load_recipe(path, "loss.beta=auto", "loss.objective=cca + ddo")
    runs.load_recipe(path, "loss.beta=auto", "loss.objective=cca_code")


def test_a_bare_value_of_a_list_is_still_checked(path: Path):
    assert "data.image_size is [16]; allowed: [height, width]" in runs.message_of(
        path, "data.image_size=16"
    )
    assert "sample.dial is 'much': " in runs.message_of(path, "sample.dial=much")
    assert "sample.dial is None: " in runs.message_of(path, "sample.dial=null")


def test_keys_that_allow_each_other(path: Path):
    runs.load_recipe(path, "train.tuning=lora", "train.reference=lora")
    runs.load_recipe(path, "train.keep=best", "train.eval_every=2")
    message = runs.message_of(
        path, "train.keep=best", "train.eval_every=2", "data.heldout_split=null"
    )
    assert "data.heldout_split" in message


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("emoji-tokenizer", "tokenizer.num_codes=1"),
        ("emoji-tokenizer", "tokenizer.steps=0"),
        ("emoji-tokenizer", "data.image_size=[30, 32]"),
        ("emoji-tokenizer", "tokenizer.mixed_precision=fp8"),
        ("emoji-scorer", "scorer.steps=0"),
        ("emoji-scorer", "scorer.batch_size=1"),
        ("emoji-scorer", "scorer.mixed_precision=fp8"),
    ],
)
def test_mistake_in_a_demo_job(name: str, override: str):
    assert f"  - {override.split('=', maxsplit=1)[0]} is " in runs.message_of(name, override)


def test_a_key_of_another_job():
    assert "  - unknown key train.seed" in runs.message_of("emoji-scorer", "train.seed=1")


def test_held_out_captions_need_a_held_out_split(path: Path):
    message = runs.message_of(path, "eval.text_nll=captions", "data.heldout_split=null")
    assert "null, a text file, or captions if data.heldout_split is set" in message


def test_a_temperature_that_is_already_that_of_every_arm(path: Path):
    shown = runs.message_of(path, "sample.temperature=0.9", "sample.temperatures=[0.9, 1.1]")
    assert "sample.temperatures is 0.9; allowed: not 0.9, which is sample.temperature" in shown
    assert "is 1.1" not in shown
