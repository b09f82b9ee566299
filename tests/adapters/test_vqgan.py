"""The VQGAN decoder that transformers lacks, and the files its weights are found in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from mm_cca.adapters.vqgan import VQDecoder, attach_decoder, fill_encoder, read_image_tokenizer
from mm_cca.errors import UserError
from tests.support.closeness import assert_close


def config(**changes: object) -> ChameleonVQVAEConfig:
    values = {
        "embed_dim": 8,
        "num_embeddings": 32,
        "latent_channels": 16,
        "resolution": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 2, 2],
        "num_res_blocks": 2,
    }
    return ChameleonVQVAEConfig(**values | changes)


def taming_layout(vq: ChameleonVQVAE, decoder: VQDecoder) -> dict[str, torch.Tensor]:
    """As Meta's vqgan.ckpt: both halves, and the discriminator of its training."""
    weights = vq.state_dict() | {f"decoder.{n}": x for n, x in decoder.state_dict().items()}
    return weights | {"loss.discriminator.main.0.weight": torch.zeros(3)}


@pytest.fixture
def halves() -> tuple[ChameleonVQVAE, VQDecoder]:
    torch.manual_seed(0)
    vq, decoder = ChameleonVQVAE(config()), VQDecoder(config())
    for layer in [*vq.modules(), *decoder.modules()]:
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
        if isinstance(layer, torch.nn.GroupNorm):
            torch.nn.init.normal_(layer.weight, 1.0, 0.2)
    torch.nn.init.normal_(vq.quantize.embedding.weight)
    return vq, decoder


@torch.no_grad()
def test_decoder_equals_januss_where_the_two_are_the_same_network():
    """Stock Janus has the same decoder with attention at the coarsest level, levels reversed."""
    torch.manual_seed(0)
    ours = VQDecoder(config(attn_resolutions=[8]))
    stock = JanusVQVAEDecoder(
        JanusVQVAEConfig(
            latent_channels=16, base_channels=32, channel_multiplier=[1, 2, 2], num_res_blocks=2
        )
    )
    weights = {}
    for name, value in stock.state_dict().items():
        parts = name.split(".")
        if parts[0] == "up":
            parts[1] = str(2 - int(parts[1]))
        weights[".".join(parts)] = value
    assert weights.keys() == ours.state_dict().keys()
    ours.load_state_dict(weights)
    latents = torch.randn(2, 16, 8, 8)
    images = ours(latents)
    assert images.shape == (2, 3, 32, 32)
    assert_close(images, stock(latents.clone()), 1e-5)


