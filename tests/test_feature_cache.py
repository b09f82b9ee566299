"""Features of real images: computed once, the same from disk, anew where anything differs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mm_cca.eval import feature_cache
from mm_cca.eval.clip import load_scorer
from mm_cca.eval.feature_cache import extract_once
from mm_cca.eval.features import Extractors, Features
from mm_cca.eval.images import ImageSet

from mm_cca.errors import UserError
from tests import runs

MADE_FROM: dict[str, object] = {"rows": [0, 1, 2], "image_size": [16, 16]}


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
    for change in ({"rows": [0, 1, 3]}, {"image_size": [8, 8]}):
        with pytest.raises(AssertionError, match="read again"):
            extract_once(unreadable(), extractors, tmp_path, MADE_FROM | change)
    others = [
        replace(extractors.scorer, sha256="other"),  # type: ignore[type-var]
        replace(extractors.scorer, resize="other"),  # type: ignore[type-var]
    ]
    for scorer in others:
        with pytest.raises(AssertionError, match="read again"):
            extract_once(unreadable(), Extractors(scorer, None), tmp_path, MADE_FROM)


def test_a_torn_or_unwritable_file_is_told(tmp_path: Path, extractors: Extractors):
    extract_once(images(), extractors, tmp_path / "a", MADE_FROM)
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="Delete it to make it anew"):
        extract_once(images(), extractors, tmp_path / "a", MADE_FROM)
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match=r"can't be written.*\n.*run.tokens_dir"):
        extract_once(images(), extractors, tmp_path / "b", MADE_FROM)


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
