"""The plan of a training: within 10 % of what a real step takes, part by part where it is exact."""

from pathlib import Path

import pytest
import torch

from mm_cca import cli
from mm_cca.adapters.quantization import blocks_of
from mm_cca.errors import UserError
from mm_cca.modeling.lora import attach_lora
from mm_cca.testing.tiny import write_tiny
from mm_cca.training.plan import Plan
from mm_cca.training.plan_text import CONTEXT, GPUS, Gpu, fits, plan_text
from mm_cca.training.simulated_step import quantized_bytes
from tests import bench_plan
from tests.support import random_shapes as shapes
from tests.support import runs

SMALL = shapes.Decoder(192, 512, 4, 4, 4)
KEYS = ["data.image_size=[64, 64]"]


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize("case", bench_plan.CASES)
def test_within_a_tenth_of_what_a_step_takes(
    monkeypatch: pytest.MonkeyPatch, case: str, checkpointing: str
):
    """Every allocation of a real step on a CPU is counted, and what there was before it."""
    monkeypatch.setattr(bench_plan, "MIDDLE", SMALL)
    more = [f"train.gradient_checkpointing={checkpointing}", *KEYS]
    keys = [*bench_plan.CASES[case], *more]
    planned = bench_plan.RealTraining(keys).plan().total
    before = bench_plan.storages(bench_plan.all_tensors())
    peak = bench_plan.live_peak(keys) - before
    assert planned == pytest.approx(peak, rel=0.1), planned / peak


def small_plan(monkeypatch: pytest.MonkeyPatch, *keys: str) -> Plan:
    monkeypatch.setattr(bench_plan, "MIDDLE", SMALL)
    return bench_plan.RealTraining([*keys, *KEYS]).plan()


def test_parts_that_follow_from_shapes(monkeypatch: pytest.MonkeyPatch):
    """A LoRA of rank 32 on 7 layers of 4 blocks, counted by hand."""
    plan = small_plan(monkeypatch, *bench_plan.LORA)
    tuned = 4 * 32 * (4 * (192 + 192) + 3 * (192 + 512))
    assert plan.trained == tuned
    assert plan.memory["LoRA"] == 4 * tuned
    assert plan.memory["optimizer"] == 8 * tuned
    assert "reference" not in plan.memory
    # A prompt of 48 tokens with a caption of one, now of 77, padded to a multiple of 8; 8 rows of 8
    # codes and their ends.
    assert plan.tokens_per_row == 128 + 8 * 9 - 1
    assert plan.pairs == 500 * 2
    full = small_plan(monkeypatch, *bench_plan.FULL, "train.ema=0.9")
    assert full.memory["moving average"] == 4 * full.trained
    assert full.memory["optimizer"] == 8 * full.trained


def test_the_policy_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_plan, "MIDDLE", SMALL)
    training = bench_plan.RealTraining([*bench_plan.LORA, *KEYS])
    before = {n: p.clone() for n, p in training.policy.named_parameters()}
    training.plan()
    assert all(torch.equal(p, before[n]) for n, p in training.policy.named_parameters())
    assert all(p.grad is None for p in training.policy.parameters())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_are_counted_as_bitsandbytes_keeps_them(kind: str):
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layer = (
        Linear4bit(512, 384, bias=False, quant_type="nf4", compress_statistics=True)
        if kind == "nf4"
        else Linear8bitLt(512, 384, bias=False, has_fp16_weights=False)
    )
    weight = layer.to("cpu").weight
    kept = weight.numel() * weight.element_size()
    if kind == "nf4":
        state = weight.quant_state
        kept += state.absmax.numel() + 4 * state.state2.absmax.numel()
    else:
        kept += 4 * weight.SCB.numel()
    assert kept == quantized_bytes(384, 512, kind)


def test_switches_move_what_they_say(monkeypatch: pytest.MonkeyPatch):
    lora = small_plan(monkeypatch, *bench_plan.LORA, "train.gradient_checkpointing=false")
    less = small_plan(monkeypatch, *bench_plan.LORA, "train.gradient_checkpointing=true")
    assert less.memory["activations"] < lora.memory["activations"] / 1.5
    assert less.flops > lora.flops * 1.2
    quantised = small_plan(monkeypatch, *bench_plan.LORA, "model.quantization=nf4")
    assert quantised.memory["weights"] < lora.memory["weights"]
    eight = small_plan(monkeypatch, *bench_plan.LORA, "train.optimizer=adamw_8bit")
    assert eight.memory["optimizer"] < lora.memory["optimizer"] / 3.5


