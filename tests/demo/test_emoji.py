"""The built-in data set of emoji drawings, and its builder on small made-up archives."""

import dataclasses
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mm_cca.config.load import load_config
from mm_cca.config.shipped import SHIPPED
from mm_cca.demo import build_emoji as builder
from mm_cca.demo import emoji_sources
from mm_cca.demo.emoji_names import HELDOUT_FRACTION, emojis, family_of, held_out, tidy, tone_of
from mm_cca.errors import UserError
from tests.support import runs

COLUMNS = ["image", "caption", "name", "style", "codepoint", "family", "tone", "split"]
STYLES = {"noto", "twemoji", "fluent 3d"}
FLAG_POINTS = {*range(0x1F1E6, 0x1F200), 0x1F3F4, 0x1F3F3, 0x1F6A9, 0x1F38C, 0x1F3C1}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return pq.read_table(SHIPPED["emoji"], columns=COLUMNS[1:]).to_pylist()


def families(rows: list[dict[str, str]], split: str) -> set[tuple[str, str]]:
    return {(row["family"], row["style"]) for row in rows if row["split"] == split}


def test_the_built_in_file_is_small_and_has_its_columns(rows: list[dict[str, str]]):
    assert SHIPPED["emoji"].stat().st_size <= 8_000_000
    assert pq.read_schema(SHIPPED["emoji"]).names == COLUMNS
    assert len(rows) > 5000
    assert {row["style"] for row in rows} == STYLES
    assert {row["split"] for row in rows} == {"train", "heldout"}


def test_no_heldout_pair_is_in_train_but_each_family_is(rows: list[dict[str, str]]):
    train, heldout = families(rows, "train"), families(rows, "heldout")
    assert heldout
    assert not train & heldout
    seen = {family for family, _ in train}
    assert {family for family, _ in heldout} <= seen
    assert len({family for family, _ in heldout}) == len(heldout), "one style of each family"


def test_share_of_heldout_families(rows: list[dict[str, str]]):
    every = {row["family"] for row in rows}
    share = len({family for family, _ in families(rows, "heldout")}) / len(every)
    assert share == pytest.approx(HELDOUT_FRACTION, abs=0.005)
    assert pytest.approx(0.15) == HELDOUT_FRACTION


def test_captions_are_name_and_style(rows: list[dict[str, str]]):
    for row in rows:
        assert row["caption"] == f"{row['name']}, {row['style']} style"
        assert row["name"] == row["name"].strip().lower()
        assert row["name"].isascii()
        assert row["name"]
    assert len({(row["codepoint"], row["style"]) for row in rows}) == len(rows)


def test_no_flags(rows: list[dict[str, str]]):
    for row in rows:
        assert not row["name"].startswith("flag,")
        first = int(row["codepoint"].split("-")[0], 16)
        assert first not in FLAG_POINTS, row["name"]


def test_tones_are_in_the_name(rows: list[dict[str, str]]):
    toned = [row for row in rows if row["tone"] and "+" not in row["tone"]]
    assert len(toned) > 500
    assert all(f"{row['tone']} skin tone" in row["name"] for row in toned)
    assert not any("skin tone" in row["name"] for row in rows if not row["tone"])


def test_drawings_are_32_pixels_and_opaque():
    cells = pq.read_table(SHIPPED["emoji"], columns=["image"])["image"].to_pylist()[::500]
    for cell in cells:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (32, 32))


def archive(folder: Path, package: str, members: dict[str, bytes]) -> emoji_sources.Archive:
    """Write a .tgz as ``npm pack`` does, and return its ``Archive``."""
    named = emoji_sources.Archive(package, "1.0.0", "")
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / named.filename, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256((folder / named.filename).read_bytes()).hexdigest()
    return dataclasses.replace(named, sha256=digest)


def entry(order: int, hexcode: str, label: str, group: int = 0) -> dict[str, object]:
    return {"order": order, "hexcode": hexcode, "label": label, "group": group}


