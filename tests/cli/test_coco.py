"""Prompts from a COCO caption file."""

import json
from pathlib import Path
from typing import Any

import pytest

from mm_cca.cli.main import main
from mm_cca.data.prompt_files import read_prompts
from tests.support import runs


def annotations(path: Path, **changes: Any) -> Path:
    """Eight images with two captions each, one of them empty, in no order."""
    images = [
        {"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in (9, 2, 5, 7, 1, 3, 8, 4)
    ]
    captions = [
        {"id": 100 * n + i, "image_id": i, "caption": f"{n} things of picture {i}.\n"}
        for n in (2, 1)
        for i in (1, 2, 3, 4, 5, 7, 8, 9)
    ]
    captions[3]["caption"] = " "
    path.write_text(json.dumps({"images": images, "annotations": captions} | changes))
    return path


def write(tmp_path: Path, name: str, *options: str) -> list[dict[str, Any]]:
    target = tmp_path / name
    source = annotations(tmp_path / "captions.json")
    assert main(["coco-prompts", str(source), str(target), *options]) == 0
    return runs.json_lines(target)


def test_one_caption_of_each_image(tmp_path: Path):
    lines = write(tmp_path, "prompts.jsonl", "--num-images", "8")
    assert sorted(line["image_id"] for line in lines) == [1, 2, 3, 4, 5, 7, 8, 9]
    for line in lines:
        number, image = divmod(line["caption_id"], 100)
        assert image == line["image_id"]
        assert line["text"] == f"{number} things of picture {image}."
        assert line["file_name"] == f"COCO_val2014_{image:012d}.jpg"
    assert len({line["caption_id"] // 100 for line in lines}) == 2, "always the same caption"
    assert read_prompts(str(tmp_path / "prompts.jsonl")) == [line["text"] for line in lines]


def test_the_seed_decides(tmp_path: Path):
    first, again, other = (
        write(tmp_path, f"{name}.jsonl", "--num-images", "4", "--seed", seed)
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1"))
    )
    assert first == again
    assert first != other
    more = write(tmp_path, "d.jsonl", "--num-images", "6")
    assert more[:4] == first, "a larger set holds the smaller one"


@pytest.mark.parametrize(
    ("content", "options", "problem"),
    [
        (None, [], "no such file"),
        ("[1]", [], "is not a COCO caption file"),
        ('{"images": []}', [], "'annotations'"),
        ("ok", ["--num-images", "9"], "--num-images is 9; allowed: 1 to 8"),
        ("ok", ["--num-images", "0"], "--num-images is 0; allowed: 1 to 8"),
        ("ok", ["--num-images", "2", "--seed", "-1"], "--seed is -1; allowed: 0 or more"),
    ],
)
def test_what_can_not_be_read(
    tmp_path: Path, content: str | None, options: list[str], problem: str, capsys: Any
):
    source = tmp_path / "captions.json"
    if content == "ok":
        annotations(source)
    elif content is not None:
        source.write_text(content)
    assert main(["coco-prompts", str(source), str(tmp_path / "p.jsonl"), *options]) == 2
    assert problem.lower() in capsys.readouterr().err.lower()
    assert not (tmp_path / "p.jsonl").exists()


def test_captions_of_unknown_images(tmp_path: Path, capsys: Any):
    source = annotations(tmp_path / "captions.json", images=[{"id": 2, "file_name": "2.jpg"}])
    assert main(["coco-prompts", str(source), str(tmp_path / "p.jsonl")]) == 2
    assert "captions of images that it does not list, such as 1" in capsys.readouterr().err


def test_targets_that_are_refused(tmp_path: Path, capsys: Any):
    source = annotations(tmp_path / "captions.json")
    (tmp_path / "there.jsonl").touch()
    assert main(["coco-prompts", str(source), str(tmp_path / "there.jsonl")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["coco-prompts", str(source), str(tmp_path / "p.txt")]) == 2
    assert "must end in .jsonl" in capsys.readouterr().err
