"""What ablations do to in-context learning, row by row: of the heads in question, of controls, of all others of their layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.behaviour.matches import matches_of, mean_of_tokens
from pytest_induction.behaviour.text import windows_of
from pytest_induction.causal.dealing import Dealer
from pytest_induction.causal.judging import MIN_SHARE, NAMED, Ablated, CausalClaim
from pytest_induction.errors import ArgumentError
from pytest_induction.interventions.ablation import Controls, matched_controls
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.by_row import RowLosses, Rows
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import HeadSet, losses_at
from pytest_induction.measuring.observing import PERIODS_AT_ONCE, Array, numbers, probes_of
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, HeadId
from pytest_induction.spending import BudgetSpent
from pytest_induction.statistics import mean_interval

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
SETS_IN_A_ROW = 6  # by the first kind of ablation: 72 in a dozen rows
ROWS_ALONE = 12  # in which heads are ablated one by one, and all but one
FEWEST_KEPT = 3  # rows before it is told that heads do not keep it up by themselves
LEAST_MOVED = 1e-4  # nats: less may be rounding
# What is ablated: the heads, a control, a head alone, or all others of their layers than these; and its number.
Asked = tuple[str, int]
HEADS, CONTROL, SINGLE = "heads", "control", "single"
ALL_BUT_HEADS, ALL_BUT_CONTROL, ALL_BUT_ONE = "others", "of control", "of one"


def late_minus_early(losses: Floats, late: NDArray[np.bool_]) -> Floats:
    """The in-context learning score of each row, (..., rows): the mean loss of late tokens minus that of early ones, in nats.

    `losses` is (..., rows, tokens), `late` (tokens,) says which of the tokens are late; all others are early. Negative where a
    model learns in context. Raises `ArgumentError` where one of the two has no tokens.
    """
    if losses.shape[-1:] != late.shape or late.all() or not late.any():
        raise ArgumentError(f"`late` must name some of the {losses.shape[-1]} tokens and not all, got {late.shape}")
    return np.asarray(losses[..., late].mean(axis=-1) - losses[..., ~late].mean(axis=-1), dtype=np.float64)


def in_context_attribution(clean: Floats, ablated: Floats, late: NDArray[np.bool_]) -> Floats:
    """By how many nats the in-context learning score of each row rises with heads ablated, (..., rows).

    `clean` is (rows, tokens), `ablated` (..., rows, tokens). Positive where the heads contribute to in-context learning, also
    above all of it; 0 where they do nothing, or as much to early tokens as to late ones. Of single heads it is what each is worth
    beside all others: of two equal ones either may have next to nothing.

    >>> clean, late = np.array([[4.0, 4.0, 1.0, 1.0]]), np.array([False, False, True, True])
    >>> in_context_attribution(clean, np.array([[4.5, 4.5, 4.0, 4.0]]), late)
    array([2.5])
    """
    return np.asarray(late_minus_early(ablated, late) - late_minus_early(clean, late), dtype=np.float64)


@dataclass(frozen=True)
class Batch:
    """Rows of one length: token ids, the positions whose next token has a loss that counts, and which of these are late.

    Only the first `counted` rows are measured: where one is drawn, the other is what its heads are resampled from. `foretold`
    (rows, queries) says of which next tokens a match foretells, of a text.
    """

    tokens: Ids
    queries: Ids
    late: NDArray[np.bool_]
    counted: int
    foretold: NDArray[np.bool_] | None = None


@dataclass
class Row:
    """The in-context learning score of a row, the controls that are new in it, and by how much it rises without each set.

    `tokens` is how many of its tokens a match foretells and how many others there are, (2,), and `lost` what these lose in all
    without the heads, (2,) by each kind of ablation; of a text only.
    """

    learning: float
    fresh: Mapping[str, Sequence[int]] = field(default_factory=dict)
    rises: dict[str, dict[Asked, float]] = field(default_factory=dict)
    tokens: Array | None = None
    lost: dict[str, Array] = field(default_factory=dict)


class Ablations:
    """What is ablated, and on which rows: those of a text, or repeated tokens where there is none."""

    def __init__(
        self,
        subject: ModelUnderTest,
        heads: Sequence[HeadId],
        kinds: Sequence[Replacement],
        seed: int,
        n_controls: int,
        rows: Ids | None,
        *,
        pattern_preserving: bool,
        min_share: float = MIN_SHARE,
    ) -> None:
        self.subject, self.heads, self.kinds, self.seed, self.text = subject, tuple(heads), tuple(kinds), seed, rows
        self._pattern_preserving, self._min_share = pattern_preserving, min_share
        rng = np.random.default_rng([seed, 10])
        self.controls: Controls = matched_controls(heads, subject.reading.heads, n_controls, rng)
        self.order = rng.permutation(len(self.controls.sets)).tolist()
        self._dealer = Dealer(len(self.order), self.kinds, SETS_IN_A_ROW)
        layers = {head.layer for head in self.heads}
        self._pool = frozenset(head for head in all_heads(subject) if head.layer in layers)
        touched = layers | {head.layer for each in self.controls.sets for head in each}
        self._layers = sorted(touched) if any(kind != "zero" for kind in self.kinds) else []
        self.batches: list[Batch] = []
        self.rows: list[Row] = []
        self.scores: Array = np.empty(0)  # of the first rows of the text, with nothing ablated
        self.removed: list[Row] = []  # the first rows of the text, with the heads ablated and nothing else
        self._moved = dict.fromkeys(self.kinds, 0.0)
        self._alone = list(range(len(self.heads)))
        self._keeps = bool(self._pool.difference(self.heads)) and not self.controls.relaxed

    def drawn(self, n_sequences: int, number: int) -> Ablated:
        """A round of rows with all that is to be known for whether the heads are necessary."""
        begun = len(self.rows)
        batches = list(self._of_text(n_sequences) if self.text is not None else self._repeated(n_sequences, number))
        self.batches += batches
        sets = (SETS_IN_A_ROW + 1) + 2 * (len(self.kinds) - 1)
        with progress("ablation_removes_icl", n_sequences * (sets + 1)):
            try:
                for batch in batches:
                    self._measure(batch)
            except BudgetSpent:  # the rows of a round count only together
                del self.rows[begun:]
                raise
        return self._ablated(self.rows[begun:])

    def read(self, more: int) -> Array:
        """The in-context learning score of so many rows of the text more, as the model is, and of those before, (rows,)."""
        batch = self._rows_of_text(slice(len(self.scores), len(self.scores) + more))
        queries = torch.from_numpy(batch.queries)

        def measured(rows: Tensor, _: slice) -> Array:
            rows = rows.to(self.subject.device)
            losses = numbers(losses_at(self.subject.logits(rows, positions=queries), rows, queries))
            return late_minus_early(losses, batch.late)

        with progress("ablation_removes_icl, the text", len(batch.tokens)):
            parts = in_batches(self.subject, torch.from_numpy(batch.tokens[: batch.counted]), measured, logits=True)
        self.scores = np.concatenate([self.scores, *parts])
        return self.scores

    def without_heads(self, more: int) -> Ablated:
        """What is lost without the heads in so many rows of the text more, and in those before: no control is ablated yet."""
        begun = len(self.removed)
        with progress("ablation_removes_icl, the heads", more * (1 + len(self.kinds))):
            self.removed += list(self._of_heads(self._rows_of_text(slice(begun, begun + more))))
        self.scores = np.concatenate([self.scores, [row.learning for row in self.removed[len(self.scores) :]]])
        return Ablated(self.scores, self._lost(self.removed), {}, {}, np.empty((0, 0)))

    def _of_heads(self, batch: Batch) -> Iterator[Row]:
        sets: dict[Replacement, list[HeadSet]] = {kind: [frozenset(self.heads)] for kind in self.kinds}
        for place, found in enumerate(self._of_batch(batch, self._layers).losses(lambda _: sets)):
            row = Row(float(late_minus_early(found.clean, batch.late)))
            self._note(row, batch, place, found, {kind: [(HEADS, 0)] for kind in self.kinds})
            yield row

    def all_of(self, rounds: Sequence[Ablated]) -> Ablated:
        """All rounds as one, with what is known of the rows after them, in which no control was ablated."""
        found = self._with_scores(Ablated.join(rounds))
        n_rows = len(next(iter(found.lost.values())))
        return replace(found, lost=self._lost(self.removed)) if len(self.removed) > n_rows else found

    def _with_scores(self, found: Ablated) -> Ablated:
        """With the scores of rows in which nothing was ablated."""
        return replace(found, learning=np.concatenate([found.learning, self.scores[len(found.learning) :]]))

    def _lost(self, rows: Sequence[Row]) -> dict[str, Array]:
        return {kind: self._column(rows, kind, (HEADS, 0)) for kind in self.kinds}

    def kept(self) -> Ablated | None:
        """What is lost with all other heads of the same layers ablated, than these or than controls; None where no rows tell.

        Rows are looked at as long as enough stays.
        """
        rows = [row for row in self.rows if (ALL_BUT_HEADS, 0) in row.rises[self.kinds[0]]]
        if len(rows) < FEWEST_KEPT:
            return None
        lost: dict[str, Array] = {kind: self._column(rows, kind, (ALL_BUT_HEADS, 0)) for kind in self.kinds}
        usual: dict[str, Array] = {kind: self._column(rows, kind, (ALL_BUT_CONTROL, 0)) for kind in self.kinds}
        single = [self._column(rows, self.kinds[0], (ALL_BUT_ONE, number)) for number in range(len(self.heads))]
        learning = np.array([row.learning for row in self.rows])
        return self._with_scores(Ablated(learning, lost, {}, usual, np.array(single)))

    def lost_by_match(self, error_rate: float) -> dict[str, Estimate]:
        """By how many nats the loss of tokens that a match foretells rises without the heads, and that of all others.

        By each kind of ablation: "lost foretold zero", "lost other zero". Of early and late tokens; of a text that has both.
        """
        rows = [row for row in max(self.rows, self.removed, key=len) if row.tokens is not None]
        counts = np.array([row.tokens for row in rows]).reshape(-1, 2)
        if len(rows) < FEWEST_KEPT or not counts.sum(0).all():
            return {}
        found: dict[str, Estimate] = {}
        for kind in self.kinds:
            lost = np.array([row.lost[kind] for row in rows])
            values = np.stack([mean_of_tokens(lost[:, half], counts[:, half]) for half in (0, 1)], axis=1)
            names = (f"lost foretold {kind}", f"lost other {kind}")
            found |= dict(zip(names, mean_interval(values, error_rate / len(self.kinds), "nats"), strict=True))
        return found

    def moves(self) -> bool:
        """Whether ablating the heads, or else every head, moves a loss, by every kind: else the ablation is not seen."""
        kinds = [kind for kind, most in self._moved.items() if most <= LEAST_MOVED]
        if not kinds or not (self.rows or self.removed):
            return True
        first = self.batches[0] if self.batches else self._rows_of_text(slice(0, 2))
        every = frozenset(all_heads(self.subject))
        layers = range(self.subject.n_layers) if self._layers else ()
        found = self._of_batch(Batch(first.tokens[:2], first.queries, first.late, 2), layers).losses(
            lambda _: {kind: [every] for kind in kinds}
        )
        most = dict.fromkeys(kinds, 0.0)
        for row in found:
            most |= {kind: max(most[kind], float(np.abs(row.ablated[kind] - row.clean).max())) for kind in kinds}
        return all(each > LEAST_MOVED for each in most.values())

    def claim(self) -> CausalClaim:
        """What is asked of these heads."""
        return CausalClaim(
            tuple(map(str, self.heads)),
            "what repetition gains" if self.text is None else "in-context learning on the text",
            self._min_share,
            self.controls.relaxed,
            self.controls.complete,
            len(self.controls.sets),
        )

    @property
    def tokens_a_row(self) -> int:
        """Of the text; 0 where there is none."""
        return 0 if self.text is None else self.text.shape[1]

    @property
    def described(self) -> str:
        """The rows, in a few words."""
        if self.text is not None:
            return f"rows of {self.tokens_a_row} tokens of text"
        periods = sorted({int(np.count_nonzero(~batch.late)) + 1 for batch in self.batches})
        return f"periods {periods[0]} to {periods[-1]}" if periods else "repeated tokens"

    def control(self, number: int) -> frozenset[HeadId]:
        """The control set of that number, in the order in which they are dealt."""
        return frozenset(self.controls.sets[self.order[number]])

    def _measure(self, batch: Batch) -> None:
        asked: dict[Replacement, list[Asked]] = {}

        def sets_of(_: int) -> dict[Replacement, list[HeadSet]]:
            asked.clear()
            dealt = self._dealer.next_row()
            self.rows.append(Row(np.nan, {kind: fresh for kind, (fresh, _) in dealt.items()}))
            for kind in self.kinds:
                fresh, again = dealt[kind]
                asked[kind] = [(HEADS, 0), *((CONTROL, each) for each in (*fresh, *again)), *self._of_layers(kind)]
            asked[self.kinds[0]] += [(SINGLE, number) for number in self._asked_alone()]
            return {kind: [self._set(each, dealt[kind][0][0]) for each in names] for kind, names in asked.items()}

        for place, found in enumerate(self._of_batch(batch, self._layers).losses(sets_of)):
            row = self.rows[-1]
            row.learning = float(late_minus_early(found.clean, batch.late))
            self._note(row, batch, place, found, asked)
            for kind, rises in row.rises.items():
                own = {number: value for (what, number), value in rises.items() if what == CONTROL}
                self._dealer.record(kind, own, rises[HEADS, 0])
            self._choose()

    def _note(self, row: Row, batch: Batch, place: int, found: RowLosses, asked: Mapping[Replacement, Sequence[Asked]]) -> None:
        """What was found in a row of a batch, where the heads are the first set of each kind."""
        if batch.foretold is not None:
            halves = np.stack([batch.foretold[place], ~batch.foretold[place]]).astype(np.float64)
            row.tokens = halves.sum(1)
            row.lost = {kind: halves @ (found.ablated[kind][0] - found.clean) for kind in self.kinds}
        for kind, names in asked.items():
            rises = in_context_attribution(found.clean, found.ablated[kind], batch.late)
            row.rises[kind] = dict(zip(names, rises.tolist(), strict=True))
            self._moved[kind] = max(self._moved[kind], float(np.abs(found.ablated[kind][0] - found.clean).max()))

    def _of_batch(self, batch: Batch, layers: Iterable[int]) -> Rows:
        return Rows(
            self.subject,
            torch.from_numpy(batch.tokens).to(self.subject.device),
            torch.from_numpy(batch.queries),
            tuple(layers),
            batch.counted,
            self._pattern_preserving,
        )

    def _of_layers(self, kind: Replacement) -> list[Asked]:
        """All others of the layers, while enough stays without them."""
        if not self._keeps:
            return []
        several = kind == self.kinds[0] and len(self.heads) > 1
        singles = [(ALL_BUT_ONE, number) for number in self._asked_alone()] if several else []
        return [(ALL_BUT_HEADS, 0), (ALL_BUT_CONTROL, 0), *singles]

    def _asked_alone(self) -> list[int]:
        """The heads that are ablated one by one in the next row; `_measure` has begun it."""
        return self._alone if len(self.rows) <= ROWS_ALONE else []

    def _set(self, asked: Asked, fresh: int) -> frozenset[HeadId]:
        what, number = asked
        sets = {
            HEADS: lambda: frozenset(self.heads),
            CONTROL: lambda: self.control(number),
            SINGLE: lambda: frozenset([self.heads[number]]),
            ALL_BUT_HEADS: lambda: self._pool.difference(self.heads),
            ALL_BUT_CONTROL: lambda: self._pool - self.control(fresh),
            ALL_BUT_ONE: lambda: self._pool - {self.heads[number]},
        }
        return sets[what]()

    def _choose(self) -> None:
        """After the first row: which heads are looked at alone. After each: whether enough stays without all others."""
        if len(self.rows) == 1:
            rises = self.rows[0].rises[self.kinds[0]]
            self._alone = sorted(sorted(self._alone, key=lambda number: -rises[SINGLE, number])[:NAMED])
        if self._keeps and len(self.rows) >= FEWEST_KEPT:
            self._keeps = all(self._may_keep(self._column(self.rows, kind, (ALL_BUT_HEADS, 0))) for kind in self.kinds)

    def _may_keep(self, lost: Array) -> bool:
        """Whether so much may stay as is asked for: the mean of what is lost (rows,) counts as less by two standard errors."""
        read = self.scores if len(self.scores) > len(self.rows) else np.array([row.learning for row in self.rows])
        least = lost.mean() - 2 * lost.std(ddof=1) / np.sqrt(len(lost))
        return bool(least < (1 - self._min_share) * -read.mean())

    def _ablated(self, rows: Sequence[Row]) -> Ablated:
        n_sets = len(self.order)
        controls: dict[str, Array] = {
            kind: np.array([self._column(rows, kind, (CONTROL, number)) for number in range(n_sets)]).reshape(n_sets, len(rows))
            for kind in self.kinds
        }
        usual: dict[str, Array] = {
            kind: np.array([np.mean([row.rises[kind][CONTROL, each] for each in row.fresh[kind]]) for row in rows])
            for kind in self.kinds
        }
        return Ablated(
            np.array([row.learning for row in rows]),
            self._lost(rows),
            controls,
            usual,
            np.array([self._column(rows, self.kinds[0], (SINGLE, number)) for number in range(len(self.heads))]),
        )

    @staticmethod
    def _column(rows: Sequence[Row], kind: str, asked: Asked) -> Array:
        """What was found of one set in each row, (rows,), NaN where it was not ablated."""
        return np.array([row.rises[kind].get(asked, np.nan) for row in rows])

    def _of_text(self, n_sequences: int) -> Iterator[Batch]:
        """The next rows of the text; of its tokens those of the two windows count."""
        begun = sum(batch.counted for batch in self.batches)
        yield self._rows_of_text(slice(begun, begun + n_sequences))

    def _rows_of_text(self, part: slice) -> Batch:
        if self.text is None:
            raise ValueError("there is no text")
        tokens = self.text[part]
        first_token, windows = windows_of(self.subject, self.text)
        early, late = (np.arange(span[0] - first_token, span[1] + 1 - first_token) for span in (windows.early, windows.late))
        counted = len(tokens)
        if counted == 1:
            tokens = np.concatenate([tokens, self.text[part.start - 1][None]])
        queries = np.concatenate([early, late])
        foretold = matches_of(tokens).foretold[:, queries]
        return Batch(tokens, queries, np.arange(len(queries)) >= len(early), counted, foretold)

    def _repeated(self, n_sequences: int, number: int) -> Iterator[Batch]:
        """Repeated tokens; the first token of each copy does not count, for in the second copy it cannot be known."""
        rng = np.random.default_rng([self.seed, 9, number])
        drawn, periods = max(2, n_sequences), min(PERIODS_AT_ONCE, max(1, n_sequences // 2))
        for probe in probes_of(self.subject, drawn, rng, COPIES, None, periods):
            place = np.arange(probe.n_positions - 1) + 1 - probe.start  # of the token after a position, in the blocks
            queries = np.flatnonzero((place > 0) & (place % probe.period != 0))
            yield Batch(probe.tokens, queries, place[queries] >= probe.period, min(probe.n_sequences, n_sequences))
