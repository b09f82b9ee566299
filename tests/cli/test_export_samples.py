"""Images in the folder layouts of other evaluators: names, contents, and what is refused."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_cca import cli
from mm_cca.cli.commands.export_samples import export_samples
from mm_cca.errors import UserError
from tests.support import runs

PROMPTS = ["red owl", "green cat", "blue house"]


def write_arm(run: Path, per_prompt: int = 1, prompts: list[str] = PROMPTS) -> Path:
    """A sampled arm ``cca`` as ``mm-cca sample`` leaves it."""
    folder = run / "samples" / "cca"
    folder.mkdir(parents=True)
    lines = []
    for index in range(len(prompts) * per_prompt):
        row = index // per_prompt
        data = runs.png(runs.picture(index, 16))
        (folder / f"{index:06d}.png").write_bytes(data)
        line = {"index": index, "split": "prompts", "row": row, "prompt": prompts[row]}
        line |= {"forward_passes": 16, "seconds": 0.1}
        lines.append(json.dumps(line | {"sha256": hashlib.sha256(data).hexdigest()}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "stage.json").write_text('{"done": true, "settings": {}}')
    return run


def pixels(image: Image.Image | Path) -> np.ndarray:
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return np.array(opened.convert("RGB"))
    return np.array(image)


def test_adm_array_holds_the_images_shuffled_by_a_fixed_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = write_arm(tmp_path / "run", 2)
    words = ["export-samples", str(run), "cca", str(tmp_path / "out"), "--format", "adm-npz"]
    assert cli.main(words) == 0
    assert "6 images of cca are in" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["samples.npz"]
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as file:
        found = file["arr_0"]
    assert found.dtype == np.uint8
    assert found.shape == (6, 16, 16, 3)
    order = [3, 2, 5, 4, 0, 1]  # numpy's default_rng(0).permutation(6)
    assert (found == np.stack([pixels(runs.picture(i, 16)) for i in order])).all()
    with zipfile.ZipFile(tmp_path / "out" / "samples.npz") as archive:
        assert [e.date_time for e in archive.infolist()] == [(1980, 1, 1, 0, 0, 0)]  # no clock
    export_samples(run, "cca", tmp_path / "small", form="adm-npz", size=8)
    with np.load(tmp_path / "small" / "samples.npz") as file:
        small = runs.picture(order[0], 16).resize((8, 8), Image.Resampling.BICUBIC)
        assert (file["arr_0"][0] == pixels(small)).all()


def test_geneval_folders_follow_its_own_lines(tmp_path: Path):
    run = write_arm(tmp_path / "run", 4)
    # Another order than they were sampled in, and keys that must be kept.
    lines = [{"tag": "colors", "include": [{"class": t}], "prompt": t} for t in PROMPTS[::-1]]
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    export_samples(run, "cca", tmp_path / "out", form="geneval", prompts=metadata)
    assert sorted(runs.files_of(tmp_path / "out")) == sorted(
        name
        for i in range(3)
        for name in (
            f"{i:05d}/metadata.jsonl",
            *(f"{i:05d}/samples/{k:04d}.png" for k in range(4)),
        )
    )
    for i, line in enumerate(lines):
        # As evaluate_images.py reads it.
        assert json.loads((tmp_path / f"out/{i:05d}/metadata.jsonl").read_text()) == line
        first = 4 * (2 - i)
        for k in range(4):
            found = pixels(tmp_path / f"out/{i:05d}/samples/{k:04d}.png")
            assert (found == pixels(runs.picture(first + k, 16))).all()


def items(folder: Path) -> Path:
    folder.mkdir()
    for i, text in enumerate(PROMPTS):
        (folder / f"item{i}.txt").write_text(f"{text}\n")
    return folder


def test_dpg_grids_are_cropped_back(tmp_path: Path):
    run = write_arm(tmp_path / "run", 4)
    export_samples(run, "cca", tmp_path / "out", form="dpg", prompts=items(tmp_path / "prompts"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "item0.png",
        "item1.png",
        "item2.png",
    ]
    # The boxes of compute_dpg_bench.py with --resolution 16.
    boxes = [(0, 0, 16, 16), (16, 0, 32, 16), (0, 16, 16, 32), (16, 16, 32, 32)]
    for i in range(3):
        with Image.open(tmp_path / "out" / f"item{i}.png") as grid:
            for k, box in enumerate(boxes):
                assert (pixels(grid.crop(box)) == pixels(runs.picture(4 * i + k, 16))).all()


def test_compbench_names_carry_the_prompt(tmp_path: Path):
    run = write_arm(tmp_path / "run", 2)
    export_samples(run, "cca", tmp_path / "out", form="t2i-compbench")
    names = sorted(p.name for p in (tmp_path / "out" / "samples").iterdir())
    # As BLIP_vqa.py sorts and reads them.
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [name.split("_")[0] for name in names] == [p for p in PROMPTS for _ in range(2)]
    found = pixels(tmp_path / "out" / "samples" / names[3])
    assert (found == pixels(runs.picture(3, 16))).all()


@pytest.mark.parametrize("prompt", ["a/b", "red_owl", "owl " * 80])
def test_compbench_refuses_invalid_file_names(tmp_path: Path, prompt: str):
    run = write_arm(tmp_path / "run", prompts=[prompt])
    with pytest.raises(UserError, match="can't be part of it"):
        export_samples(run, "cca", tmp_path / "out", form="t2i-compbench")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_hps_folders_are_numbered_within_a_style(tmp_path: Path):
    run = write_arm(tmp_path / "run", prompts=[*PROMPTS, "red owl"])
    folder = tmp_path / "benchmark"
    folder.mkdir()
    styles = {
        "anime": ["blue house", "red owl"],
        "concept-art": ["green cat"],
        "paintings": ["red owl"],  # the same text once more: its own picture
        "photo": [],
    }
    for style, texts in styles.items():
        (folder / f"{style}.json").write_text(json.dumps(texts))
    export_samples(run, "cca", tmp_path / "out", form="hpsv2", prompts=folder)
    expected = {
        "anime/00000.jpg": 2,
        "anime/00001.jpg": 0,
        "concept-art/00000.jpg": 1,
        "paintings/00000.jpg": 3,
    }
    assert set(runs.files_of(tmp_path / "out")) == set(expected)
    for name, number in expected.items():
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == "JPEG"
            apart = np.abs(pixels(image).astype(int) - pixels(runs.picture(number, 16)))
            others = np.abs(pixels(image).astype(int) - pixels(runs.picture(number + 1, 16)))
        assert apart.mean() < others.mean() / 2


def test_prompts_that_were_not_sampled(tmp_path: Path):
    run = write_arm(tmp_path / "run")
    metadata = tmp_path / "m.jsonl"
    metadata.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in [*PROMPTS, "a zebra"]))
    with pytest.raises(UserError, match=r"1 of 4 prompts of .* the first: 'a zebra'"):
        export_samples(run, "cca", tmp_path / "out", form="geneval", prompts=metadata)
    with pytest.raises(UserError, match="--format geneval needs --prompts"):
        export_samples(run, "cca", tmp_path / "out", form="geneval")
    assert not (tmp_path / "out").exists()


def test_missing_images_are_named_and_refused(tmp_path: Path):
    run = write_arm(tmp_path / "run", 2)
    (run / "samples" / "cca" / "000001.png").unlink()
    (run / "samples" / "cca" / "000004.png").write_bytes(b"truncated")
    with pytest.raises(
        UserError, match=r"2 of 6 .*000001\.png is missing; 000004\.png was changed"
    ):
        export_samples(run, "cca", tmp_path / "out", form="adm-npz")
    assert not (tmp_path / "out").exists()


def test_what_else_is_refused(tmp_path: Path):
    run = write_arm(tmp_path / "run", 5)
    with pytest.raises(UserError, match="has no arm 'base'; it has cca"):
        export_samples(run, "base", tmp_path / "out", form="adm-npz")
    with pytest.raises(UserError, match="--split is 'x'; arm cca has prompts"):
        export_samples(run, "cca", tmp_path / "out", form="adm-npz", split="x")
    with pytest.raises(UserError, match="goes with --format adm-npz"):
        export_samples(run, "cca", tmp_path / "out", form="t2i-compbench", size=8)
    folder = items(tmp_path / "prompts")
    with pytest.raises(UserError, match="DPG-Bench takes up to 4"):
        export_samples(run, "cca", tmp_path / "out", form="dpg", prompts=folder)
    with pytest.raises(UserError, match=r"must be the folder dpg_bench/prompts"):
        export_samples(run, "cca", tmp_path / "out", form="dpg", prompts=tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="exists already"):
        export_samples(run, "cca", tmp_path / "full", form="adm-npz")
    stage = run / "samples" / "cca" / "stage.json"
    stage.write_text('{"done": false, "settings": {}}')
    with pytest.raises(UserError, match="arm cca is incomplete"):
        export_samples(run, "cca", tmp_path / "out", form="adm-npz")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "in line 2, it is not an object"),
        ("3", "in line 2, it is not an object"),
        ('{"tag": "single_object"}', "in line 2, 'prompt' is missing"),
        ('{"prompt": 3}', "in line 2, 'prompt' is not a text"),
        ('{"prompt": "a', "in line 2, it is not JSON"),
    ],
)
def test_metadata_of_another_make(tmp_path: Path, line: str, problem: str):
    run, metadata = write_arm(tmp_path / "run"), tmp_path / "m.jsonl"
    metadata.write_text(json.dumps({"prompt": PROMPTS[0]}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"{problem}.* must be geneval's evaluation_metadata"):
        export_samples(run, "cca", tmp_path / "out", form="geneval", prompts=metadata)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [("3", "it is not a list"), ("[1, 2]", "'0' is not a text"), ('{"a": 1}', "it is not a list")],
)
def test_styles_of_another_make(tmp_path: Path, content: str, problem: str):
    run, folder = write_arm(tmp_path / "run"), tmp_path / "benchmark"
    folder.mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        (folder / f"{style}.json").write_text('["red owl"]')
    (folder / "paintings.json").write_text(content)
    with pytest.raises(UserError, match=rf"paintings\.json can't be read: {problem}"):
        export_samples(run, "cca", tmp_path / "out", form="hpsv2", prompts=folder)


def test_items_that_are_no_text(tmp_path: Path):
    run, folder = write_arm(tmp_path / "run"), tmp_path / "prompts"
    folder.mkdir()
    (folder / "1.txt").write_bytes(b"Z\xfcrich")
    with pytest.raises(UserError, match=r"1\.txt can't be read: it is not UTF-8"):
        export_samples(run, "cca", tmp_path / "out", form="dpg", prompts=folder)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", " "])
def test_paths_that_no_file_can_have(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-samples", name, "cca", "out", "--format", "adm-npz"])
    assert ended.value.code == 2
    assert "can't be a path" in capsys.readouterr().err


def metadata_of(path: Path) -> Path:
    """GenEval's lines."""
    path.write_text("".join(json.dumps({"tag": "x", "prompt": text}) + "\n" for text in PROMPTS))
    return path


