"""``vote``: sides and order by a seed, a file of votes that belongs to its images, a preference."""

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mm_cca import cli
from mm_cca.cli.commands.vote import _VoteHandler
from mm_cca.errors import UserError
from mm_cca.eval.ballot import Ballot, Vote, VotedArm, preference_of
from mm_cca.eval.metrics.intervals import share_interval
from mm_cca.eval.report.vote_page import preference_sentence
from tests.support.browsing import WIDTHS, Open, assert_readable
from tests.support.scored_runs import scored_folder, scored_run

CAPTIONS = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    arms = ("base", "cca")
    return scored_folder(tmp_path / "run", scored_run("run", CAPTIONS, [1.0] * 8, arms=arms))


def ballot_of(run: Path, **changed: object) -> Ballot:
    arms = tuple(VotedArm("run", arm, run / "samples" / arm) for arm in ("cca", "base"))
    options: dict[str, object] = {"num_votes": 50, "seed": 0, "split": None, **changed}
    return Ballot(arms, run / "votes.json", **options)  # type: ignore[arg-type]


def test_a_vote_counts_for_the_arm_whatever_its_side(run: Path):
    ballot = ballot_of(run)
    assert {pair.first_is_left for pair in ballot.pairs} == {True, False}
    assert sorted(pair.prompt for pair in ballot.pairs) == CAPTIONS
    for number, pair in enumerate(ballot.pairs):
        left = ballot.picture(number, left=True)
        assert left.parent.name == ("cca" if pair.first_is_left else "base")
        ballot.vote(number, "left" if left.parent.name == "cca" else "right")
    found = preference_of(ballot.votes)
    assert found is not None
    assert (found.first, found.second, found.neither) == (8, 0, 0)
    assert found.share == share_interval(np.ones(8))


def test_order_and_sides_come_from_the_seed(run: Path):
    def seen(seed: int) -> list[tuple[str, bool]]:
        return [(pair.prompt, pair.first_is_left) for pair in ballot_of(run, seed=seed).pairs]

    assert seen(1) == seen(1) != seen(2)


def vote_of(row: int, choice: str) -> Vote:
    return {
        "pair": 0,
        "split": "train",
        "row": row,
        "prompt": "x",
        "first_is_left": True,
        "choice": choice,  # type: ignore[typeddict-item]
    }


def test_images_of_one_prompt_count_once_and_neither_counts_half():
    votes = [vote_of(0, "first"), vote_of(0, "second"), vote_of(1, "neither"), vote_of(2, "first")]
    found = preference_of(votes)
    assert found is not None
    assert found.share == share_interval(np.array([0.5, 0.5, 1.0]))
    assert found.left == pytest.approx(2 / 3)
    assert preference_of([]) is None
    assert preference_sentence(("x", "y"), found).startswith("No preference found: 67 %")
    clear = preference_of([vote_of(row, "second") for row in range(20)])
    assert clear is not None
    assert preference_sentence(("x", "y"), clear).startswith("y is preferred: 0 % prefer x to y")


def test_votes_are_kept_taken_back_and_continued(run: Path):
    ballot = ballot_of(run)
    for number in range(3):
        ballot.vote(number, "neither")
    ballot.vote(0, "left")  # of a page that was loaded earlier
    ballot.undo()
    assert [vote["choice"] for vote in ballot_of(run).votes] == ["neither"] * 2
    fewer = ballot_of(run, num_votes=1)
    assert fewer.current is None
    assert len(fewer.votes) == 2  # none is lost
    assert ballot_of(run).current == 2


def test_votes_on_something_else_are_refused(run: Path):
    ballot_of(run).vote(0, "left")
    with pytest.raises(UserError, match="has votes in the order of --seed 0, not of --seed 3"):
        ballot_of(run, seed=3)
    manifest = run / "samples" / "cca" / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines[1:], lines[0].replace('"sha256": "', '"sha256": "0')]))
    with pytest.raises(UserError, match="has votes on other images: of another --split"):
        ballot_of(run)
    stored = json.loads((run / "votes.json").read_text())
    (run / "votes.json").write_text(json.dumps(stored | {"first": "cca of another"}))
    told = "has votes on cca of another against base of run, not on cca of run against base of run"
    with pytest.raises(UserError, match=told):
        ballot_of(run)
    (run / "votes.json").write_text("{}")
    with pytest.raises(UserError, match="Delete it to vote anew"):
        ballot_of(run)


