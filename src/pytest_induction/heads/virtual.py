"""Virtual induction heads: pairs of heads that match prefixes in two steps, where neither does it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.attention.scores import AttentionReader
from pytest_induction.deciding import Judgement
from pytest_induction.display import Displayed, View, view_of
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.heads.criteria import MIN_PERIODS, excess, is_above, is_below, matches_by_means, min_excess, own_chance
from pytest_induction.measuring.observing import Array, ModelLike, describe, numbers, of_all_heads, probes_of, provenance
from pytest_induction.measuring.rounds import price_of_scores
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe, unrepeated_sequences
from pytest_induction.progress import progress
from pytest_induction.records import HeadId, PairEvidence, Provenance, Verdict
from pytest_induction.spending import Price, priced
from pytest_induction.statistics import SHARE, bounded_intervals, more_rows

BLOCK_ENTRIES = 1_000_000  # entries of the pattern held at a time
PAIR_SCORES = ("prefix_matching", "composed")  # then the same two at the wrong shift


@dataclass(frozen=True)
class Columns:
    """Which keys and queries of rows with a block of `period` tokens, from `start` to the end, belong to which column.

    The keys of column c are the positions of the c-th token of the block but for those of the first copy that no query counts:
    the first token follows no occurrence, and the `wrong_shift` tokens after it are no wrong places. These have a column each.
    A period of 2 leaves no position that holds neither the query's token nor the successor's: composed scores are 0 then.
    """

    period: int
    start: int
    n_positions: int
    wrong_shift: int = 0  # 0 for none; less than period - 1

    @property
    def count(self) -> int:
        """Of columns."""
        return self.period + self.wrong_shift

    @cached_property
    def keys(self) -> Tensor:
        """1 where a key is of a column: (positions, columns)."""
        place = self._places
        column = torch.where(place > self.wrong_shift, place % self.period, self.period + place - 1)
        found = torch.zeros(self.n_positions, self.count)
        found[place > 0, column[place > 0]] = 1
        return found

    @cached_property
    def queries(self) -> Tensor:
        """What a query counts in a column that it asks for: (shifts, columns, positions)."""
        place = self._places
        later = torch.nonzero(place >= self.period)[:, 0]
        found = torch.zeros(len(self._shifts), self.count, self.n_positions, dtype=torch.float64)
        for index, shift in enumerate(self._shifts):
            asked = (place[later] + 1 + shift) % self.period
            found[index, asked, later] = 1
        found[0, self.period :] = found[0, 1 : self.wrong_shift + 1]
        return found / len(later)

    @cached_property
    def composed(self) -> Tensor:
        """1 where a position holds neither the token of the column's keys nor that of the queries that ask for it.

        (shifts, columns, positions).
        """
        place = self._places
        wanted = torch.cat([torch.arange(self.period), torch.arange(1, self.wrong_shift + 1)])[:, None]
        asking = torch.tensor(self._shifts)[:, None, None]
        held = torch.where(place >= 0, place % self.period, -1)
        return ((held != wanted) & (held != (wanted - 1 - asking) % self.period)).float()

    @property
    def _places(self) -> Tensor:
        """Of every position, from the beginning of the first copy."""
        return torch.arange(self.n_positions) - self.start

    @property
    def _shifts(self) -> tuple[int, ...]:
        return (0, self.wrong_shift) if self.wrong_shift else (0,)


class VirtualHeads:
    """Is handed each layer's attention in order, and scores its heads alone and after every head of the layers before.

    `single` holds for each layer the prefix-matching scores of its heads, (batch, heads); `pairs` the scores of each with each
    head of the layers before, (batch, heads, scores, heads before), in the order of `PAIR_SCORES`, then those at the wrong
    shift. Of every head (columns, positions) numbers are held until the pass is over.
    """

    def __init__(self, columns: Columns, n_rows: int) -> None:
        self.single: list[Tensor] = []
        self.pairs: list[Tensor] = []
        self._columns = columns
        self._n_rows = n_rows
        self._gathered: list[Tensor] = []  # of each layer so far, (batch, heads, columns * positions)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, layer: int, attention: AttentionReader) -> None:
        """Score this layer's heads."""
        gathered, asked = self._tables(attention)
        _, queries, composed = self._weights(asked.dtype, asked.device)
        self.single.append(torch.einsum("bhcp,cp->bh", gathered, queries[0]))
        scores = torch.stack([asked, asked * composed], dim=3).flatten(2, 3)  # batch, heads, scores, columns, positions
        each = scores.flatten(3).flatten(1, 2)
        pairs = [each @ before.to(each).mT for before in self._gathered]
        self.pairs.append(torch.cat([each.new_empty(*each.shape[:2], 0), *pairs], dim=2).unflatten(1, scores.shape[1:3]))
        self._gathered.append(gathered.flatten(2))

    def _tables(self, attention: AttentionReader) -> tuple[Tensor, Tensor]:
        """What each position gathers of the keys of a column, and how much the queries that ask for a column take from it.

        The first (batch, heads, columns, positions), the second (batch, heads, shifts, columns, positions).
        """
        dtype = torch.promote_types(attention.dtype, torch.float32)
        keys, queries, _ = self._weights(dtype, attention.device)
        gathered, asked = [], keys.new_zeros(())
        for block in self._blocks(attention.n_heads):
            pattern = attention.pattern_of(block)
            gathered.append((pattern @ keys).mT)
            asked = asked + queries.flatten(0, 1)[:, block.start : block.stop] @ pattern
        return torch.cat(gathered, dim=3), asked.unflatten(2, queries.shape[:2])

    def _blocks(self, n_heads: int) -> Iterator[range]:
        """All queries, so many at a time that their pattern stays small."""
        positions = self._columns.n_positions
        at_once = max(1, BLOCK_ENTRIES // (self._n_rows * n_heads * positions))
        return (range(start, min(start + at_once, positions)) for start in range(0, positions, at_once))

    def _weights(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, queries and composed of the columns, as a layer needs them, kept for the next one."""
        if (dtype, device) not in self._cast:
            columns = self._columns
            keys, queries, composed = (part.to(device, dtype) for part in (columns.keys, columns.queries, columns.composed))
            self._cast[dtype, device] = keys, queries, composed
        return self._cast[dtype, device]


Single = NDArray[np.float32]
HELD_NUMBERS = 50_000_000  # of all heads of the sequences that share a pass, 200 MB; beyond, fewer sequences share one
NAMES = (*PAIR_SCORES, *(f"{name}_at_wrong_shift" for name in PAIR_SCORES))
CONTROLS = tuple(f"{name}_of_control" for name in PAIR_SCORES)


@dataclass(frozen=True)
class VirtualPair:
    """A head and one of an earlier layer, and what they score together; all in [0, 1].

    `null` is the higher one of the pair's composed scores at a wrong shift and on unrepeated rows, `alone` the higher one of the
    prefix-matching scores that the two heads have by themselves.
    """

    later: HeadId
    earlier: HeadId
    prefix_matching: float
    composed: float
    null: float
    alone: float

    def __str__(self) -> str:
        return f"{self.later} after {self.earlier}"


@dataclass(frozen=True, repr=False)
class VirtualScores(Displayed):
    """Virtual prefix matching of every pair of heads, means over sequences, in [0, 1].

    `prefix_matching` and `composed` are (n_layers, n_heads, n_layers, n_heads): entry [l2, h2, l1, h1] is of head h2 in layer
    l2 after head h1 in an earlier layer l1, NaN where l1 >= l2 or a layer has no such head. The first is the prefix matching
    of the product of the two patterns, the second what is left of it without the mass that either head sends from a token to
    its successor by itself (metrics/virtual.py defines both). `single` (n_layers, n_heads) are the heads' own prefix-matching
    scores on the same rows.

    `per_sequence` holds all of them before the mean, with the number of sequences as first axis, in float32. Under
    `prefix_matching_at_wrong_shift` and `composed_at_wrong_shift` it has the same where nothing draws a prefix matcher, under
    `prefix_matching_of_control` and `composed_of_control` the same places of unrepeated rows. Heads that attend by position only
    score on the control what they score on the probe; at a wrong shift, nearer by, they may score less.
    """

    prefix_matching: Array
    composed: Array
    single: Array
    per_sequence: Mapping[str, Single]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="composed", pictures=tuple)

    def pairs(self, most: int = 10) -> tuple[VirtualPair, ...]:
        """The pairs with the highest composed scores, highest first. Raises `ArgumentError` unless `most` is 1 or more."""
        whole_number("most", most, least=1)
        composed = np.where(np.isnan(self.composed), -np.inf, self.composed).ravel()
        order = np.argsort(-composed, kind="stable")[: min(most, int(np.isfinite(composed).sum()))]
        return tuple(self._pair(*map(int, np.unravel_index(place, self.composed.shape))) for place in order)

    @property
    def best(self) -> VirtualPair:
        """The pair with the highest composed score."""
        return self.pairs(1)[0]

    def _pair(self, layer: int, head: int, before: int, other: int) -> VirtualPair:
        place = layer, head, before, other
        nulls = (self.per_sequence[name][:, *place] for name in ("composed_at_wrong_shift", "composed_of_control"))
        return VirtualPair(
            later=HeadId(layer, head),
            earlier=HeadId(before, other),
            prefix_matching=float(self.prefix_matching[place]),
            composed=float(self.composed[place]),
            null=max(float(null.mean(dtype=np.float64)) for null in nulls),
            alone=float(max(self.single[layer, head], self.single[before, other])),
        )


@dataclass(frozen=True)
class PairRound:
    """One round of probes and their controls: arrays (sequences, n_layers, n_heads, n_layers, n_heads), as of `VirtualScores`.

    `chance` is the higher one of the composed scores at a wrong shift and on unrepeated rows, sequence by sequence.
    """

    periods: NDArray[np.int64]
    prefix_matching: Single
    composed: Single
    chance: Single

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Which pairs there are: (n_layers, n_heads, n_layers, n_heads)."""
        return ~np.isnan(self.composed[0])

    @classmethod
    def join(cls, rounds: Sequence[PairRound]) -> PairRound:
        """All rounds as one."""
        return cls(*(np.concatenate([getattr(part, name) for part in rounds]) for name in cls.__annotations__))


def probe_pairs(subject: ModelUnderTest, n_sequences: int, seed: int, number: int) -> PairRound:
    """Probe with `n_sequences` repeated rows and as many unrepeated ones; the same for the same seed and number."""
    rng = np.random.default_rng([seed, 4, number])
    parts = []
    for probe in probes_of(subject, n_sequences, rng, COPIES, None):
        found = virtual_scores(subject, probe, *_control(subject, probe, rng))
        chance = own_chance({"wrong_shift": found["composed_at_wrong_shift"], "control": found["composed_of_control"]})
        periods = np.full(probe.n_sequences, probe.period)
        parts.append(PairRound(periods, found["prefix_matching"], found["composed"], chance))
    return PairRound.join(parts)


def price_of_pairs(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of repeated rows and as many unrepeated ones."""
    rows = price_of_scores(subject, given)
    return rows + rows


@user_facing
@priced(price_of_pairs)
def measure_virtual_heads(model: ModelLike, *, n_sequences: int = 24, seed: int | None = None) -> VirtualScores:
    """Measure the virtual prefix-matching score of every head after every head of an earlier layer.

    The model is probed with `n_sequences` rows of repeated random tokens of varied period, the same as those of `measure_heads`
    at that seed, and with as many unrepeated ones. If one head attends to the place where the other has gathered the successor,
    the pair has 1. Two uniform causal heads have 0.5 to 0.9 of 1 / period, as on unrepeated rows. A head that rests on the
    first token has 0 with any other. A high score says where information may come from, not that the values carry it, and two
    heads that count back by a fixed distance have a high one at a single period.

    Raises `ModelError` for a model with fewer than two attention layers or whose attention cannot be read, `ProbeError` where
    no probe fits it, `ArgumentError` for a number that is out of range. Source: Elhage et al. 2021, virtual attention heads.

    >>> scores = measure_virtual_heads(model)                        # doctest: +SKIP
    >>> print(scores.best, round(scores.best.composed, 2))           # doctest: +SKIP
    L1H3 after L0H0 0.89
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    subject = load_model(model)
    if subject.n_layers < 2:
        raise ModelError(f"a virtual head is made of heads in two layers, {subject.name} has one attention layer")
    seed = subject.seed if seed is None else seed
    rng = np.random.default_rng([seed, 0])
    probes = list(probes_of(subject, n_sequences, rng, COPIES, None))
    with progress("scores of pairs of heads", 2 * n_sequences):
        parts = [virtual_scores(subject, probe, *_control(subject, probe, rng)) for probe in probes]
    per_sequence = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    means = {name: per_sequence[name].mean(axis=0, dtype=np.float64) for name in (*PAIR_SCORES, "single")}
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes))
    return VirtualScores(**means, per_sequence=per_sequence, provenance=about)


def _control(subject: ModelUnderTest, probe: Probe, rng: np.random.Generator) -> tuple[Probe, int]:
    """Unrepeated rows as many and as long as those of the probe, and how far from the successors to look for the null."""
    shape = {"period": probe.period, "n_sequences": probe.n_sequences, "repeats": probe.repeats}
    return unrepeated_sequences(subject.space, rng=rng, **shape), int(rng.integers(1, max(2, probe.period // 2)))


def virtual_scores(subject: ModelUnderTest, probe: Probe, control: Probe, wrong_shift: int) -> dict[str, Single]:
    """The scores of one probe and its control, under the names of `VirtualScores.per_sequence`; sequences come first."""
    shape = probe.period, probe.start, probe.n_positions
    pairs, single = _scores_of_rows(subject, torch.from_numpy(probe.tokens), Columns(*shape, wrong_shift))
    unrepeated, _ = _scores_of_rows(subject, torch.from_numpy(control.tokens), Columns(*shape))
    return {**dict(zip(NAMES, pairs, strict=True)), **dict(zip(CONTROLS, unrepeated, strict=True)), "single": single}


def _scores_of_rows(subject: ModelUnderTest, tokens: Tensor, columns: Columns) -> tuple[Single, Single]:
    """Scores of pairs (scores, sequences, n_layers, n_heads, n_layers, n_heads), and of heads (sequences, n_layers, n_heads)."""

    def measured(rows: Tensor, part: slice) -> tuple[Single, Single]:
        found = VirtualHeads(columns, len(rows))
        subject.observe(rows, found.add)
        pairs, single = ([numbers(layer) for layer in layers] for layers in (found.pairs, found.single))
        if not all(np.isfinite(layer).all() for layer in (*pairs, *single)):
            raise ModelError(f"the attention of {subject.name} is not finite (NaN or infinity)")
        return _of_all_pairs(pairs, subject.n_heads), of_all_heads(single, subject.n_heads, np.float32)

    at_once = max(1, HELD_NUMBERS // (sum(subject.reading.heads) * columns.count * columns.n_positions))
    parts = [found for rows in tokens.split(at_once) for found in in_batches(subject, rows, measured, logits=False)]
    pairs, single = (np.concatenate(values) for values in zip(*parts, strict=True))
    return np.moveaxis(pairs, 1, 0), single


def _of_all_pairs(layers: Sequence[Array], n_heads: int) -> Single:
    """Of each layer (sequences, heads, scores, heads before) as (sequences, scores, n_layers, n_heads, n_layers, n_heads)."""
    sequences, _, scores, _ = layers[0].shape
    found = np.full((sequences, scores, *(len(layers), n_heads) * 2), np.nan, dtype=np.float32)
    for later, layer in enumerate(layers):
        start = 0
        for earlier, heads in enumerate(other.shape[1] for other in layers[:later]):
            found[:, :, later, : layer.shape[1], earlier, :heads] = layer[..., start : start + heads].swapaxes(1, 2)
            start += heads
    return found


MOST_PAIRS = 3  # that are named


def judge_virtual_head(found: PairRound, *, min_prefix_matching: float, error_rate: float) -> Judgement:
    """Do two heads match prefixes in two steps, above the threshold of a single head and above their own chance?

    Half of `error_rate` goes to the composed scores, half to what is left of them without chance; shared by all pairs for what is
    shown to be above, and not for what is shown to be below.
    """
    every = _pairs(found, min_prefix_matching, error_rate / 2)
    near = [pair for pair in every if not is_below(pair.composed, pair.excess, min_prefix_matching)]
    clear = [
        pair for pair in near if is_above(pair.composed, pair.excess, min_prefix_matching) and pair.periods_passed >= MIN_PERIODS
    ]
    if clear:
        words = f"{clear[0]} match prefixes in two steps, composed score {clear[0].composed.value:.3f}"
        return Judgement(Verdict.SHOWN, "formed_virtual", words, pairs=tuple(clear[:MOST_PAIRS]))
    if not near:
        return Judgement(Verdict.REFUTED, "no_pair_matches", "no pair of heads matches prefixes in two steps")
    first, count = near[0], len(found.periods)
    more = max(
        more_rows(first.composed, min_prefix_matching, count),
        more_rows(first.excess, min_excess(min_prefix_matching), count),
    )
    words = f"{first} have composed score {first.composed.value:.3f}, too close to {min_prefix_matching:.3f} to tell"
    return Judgement(Verdict.UNDETERMINED, "pairs_unclear", words, pairs=(first,), more_sequences=more)


def _pairs(found: PairRound, threshold: float, error_rate: float) -> list[PairEvidence]:
    """Every pair, strongest first."""
    exists = found.exists
    composed, chance, whole = (
        values[:, exists].astype(np.float64) for values in (found.composed, found.chance, found.prefix_matching)
    )
    above = error_rate / max(1, composed.shape[1])
    scores = bounded_intervals(composed, above, error_rate, unit=SHARE)
    left = excess({"prefix_matching": composed, "chance": chance})
    excesses = bounded_intervals(left, above, error_rate, lowest=-1.0, unit="excess")
    passed = np.zeros(composed.shape[1], dtype=np.int64)
    for period in np.unique(found.periods):
        rows = found.periods == period
        means = {"prefix_matching": composed[rows].mean(axis=0), "excess": left[rows].mean(axis=0)}
        passed += matches_by_means(means, threshold)
    each = zip(np.argwhere(exists), scores, excesses, whole.mean(axis=0), passed, strict=True)
    pairs = [
        PairEvidence(int(layer), int(head), int(before), int(other), score, beyond, float(mean), int(periods))
        for (layer, head, before, other), score, beyond, mean, periods in each
    ]
    return sorted(pairs, key=lambda pair: -pair.composed.value)