LABELS = [
    entry(2, "1F431", "cat face"),
    entry(1, "1F436", "dog face"),
    entry(5, "1F1E6", "flag: nowhere", 9),
    entry(6, "1F3FB", "light skin tone", 2),
    entry(3, "00A9-FE0F", "copyright"),
    {
        **entry(4, "1F44B", "waving hand"),
        "skins": [
            {"hexcode": "1F44B-1F3FB", "label": "waving hand: light skin tone", "tone": 1},
            {"hexcode": "1F44B-1F3FF", "label": "waving hand: dark skin tone", "tone": 5},
        ],
    },
]


@pytest.fixture
def sources(tmp_path: Path) -> emoji_sources.Sources:
    folder = tmp_path / "archives"

    def drawings(first: int, prefix: str, names: list[str]) -> dict[str, bytes]:
        members = {
            f"{prefix}/{name}.png": runs.png(runs.picture(first + i, 48, "RGBA"))
            for i, name in enumerate(names)
        }
        ignored = {f"{prefix}/deeper/1f436.png": b"not this one", "package/README.md": b"x"}
        return members | ignored

    every = ["1f431", "1f436", "00a9-fe0f", "1f44b", "1f44b-1f3fb", "1f44b-1f3ff", "1f1e6"]
    first = archive(folder, "@some/first", drawings(0, "package/a", every))
    second = archive(folder, "second", drawings(50, "package/b", ["1f431", "1f436", "a9"]))
    labels = archive(folder, "labels", {emoji_sources.LABELS: json.dumps(LABELS).encode()})
    return emoji_sources.Sources(
        labels,
        (
            emoji_sources.Style("one", first, "package/a"),
            emoji_sources.Style("two", second, "package/b"),
        ),
    )


