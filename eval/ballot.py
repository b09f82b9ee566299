"""A blind choice between two arms: the pairs in their order, the file of votes, the preference."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from typing_extensions import TypedDict

from mm_cca.config.read_files import is_there, json_of
from mm_cca.errors import UserError
from mm_cca.eval.comparison_types import Preference
from mm_cca.eval.metrics.intervals import share_interval
from mm_cca.eval.scores import per_prompt
from mm_cca.runs.files import write_json
from mm_cca.sampling.manifest import manifest_of, picture_file, problem_of

Choice = Literal["first", "second", "neither"]
WORTH: Mapping[Choice, float] = {"first": 1.0, "neither": 0.5, "second": 0.0}


@dataclass(frozen=True)
class VotedArm:
    """An arm, the name of its run, and the folder of its images."""

    run: str
    arm: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} of {self.run}"


@dataclass(frozen=True)
class ImagePair:
    """Two images of one prompt.

    Attributes:
        split: of the prompt.
        prompt: its text.
        lines: of the first and the second arm's manifest.
        first_is_left: which one is on the left.
    """

    split: str
    prompt: str
    lines: tuple[dict[str, Any], dict[str, Any]]
    first_is_left: bool


class Vote(TypedDict):
    """One choice; ``pair`` counts in the shuffled order, ``row`` tells prompts apart."""

    pair: int
    split: str
    row: int
    prompt: str
    first_is_left: bool
    choice: Choice


class VotesFile(TypedDict):
    """The file of votes; what the votes are about, then the votes."""

    first: str
    second: str
    seed: int
    pairs_sha256: str
    votes: list[Vote]


class Ballot:
    """The pairs and the votes so far, which are written after every vote."""

    def __init__(
        self,
        arms: tuple[VotedArm, VotedArm],
        path: Path,
        *,
        num_votes: int,
        seed: int,
        split: str | None,
    ) -> None:
        """
        Args:
            arms: first and second.
            path: the file of votes; continued if it is there.
            num_votes: how many pairs are asked about, at most all.
            seed: of order and sides.
            split: only prompts of this one; None: of all.

        Raises:
            UserError: no prompt of both, or a file of votes on other images.
        """
        self.arms, self.path = arms, path
        pairs = _pairs(arms, split)
        self._facts: dict[str, Any] = {
            "first": arms[0].name,
            "second": arms[1].name,
            "seed": seed,
            "pairs_sha256": _digest(pairs),
        }
        random = np.random.default_rng(seed)
        order = random.permutation(len(pairs))
        sides = random.integers(0, 2, len(pairs))
        self.pairs: list[ImagePair] = []
        for place, side in zip(order[:num_votes].tolist(), sides, strict=False):
            of_split, prompt, lines = pairs[place]
            self.pairs.append(ImagePair(of_split, prompt, lines, bool(side)))
        self.votes = self._read()

    @property
    def current(self) -> int | None:
        """The number of the pair to vote on; None at the end."""
        return len(self.votes) if len(self.votes) < len(self.pairs) else None

    def picture(self, number: int, *, left: bool) -> Path:
        """The image on one side of a pair.

        Raises:
            UserError: it is missing or was changed.
        """
        pair = self.pairs[number]
        which = 0 if left == pair.first_is_left else 1
        folder, line = self.arms[which].folder, pair.lines[which]
        if (problem := problem_of(folder, line)) is not None:
            raise UserError(f"{folder}: {problem}. Sample the arm again; the votes are kept.")
        return picture_file(folder, line["index"])

    def vote(self, number: int, side: Literal["left", "right", "neither"]) -> None:
        """Record a choice; one about another pair than the current one is ignored."""
        if number != self.current:
            return  # of a page that was loaded earlier
        pair = self.pairs[number]
        chosen: Choice = "neither"
        if side != "neither":
            chosen = "first" if (side == "left") == pair.first_is_left else "second"
        vote: Vote = {
            "pair": number,
            "split": pair.split,
            "row": pair.lines[0]["row"],
            "prompt": pair.prompt,
            "first_is_left": pair.first_is_left,
            "choice": chosen,
        }
        self.votes.append(vote)
        self._write()

    def undo(self) -> None:
        """Take the last vote back, if there is one."""
        if self.votes:
            self.votes.pop()
            self._write()

    def _read(self) -> list[Vote]:
        if not is_there(self.path):
            return []
        advice = "Delete it to vote anew, or choose another file with --into."
        stored = json_of(self.path, VotesFile, advice)
        if (other := self._other(stored)) is not None:
            raise UserError(f"{self.path} has votes {other}. {advice}")
        # More than are asked about now: kept, so that nothing is lost.
        return stored["votes"]

    def _other(self, stored: VotesFile) -> str | None:
        """What the votes of a file are about, if about something else."""
        facts = self._facts
        if (stored["first"], stored["second"]) != (facts["first"], facts["second"]):
            return (
                f"on {stored['first']} against {stored['second']}, not on {facts['first']} "
                f"against {facts['second']}"
            )
        if stored["seed"] != facts["seed"]:
            return f"in the order of --seed {stored['seed']}, not of --seed {facts['seed']}"
        if stored["pairs_sha256"] != facts["pairs_sha256"]:
            return "on other images: of another --split, or drawn before these"
        return None

    def _write(self) -> None:
        found = preference_of(self.votes)
        outcome = {} if found is None else {"preference": {**found._asdict()}}
        write_json(self.path, {**self._facts, **outcome, "votes": self.votes})


def preference_of(votes: Sequence[Vote]) -> Preference | None:
    """The share that prefers the first arm, over prompts; None without votes."""
    if not votes:
        return None
    worth = np.array([WORTH[vote["choice"]] for vote in votes])
    prompts = [f"{vote['split']} {vote['row']}" for vote in votes]
    groups = np.unique(prompts, return_inverse=True)[1]
    counts = Counter(vote["choice"] for vote in votes)
    decided = [vote for vote in votes if vote["choice"] != "neither"]
    left = [(vote["choice"] == "first") == vote["first_is_left"] for vote in decided]
    return Preference(
        share_interval(per_prompt(worth, groups)),
        counts["first"],
        counts["second"],
        counts["neither"],
        float(np.mean(left)) if left else None,
    )


_Pair = tuple[str, str, tuple[dict[str, Any], dict[str, Any]]]


def _pairs(arms: tuple[VotedArm, VotedArm], split: str | None) -> list[_Pair]:
    """The images of the prompts of both arms, in the first one's order."""
    ours, theirs = (_by_prompt(arm.folder, split) for arm in arms)
    pairs: list[_Pair] = [
        (key[0], key[1], (line, theirs[key])) for key, line in ours.items() if key in theirs
    ]
    if not pairs:
        where = "" if split is None else f" of the split {split!r}"
        raise UserError(
            f"{arms[0].name} and {arms[1].name} have no prompt{where} in common, so no pair can "
            "be shown."
        )
    return pairs


def _by_prompt(folder: Path, split: str | None) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Split, prompt and how often it came before -> line of the manifest."""
    seen: Counter[tuple[str, str]] = Counter()
    lines = {}
    for line in manifest_of(folder):
        key = (line["split"], line["prompt"])
        if split in (None, line["split"]):
            lines[(*key, seen[key])] = line
            seen[key] += 1
    return lines


def _digest(pairs: Sequence[_Pair]) -> str:
    text = json.dumps([[line["sha256"] for line in lines] for _, _, lines in pairs])
    return hashlib.sha256(text.encode()).hexdigest()
