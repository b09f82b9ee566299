"""Plans the negative captions of every epoch: a kind is drawn per image, then its caption.

Shapes: n images, m negatives each, D distinct captions, K kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mm_cca.errors import UserError
from mm_cca.negatives.captions import distinct, key_of
from mm_cca.negatives.edit import attributes_of
from mm_cca.negatives.embed import check_embedding, embed
from mm_cca.negatives.epoch_plan import EDITED, EditDraws, EpochPlan
from mm_cca.negatives.guard import FINE, IDENTICAL, make_guard
from mm_cca.negatives.hard import Candidates, draw, find_candidates
from mm_cca.negatives.neighbours import make_search
from mm_cca.negatives.packed import PackedTexts
from mm_cca.negatives.redraw import redraw, repeats
from mm_cca.negatives.settings import KINDS, REASONS, NegativeSettings, check_settings
from mm_cca.negatives.shuffle import shuffled
from mm_cca.negatives.words import load_words

SHUFFLE, HARD, EDIT = range(3)
_KIND_STREAM, _HARD_STREAM, _EDIT_STREAM, _REDRAW_STREAM, _POSSIBLE_STREAM = range(0x6E70, 0x6E75)


class NoNegativesError(UserError):
    """Captions that no kind of the mixture can be built for.

    Attributes:
        rows: positions of these captions. None of them can be a negative caption of another one.
    """

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class _Draft:
    """An unfinished plan.

    ``used_keys`` holds [n, m] ``key_of`` every negative planned so far, if an image has several.
    """

    epoch: int
    plan: EpochPlan
    used_keys: np.ndarray


class Planner:
    """Plans the negatives of any epoch: a function of captions, settings, seed and epoch alone."""

    def __init__(
        self,
        captions: Sequence[str],
        settings: NegativeSettings,
        *,
        seed: int,
        show: bool = False,
    ) -> None:
        """Embed the captions and check that every one can get a negative caption.

        Args:
            captions: [n] captions, which must not change; of a memory-mapped column single ones
                are read when a plan needs them.
            settings: see ``NegativeSettings``.
            seed: of the run.
            show: whether to show progress bars.

        Raises:
            UserError: an invalid setting, fewer than two distinct captions, a missing package.
            NoNegativesError: captions that no kind of the mixture can be built for.
        """
        check_settings(settings)
        check_embedding(settings.embedding)
        self._settings = settings
        self._seed = seed
        self._lists = load_words(settings.words)
        groups = distinct(captions)
        # Texts are read here only; later the captions themselves, where one is needed.
        self._groups = replace(groups, texts=PackedTexts.of(()))
        self._captions = captions
        hard, shuffle = "hard" in settings.mixture, "shuffle" in settings.mixture
        guarded = shuffle and settings.max_similarity is not None
        vectors = embed(groups.texts, settings.embedding, show=show) if hard or guarded else None
        # EditDraws are not compared with other captions.
        compared = groups.texts if hard or shuffle else ()
        self._guard = make_guard(compared, vectors, settings.max_similarity)
        # Keys find repeats among an image's negatives; a single negative can't be a repeat.
        keys = [key_of(t) if settings.num_negatives > 1 else 0 for t in groups.texts]
        self._keys = np.array(keys, dtype=np.uint64)
        self._candidates = Candidates(np.full((len(groups.texts), 1), -1, np.int32))
        if hard and vectors is not None:
            search = make_search(vectors, settings.max_similarity)
            self._candidates = find_candidates(
                search, self._guard, settings.candidates, settings.num_negatives, show=show
            )
        self._weights = np.array([settings.mixture.get(kind, 0.0) for kind in KINDS])
        self._possible = self._find_possible()
        self._refuse_impossible()

    def _stream(self, epoch: int, purpose: int, column: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, purpose, column])

    def _find_possible(self) -> np.ndarray:
        """[D, K] bool: which kinds of the mixture can be built for each distinct caption."""
        groups, mixture = self._groups, self._settings.mixture
        possible = np.zeros((len(groups.sizes), len(KINDS)), dtype=bool)
        if "shuffle" in mixture:
            rows = groups.first_rows
            none_used = np.empty((len(rows), 0), np.uint64)
            stream = self._stream(0, _POSSIBLE_STREAM)
            chosen = redraw(groups, self._guard, rows, self._keys, none_used, stream)
            possible[:, SHUFFLE] = chosen >= 0
        possible[:, HARD] = self._candidates.possible
        if "edit" in mixture:
            editable = (bool(attributes_of(caption, self._lists)) for caption in self._captions)
            by_row = np.fromiter(editable, dtype=bool, count=len(self._captions))
            # Rows of one distinct caption can differ in case, and case can hide a word (a dotted
            # capital I), so every row must have an attribute.
            starts = groups.ends - groups.sizes
            possible[:, EDIT] = np.logical_and.reduceat(by_row[groups.order], starts)
        return possible

    def _refuse_impossible(self) -> None:
        impossible = np.flatnonzero(~self._possible.any(axis=1))
        rows = np.flatnonzero(np.isin(self._groups.labels, impossible))
        if not len(rows):
            return
        kinds = " + ".join(kind for kind in KINDS if kind in self._settings.mixture)
        why = {
            "shuffle": "every other caption is too similar (max_similarity), contains this one or "
            "is contained in it",
            "hard": "every other caption is too similar (max_similarity) or has no words in common",
            "edit": "they contain no attribute word",
        }
        first = ", ".join(repr(self._captions[row]) for row in rows[:3].tolist())
        raise NoNegativesError(
            f"negatives {kinds!r} can't be built for {len(rows)} of {len(self._captions)} captions "
            f"(such as {first}): "
            + "; ".join(f"{kind}: {why[kind]}" for kind in kinds.split(" + "))
            + '. Use a mixture such as "0.5 shuffle + 0.5 edit", so that another kind can be used '
            "for them, or add attribute words of your captions with data.attribute_words.",
            rows.tolist(),
        )

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of epoch 0, 1, 2, ..."""
        n, m = len(self._captions), self._settings.num_negatives
        plan = EpochPlan(
            self._captions,
            rows=np.full((n, m), EDITED),
            kinds=np.zeros((n, m), np.int8),
            similarity=np.full((n, m), np.nan, np.float32),
            replaced=dict.fromkeys(REASONS, 0),
            edits=self._edits(epoch),
        )
        draft = _Draft(epoch, plan, used_keys=np.zeros((n, m), np.uint64))
        for column in range(m):
            kinds = self._draw_kinds(draft, column)
            plan.kinds[:, column] = kinds
            self._shuffle(draft, column, np.flatnonzero(kinds == SHUFFLE))
            self._hard(draft, column, np.flatnonzero(kinds == HARD))
            self._edit(draft, column, np.flatnonzero(kinds == EDIT))
        plan.replaced["repeated"] = _count_repeats(draft)
        return plan

    def _edits(self, epoch: int) -> EditDraws | None:
        if "edit" not in self._settings.mixture:
            return None
        n, columns = len(self._captions), range(self._settings.num_negatives)
        draws = [self._stream(epoch, _EDIT_STREAM, column).random((2, n)) for column in columns]
        which, value = np.stack(draws, axis=-1)
        return EditDraws(self._lists, which, value)

    def _draw_kinds(self, draft: _Draft, column: int) -> np.ndarray:
        """[n] kinds drawn by weight; a kind that is impossible is redrawn among the possible."""
        stream = self._stream(draft.epoch, _KIND_STREAM, column)
        first, second = stream.random((2, len(self._captions)))
        share = np.cumsum(self._weights)
        kinds = np.searchsorted(share / share[-1], first, side="right")
        labels = self._groups.labels
        failed = np.flatnonzero(~self._possible[labels, kinds])
        left = np.cumsum(self._weights * self._possible[labels[failed]], axis=1)
        drawn = second[failed] * left[:, -1]
        kinds[failed] = (left <= drawn[:, None]).sum(axis=1)
        draft.plan.replaced["impossible"] += len(failed)
        return kinds

    def _shuffle(self, draft: _Draft, column: int, rows: np.ndarray) -> None:
        if not len(rows):
            return
        groups, used_keys = self._groups, draft.used_keys[rows, :column]
        planned = shuffled(groups, seed=self._seed, epoch=draft.epoch, column=column)[rows]
        verdicts = self._guard.verdicts(groups.labels[rows], groups.labels[planned])
        repeated = repeats(used_keys, self._keys[groups.labels[planned]])
        verdicts[(verdicts == FINE) & repeated] = IDENTICAL
        counts = np.bincount(verdicts, minlength=len(REASONS))[1:]
        for reason, count in zip(REASONS, counts.tolist(), strict=False):
            draft.plan.replaced[reason] += count
        bad = np.flatnonzero(verdicts != FINE)
        stream = self._stream(draft.epoch, _REDRAW_STREAM, column)
        planned[bad] = redraw(groups, self._guard, rows[bad], self._keys, used_keys[bad], stream)
        self._write_rows(draft, column, rows, planned)

    def _hard(self, draft: _Draft, column: int, rows: np.ndarray) -> None:
        if not len(rows):
            return
        uniform = self._stream(draft.epoch, _HARD_STREAM, column).random(len(self._captions))
        ids = self._candidates.ids[self._groups.labels[rows]]
        labels = draw(ids, self._keys, draft.used_keys[rows, :column], uniform[rows])
        self._write_rows(draft, column, rows, self._groups.first_rows[labels])

    def _write_rows(self, draft: _Draft, column: int, rows: np.ndarray, chosen: np.ndarray) -> None:
        own, other = self._groups.labels[rows], self._groups.labels[chosen]
        draft.plan.rows[rows, column] = chosen
        draft.plan.similarity[rows, column] = self._guard.similarity(own, other)
        draft.used_keys[rows, column] = self._keys[other]

    def _edit(self, draft: _Draft, column: int, rows: np.ndarray) -> None:
        # An edit is made when it is read; here only so that no other negative repeats it.
        edits = draft.plan.edits
        if edits is None or self._settings.num_negatives == 1:
            return
        for row in rows.tolist():
            used_keys = set(draft.used_keys[row, :column].tolist())
            edited = edits.make(self._captions[row], (row, column), used_keys)
            draft.used_keys[row, column] = key_of(edited)


def _count_repeats(draft: _Draft) -> int:
    """How many negatives repeat an earlier one of the same image, to the letter."""
    keys = np.sort(draft.used_keys, axis=1)
    rows = np.flatnonzero((keys[:, 1:] == keys[:, :-1]).any(axis=1))
    return sum(len(row) - len(set(row)) for row in draft.plan.negatives(rows).tolist())