def test_building_twice_gives_the_same_bytes(sources: emoji_sources.Sources, tmp_path: Path):
    outs = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    counts = [builder.build(sources, tmp_path / "archives", out) for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    rows = pq.read_table(outs[0]).to_pylist()
    assert counts == [len(rows)] * 2
    assert [(row["caption"], row["tone"]) for row in rows] == [
        ("dog face, one style", ""),
        ("dog face, two style", ""),
        ("cat face, one style", ""),
        ("cat face, two style", ""),
        ("copyright, one style", ""),
        ("copyright, two style", ""),
        ("waving hand, one style", ""),
        ("waving hand, light skin tone, one style", "light"),
        ("waving hand, dark skin tone, one style", "dark"),
    ]
    assert [row["family"] for row in rows][-3:] == ["1F44B"] * 3
    assert not list(tmp_path.glob("*.partial"))


def pictures(path: Path) -> list[Image.Image]:
    cells = pq.read_table(path)["image"].to_pylist()
    return [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells]


def test_another_size_differs_in_the_pixels_only(sources: emoji_sources.Sources, tmp_path: Path):
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    builder.build(sources, tmp_path / "archives", small)
    builder.build(sources, tmp_path / "archives", large, size=64)
    assert pq.read_table(large, columns=COLUMNS[1:]) == pq.read_table(small, columns=COLUMNS[1:])
    assert {picture.size for picture in pictures(small)} == {(32, 32)}
    assert {picture.size for picture in pictures(large)} == {(64, 64)}


def test_only_the_shipped_size_has_a_palette():
    down = Image.linear_gradient("L").resize((64, 64))
    shades = Image.merge("RGB", [down, down.rotate(90), down])
    assert len(shades.getcolors(64 * 64) or []) > 1000

    def stored(size: int) -> Image.Image:
        return Image.open(io.BytesIO(builder.resized(runs.png(shades), size)))

    assert stored(64).tobytes() == shades.tobytes(), "at its own size nothing may change"
    assert 1 < len(stored(32).getcolors(32 * 32) or []) <= builder.COLOURS + 1


def test_size_of_the_command_line(capsys: pytest.CaptureFixture[str]):
    shipped = SHIPPED["emoji"].read_bytes()
    assert builder.main(["--size", "8"]) == 2
    assert "--size is 8; allowed: 16 to 256" in capsys.readouterr().err
    assert builder.main(["--size", "64", "--out", str(SHIPPED["emoji"])]) == 2
    assert "Choose another --out" in capsys.readouterr().err
    assert SHIPPED["emoji"].read_bytes() == shipped


def test_the_command_writes_where_the_recipes_look(
    sources: emoji_sources.Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builder, "SOURCES", sources)
    assert builder.main(["--size", "64", "--archives", "archives"]) == 0
    assert Path(load_config("emoji64").data.path).is_file()


def test_a_transparent_drawing_becomes_white(sources: emoji_sources.Sources, tmp_path: Path):
    clear = runs.png(Image.new("RGBA", (48, 48), (9, 9, 9, 0)))
    one = archive(tmp_path / "archives", "clear", {"package/a/1f436.png": clear})
    changed = dataclasses.replace(sources, styles=(emoji_sources.Style("one", one, "package/a"),))
    out = tmp_path / "out.parquet"
    assert builder.build(changed, tmp_path / "archives", out) == 1
    cell = pq.read_table(out)["image"].to_pylist()[0]
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        assert image.getcolors() == [(32 * 32, (255, 255, 255))]


def test_wrong_archive_is_refused(sources: emoji_sources.Sources, tmp_path: Path):
    wrong = dataclasses.replace(sources.labels, sha256="0" * 64)
    with pytest.raises(UserError) as caught:
        emoji_sources.obtain(wrong, tmp_path / "archives")
    assert "0" * 64 in str(caught.value)
    assert sources.labels.sha256 in str(caught.value)
    changed = dataclasses.replace(sources, labels=wrong)
    with pytest.raises(UserError):
        builder.build(changed, tmp_path / "archives", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_right_archive_is_accepted(sources: emoji_sources.Sources, tmp_path: Path):
    path = emoji_sources.obtain(sources.labels, tmp_path / "archives")
    assert path == tmp_path / "archives" / "labels-1.0.0.tgz"


@pytest.mark.parametrize(
    "failure", [FileNotFoundError("npm"), subprocess.CalledProcessError(1, ["npm"])]
)
def test_archive_that_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(emoji_sources.subprocess, "run", fails)
    missing = emoji_sources.Archive("@some/package", "1.2.3", "0" * 64)
    with pytest.raises(UserError, match=r"@some/package@1\.2\.3(.|\n)*some-package-1\.2\.3\.tgz"):
        emoji_sources.obtain(missing, tmp_path / "archives")


def test_emojis_are_in_their_own_order_without_flags_and_components():
    assert [emoji.name for emoji in emojis(LABELS)] == [
        "dog face",
        "cat face",
        "copyright",
        "waving hand",
        "waving hand, light skin tone",
        "waving hand, dark skin tone",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F64B-200D-2642-FE0F", "1F64B-200D-2640-FE0F"),  # man, woman raising hand
        ("1F468-200D-1F9B0", "1F469-200D-1F9B3"),  # red, white hair
        ("1F468-200D-1F692", "1F9D1-200D-1F692"),  # man firefighter, firefighter
        ("1F44B-1F3FB", "1F44B-1F3FF"),  # light, dark waving hand
        ("1F46B", "1F9D1-200D-1F91D-200D-1F9D1"),  # people holding hands
    ],
)
def test_forms_of_one_family(one: str, other: str):
    assert family_of(one) == family_of(other)


def test_different_things_are_different_families():
    codes = ("1F436", "1F431", "1F468-200D-1F692", "1F468-200D-1F680", "1F468")
    assert len({family_of(code) for code in codes}) == len(codes)


def test_tidy_names_and_tones():
    assert tidy("keycap: *") == "keycap asterisk"
    assert tidy("pi\u00f1ata") == "pinata"
    assert tone_of({"tone": [1, 5]}) == "light+dark"
    assert tone_of({}) == ""


def test_held_out_is_a_share_and_never_the_only_style():
    styles_of = {f"{i:04X}": {"a", "b", "c"} if i % 2 else {"a"} for i in range(200)}
    chosen = held_out(styles_of)
    assert len(chosen) == 30
    assert all(len(styles_of[family]) == 3 and style in "abc" for family, style in chosen)
    assert len({style for _, style in chosen}) == 3
    # Another family changes at most one held-out pair, because the fraction allows one more.
    assert len(chosen ^ held_out(styles_of | {"FFFF": {"a", "b"}})) <= 2
