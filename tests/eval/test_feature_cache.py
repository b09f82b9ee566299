"""Features of real images: computed once, the same from disk, anew where anything differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mm_cca.errors import UserError
from mm_cca.eval.features import cache as feature_cache
from mm_cca.eval.features.cache import extract_once
from mm_cca.eval.features.extract import Extractors, Features, extract
from mm_cca.eval.features.image_sets import ImageSet
from mm_cca.eval.features.scorer import OpenClipScorer, load_scorer
from tests.support import runs

MADE_FROM = ["digest of the images", "[16, 16]"]


@pytest.fixture(scope="module")
def extractors() -> Extractors:
    scorer = load_scorer("emoji-clip", None, batch_size=2, device=torch.device("cpu"))
    return Extractors(scorer, None)


def images(first: int = 0) -> ImageSet:
    return ImageSet("some", 3, lambda numbers: [runs.picture(first + n) for n in numbers])


def unreadable() -> ImageSet:
    def fail(numbers: object) -> list[object]:
        raise AssertionError("read again")

    return ImageSet("some", 3, fail)  # type: ignore[arg-type]


def test_the_second_time_no_image_is_read(tmp_path: Path, extractors: Extractors):
    first = extract_once(images(), extractors, tmp_path, MADE_FROM)
    again = extract_once(unreadable(), extractors, tmp_path, MADE_FROM)
    assert torch.equal(first.scorer, again.scorer)
    assert again.inception is None
    assert again.logits is None
    assert first.sha256 == again.sha256
    assert len(list(tmp_path.iterdir())) == 1


def test_inception_features_come_back_too(tmp_path: Path, extractors: Extractors):
    stored = Features(torch.randn(3, 4), torch.randn(3, 5), torch.randn(3, 6), "0123")
    feature_cache._write(tmp_path / "f.safetensors", stored)
    found = feature_cache._read(tmp_path / "f.safetensors")
    assert found.inception is not None
    assert found.logits is not None
    assert stored.inception is not None
    assert stored.logits is not None
    assert torch.equal(found.inception, stored.inception)
    assert torch.equal(found.logits, stored.logits)


def test_whatever_differs_is_computed_anew(tmp_path: Path, extractors: Extractors):
    extract_once(images(), extractors, tmp_path, MADE_FROM)
    for others in (["digest of other images", "[16, 16]"], ["digest of the images", "[8, 8]"]):
        with pytest.raises(AssertionError, match="read again"):
            extract_once(unreadable(), extractors, tmp_path, others)


def test_a_scorer_of_the_same_weights_that_sees_otherwise_is_another(tmp_path: Path):
    """QuickGELU or not is no weight: the two have one sha256."""
    cpu = torch.device("cpu")
    plain, quick = (
        load_scorer(name, None, batch_size=2, device=cpu)
        for name in ("ViT-B-32", "ViT-B-32-quickgelu")
    )
    assert isinstance(plain, OpenClipScorer)
    assert isinstance(quick, OpenClipScorer)
    quick.model.load_state_dict(plain.model.state_dict())
    extract_once(images(), Extractors(plain, None), tmp_path, MADE_FROM)
    found = extract_once(images(), Extractors(quick, None), tmp_path, MADE_FROM)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(found.scorer, extract(images(), Extractors(quick, None)).scorer)


def test_features_that_are_no_numbers_are_refused_by_name(
    extractors: Extractors, monkeypatch: pytest.MonkeyPatch
):
    original = OpenClipScorer.image_features

    def broken(scorer: OpenClipScorer, opened: list[Any]) -> torch.Tensor:
        return original(scorer, opened).index_fill(0, torch.tensor([0]), torch.nan)

    monkeypatch.setattr(OpenClipScorer, "image_features", broken)
    told = "some, judged by emoji-clip: 2 of 3 rows of features have NaN"  # batches of two
    with pytest.raises(UserError, match=told):
        extract(images(), extractors)


def test_a_torn_file_is_told(tmp_path: Path, extractors: Extractors):
    extract_once(images(), extractors, tmp_path, MADE_FROM)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="Delete it to recompute"):
        extract_once(images(), extractors, tmp_path, MADE_FROM)


@pytest.mark.parametrize("value", [torch.nan, 0.5])
def test_changed_features_are_told(tmp_path: Path, extractors: Extractors, value: float):
    extract_once(images(), extractors, tmp_path, MADE_FROM)
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as opened:
        tensors, metadata = {"scorer": opened.get_tensor("scorer")}, opened.metadata()
    tensors["scorer"][1, 2] = value
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(UserError, match="not those that were written"):
        extract_once(images(), extractors, tmp_path, MADE_FROM)
    save_file(tensors, file, metadata={"sha256": metadata["sha256"]})  # of an earlier version
    if value != value:
        with pytest.raises(UserError, match="holds NaN or infinity"):
            extract_once(images(), extractors, tmp_path, MADE_FROM)
    else:
        extract_once(images(), extractors, tmp_path, MADE_FROM)


def test_a_folder_that_can_not_be_written_costs_no_scores(
    tmp_path: Path, extractors: Extractors, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    found = extract_once(images(), extractors, tmp_path / "file", MADE_FROM)
    assert torch.equal(found.scorer, extract(images(), extractors).scorer)
    assert "features of real images were not saved" in capsys.readouterr().err


def test_pictures_exchanged_in_place_are_noticed(tmp_path: Path, tiny_folder: Path):
    """Same rows, same captions, same tokens; only the pictures are others."""
    data = runs.two_splits(tmp_path / "data.parquet")
    recipe = runs.write_recipe(
        tmp_path / "recipe.yaml", runs.tiny_recipe(tmp_path, tiny_folder, data)
    )
    words = ["run.sources=[base]", "sample.guidance_scales=[]", "eval.metrics=[alignment,cmmd]"]
    words.append(f"run.tokens_dir={tmp_path / 'tokens'}")
    found = []
    for name in ("first", "second"):
        keys = [*words, f"run.dir={tmp_path / name}"]
        runs.do(recipe, *keys, stages=["prepare", "sample", "eval"])
        summary = json.loads((tmp_path / name / "eval" / "summary.json").read_text())
        found.append(summary["protocol"]["reference"]["train"]["sha256"])
        rows = [
            row | {"image": runs.png(runs.picture(100 + number))}
            for number, row in enumerate(runs.rows_of(16, split="train"))
        ]
        runs.write_parquet(data, rows)
    assert found[0] != found[1]


def test_a_second_run_on_the_same_tokens_scores_the_same(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the first run kept serves the second one, to the same digits."""
    kept = list((reported.parent / "tokens").glob("*/features/*.safetensors"))
    assert len(kept) == 2, "one for each split"
    run = reported.parent / "run"
    shutil.copytree(run / "samples", tmp_path / "run" / "samples")
    shutil.copytree(run / "train", tmp_path / "run" / "train")

    def fail(*words: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(feature_cache, "extract", fail)
    runs.do(reported, f"run.dir={tmp_path / 'run'}", stages=["eval"])
    ours, theirs = (folder / "eval" / "summary.json" for folder in (tmp_path / "run", run))
    assert ours.read_text() == theirs.read_text()