def metas_decoder() -> dict[str, tuple[int, ...]]:
    """Parameters of taming-transformers' Decoder with the ddconfig of Meta's vqgan.yaml.

    That is ch 128, ch_mult [1, 1, 2, 2, 4], num_res_blocks 2, attn_resolutions [], z_channels 256
    and out_ch 3.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name: str, inside: int, outside: int) -> None:
        layer(f"{name}.norm1", inside)
        layer(f"{name}.conv1", outside, inside, 3, 3)
        layer(f"{name}.norm2", outside)
        layer(f"{name}.conv2", outside, outside, 3, 3)
        if inside != outside:
            layer(f"{name}.nin_shortcut", outside, inside, 1, 1)

    layer("conv_in", 512, 256, 3, 3)
    block("mid.block_1", 512, 512)
    layer("mid.attn_1.norm", 512)
    for part in ("q", "k", "v", "proj_out"):
        layer(f"mid.attn_1.{part}", 512, 512, 1, 1)
    block("mid.block_2", 512, 512)
    channels = {4: (512, 512), 3: (512, 256), 2: (256, 256), 1: (256, 128), 0: (128, 128)}
    for level, (inside, outside) in channels.items():
        block(f"up.{level}.block.0", inside, outside)
        block(f"up.{level}.block.1", outside, outside)
        block(f"up.{level}.block.2", outside, outside)
        if level > 0:
            layer(f"up.{level}.upsample.conv", outside, outside, 3, 3)
    layer("norm_out", 128)
    layer("conv_out", 3, 128, 3, 3)
    return shapes


def test_names_and_shapes_are_those_of_metas_vqgan():
    with torch.device("meta"):
        decoder = VQDecoder(
            ChameleonVQVAEConfig(
                embed_dim=256,
                num_embeddings=8192,
                latent_channels=256,
                resolution=512,
                base_channels=128,
                channel_multiplier=[1, 1, 2, 2, 4],
                num_res_blocks=2,
                attn_resolutions=[],
            )
        )
    found = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    expected = metas_decoder()
    assert len(expected) == 2 * (3 + 4 + 5 + 4 + 15 * 4 + 2 + 4)
    assert found == expected


@torch.no_grad()
def test_encoder_from_a_taming_file_equals_the_stock_one(halves, tmp_path: Path):
    vq, decoder = halves
    torch.save({"state_dict": taming_layout(vq, decoder)}, tmp_path / "vqgan.ckpt")
    tensors = read_image_tokenizer(str(tmp_path / "vqgan.ckpt"))
    again = ChameleonVQVAE(config())
    fill_encoder(again, tensors, "vqgan.ckpt")
    pixels = torch.randn(2, 3, 32, 32)
    ours, stock = again.encode(pixels), vq.encode(pixels)
    assert torch.equal(ours.image_tokens, stock.image_tokens)
    assert_close(ours.last_hidden_state, stock.last_hidden_state, 0)
    assert len(stock.image_tokens.unique()) > 5


@pytest.mark.parametrize("kind", ["ckpt", "bare", "safetensors", "folder", "lightning"])
@torch.no_grad()
def test_every_place_gives_the_same_decoder(halves, tmp_path: Path, kind: str):
    vq, decoder = halves
    layout = taming_layout(vq, decoder)
    path = tmp_path / "vqgan.ckpt"
    if kind == "ckpt":
        torch.save({"state_dict": layout, "epoch": 3, "hparams": {"z": [1, 2]}}, path)
    elif kind == "bare":
        torch.save(layout, path)
    elif kind == "lightning":
        _save_with_lightning_callback(layout, path)
    elif kind == "safetensors":
        path = tmp_path / "vqgan.safetensors"
        save_file({n: x.contiguous() for n, x in layout.items()}, path)
    else:
        path = tmp_path
        inside = {f"model.vqmodel.{n}": x.contiguous() for n, x in layout.items()}
        save_file(inside | {"lm_head.weight": torch.zeros(2)}, path / "model.safetensors")
    attach_decoder(vq, read_image_tokenizer(str(path)), str(path))
    latents = torch.randn(2, 16, 4, 6)
    assert_close(vq.decoder(latents), decoder(latents), 0)


def _save_with_lightning_callback(layout: dict[str, torch.Tensor], path: Path) -> None:
    """Lightning files name classes of pytorch_lightning beside the tensors."""
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    checkpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = checkpoint
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    for name in names:
        sys.modules[name] = module
    try:
        torch.save({"state_dict": layout, "callbacks": {checkpoint: {"best": 1.0}}}, path)
    finally:
        for name in names:
            del sys.modules[name]


class Dangerous:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys):
    torch.save({"state_dict": {}, "x": Dangerous()}, tmp_path / "vqgan.ckpt")
    with pytest.raises(UserError, match=r"(?s)can't be read.*alone as a .safetensors"):
        read_image_tokenizer(str(tmp_path / "vqgan.ckpt"))
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["vqgan.ckpt", "vqgan.safetensors"])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*can't be read"):
        read_image_tokenizer(str(tmp_path / name))


def test_a_file_of_something_else_holds_no_decoder(halves, tmp_path: Path):
    torch.save([1, 2], tmp_path / "vqgan.ckpt")
    found = read_image_tokenizer(str(tmp_path / "vqgan.ckpt"))
    with pytest.raises(UserError, match="no image decoder"):
        attach_decoder(halves[0], found, "vqgan.ckpt")


def test_a_missing_file_is_named(tmp_path: Path):
    for name in ("no.ckpt", "no.safetensors"):
        with pytest.raises(UserError, match=name):
            read_image_tokenizer(str(tmp_path / name))


def test_no_decoder_says_where_to_get_one(halves):
    vq, _ = halves
    with pytest.raises(UserError, match=r"no image decoder.*vqgan\.ckpt.*Anole"):
        attach_decoder(vq, vq.state_dict(), "some/folder")


def test_another_codebook_is_refused(halves):
    vq, decoder = halves
    tensors = taming_layout(vq, decoder)
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"].flip(0)
    with pytest.raises(UserError, match="another codebook"):
        attach_decoder(vq, tensors, "vqgan.ckpt")


def test_the_codebook_may_be_rounded_to_bfloat16(halves):
    vq, decoder = halves
    tensors = {n: x.bfloat16() for n, x in taming_layout(vq, decoder).items()}
    attach_decoder(vq, tensors, "vqgan.ckpt")
    assert vq.decoder.conv_in.weight.dtype == torch.float32


def test_another_architecture_is_refused(halves):
    vq, _ = halves
    other = VQDecoder(config(base_channels=64)).state_dict()
    with pytest.raises(UserError, match="does not fit"):
        attach_decoder(vq, {f"decoder.{n}": x for n, x in other.items()}, "vqgan.ckpt")
