"""Scores by choice, references, prompts from a file and bad samples, in small runs of the base."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm_cca.errors import UserError
from mm_cca.eval.features.references import read_statistics, write_statistics
from mm_cca.eval.metrics.distances import frechet_distance, gaussian_of
from tests.support import runs, towers

STAGES = ["prepare", "sample", "eval"]
ALL = (
    "eval.metrics=[alignment,r_at_1,r_at_5,frechet_distance,kernel_distance,precision,recall,"
    "density,coverage,cmmd,fid,kid,inception_score]"
)


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base alone, with and without guidance, drawn on 8 prompts; nothing is scored yet."""
    folder = tmp_path_factory.mktemp("protocol")
    data = runs.two_splits(folder / "data.parquet", 20, 4)
    values = runs.tiny_recipe(folder, tiny_folder, data)
    values["run"] |= {"sources": ["base"], "stages": STAGES}
    values["sample"]["num_images"] = 8
    path = runs.write_recipe(folder / "recipe.yaml", values)
    runs.do(path, stages=["prepare", "sample"])
    return path


@pytest.fixture
def copy(recipe: Path, tmp_path: Path) -> str:
    """The override that names a copy of the run folder."""
    shutil.copytree(recipe.parent / "run", tmp_path / "run")
    return f"run.dir={tmp_path / 'run'}"


def scored(path: Path, *overrides: str) -> dict[str, Any]:
    run = runs.do(path, *overrides, stages=["eval"]).run.dir
    return json.loads((Path(run) / "eval" / "summary.json").read_text())


def value(summary: dict[str, Any], name: str, arm: int = 0, split: str = "train") -> float:
    judge = "inception" if name in ("fid", "kid", "inception_score") else "emoji-clip"
    return summary["arms"][arm]["scores"][judge][split][name]["value"]


def test_every_score_in_one_run(recipe: Path, copy: str, tmp_path: Path):
    weights = towers.write_inception(tmp_path / "inception.pth")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    keys = [f"eval.inception_weights={weights}", f"eval.inception_sha256={sha256[:16]}"]
    summary = scored(recipe, copy, ALL, *keys, "sample.guidance_scales=[]")
    nested = summary["arms"][0]["scores"]
    assert list(nested) == ["emoji-clip", "inception"]
    scores = nested["emoji-clip"]["train"] | nested["inception"]["train"]
    assert list(nested["inception"]["train"]) == ["fid", "kid", "inception_score"]
    assert list(scores) == ALL.split("[")[1].rstrip("]").split(",")
    assert all(np.isfinite(score["value"]) for score in scores.values())
    assert value(summary, "fid") > 0
    # 8 images for 2048 dimensions, for 96, and in subsets of 4.
    for part in (
        "FID of 8 images and 12 references in 2048 dimensions",
        "FD of 8 images and 12 references in 96 dimensions",
        "kid averages subsets of 4 images",
        "inception_score of 8 images is too low",
        "names other weights than the published ones",
    ):
        assert any(part in sentence for sentence in summary["warnings"]), part
    protocol = summary["protocol"]
    assert protocol["inception_sha256"] == sha256
    assert "not antialiased" in protocol["resize"]["inception"]
    (judge,) = protocol["judges"].values()
    assert "bicubic" in judge["resize"]
    assert protocol["metrics"]["fid"].endswith("on Inception features")
    assert protocol["dtype"] == {"model": "float32", "extractors": "float32"}
    assert protocol["device"] == "cpu"
    assert protocol["seeds"]["kernel_subsets"] == 0
    assert len(protocol["prompts_sha256"]["train"]) == 64
    assert len(protocol["reference"]["train"]["sha256"]) == 64
    folder = tmp_path / "run" / "eval"
    assert read_statistics(folder / "reference" / "train.inception.npz").gaussian.n == 12
    numbers = json.loads((folder / "per_prompt.json").read_text())["train"]
    numbers = numbers["judges"]["emoji-clip"]["base"]
    assert value(summary, "alignment") == pytest.approx(np.mean(numbers["alignment"]), abs=1e-3)
    assert value(summary, "r_at_5") == np.mean(np.array(numbers["rank"]) < 5)
    # The same reference once more from its file.
    again = tmp_path / "again"
    shutil.copytree(recipe.parent / "run", again)
    found = scored(
        recipe,
        f"run.dir={again}",
        f"eval.reference={folder / 'reference' / 'train.inception.npz'}",
        "eval.metrics=[alignment,fid]",
        "sample.guidance_scales=[]",
        *keys,
    )
    difference = abs(value(found, "fid") - value(summary, "fid"))
    print(f"FID from images and from the file: difference {difference:.3g}")
    assert difference < 1e-4 * value(summary, "fid")
    assert found["verdicts"] == {"emoji-clip": []}


