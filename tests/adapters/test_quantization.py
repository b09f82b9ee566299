"""model.quantization: every family in 4 and 8 bits, its LoRA, and what is refused."""

from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import PeftModel
from torch import nn

from mm_cca import load_adapter
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.adapters.headers import headers_only
from mm_cca.adapters.quantization import dequantize
from mm_cca.config.shipped import ADAPTERS
from mm_cca.errors import UserError
from mm_cca.modeling.inputs import left_pad
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora, without_lora
from tests.support.third_party import THIRD_PARTY, checkpoint_paths

KINDS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")


def loaded(folders: Path, name: str, kind: str | None) -> UnifiedModel:
    paths = checkpoint_paths(folders, name)
    model = load_adapter(name, **paths, quantization=kind)  # type: ignore[arg-type]
    model.module.eval()
    return model


def policy_of(model: UnifiedModel, name: str) -> CodeLogProbs:
    size = [32, 32] if name == "emu3" else [64, 64]
    layout = model.layout(grid_of(model, size))
    return CodeLogProbs(model, layout, whole_vocabulary=False)


def logps(policy: CodeLogProbs, name: str) -> torch.Tensor:
    """[3] of random images; ``policy`` stays in its mode."""
    model = policy.model
    grid = grid_of(model, [32, 32] if name == "emu3" else [64, 64])
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(
        model.codebook_size, (3, model.layout(grid).num_codes), generator=generator
    )
    prompts = left_pad(model.prompt_ids(["a red owl", "owl", "a hand"], grid), model.pad_id)
    return policy(*prompts, codes).logps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*ADAPTERS, THIRD_PARTY])
def test_every_family_trains_a_lora_on_its_quantised_blocks(folders: Path, name: str, kind: str):
    model = loaded(folders, name, kind)
    linear = {n: x for n, x in model.module.named_modules() if isinstance(x, nn.Linear)}
    quantised = {n for n, x in linear.items() if type(x).__name__ == KINDS[kind]}
    assert quantised == {n for n in linear if n in quantised or type(linear[n]) is not nn.Linear}
    plain = loaded(folders, name, None)
    blocks = {id(x) for x in plain._decoder.layers.modules()}  # type: ignore[attr-defined]
    named = plain.module.named_modules()
    assert quantised == {n for n, x in named if isinstance(x, nn.Linear) and id(x) in blocks}
    assert not any(n.endswith(tuple(quantised)) for part in model.frozen()
                   for n, _ in part.named_modules())  # fmt: skip
    policy = policy_of(model, name)
    with torch.no_grad():
        base, unquantised = logps(policy, name), logps(policy_of(plain, name), name)
    assert not torch.equal(base, unquantised)
    assert torch.allclose(base, unquantised, rtol=0.3), (base, unquantised)

    attach_lora(model, rank=4, alpha=8)
    assert isinstance(model.module, PeftModel)
    policy = policy_of(model, name).train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    before = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = -logps(policy, name).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], losses
    now = dict(policy.named_parameters())
    assert all(torch.equal(value, now[n]) for n, value in before.items())
    policy.eval()
    with torch.no_grad(), without_lora(model.module):
        off = logps(policy, name)
    assert torch.equal(off, base), "the reference is the model with its LoRA switched off"


@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_layers_compute_the_same(folders: Path, kind: str):
    """What an export is merged from; in 8 bits activations are rounded too."""
    model = loaded(folders, "emu3", kind)
    with torch.no_grad():
        before = logps(policy_of(model, "emu3"), "emu3")
        dequantize(model.module, torch.float32)
        after = logps(policy_of(model, "emu3"), "emu3")
    assert {type(x) for x in model.module.modules() if isinstance(x, nn.Linear)} == {nn.Linear}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert torch.allclose(before, after, rtol=1e-5 if kind == "nf4" else 2e-2)


def test_headers_are_read_without_quantising(folders: Path):
    with headers_only():
        model = loaded(folders, "emu3", "nf4")
    assert {type(x) for x in model.module.modules() if isinstance(x, nn.Linear)} == {nn.Linear}


def test_another_device_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PartialState(), "device", torch.device("vulkan"))
    with pytest.raises(UserError, match=r"nf4, but the device is vulkan.*quantises on cpu, cuda"):
        loaded(folders, "emu3", "nf4")


def test_without_bitsandbytes_one_sentence(folders: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mm_cca.adapters.quantization.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r'int8, which needs bitsandbytes.*"mm-cca\[quantization'):
        loaded(folders, "emu3", "int8")


def test_an_adapter_that_loads_otherwise_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch):
    plain = loaded(folders, "emu3", None)
    monkeypatch.setattr("mm_cca.adapters.emu3.Emu3.load", lambda *_: plain)
    with pytest.raises(UserError, match="adapter 'emu3' can't quantise"):
        loaded(folders, "emu3", "nf4")