@contextmanager
def serving(ballot: Ballot) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_VoteHandler, ballot)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_each_split_and_seed_has_a_file_of_its_own(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def vote_once(handler: partial[_VoteHandler], *_: object) -> None:
        """As a visitor who casts one vote and leaves."""
        (ballot,) = handler.args
        ballot.vote(ballot.current, "left")

    def voted(*words: str) -> list[str]:
        arguments = ["vote", str(run), "cca", "base", *words]
        assert cli.main(arguments) == 0
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr("mm_cca.cli.commands.vote.serve_pages", vote_once)
    told = [voted(), voted("--seed", "3"), voted("--split", "train"), voted("--seed", "3")]
    files = [lines[0].rsplit(" ", 1)[1] for lines in told]
    names = ["cca-base", "cca-base-seed3", "cca-base-on-train", "cca-base-seed3"]
    assert files == [str(run / "votes" / f"{name}.json") for name in names]
    assert [len(json.loads(Path(file).read_text())["votes"]) for file in files] == [1, 2, 1, 2]
    assert "8 pairs, 1 voted on" in told[3][0]


@pytest.fixture
def served(run: Path) -> Iterator[tuple[Ballot, str]]:
    ballot = ballot_of(run, num_votes=2)
    with serving(ballot) as url:
        yield ballot, url


def posted(url: str, origin: str | None = None, **fields: str) -> str:
    data = urllib.parse.urlencode(fields).encode()
    headers = {} if origin is None else {"Origin": origin}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return answer.read().decode()


def test_the_page_is_blind_until_the_end(served: tuple[Ballot, str]):
    ballot, url = served
    with urllib.request.urlopen(url, timeout=30) as answer:
        page = answer.read().decode()
    assert "Pair 1 of 2" in page
    assert page.count("data:image/png;base64,") == 2
    assert "cca" not in page.split("</style>")[1]
    assert "base" not in page.split("</style>")[1].replace("base64", "")
    assert "Pair 2 of 2" in posted(f"{url}/vote", pair="0", side="neither", origin=url)
    assert "Pair 1 of 2" in posted(f"{url}/undo")
    posted(f"{url}/vote", pair="0", side="left")
    end = posted(f"{url}/vote", pair="1", side="right")
    assert "prefer cca of run to base of run" in end
    assert ballot.current is None


def test_the_keys_lead_to_the_end_page(open_page: Open, run: Path):
    ballot = ballot_of(run, num_votes=6)
    with serving(ballot) as url:
        page = open_page(url)

        def press(key: str, then: str) -> None:
            page.keyboard.press(key)
            page.get_by_text(then).wait_for()

        press("1", "Pair 2 of 6")
        press("2", "Pair 3 of 6")
        press("0", "Pair 4 of 6")
        press("Backspace", "Pair 3 of 6")
        press("Backspace", "Pair 2 of 6")
        page.keyboard.press("3")  # of no meaning
        # The second arm, base, whatever its side.
        for number in range(1, 5):
            key = "2" if ballot.pairs[number].first_is_left else "1"
            press(key, f"Pair {number + 2} of 6")
        press("0", "6 votes")
        heading = page.get_by_role("heading").inner_text()
        stored = json.loads((run / "votes.json").read_text())
        choices = [vote["choice"] for vote in stored["votes"]]
        assert choices[1:] == ["second"] * 4 + ["neither"]
        assert choices[0] == ("first" if ballot.pairs[0].first_is_left else "second")
        first = choices.count("first")
        worth = share_interval(np.array([float(first)] + [0.0] * 4 + [0.5]))
        assert stored["preference"]["share"] == pytest.approx(worth)
        assert f"{100 * worth['value']:.0f} % prefer cca of run to base of run" in heading
        assert str(run / "votes.json") in page.locator("main").inner_text()
        press("Backspace", "Pair 6 of 6")
    assert len(ballot_of(run, num_votes=6).votes) == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_both_pages_fit(open_page: Open, run: Path, scheme: str):
    with serving(ballot_of(run, num_votes=1)) as url:
        page = open_page(url, width=390, scheme=scheme)
        assert page.evaluate(WIDTHS) == [390, 390]
        pictures = page.locator(".pair img")
        assert pictures.evaluate_all("all => all.map((image) => image.naturalWidth)") == [16, 16]
        assert_readable(page, ".prompt", ".muted", "button")
        page.get_by_alt_text("the left picture").click()
        page.get_by_text("of 1 votes for").wait_for()
        assert page.evaluate(WIDTHS) == [390, 390]
        assert_readable(page, ".prompt", ".muted", "main p", "button")


@pytest.mark.parametrize(
    ("path", "fields", "origin", "code"),
    [
        ("vote", {"pair": "0", "side": "middle"}, None, 400),
        ("vote", {"pair": "x", "side": "left"}, None, 400),
        ("vote", {"pair": "0", "side": "left" * 500}, None, 400),
        ("vote", {"pair": "0", "side": "left"}, "http://elsewhere.example", 403),
        ("other", {"pair": "0", "side": "left"}, None, 400),
    ],
)
def test_what_is_no_vote(
    served: tuple[Ballot, str], path: str, fields: dict[str, str], origin: str | None, code: int
):
    ballot, url = served
    with pytest.raises(urllib.error.HTTPError) as caught:
        posted(f"{url}/{path}", origin, **fields)
    assert caught.value.code == code
    assert not ballot.votes


def test_an_image_that_was_changed_is_told(served: tuple[Ballot, str]):
    ballot, url = served
    ballot.picture(0, left=True).write_bytes(b"x")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=30)
    assert "was changed after sampling" in caught.value.read().decode()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["cca", "other"], "has no arm 'other'; it has base, cca."),
        (["cca", "cca"], "both arms are cca of run; name two."),
        (["cca", "base", "--votes", "0"], "--votes is 0"),
        (["cca", "base", "--split", "heldout"], "no prompt of the split 'heldout' in common"),
        (["cca", "base", "--port", "99999"], "--port is 99999"),
    ],
)
def test_bad_input(run: Path, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["vote", str(run), *words]) == 2
    assert problem in capsys.readouterr().err