def test_a_reference_in_a_file(recipe: Path, copy: str, tmp_path: Path):
    base = scored(recipe, copy)
    path = tmp_path / "run" / "eval" / "reference" / "train.scorer.npz"
    with np.load(path, allow_pickle=False) as file:
        assert {"mu", "sigma", "n", "extractor", "resize", "image_size"} <= set(file)
    shutil.copy(path, tmp_path / "kept.npz")
    shutil.rmtree(tmp_path / "run" / "eval")
    keys = [copy, f"eval.reference={tmp_path / 'kept.npz'}"]
    found = scored(recipe, *keys, "eval.metrics=[alignment,r_at_5,frechet_distance]")
    for arm in (0, 1):
        one, other = (value(summary, "frechet_distance", arm) for summary in (base, found))
        print(f"Frechet from images and from the file: difference {abs(one - other):.3g}")
        assert one == pytest.approx(other, rel=1e-4)
    assert found["protocol"]["num_reference_images"] == {"train": 12}
    shutil.rmtree(tmp_path / "run" / "eval")
    with pytest.raises(UserError, match="holds only mean and covariance"):
        scored(recipe, *keys, "eval.metrics=[alignment,kernel_distance]")
    with pytest.raises(UserError, match=r"image_size: 16x16 in the file, 8x8 here"):
        scored(recipe, *keys, "eval.metrics=[alignment,frechet_distance]", "eval.image_size=[8,8]")


