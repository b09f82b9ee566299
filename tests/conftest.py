"""Tiny random Emu3 checkpoints in the real on-disk layout, runs of them, and a browser."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

# Before huggingface_hub is imported: a test that names a model of the hub must not wait for it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from accelerate.state import AcceleratorState
from playwright.sync_api import Browser, sync_playwright
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from mm_cca import load_adapter
from mm_cca.adapters.base import UnifiedModel
from mm_cca.demo import small_emu3 as tiny
from mm_cca.testing.tiny import FAMILIES, LAYOUTS, write_tiny
from mm_cca.testing.tiny.sizes import Layout
from tests.support import runs
from tests.support.browsing import Open, Tabs
from tests.support.third_party import write_third_party
from tests.support.training import LONG, at

# Else each run would take the cores that are free, and other threads round otherwise.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
CHROMIUM = Path("/usr/bin/chromium")
# A shell starts background jobs with SIGINT ignored, and children inherit that: servers that the
# tests stop by SIGINT would then never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(autouse=True)
def _precision_of_its_own() -> Iterator[None]:
    """accelerate remembers the mixed precision of a process; here each test is another run."""
    yield
    AcceleratorState._reset_state()


CAPTIONS = [
    f"{adjective} {thing}, {style} style"
    for adjective in ("red", "green", "small", "smiling")
    for thing in ("owl", "waving hand", "grinning face with big eyes")
    for style in ("noto", "twemoji")
]


def write_checkpoint(folder: Path, channel_multiplier: list[int], image_size: int) -> Path:
    """A random model whose codebook is spread out enough for many codes to be used."""
    torch.manual_seed(0)
    vq = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=32,
            embed_dim=4,
            latent_channels=4,
            temporal_downsample_factor=1,
            base_channels=32,
            channel_multiplier=channel_multiplier,
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=32 * channel_multiplier[-1],
        )
    )
    words = tiny.build_tokenizer(CAPTIONS, 320, 32)
    model = tiny.assemble(vq, words, tiny.DecoderShape(32, 64, 2, 2), seed=0)
    # Stock initialisation is so small that every distribution is nearly uniform.
    for parameter in model.model.text_model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    processor = tiny.build_processor(words, image_size, 2 ** (len(channel_multiplier) - 1))
    tiny.save(model, processor, folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16x16 pixels, 4 to a code: 4x4 codes out of 32."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "emu3", [1, 2, 2], 16)


@pytest.fixture(scope="session")
def tiny8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24x24 pixels, 8 to a code, as ``Emu3Processor`` takes for granted: 3x3 codes out of 32."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny8") / "emu3", [1, 1, 2, 2], 24)


@pytest.fixture(scope="session")
def reported(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a whole small run with two splits; copy the run before changing it."""
    folder = tmp_path_factory.mktemp("reported")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet", 20, 16))
    values["run"]["tokens_dir"] = str(folder / "tokens")
    values["data"]["heldout_split"] = "heldout"
    values["train"].update(max_steps=3)
    values["sample"] |= {"guidance_scales": [2.0, 3.0], "num_images": 8}
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare", "train", "sample", "eval", "report"])
    return recipe


@pytest.fixture
def tiny_model(tiny_folder: Path) -> UnifiedModel:
    model = load_adapter("emu3", str(tiny_folder))
    model.module.eval()
    return model


@pytest.fixture
def tiny8_model(tiny8_folder: Path) -> UnifiedModel:
    model = load_adapter("emu3", str(tiny8_folder))
    model.module.eval()
    return model


@pytest.fixture(scope="session")
def prepared(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose token cache is filled; tests copy it with their own ``run.dir``."""
    folder = tmp_path_factory.mktemp("prepared")
    values = runs.tiny_recipe(folder, tiny_folder, runs.two_splits(folder / "data.parquet"))
    values["run"]["tokens_dir"] = str(folder / "tokens")
    values["data"]["heldout_split"] = "heldout"
    recipe = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(recipe, stages=["prepare"])
    return recipe


@pytest.fixture
def recipe(prepared: Path, tmp_path: Path) -> Path:
    """The prepared recipe with a fresh ``run.dir`` (``tmp_path / "run"``)."""
    return at(prepared, tmp_path)


@pytest.fixture(scope="session")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` of an uninterrupted run of ``LONG`` steps."""
    folder = tmp_path_factory.mktemp("whole")
    runs.do(at(prepared, folder), f"train.max_steps={LONG}", "train.save_every=1000")
    return folder / "run" / "train"


def _write_all(root: Path, layout: Layout) -> Path:
    for family in FAMILIES:
        write_tiny(family, root / family, side=4, layout=layout)
    write_third_party(root / "third-party", root / "lumina-mgpt" / "vqgan.ckpt")
    return root


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family as transformers saves it: one weight file each."""
    return _write_all(tmp_path_factory.mktemp("families"), "transformers")


@pytest.fixture(scope="session")
def hub_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family as the hub has it, and ``deepseek``: Janus in DeepSeek's own layout."""
    root = _write_all(tmp_path_factory.mktemp("hub_families"), "hub")
    write_tiny("janus", root / "deepseek", side=4, layout="deepseek")
    return root


@pytest.fixture(scope="session", params=LAYOUTS)
def both_folders(request: pytest.FixtureRequest) -> Path:
    """``folders`` and ``hub_folders``, one after the other."""
    name = "hub_folders" if request.param == "hub" else "folders"
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture
def changed(reported: Path, tmp_path: Path) -> Path:
    """A copy of the run, free to be broken."""
    return Path(shutil.copytree(reported.parent / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        told = f"{CHROMIUM} is missing: apt-get install chromium"
        if os.environ.get("CI_BROWSER") == "required":
            pytest.fail(told)
        pytest.skip(told)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens pages; at the end none may have complained or asked for anything else."""
    with Tabs(browser) as tabs:
        yield tabs.open