def benchmark(folder: Path) -> Path:
    """HPS's four styles, all prompts in one."""
    folder.mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        texts = PROMPTS if style == "photo" else []
        (folder / f"{style}.json").write_text(json.dumps(texts))
    return folder


PROMPT_FILES = {"dpg": items, "geneval": metadata_of, "hpsv2": benchmark}


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        ("adm-npz", "evaluator.py REFERENCE.npz {out}/samples.npz"),
        ("dpg", "bash dpg_bench/dist_eval.sh {out} 16"),
        ("t2i-compbench", "BLIP_vqa.py --out_dir={out}"),
        (
            "geneval",
            "python geneval/evaluation/evaluate_images.py {out} --outfile results.jsonl "
            "--model-path DETECTOR",
        ),
        ("hpsv2", "python -c 'import hpsv2; hpsv2.evaluate('\"'\"'{out}'\"'\"')'"),
    ],
)
def test_it_ends_with_the_evaluators_command_for_this_size(
    tmp_path: Path, form: str, ending: str, capsys: pytest.CaptureFixture[str]
):
    run, out = write_arm(tmp_path / "run"), tmp_path / "out"
    words = ["export-samples", str(run), "cca", str(out), "--format", form]
    if form in PROMPT_FILES:
        words += ["--prompts", str(PROMPT_FILES[form](tmp_path / "prompts"))]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert told.rstrip().endswith(ending.format(out=out))
    assert "16 pixels wide" in told
