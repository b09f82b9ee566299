"""NVIDIA's image tokenizer: its network for one frame, and its files, which are never run."""

import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_cca import load_adapter
from mm_cca.adapters.cosmos import CosmosTokenizer, shape_of
from mm_cca.adapters.cosmos_network import CosmosShape, haar, inverse_haar
from mm_cca.adapters.simplear import read_cosmos
from mm_cca.adapters.torchscript import read_torchscript
from mm_cca.errors import UserError
from mm_cca.testing.tiny.tiny_simplear import COSMOS_FOLDER, SHAPE, write_cosmos
from tests.support.closeness import assert_close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cosmos") / COSMOS_FOLDER
    torch.manual_seed(0)
    write_cosmos(folder)
    return folder


def _over_time(x: torch.Tensor, layer: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """NVIDIA's causal convolution: the first frame is repeated before the video."""
    before = x[:, :, :1].repeat(1, 1, layer.shape[2] - 1, 1, 1)
    side = layer.shape[-1] // 2
    return F.conv3d(torch.cat([before, x], dim=2), layer, bias, padding=(0, side, side))


@torch.no_grad()
def test_a_layer_of_videos_on_one_frame(folder: Path):
    """The first two layers and one block, as 3D convolutions with NVIDIA's weights."""
    tensors = read_torchscript(folder / "encoder.jit")
    ours = read_cosmos(str(folder))

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (tensors[f"{name}.conv3d.{kind}"] for kind in ("weight", "bias"))
        return _over_time(x, weight, bias)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (tensors[f"{name}.norm.{kind}"] for kind in ("weight", "bias"))
        return F.group_norm(x[:, :, 0], 1, weight, bias, eps=1e-6).unsqueeze(2)

    patches = torch.randn(2, 192, 8, 8)
    hidden = conv("encoder.conv_in.1", conv("encoder.conv_in.0", patches.unsqueeze(2)))
    assert tensors["encoder.conv_in.1.conv3d.weight"].shape[2] == 3
    assert_close(ours.encoder.conv_in(patches), hidden.squeeze(2), 1e-4)
    start = hidden
    for number in (1, 2):
        name = f"encoder.mid.block_1.{{}}{number}"
        wide = torch.cat([hidden, hidden], dim=1) if number == 1 else hidden
        hidden = F.silu(norm(name.format("norm"), wide))
        hidden = conv(name.format("conv") + ".1", conv(name.format("conv") + ".0", hidden))
    expected = torch.cat([start, start], dim=1) + hidden
    block = ours.encoder.mid.block_1
    found = block(torch.cat([start, start], dim=1).squeeze(2))
    assert_close(found, expected.squeeze(2), 1e-4)


def _wavelets(video: torch.Tensor) -> torch.Tensor:
    """One level in time, height and width by hand: [C, T, H, W] -> [8C, T/2, H/2, W/2]."""
    channels, frames, height, width = video.shape
    out = torch.zeros(8, channels, frames // 2, height // 2, width // 2)
    for part in range(8):
        signs = [-1.0 if part & bit else 1.0 for bit in (4, 2, 1)]
        for t in range(2):
            for y in range(2):
                for x in range(2):
                    sign = signs[0] ** t * signs[1] ** y * signs[2] ** x
                    # 1 / sqrt 2 for each of three axes, and their rescaling by 1 / sqrt 8
                    out[part] += sign / 8 * video[:, t::2, y::2, x::2]
    return out.flatten(0, 1)


def test_wavelets_of_a_frame_that_is_repeated():
    image = torch.randn(3, 8, 8)
    video = image.unsqueeze(1).repeat(1, 4, 1, 1)
    for _ in range(2):
        video = _wavelets(video)
    ours = image[None]
    for _ in range(2):
        ours = haar(ours)
        ours = torch.cat([ours, torch.zeros_like(ours)], dim=1)
    assert_close(ours[0], video[:, 0], 1e-6)
    # Differences within two pixels: [a, b] and its mirror have opposite signs.
    pair = torch.tensor([[[[4.0, 2.0], [4.0, 2.0]]]])
    assert haar(pair).flatten().tolist() == [3.0, 1.0, 0.0, 0.0]


def test_the_last_frame_of_the_inverse_wavelets():
    video = torch.randn(3, 4, 4, 4)
    parts = _wavelets(_wavelets(video)).squeeze(1)[None]
    for _ in range(2):
        low, high = parts.chunk(2, dim=1)
        parts = inverse_haar(low - high)
    assert_close(parts[0], video[:, 3], 1e-5)


def test_codes_worked_out_by_hand():
    """Four values a number, -2 to 1: a latent of 0 is the third of each; far ends are the ends."""
    vq = CosmosTokenizer(SHAPE)
    assert vq.codebook_size == 64
    latents = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0], [-9.0, -9.0, -9.0], [9.0, 0.0, -9.0]])
    vq.encoder = nn.Identity()
    vq.quant_conv = nn.Identity()
    codes = vq.encode(latents.T.view(1, 3, 1, 4))
    assert codes.tolist() == [[[2 + 4 * 2 + 16 * 2, 63, 0, 3 + 4 * 2]]]
    vq.post_quant_conv = vq.decoder = nn.Identity()
    back = vq.decode(torch.tensor([[[42, 63, 0, 11]]]))
    expected = [[0, 0.5, -1, 0.5], [0, 0.5, -1, 0], [0, 0.5, -1, -1]]
    assert back.view(3, 4).tolist() == expected
    assert CosmosTokenizer(CosmosShape(channels=(8, 8, 8), first=8)).codebook_size == 64_000