def test_operations_are_those_of_the_matrices(monkeypatch: pytest.MonkeyPatch):
    """Plain fine-tuning of all weights: 6 for every weight and token, and the attention's."""
    keys = ["loss.objective=nll", "train.max_steps=1", "train.gradient_checkpointing=false"]
    plan = small_plan(monkeypatch, *bench_plan.FULL, *keys)
    inside = 4 * (4 * 192**2 + 3 * 192 * 512)
    rows, length, codes, head = 2, 128 + 8 * 9 - 2, 64, bench_plan.CODES
    matrices = 6 * inside * rows * length
    # the head's logits are computed again in the backward pass
    logits = (2 + 2 + 4) * rows * codes * 192 * head
    # two products forward, five backward
    attention = 4 * (2 + 5) * 2 * rows * length**2 * 192
    assert plan.flops == pytest.approx(matrices + logits + attention, rel=0.05)


@pytest.mark.parametrize(
    ("text", "gigabytes", "name"),
    [("24", 24, "24 GB"), ("24GB", 24, "24 GB"), ("4090", 24, "4090"), ("rtx 4090", 24, "4090"),
     ("a100-80", 80, "A100-80"), ("11.5", 11.5, "11.5 GB")],
)  # fmt: skip
def test_gpus_by_size_or_name(text: str, gigabytes: float, name: str):
    gpu = Gpu.of(text)
    assert (gpu.gigabytes, gpu.name) == (gigabytes, name)


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "GTX 9999", "", "24 24"])
def test_other_gpus_are_refused(text: str):
    with pytest.raises(UserError, match=r"--gpu is .*; allowed: its memory in GB, above 0, such"):
        Gpu.of(text)


def plan_with(total: int) -> Plan:
    return Plan({"weights": total}, {"model": 1}, 1, 1, 1, 1, 10**18, True)


def test_what_fits_leaves_room_for_cuda():
    gpu = Gpu.of("24")
    assert fits(plan_with(int((24 - CONTEXT) * 1e9)), gpu)
    too_much = plan_with(int((24 - CONTEXT + 0.2) * 1e9))
    assert not fits(too_much, gpu)
    assert "does not fit in 24 GB" in plan_text(too_much, gpu)
    assert "0.2 GB too much" in plan_text(too_much, gpu)
    assert "fits in 24 GB of a 4090" in plan_text(plan_with(10**9), Gpu.of("4090"))


def test_hours_are_at_the_assumed_share():
    _, teraflops = GPUS["H100"]
    assert Gpu.of("H100").hours(10**18) == pytest.approx(1e18 / (0.4 * teraflops * 1e12) / 3600)
    text = plan_text(plan_with(1), Gpu.of("16"))
    assert "about 2.2 hours on one A100-80 at an assumed 40% of its peak" in text


def test_the_command_reads_headers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tiny("janus", tmp_path / "tiny", side=4)
    words = ["janus-pro-7b-lora", "data.path=none", "data.image_size=[64,64]"]
    tiny = f"model.path={tmp_path / 'tiny'}"
    assert cli.main(["plan", *words, tiny, "--gpu", "4090"]) == 0
    told = capsys.readouterr().out
    for part in ("weights", "LoRA", "optimizer", "gradients", "activations", "together"):
        assert f"\n  {part}" in told
    assert "captions of 77 tokens assumed" in told
    for switch in ("train.gradient_checkpointing=false", "train.micro_batch_size=1",
                   "train.optimizer=adamw_8bit", "model.quantization=nf4"):  # fmt: skip
        assert switch in told.split("each switch alone:")[1]
    assert cli.main(["plan", *words, tiny, "--gpu", "-3"]) == 2
    assert "--gpu is '-3'" in capsys.readouterr().err
    assert cli.main(["plan", *words, f"model.path={tmp_path / 'absent'}"]) == 2
    assert "can't be planned with" in capsys.readouterr().err


def test_a_training_begins_with_its_plan(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    keys = ["train.tuning=lora", "train.lora_dropout=0.5", "train.reference=lora"]
    runs.do(recipe, *keys, "run.dir=" + str(recipe.parent / "quiet"))
    assert "plan of the training" not in capsys.readouterr().err
    monkeypatch.setattr("mm_cca.training.setup.WORTH_A_PLAN", 0)
    runs.do(recipe, *keys)
    told = capsys.readouterr().err
    assert "plan of the training" in told
    assert "assumed: prepare" not in told
    planned, quiet = (runs.metrics(recipe.parent / name / "train") for name in ("run", "quiet"))
    assert planned == quiet, "a plan changes no random number"


def test_a_model_that_can_not_be_planned_trains(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def depends_on_numbers(*_: object) -> Plan:
        raise RuntimeError("a number is needed\nmore")

    monkeypatch.setattr("mm_cca.training.setup.WORTH_A_PLAN", 0)
    monkeypatch.setattr("mm_cca.training.setup.plan_of", depends_on_numbers)
    runs.do(recipe, "train.max_steps=1")
    told = capsys.readouterr().err
    assert "no plan of the training: RuntimeError: a number is needed" in told


def test_blocks_are_found_under_a_lora(tiny_model):
    attach_lora(tiny_model, rank=2, alpha=4)
    assert len(list(blocks_of(tiny_model._model).children())) == 2