def test_statistics_survive_a_file(tmp_path: Path):
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    fields = {"extractor": "a", "extractor_sha256": "b", "resize": "c", "image_size": "1x1"}
    write_statistics(tmp_path / "x.npz", rows, fields)
    found = read_statistics(tmp_path / "x.npz")
    assert found.gaussian.n == 40
    assert (found.gaussian.mu == gaussian_of(rows).mu).all()
    assert (found.gaussian.sigma == np.cov(rows.double().numpy(), rowvar=False)).all()
    assert found.protocol["resize"] == "c"
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(UserError, match="they must be"):
        read_statistics(tmp_path / "bad.npz")
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="can't be read"):
        read_statistics(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", mu=np.array([object()]), sigma=np.zeros((1, 1)))
    with pytest.raises(UserError, match="can't be read"):
        read_statistics(tmp_path / "bad.npz")


def test_a_folder_as_reference(recipe: Path, copy: str, tmp_path: Path):
    """In another size and with no captions; scored as the distance of the features by hand."""
    from mm_cca.eval.features.scorer import load_scorer

    folder = tmp_path / "real" / "below"
    folder.mkdir(parents=True)
    pictures = [runs.picture(50 + i, 24) for i in range(6)]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    summary = scored(recipe, copy, f"eval.reference={tmp_path / 'real'}")
    assert summary["protocol"]["num_reference_images"] == {"train": 6}
    scorer = load_scorer("emoji-clip", None, batch_size=8, device=torch.device("cpu"))
    small = [p.resize((16, 16), Image.Resampling.BICUBIC) for p in pictures]
    drawn = tmp_path / "run" / "samples" / "base"
    ours = scorer.image_features(Image.open(drawn / f"{i:06d}.png") for i in range(8))
    expected = frechet_distance(ours, scorer.image_features(small))
    assert value(summary, "frechet_distance") == pytest.approx(expected, rel=1e-4)
    (folder / "3.png").write_bytes(b"no picture")
    shutil.rmtree(tmp_path / "run" / "eval")
    with pytest.raises(UserError, match=r"3\.png: not a readable image"):
        scored(recipe, copy, f"eval.reference={tmp_path / 'real'}")


def test_pictures_that_are_missing_or_changed_are_named_before_scoring(
    recipe: Path, copy: str, tmp_path: Path
):
    samples = tmp_path / "run" / "samples"
    (samples / "base" / "000003.png").unlink()
    (samples / "base" / "000005.png").write_bytes(b"torn")
    lines = (samples / "base+cfg2" / "manifest.jsonl").read_text().splitlines(keepends=True)
    (samples / "base+cfg2" / "manifest.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError) as caught:
        scored(recipe, copy)
    message = str(caught.value)
    assert "base: 2 of 8 images can't be used: 000003.png is missing; 000005.png was" in message
    assert "base+cfg2: 1 of 8 images can't be used: 000007.png is not in manifest" in message
    assert not (tmp_path / "run" / "eval" / "summary.json").exists()
    lines[0] = lines[0].replace('"prompt": "', '"prompt": "another ')
    (samples / "base+cfg2" / "manifest.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match="was sampled for another prompt"):
        scored(recipe, copy)


def test_images_scored_at_another_size(recipe: Path, copy: str):
    summary = scored(recipe, copy, "eval.image_size=[8,8]")
    assert summary["protocol"]["image_size"] == [8, 8]
    assert "shorter side fitted" in summary["protocol"]["resize"]["images"]


def test_captions_that_are_cut_are_counted(recipe: Path, tmp_path: Path):
    """emoji-clip reads 24 tokens."""
    file = tmp_path / "prompts.txt"
    file.write_text("red owl\n\n" + "green tree " * 30 + "\nblue hand\npink car\n")
    summary = _drawn_from(recipe, tmp_path, file)
    (judge,) = summary["protocol"]["judges"].values()
    assert judge["captions_cut"] == {"prompts": 1}
    assert any("1 of 4 prompts are longer than the 24 tokens" in s for s in summary["warnings"])


def _drawn_from(recipe: Path, tmp_path: Path, file: Path, *overrides: str) -> dict[str, Any]:
    keys = [f"run.dir={tmp_path / 'prompted'}", f"sample.prompts={file}", *overrides]
    keys.append("eval.metrics=[alignment,r_at_1]")
    runs.do(recipe, *keys, stages=["sample"])
    return scored(recipe, *keys)


def test_prompts_from_a_file_several_images_each(recipe: Path, tmp_path: Path):
    """No tokens, no floors; each image has a stream of its own; intervals are over prompts."""
    file = tmp_path / "prompts.jsonl"
    texts = runs.CAPTIONS[30:34]
    file.write_text("".join(json.dumps({"prompt": text, "tag": "x"}) + "\n" for text in texts))
    summary = _drawn_from(recipe, tmp_path, file, "sample.images_per_prompt=2")
    assert summary["floors"] == {}
    assert summary["protocol"]["num_prompts"] == {"prompts": 8}
    assert summary["protocol"]["num_captions_ranked"] == 4
    assert not (tmp_path / "prompted" / "tokens").exists()
    folder = tmp_path / "prompted" / "samples" / "base"
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [text for text in texts for _ in range(2)]
    assert len({line["sha256"] for line in lines}) == 8
    numbers = json.loads((tmp_path / "prompted" / "eval" / "per_prompt.json").read_text())
    by_image = numbers["prompts"]["judges"]["emoji-clip"]["base"]["alignment"]
    means = np.array(by_image).reshape(4, 2).mean(axis=1)
    score = summary["arms"][0]["scores"]["emoji-clip"]["prompts"]["alignment"]
    assert score["value"] == pytest.approx(means.mean(), abs=1e-4)
    # Of four prompts: Student's t with three degrees of freedom.
    half = 3.18245 * means.std(ddof=1) / 2
    assert score["low"] == pytest.approx(means.mean() - half, abs=1e-3)
    assert score["high"] == pytest.approx(means.mean() + half, abs=1e-3)
    file.write_text(file.read_text().replace("tag", "label").replace(texts[0], "another owl"))
    with pytest.raises(UserError, match=r"sample\.prompts \(sha256\)"):
        _drawn_from(recipe, tmp_path, file, "sample.images_per_prompt=2")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["eval.metrics=[alignment,fidd]"], "eval.metrics is 'fidd'; allowed: alignment"),
        (["eval.metrics=[alignment,fid]"], "allowed: only with eval.inception_weights=download"),
        (["eval.metrics=[fid]", "eval.inception_weights=download"], "a list with alignment"),
        (["eval.metrics=[alignment,alignment]"], "all values different"),
        (["eval.metrics=[alignment,clip_score]"], "with eval.scorer=emoji-clip use alignment"),
        (["eval.inception_sha256=xyz"], "8 to 64 hexadecimal digits"),
        (["eval.image_size=[8]"], r"\[height, width\]"),
        (["sample.prompts=a.txt"], "only with eval.reference: prompts from a file"),
        (["sample.prompts=a.pdf", "eval.metrics=[alignment]"], "a file .txt, .jsonl, .csv"),
        (["sample.images_per_prompt=0"], "sample.images_per_prompt is 0; allowed: 1 to 100,000"),
    ],
)
def test_values_that_are_refused_before_any_work(recipe: Path, overrides: list[str], problem: str):
    with pytest.raises(UserError, match=problem):
        runs.load_recipe(recipe, *overrides)


@pytest.mark.parametrize(
    ("scorer", "pretrained", "published"),
    [
        ("ViT-L-14", "openai", True),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None, True),
        ("hf:openai/clip-vit-base-patch32", None, True),
        ("ViT-L-14", "weights.pt", False),
        ("ViT-L-14", None, False),
        ("ViT-B-16-SigLIP", "webli", False),
        ("hf:google/siglip-base-patch16-224", None, False),
        ("local-dir:clip", None, False),
        ("emoji-clip", None, False),
    ],
)
def test_what_is_a_published_clip(scorer: str, pretrained: str | None, published: bool):
    from mm_cca.config.metrics import is_published_clip

    assert is_published_clip(scorer, pretrained) == published