@torch.no_grad()
def test_pixels_as_the_authors_write_them(folders: Path):
    """ToTensor and Normalize(.5, .5) before it; value_range (-1, 1) after it."""
    path = folders / "simplear"
    model = load_adapter("simplear", str(path), image_tokenizer=str(path / COSMOS_FOLDER))
    seen = []
    model._vq.encode = lambda images: seen.append(images) or torch.zeros(1, 1, 1, dtype=torch.long)
    model.encode(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1))
    scale = torch.arange(256).float() / 255
    assert torch.equal(seen[0][0, 0].flatten(), (scale - 0.5) / 0.5)
    model._vq.decode = lambda codes: torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]).view(1, 1, 1, 6)
    assert model.decode(torch.zeros(1, 16), (4, 4)).flatten().tolist() == [0, 0, 128, 191, 255, 255]


def test_the_reader_finds_what_torch_would(folder: Path):
    for name in ("encoder.jit", "decoder.jit"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = torch.jit.load(str(folder / name)).state_dict()
        found = read_torchscript(folder / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], x) for n, x in expected.items())


class _WritesAFile(nn.Module):
    """Its own unpacking, which ``torch.jit.load`` runs, writes the file that its path names."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = torch.ones(1)

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return (self.weight, self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        torch.save(state[0], state[1])
        self.weight, self.path, self.training = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_code_in_a_file_is_not_run(tmp_path: Path):
    written = tmp_path / "written"
    file = tmp_path / "encoder.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_WritesAFile(str(written))), str(file))
        assert not written.exists()
        assert read_torchscript(file) == {}
        assert not written.exists()
        torch.jit.load(str(file))
        assert written.exists(), "torch.jit.load is safe now: this reader may not be needed"


class _Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_names_a_function_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "encoder.jit", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(_Command(tmp_path / "touched")))
    with pytest.raises(UserError, match="asks for pathlib"):
        read_torchscript(tmp_path / "encoder.jit")
    assert not (tmp_path / "touched").exists()


def _damaged(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / COSMOS_FOLDER))


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, None])
def test_a_damaged_file(folder: Path, tmp_path: Path, content: bytes | None):
    copy = _damaged(folder, tmp_path)
    file = copy / "decoder.jit"
    file.write_bytes(file.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(UserError, match=r"decoder\.jit' can't be read.*\n.*Download it again"):
        read_cosmos(str(copy))


def test_a_missing_half(folder: Path, tmp_path: Path):
    copy = _damaged(folder, tmp_path)
    (copy / "encoder.jit").unlink()
    with pytest.raises(UserError, match=r"has no encoder\.jit; it must be a folder with"):
        read_cosmos(str(copy))
    with pytest.raises(UserError, match=r"has no encoder\.jit"):
        read_cosmos(str(tmp_path / "nothing" / "here" / "x"))


@pytest.mark.parametrize("kind", ["DV8x8x8", "DV4x8x8", "DI16x16", "CV8x8x8"])
def test_nvidias_other_tokenizers(folder: Path, tmp_path: Path, kind: str):
    copy = folder.rename(tmp_path / f"Cosmos-1.0-Tokenizer-{kind}")
    try:
        with pytest.raises(UserError, match=f"the kind {kind}; allowed for simplear: DV8x16x16"):
            read_cosmos(str(copy))
    finally:
        copy.rename(folder)


def test_weights_of_another_network(folder: Path):
    tensors = read_torchscript(folder / "encoder.jit") | read_torchscript(folder / "decoder.jit")
    with pytest.raises(UserError, match="no Cosmos tokenizer of the kind DV8x16x16"):
        shape_of({n.replace(".conv3d", ""): x for n, x in tensors.items()}, "the folder")
    vq = CosmosTokenizer(shape_of(tensors, "the folder"))
    lacking = {n: x for n, x in tensors.items() if "decoder.mid" not in n}
    with pytest.raises(UserError, match=r"the folder lacks 40 weights, such as decoder\.mid\.attn"):
        vq.fill(lacking, "the folder")
    name = "decoder.conv_out.0.conv3d.weight"
    with pytest.raises(UserError, match=r"decoder.conv_out.0.weight has shape \[7, 8, 3, 3\]"):
        vq.fill(tensors | {name: tensors[name][:7]}, "the folder")
