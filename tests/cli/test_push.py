"""``mm-cca push`` to a hub on this machine, and what ``from_pretrained`` reads back from there."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from PIL import Image
from transformers import Emu3ForConditionalGeneration

import mm_cca
from mm_cca import cli
from mm_cca.sampling.manifest import manifest_of, picture_file
from mm_cca.testing.tiny import write_tiny
from tests.support import runs
from tests.support.checkpoints import weights_of
from tests.support.fake_hub import FakeHub, fake_hub, use_hub

BASE = "org/base"
# Of huggingface_hub's own call of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "emu3"
    write_tiny("emu3", folder, side=2)
    return folder


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is a folder here, in bfloat16."""
    root = tmp_path_factory.mktemp("run")
    values = runs.tiny_recipe(root, base, runs.two_splits(root / "data.parquet"))
    values["model"]["dtype"] = "bfloat16"
    values["train"].update(max_steps=2, tuning="lora", reference="lora", lora_rank=2)
    values["sample"] |= {"num_images": 4, "guidance_scales": []}
    stages = ["prepare", "train", "sample", "eval", "report"]
    runs.do(runs.write_recipe(root / "recipe.yaml", values), stages=stages)
    return root / "run"


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    root = tmp_path / "hub"
    shutil.copytree(base, root / BASE)
    with fake_hub(root) as served:
        use_hub(served.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", served.uploads.token)
        yield served


@pytest.fixture
def of_hub_base(lora: Path, tmp_path: Path) -> Path:
    """The run as if its base had a name on the hub."""
    copy = Path(shutil.copytree(lora, tmp_path / "run"))
    values = runs.yaml.safe_load((copy / "recipe.yaml").read_text())
    values["model"]["path"] = BASE
    runs.write_recipe(copy / "recipe.yaml", values)
    return copy


def test_a_merged_model_comes_back(lora: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["push", str(lora), "org/mine", "--merge"]) == 0
    assert f"{hub.url}/org/mine" in capsys.readouterr().out
    assert hub.uploads.private == {"org/mine": True}
    assert hub.uploads.messages == ["mm-cca push run"]
    assert not (lora / "push").exists()
    stock = Emu3ForConditionalGeneration.from_pretrained("org/mine")
    stored = weights_of(hub.root / "org" / "mine")
    kinds = {weight.dtype for name, weight in stored.items() if "vqmodel" not in name}
    assert kinds == {torch.bfloat16}, "a merged LoRA must not widen its base"
    assert stock.dtype == torch.bfloat16
    assert stock.generation_config.guidance_scale == 1.0
    (drawn,) = mm_cca.generate("org/mine", "red owl", seed=0)
    assert drawn.size == (16, 16)


def test_the_card_has_scores_pictures_and_the_name(lora: Path, hub: FakeHub):
    assert cli.main(["push", str(lora), "org/mine", "--merge"]) == 0
    folder = hub.root / "org" / "mine"
    card = ModelCard.load(folder / "README.md")
    assert 'mm_cca.generate("org/mine"' in card.text
    assert "| train | cca |" in card.text
    lines = manifest_of(lora / "samples" / "cca")
    shown = sorted(path.name for path in (folder / "samples").iterdir())
    assert len(shown) == 4
    for name in shown:
        assert f"(samples/{name})" in card.text
        own = picture_file(lora / "samples" / "cca", int(Path(name).stem))
        assert Image.open(folder / "samples" / name).tobytes() == Image.open(own).tobytes()
    assert lines[0]["prompt"] in card.text


def test_an_adapter_of_a_base_on_the_hub(of_hub_base: Path, lora: Path, hub: FakeHub):
    assert cli.main(["push", str(of_hub_base), "org/lora"]) == 0
    files = {path.name for path in (hub.root / "org" / "lora").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "mm_cca.json"} <= files
    assert "model.safetensors" not in files
    stock = Emu3ForConditionalGeneration.from_pretrained(BASE)
    assert PeftModel.from_pretrained(stock, "org/lora")
    run, pushed = mm_cca.load_run(lora), mm_cca.load_run("org/lora")
    for dial in (1, 0.5):
        expected = mm_cca.generate(run, ["red owl", "cat"], seed=1, dial=dial)
        drawn = mm_cca.generate(pushed, ["red owl", "cat"], seed=1, dial=dial)
        assert [image.tobytes() for image in drawn] == [image.tobytes() for image in expected]


def test_a_second_push_replaces_the_first(of_hub_base: Path, hub: FakeHub):
    """Beside whole weights an adapter of before would be read instead; other files stay."""
    assert cli.main(["push", str(of_hub_base), "org/mine"]) == 0
    (hub.root / "org" / "mine" / "NOTES.md").write_text("mine")
    assert cli.main(["push", str(of_hub_base), "org/mine", "--merge"]) == 0
    files = {path.name for path in (hub.root / "org" / "mine").iterdir()}
    assert {"model.safetensors", "NOTES.md"} <= files
    assert not {name for name in files if name.startswith("adapter")}


def test_a_push_that_broke_off_resumes(
    lora: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
):
    hub.uploads.breaks_after = 2
    assert cli.main(["push", str(lora), "org/mine", "--merge"]) == 2
    assert "the hub refused to take org/mine (400): the storage is full" in capsys.readouterr().err
    assert not list((hub.root / "org" / "mine").iterdir()), "no half of a commit"
    before = dict(hub.uploads.sent)
    hub.uploads.breaks_after = None
    assert cli.main(["push", str(lora), "org/mine", "--merge"]) == 0
    assert before.items() <= hub.uploads.sent.items()
    assert hub.uploads.messages == ["mm-cca push run"]


def test_visibility(lora: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]):
    push = ["push", str(lora), "org/mine", "--merge"]
    assert cli.main(push) == 0
    assert cli.main([*push, "--public"]) == 0
    assert hub.uploads.private == {"org/mine": False}
    assert cli.main(push) == 2
    assert "org/mine exists and is public; add --public to push there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["{run}", "mine"], "hf_known", "'mine' is no name on the hub; allowed: OWNER/NAME"),
        (["{run}", "org/a b"], "hf_known", "'org/a b' is no name on the hub"),
        (["{run}", "org/a/b"], "hf_known", "'org/a/b' is no name on the hub"),
        (["{run}", "org/x", "--merge"], None, "there is no token of the hub on this machine"),
        (["{run}", "org/x", "--merge"], "hf_old", "the hub does not know your token"),
        (["{run}", "other/x", "--merge"], "hf_known", "your token may not write to other/x"),
        (["{run}", "org/x"], "hf_known", "this LoRA's base is"),
        (["{empty}", "org/x"], "hf_known", "is not a run folder"),
        (["{untrained}", "org/x"], "hf_known", "train the cca model to the end first"),
        (["{run}", "org/x", "--merge", "--dial", "-1"], "hf_known", "--dial is -1"),
    ],
)
def test_mistakes(
    words: list[str],
    token: str | None,
    message: str,
    lora: Path,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "empty").mkdir()
    (tmp_path / "untrained").mkdir()
    shutil.copyfile(lora / "recipe.yaml", tmp_path / "untrained" / "recipe.yaml")
    places = {"run": lora, "empty": tmp_path / "empty", "untrained": tmp_path / "untrained"}
    assert cli.main(["push", *(word.format(**places) for word in words)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1
    assert hub.uploads.private == {}, "nothing was made on the hub"


def test_no_hub(lora: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys):
    use_hub("http://127.0.0.1:9", lora, monkeypatch)
    assert cli.main(["push", str(lora), "org/x", "--merge"]) == 2
    assert "org/x can't be written: " in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cli.main(["push", str(lora), "org/x", "--merge"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
