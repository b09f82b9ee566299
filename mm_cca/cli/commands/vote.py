"""``vote``: a page on this machine on which one of two arms is preferred without knowing which."""

import argparse
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote

from mm_cca.cli.commands.report_server import serve_pages
from mm_cca.errors import UserError
from mm_cca.eval.ballot import Ballot, VotedArm, preference_of
from mm_cca.eval.report.vote_page import outcome_page, pair_page, preference_sentence
from mm_cca.runs.folder import run_folder_of
from mm_cca.runs.stage import recorded

MOST_BYTES = 1000
"""Of a vote."""


def vote(args: argparse.Namespace) -> int:
    """Run ``mm-cca vote``."""
    if args.votes < 1 or args.seed < 0:
        raise UserError(
            f"--votes is {args.votes} and --seed is {args.seed}; allowed: 1 or more votes, a seed "
            "of 0 or more."
        )
    own = run_folder_of(args.run)
    other = own if args.other_run is None else run_folder_of(args.other_run)
    arms = (_arm(own, args.first), _arm(other, args.second))
    if arms[0].folder.resolve() == arms[1].folder.resolve():
        raise UserError(f"both arms are {arms[0].name}; name two.")
    file = args.into or own / "votes" / f"{_file_name(own, other, args)}.json"
    ballot = Ballot(arms, file, num_votes=args.votes, seed=args.seed, split=args.split)
    print(f"{len(ballot.pairs)} pairs, {len(ballot.votes)} voted on; votes go to {file}")
    serve_pages(partial(_VoteHandler, ballot), "", args.port)
    if (found := preference_of(ballot.votes)) is not None:
        print(preference_sentence((arms[0].name, arms[1].name), found))
    return 0


def _arm(run: Path, arm: str) -> VotedArm:
    """Raises UserError: no such arm, or one that is not fully sampled."""
    folder = run / "samples" / arm
    stored = recorded(folder)
    if stored is None:
        names = sorted(path.parent.name for path in (run / "samples").glob("*/stage.json"))
        raise UserError(f"{run} has no arm {arm!r}; it has {', '.join(names) or 'none'}.")
    if not stored["done"]:
        raise UserError(f"arm {arm} of {run} is incomplete: run `mm-cca sample RECIPE` first.")
    return VotedArm(run.resolve().name, arm, folder)


def _file_name(own: Path, other: Path, args: argparse.Namespace) -> str:
    """One for every pair of arms, split and seed: votes on one are none on another."""
    second = args.second if own == other else f"{args.second}-of-{other.resolve().name}"
    split = "" if args.split is None else f"-on-{quote(args.split, safe='')}"
    seed = f"-seed{args.seed}" if args.seed else ""
    return f"{args.first}-{second}{split}{seed}"


class _VoteHandler(BaseHTTPRequestHandler):
    def __init__(self, ballot: Ballot, *args: Any) -> None:
        self._ballot = ballot
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""

    def do_GET(self) -> None:
        if self.path != "/":
            self.send_error(404)
            return
        try:
            content = self._page().encode()
        except UserError as error:
            self.send_error(500, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        """A vote or the taking back of one, which another site's page must not cast."""
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{self.headers.get('Host')}"):
            self.send_error(403)
            return
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MOST_BYTES:
            self.send_error(400)
            return
        fields = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        pair, side = (fields.get(name, [""])[0] for name in ("pair", "side"))
        if self.path == "/undo":
            self._ballot.undo()
        elif self.path == "/vote" and pair.isdigit() and side in ("left", "right", "neither"):
            self._ballot.vote(int(pair), cast(Any, side))
        else:
            self.send_error(400)
            return
        self.send_response(303)  # so that loading the page again does not vote again
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _page(self) -> str:
        ballot = self._ballot
        number = ballot.current
        if number is not None:
            pictures = (
                ballot.picture(number, left=True),
                ballot.picture(number, left=False),
            )
            return pair_page(
                number,
                len(ballot.pairs),
                ballot.pairs[number].prompt,
                pictures,
                can_undo=number > 0,
            )
        found = preference_of(ballot.votes)
        assert found is not None
        names = (ballot.arms[0].name, ballot.arms[1].name)
        return outcome_page(names, found, ballot.path)
