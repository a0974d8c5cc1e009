"""Per-head attention scores, from the few entries of the pattern that they need, layer by layer while a pass runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_induction.attention.pattern import masses
from pytest_induction.errors import ArgumentError
from pytest_induction.forward.calling import full_precision

SCORES = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
WRONG_SHIFT = "wrong_shift"


class AttentionReader(Protocol):
    """One layer's attention pattern, read entry by entry."""

    @property
    def n_heads(self) -> int:
        """Of this layer."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        """Mass from each query to the key `offset` before it: (batch, heads, offsets, queries), 0 where there is none.

        With `first` one more line is given, last: the mass on position 0.
        """

    def columns(self, keys: Tensor) -> Tensor:
        """Mass from each query to one key per row, `keys` (batch,): (batch, heads, queries)."""

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Mass from `queries` to `keys` of batch `rows`, each (pairs,): (pairs, heads)."""

    def pattern_of(self, queries: range) -> Tensor:
        """All of some queries, at least float32: (batch, heads, queries, keys). Ask for so many as may lie in memory."""


class ScoresReader(AttentionReader, Protocol):
    """One layer's attention, of which scores before softmax can be had too."""

    @property
    def log_sum_exp(self) -> Tensor:
        """Of each query's scores, (batch, heads, queries)."""

    def write_scores(self, offsets: Sequence[int], out: Tensor, *, first: bool) -> float:
        """Scores before softmax into `out`, laid out as `diagonals`, but for a factor, which is returned."""


class LineScores(Protocol):
    """Scores that are sums over a few diagonals, which the layers of a pass may wait for together."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, in the order in which they are given."""

    @property
    def offsets(self) -> list[int]:
        """The diagonals that are read, beside the first column."""

    def reduced(self, mass: Tensor) -> Tensor:
        """The scores (..., scores) of the lines that were read (..., lines, queries), of which the first column is the last."""


@dataclass(frozen=True)
class PeriodicScores:
    """Scores of rows in which a block of `period` tokens, beginning at `start`, repeats up to the end.

    All answers lie on a few diagonals: key = query - m * period (+ 1 for the successor), for each earlier copy m. With
    `wrong_shifts` there is a score of that name: the mass that far from the successors, where nothing draws a prefix matcher; the
    mean over the shifts.

    A score is what each query counts on each of the lines of one stripe, by name; `stripes` says which diagonals these are.
    """

    period: int
    start: int
    n_positions: int
    wrong_shifts: tuple[int, ...] = ()

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's scores: (scores, batch, heads), in the order of `names`."""
        return self.reduced(attention.diagonals(self.offsets, first=True)).movedim(-1, 0)

    def reduced(self, mass: Tensor) -> Tensor:
        """The scores (..., scores) of the lines that were read (..., lines, queries).

        Summed in double precision on a CPU, where the order of a sum depends on how many threads are free: so scores do not.
        """
        exact = torch.float64 if mass.device.type == "cpu" else mass.dtype
        return F.linear(mass.flatten(-2).to(exact), self.weights(exact, mass.device)).to(mass.dtype)

    @property
    def copies(self) -> range:
        """How far back the earlier occurrences of a token can stand."""
        return self._copies_of(self.period)

    def _copies_of(self, period: int) -> range:
        return range(period, self.n_positions - self.start, period)

    @cached_property
    def stripes(self) -> dict[str, list[int]]:
        """How far before the query each line lies, by what stands there."""
        return self._usual_stripes()

    def _usual_stripes(self) -> dict[str, list[int]]:
        found = {"previous": [1], "successor": [copy - 1 for copy in self.copies], "duplicate": list(self.copies)}
        if self.wrong_shifts:
            found[WRONG_SHIFT] = [copy - 1 - shift for shift in self.wrong_shifts for copy in self.copies]
        return found

    @cached_property
    def offsets(self) -> list[int]:
        """The lines that are read, beside the first column."""
        return [offset for offsets in self.stripes.values() for offset in offsets]

    @cached_property
    def lines(self) -> dict[str, slice]:
        """Where the lines of each stripe lie among those that are read; the first column is the last."""
        ends = list(itertools.accumulate(len(offsets) for offsets in self.stripes.values()))
        found = {name: slice(end - len(offsets), end) for (name, offsets), end in zip(self.stripes.items(), ends, strict=True)}
        return {**found, "first": slice(ends[-1], ends[-1] + 1)}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, in the order in which they are given."""
        return tuple(self.counted)

    @cached_property
    def counted(self) -> dict[str, tuple[str, Tensor]]:
        """Of each score its stripe, and what each query counts on each of the stripe's lines: (lines, queries)."""
        return self._usual_counted()

    def _usual_counted(self) -> dict[str, tuple[str, Tensor]]:
        begins = [self.start + copy for copy in self.copies]
        n_queries = self.n_positions - self.start - self.period
        apart = self._from([2], 1 / (self.n_positions - 2))
        found = {
            "prefix_matching": ("successor", self._from(begins, 1 / n_queries)),
            "previous_token": ("previous", apart),
            "duplicate_token": ("duplicate", self._from(begins, 1 / n_queries)),
            "first_token": ("first", apart),
        }
        if self.wrong_shifts:
            shifts = len(self.wrong_shifts)
            found[WRONG_SHIFT] = (WRONG_SHIFT, self._from(begins * shifts, 1 / shifts / n_queries))
        return found

    def _from(self, begins: Sequence[int], share: float) -> Tensor:
        """A line for each of these queries, on which it and all later ones count `share`."""
        found = torch.zeros(len(begins), self.n_positions, dtype=torch.float64)
        for line, begin in enumerate(begins):
            found[line, begin:] = share
        return found

    @cached_property
    def _exact_weights(self) -> Tensor:
        """What each entry of the lines that are read counts in each score: (scores, lines * queries)."""
        weights = torch.zeros(len(self.counted), len(self.offsets) + 1, self.n_positions, dtype=torch.float64)
        for of_score, (stripe, counted) in zip(weights, self.counted.values(), strict=True):
            of_score[self.lines[stripe]] = counted
        return weights.flatten(1)

    @cached_property
    def _cast_weights(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}

    def weights(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weights as a layer needs them, kept for the next layer."""
        if (dtype, device) not in self._cast_weights:
            self._cast_weights[dtype, device] = self._exact_weights.to(device, dtype)
        return self._cast_weights[dtype, device]


def at_period(period: int) -> str:
    """The score that is the mass where successors would stand if rows repeated with another period."""
    return f"at_period_{period}"


def late(name: str) -> str:
    """A score over the last queries alone."""
    return f"late_{name}"


@dataclass(frozen=True)
class ScoresAndChance(PeriodicScores):
    """`PeriodicScores`, and for each of `other_periods` the mass where successors would stand if rows repeated with that period.

    All of these (`at_period`) are over the queries that would have a successor for each of them. A head that goes by position has
    this mass too, a prefix matcher has none: places that are right as well are left out, and so are those of an earlier one of
    the others.
    """

    other_periods: tuple[int, ...] = ()

    @property
    def most_beside(self) -> float:
        """What the mass at wrong shifts and the mean over the other periods can be together.

        No query has more than all of its attention for all of these places, or for either kind where they have some in common.
        """
        each = 1 / len(self.wrong_shifts), 1 / len(self.other_periods)
        wrong = {copy - 1 - shift for shift in self.wrong_shifts for copy in self.copies}
        return max(each) if wrong.isdisjoint(itertools.chain(*self._other_places.values())) else sum(each)

    @cached_property
    def _other_places(self) -> dict[int, list[int]]:
        """Of each other period the places of its own before the query."""
        taken, found = {copy - 1 for copy in self.copies}, {}
        for period in self.other_periods:
            places = {copy - 1 for copy in self._copies_of(period)} - taken
            found[period] = sorted(places)
            taken |= places
        return found

    @cached_property
    def stripes(self) -> dict[str, list[int]]:
        """How far before the query each line lies, by what stands there."""
        return self._usual_stripes() | {at_period(period): places for period, places in self._other_places.items()}

    @cached_property
    def counted(self) -> dict[str, tuple[str, Tensor]]:
        """Of each score its stripe, and what each query counts on each of the stripe's lines: (lines, queries)."""
        found = self._usual_counted()
        first = self.start + max(self.other_periods)
        for period, places in self._other_places.items():
            begins = [max(first, self.start + place + 1) for place in places]
            found[at_period(period)] = (at_period(period), self._from(begins, 1 / (self.n_positions - first)))
        return found


@dataclass(frozen=True)
class LongRowScores(PeriodicScores):
    """`PeriodicScores` of long rows, with the last queries apart, and with the places of other periods.

    Beside the scores of `PeriodicScores` there are prefix matching over the queries from `late_from` on and, with `wrong_shifts`,
    the mass at the wrong shifts over the same queries (`late`). Then, for each of `other_periods`, the mass where the successors
    would stand if rows repeated with that period (`at_period`): over all queries that would have one, and over those from
    `late_from` on. A head that goes by position has this mass too; a prefix matcher has none where the two periods have no common
    multiple within the row.
    """

    late_from: int = 0
    other_periods: tuple[int, ...] = ()

    @cached_property
    def stripes(self) -> dict[str, list[int]]:
        """How far before the query each line lies, by what stands there."""
        return self._usual_stripes() | {
            at_period(other): [copy - 1 for copy in self._copies_of(other)] for other in self.other_periods
        }

    @cached_property
    def counted(self) -> dict[str, tuple[str, Tensor]]:
        """Of each score its stripe, and what each query counts on each of the stripe's lines: (lines, queries)."""
        found = self._usual_counted()
        first, end = self.start + self.period, self.n_positions
        for name in ("prefix_matching", WRONG_SHIFT)[: 1 + bool(self.wrong_shifts)]:
            stripe, counted = found[name]
            found[late(name)] = (stripe, self._late(counted * (end - first) / (end - max(first, self.late_from))))
        for other in self.other_periods:
            name = at_period(other)
            for score, begin in ((name, 0), (late(name), self.late_from)):
                begins = [max(begin, self.start + copy) for copy in self._copies_of(other)]
                found[score] = (name, self._from(begins, 1 / (end - max(begin, self.start + other))))
        return found

    def _late(self, counted: Tensor) -> Tensor:
        return torch.where(torch.arange(self.n_positions) >= self.late_from, counted, 0.0)


@dataclass(frozen=True)
class PairScores:
    """Scores of any rows of tokens, from the list of (query, earlier occurrence) pairs of each row.

    A run of one token has its query itself as the successor of the occurrence just before.
    """

    rows: Tensor
    queries: Tensor
    occurrences: Tensor
    n_queries: Tensor
    real: Tensor
    names: ClassVar[tuple[str, ...]] = SCORES

    @classmethod
    def of(cls, tokens: Tensor, attention_mask: Tensor | None = None) -> PairScores:
        """The answer key of `tokens` (batch, positions); what `attention_mask` marks 0 is neither query nor key.

        Raises `ArgumentError` for a row in which a score is undefined: no token stands twice, or fewer than three tokens.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        found = [_earlier_occurrences(row, keep) for row, keep in zip(tokens, real, strict=True)]
        for index, (_, _, n_queries) in enumerate(found):
            if n_queries == 0 or int(real[index].sum()) < 3:
                raise ArgumentError(f"`tokens` row {index} has no score: it must have a token that stands twice")
        rows = torch.cat([torch.full_like(queries, index) for index, (queries, _, _) in enumerate(found)])
        queries, occurrences = (torch.cat(part) for part in ([e[0] for e in found], [e[1] for e in found]))
        return cls(rows, queries, occurrences, rows.new_tensor([entry[2] for entry in found]), real)

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's scores: (scores, batch, heads), in the order of `names`."""
        return self._on(attention.device)._of_layer(attention)  # noqa: SLF001 - its own class

    def _on(self, device: torch.device) -> PairScores:
        """The same pairs where a layer is: on several devices each layer is on its own."""
        if self.rows.device == device:
            return self
        moved = (each.to(device) for each in (self.rows, self.queries, self.occurrences, self.n_queries, self.real))
        return PairScores(*moved)

    def _of_layer(self, attention: AttentionReader) -> Tensor:
        before = attention.diagonals([1])[:, :, 0]
        first = attention.columns(self.real.int().argmax(1))
        apart = (self.real & (self.real.cumsum(1) > 2))[:, None]  # batch, 1, queries
        found = {
            "prefix_matching": self._per_query(attention, self.occurrences + 1),
            "previous_token": (before * apart).sum(-1) / apart.sum(-1),
            "duplicate_token": self._per_query(attention, self.occurrences),
            "first_token": (first * apart).sum(-1) / apart.sum(-1),
        }
        return torch.stack([found[name] for name in self.names])

    def _per_query(self, attention: AttentionReader, keys: Tensor) -> Tensor:
        """Mass on `keys`, summed per query, averaged over the queries of each row that have one: (batch, heads)."""
        mass = attention.pairs(self.rows, self.queries, keys)
        sums = mass.new_zeros(len(self.real), mass.shape[1]).index_add_(0, self.rows, mass)
        return sums / self.n_queries[:, None]


def _earlier_occurrences(row: Tensor, real: Tensor) -> tuple[Tensor, Tensor, int]:
    """Every (query, earlier occurrence of its token), and how many queries have one; memory grows with the pairs only."""
    positions = torch.nonzero(real)[:, 0]
    order = positions[row[positions].argsort(stable=True)]
    ranked = row[order]
    queries, occurrences = [order[:0]], [order[:0]]
    for lag in range(1, len(order)):
        same = ranked[lag:] == ranked[:-lag]
        if not bool(same.any()):
            break
        queries.append(order[lag:][same])
        occurrences.append(order[:-lag][same])
    return torch.cat(queries), torch.cat(occurrences), len(queries[1]) if len(queries) > 1 else 0


def scores_for(tokens: Tensor, attention_mask: Tensor | None = None) -> PeriodicScores | PairScores:
    """The cheapest way to score these rows: diagonals if every row repeats with one period, else pairs."""
    if attention_mask is None or bool(attention_mask.bool().all()):
        attention_mask = None
        for start in (0, 1):
            period = common_period(tokens[:, start:])
            if period is not None and (start == 0 or bool((tokens[:, :1] != tokens[:, 1:]).all())):
                return PeriodicScores(period, start, tokens.shape[1])
    return PairScores.of(tokens, attention_mask)


def common_period(tokens: Tensor) -> int | None:
    """The period with which every row repeats a block of different tokens, or None."""
    again = torch.nonzero(tokens[0, 1:] == tokens[0, 0])
    if len(again) == 0:
        return None
    period = int(again[0]) + 1
    block = tokens[:, :period].sort(dim=1).values
    if period < 2 or bool((block[:, 1:] == block[:, :-1]).any()):
        return None
    return period if bool((tokens[:, period:] == tokens[:, :-period]).all()) else None


Pair = tuple[int, int]  # a query and a key


@dataclass(frozen=True)
class KeyScores:
    """Mean mass on listed keys: for each list and row, summed over the keys of a query and averaged over the queries.

    `names` are those of the lists. `rows`, `queries` and `keys` are of all pairs, each (pairs,), and `shares` what each counts in
    which list: (lists, pairs). A row that has no pair in a list gets 0 there.
    """

    names: tuple[str, ...]
    rows: Tensor
    queries: Tensor
    keys: Tensor
    shares: Tensor
    n_rows: int

    @classmethod
    def of(cls, lists: Mapping[str, Sequence[Iterable[Pair]]], device: torch.device) -> KeyScores:
        """From lists of pairs (query, key), one for each row, under the name of each list."""
        entries = [
            (number, row, query, key)
            for number, rows in enumerate(lists.values())
            for row, pairs in enumerate(rows)
            for query, key in pairs
        ]
        columns = torch.tensor(entries, dtype=torch.long).view(-1, 4).T
        number, rows, queries, keys = columns
        counts = torch.tensor(
            [[len({query for query, _ in pairs}) for pairs in rows] for rows in lists.values()], dtype=torch.float64
        )
        shares = torch.zeros(len(lists), len(entries), dtype=torch.float64)
        shares[number, torch.arange(len(entries))] = 1 / counts[number, rows]
        n_rows = len(next(iter(lists.values())))
        return cls(tuple(lists), rows.to(device), queries.to(device), keys.to(device), shares, n_rows)

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's means: (lists, batch, heads), in [0, 1], in the order of `names`."""
        rows, queries, keys = (each.to(attention.device) for each in (self.rows, self.queries, self.keys))
        mass = attention.pairs(rows, queries, keys)  # pairs, heads
        weighed = mass * self.shares.to(mass)[:, :, None]
        return weighed.new_zeros(len(self.shares), self.n_rows, mass.shape[1]).index_add_(1, rows, weighed)


class Scores(Protocol):
    """Scores of heads, by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores, in the order in which they are given."""

    def __call__(self, attention: AttentionReader) -> Tensor:
        """One layer's scores of a reader: (scores, batch, heads)."""


HELD_ENTRIES = 2_000_000  # scores before softmax that wait for the rest of their layers; 8 MB


class Streamed:
    """Is handed each layer's attention in order, and gives the scores of all of them."""

    def __init__(self, scores: Scores, n_layers: int) -> None:
        self._scores = scores
        self._to_come = n_layers
        self._buffer = torch.empty(0)
        self._waiting: list[tuple[float, Tensor]] = []  # the factor and the log-sum-exp of each layer in the buffer
        self._done: list[Tensor] = []

    def add(self, layer: int, attention: AttentionReader) -> None:
        """Take what this layer's scores need."""
        self._to_come -= 1
        if not _is_of_lines(self._scores) or not _has_scores(attention):
            self._finish()
            self._done.append(self._scores(attention)[None])
            return
        out = self._room(self._scores, attention)
        factor = attention.write_scores(self._scores.offsets, out, first=True)
        self._waiting.append((factor, attention.log_sum_exp))

    def chunks(self) -> list[Tensor]:
        """The scores of all layers in order, those of some at a time: each (layers, scores, batch, heads)."""
        self._finish()
        return self._done

    def _room(self, scores: LineScores, attention: ScoresReader) -> Tensor:
        """Where the next layer's scores go: -inf everywhere, (batch, heads, lines, queries)."""
        batch, heads, positions = attention.log_sum_exp.shape
        shape = (batch, heads, len(scores.offsets) + 1, positions)
        dtype = torch.promote_types(attention.dtype, torch.float32)
        buffer = self._buffer
        if len(self._waiting) == len(buffer) or (shape, dtype, attention.device) != (
            buffer.shape[1:],
            buffer.dtype,
            buffer.device,
        ):
            self._finish()
            layers = max(1, min(self._to_come + 1, HELD_ENTRIES // (batch * heads * shape[2] * positions)))
            self._buffer = _filled((layers, *shape), dtype, attention.device)
        return self._buffer[len(self._waiting)]

    def _finish(self) -> None:
        """Turn the scores before softmax that wait into scores of heads."""
        if not self._waiting or not _is_of_lines(self._scores):
            return
        held = self._buffer[: len(self._waiting)]
        factors = {factor for factor, _ in self._waiting}
        factor = factors.pop() if len(factors) == 1 else held.new_tensor([each for each, _ in self._waiting]).view(-1, 1, 1, 1, 1)
        log_sum_exps = torch.stack([each for _, each in self._waiting])[:, :, :, None]
        with full_precision(held.device.type):  # this may be called where the user has autocast on
            found = self._scores.reduced(masses(held.mul_(factor), log_sum_exps))
        self._done.append(found.movedim(-1, 1))
        self._buffer, self._waiting = torch.empty(0), []


def _filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of -inf that may be written to after the pass, even where a model turns inference mode on for its own forward."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(mode=False):
            return torch.full(shape, -torch.inf, dtype=dtype, device=device)
    return torch.full(shape, -torch.inf, dtype=dtype, device=device)


def _is_of_lines(scores: Scores) -> TypeGuard[LineScores]:
    return hasattr(scores, "reduced")


def _has_scores(attention: AttentionReader) -> TypeGuard[ScoresReader]:
    return hasattr(attention, "write_scores")
