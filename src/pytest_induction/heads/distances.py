"""How far back heads match: prefix matching on rows of chosen periods, and by the distance to the earlier occurrence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.attention.scores import WRONG_SHIFT, LongRowScores, at_period, late
from pytest_induction.display import Picture, Plotted, View, arrays_table, view_of
from pytest_induction.errors import ArgumentError, ProbeError, user_facing, whole_number
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, excess, matches_by_means, own_chance
from pytest_induction.measuring.observing import Array, ModelLike, masses_of, plain, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import SHORTEST_PERIOD, Probe, filling_sequences, usable_ids
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Provenance, TokenSpace
from pytest_induction.spending import Price, priced

LONGEST_ROWS = 1024  # positions that rows have at most, unless more are asked for
LATE_SHARE = 4  # the last quarter of a row
HELD_ENTRIES = 2**25  # entries of patterns that one layer of a pass may hold, 128 MB; beyond, fewer rows share one


@dataclass(frozen=True)
class Matching:
    """Of the rows of one period, (rows, n_layers, n_heads) each: prefix matching and own chance, over all queries that have an
    earlier occurrence, and over those in the last quarter of the row (`late`).
    """

    period: int
    n_positions: int
    scores: Array
    chance: Array
    late_scores: Array
    late_chance: Array


def match_periods(subject: ModelUnderTest, probes: Sequence[Probe], rng: np.random.Generator) -> list[Matching]:
    """Prefix matching and own chance on the rows of each probe.

    The probes have different periods, two of them at least, as many rows each, and room for twice any other's period. Raises
    `UnsupportedModel` where attention cannot be read.
    """
    periods = [probe.period for probe in probes]
    partners = {probe.period: partner_of(probe.period, periods, probe.n_positions) for probe in probes}
    found: dict[int, dict[str, Array]] = {}
    for probe in probes:
        others = tuple(period for period, partner in partners.items() if partner == probe.period)
        shift = int(rng.integers(1, max(2, probe.period // 2)))
        late_from = probe.n_positions - probe.n_positions // LATE_SHARE
        scorer = LongRowScores(probe.period, probe.start, probe.n_positions, (shift,), late_from, others)
        found[probe.period] = _observed(subject, probe, scorer)
    return [
        Matching(
            probe.period,
            probe.n_positions,
            scores=own["prefix_matching"],
            chance=own_chance({WRONG_SHIFT: own[WRONG_SHIFT], "control": other[at_period(probe.period)]}),
            late_scores=own[late("prefix_matching")],
            late_chance=own_chance({WRONG_SHIFT: own[late(WRONG_SHIFT)], "control": other[late(at_period(probe.period))]}),
        )
        for probe in probes
        for own, other in [(found[probe.period], found[partners[probe.period]])]
    ]


def partner_of(period: int, periods: Sequence[int], n_positions: int) -> int:
    """The other period in whose rows a matching head has least at this one's places."""
    return min((other for other in periods if other != period), key=lambda other: (overlap(period, other, n_positions), other))


def overlap(period: int, other: int, n_positions: int) -> float:
    """How much of what a head matches in rows of the period `other` stands at the places of `period`; 0 where nothing does.

    Counted are the successors of the copies, and the copies themselves, as some heads attend to both. Those of the nearest copy
    count most, as a head may match that one alone.
    """
    copies = range(1, n_positions // other + 1)
    return sum(1 / copy for copy in copies if (copy * other) % period == 0 or (copy * other) % period == period - 1)


def _observed(subject: ModelUnderTest, probe: Probe, scorer: LongRowScores) -> dict[str, Array]:
    """The scores of every row by name: (rows, n_layers, n_heads)."""
    entries = (len(scorer.offsets) + 1) * probe.n_positions * subject.n_heads
    most = max(1, HELD_ENTRIES // entries)
    return masses_of(subject, probe.tokens, lambda _: scorer, most=most)


STEPS_TO_DOUBLE = 2  # distances between one and twice as far
STREAM = 43  # of the random numbers of a seed

MOST_DRAWN = 6  # heads in a plot


@dataclass(frozen=True, repr=False)
class DistanceScores(Plotted):
    """Prefix matching of every head at each of some distances.

    `distances` (n,) ascend; `prefix_matching` and `chance` are (n, n_layers, n_heads), means over sequences in [0, 1]. At
    distance d the rows repeat a block of d different tokens, so that the nearest earlier occurrence of a token stands d positions
    back. All rows have the same number of positions, whatever the distance. `chance` is what a head has at such places without
    matching: the higher one of its mass at a wrong shift and of its mass at the places of this distance in rows of another one.

    | head | prefix matching at distance d | chance |
    |---|---|---|
    | perfect induction | 1 at every d | near 0 |
    | perfect induction, positions at most w back only | 1 up to d = w + 1, 0 beyond | near 0 |
    | counts back w | 1 at d = w + 1, and nearly where d divides w + 1; else 0 | as high |
    | uniform over the past | about 1 / d | about as high |
    | rests on the first token | 0 | 0 |

    The successor of an occurrence d back stands d - 1 back: hence w + 1. Copies further back count too, as everywhere in prefix
    matching: a head which matches only far back has a score at short distances as well.

    `per_sequence` has both before the mean: name -> (n, n_sequences, n_layers, n_heads). Where layers differ in their number of
    heads, a head that a layer does not have is NaN.
    """

    distances: NDArray[np.int64]
    prefix_matching: Array
    chance: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        arrays = {"prefix_matching": self.prefix_matching, "chance": self.chance}
        table = arrays_table(
            "distances", arrays, axes=("distance", "layer", "head"), labels={"distance": self.distances.tolist()}
        )
        return view_of(self, tables=[table], pictures=self._pictures)

    def _pictures(self) -> list[Picture]:
        """Prefix matching by distance, of the heads that have most of it at any."""
        best = np.nan_to_num(self.prefix_matching, nan=-1.0).max(axis=0)
        top = [divmod(place, best.shape[1]) for place in np.argsort(-best, axis=None, kind="stable")[:MOST_DRAWN].tolist()]
        series = [
            {"name": f"L{layer}H{head}", "x": self.distances.tolist(), "y": plain(self.prefix_matching[:, layer, head])}
            for layer, head in top
            if best[layer, head] >= 0
        ]
        return [("curves", {"x": "distance in tokens", "y": "prefix matching", "series": series})] if series else []

    def reach(self, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> NDArray[np.int64]:
        """How far back each head matches, (n_layers, n_heads).

        From the shortest distance at which a head matches, the longest one up to which it does so at every measured distance; 0
        for a head that matches at none. It matches where its prefix matching is `min_prefix_matching` at least, and half of that
        is left without chance.
        """
        if not 0 < min_prefix_matching <= 1:
            raise ArgumentError(f"`min_prefix_matching` must lie above 0 and up to 1, got {min_prefix_matching!r}")
        means = {"prefix_matching": self.prefix_matching, "chance": self.chance}
        matches = matches_by_means(means | {"excess": excess(means)}, min_prefix_matching)
        begun = np.maximum.accumulate(matches, axis=0)
        ended = np.maximum.accumulate(begun & ~matches, axis=0)
        return np.where(begun & ~ended, self.distances[:, None, None], 0).max(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            "distances": self.distances.tolist(),
            "prefix_matching": plain(self.prefix_matching),
            "chance": plain(self.chance),
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


def price_of_distances(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of rows of one length for each distance, and perhaps for one more to compare with."""
    asked = None if given["distances"] is None else _whole(given["distances"])
    positions = _row_length(subject.space, given["n_positions"], 0 if asked is None else max(asked))
    count = len(default_distances(_longest(subject.space, positions)) if asked is None else asked)
    return Price(count * positions * given["n_sequences"], (count + 1) * positions * given["n_sequences"])


@user_facing
@priced(price_of_distances)
def measure_distances(
    model: ModelLike,
    *,
    distances: Iterable[int] | None = None,
    n_positions: int | None = None,
    n_sequences: int = 4,
    seed: int | None = None,
) -> DistanceScores:
    """Measure prefix matching of every head by the distance between a token and its earlier occurrence.

    Each row is one block of random tokens, repeated up to `n_positions`: the context, 1,024 at most by default. `distances` are
    the lengths of the blocks; by default from 4 to half of the row, two for each doubling, as far as the vocabulary has different
    ids. One forward pass of `n_sequences` rows for each distance, and one more where chance asks for rows of another one; several
    of fewer rows, where memory asks for that.

    A perfect induction head has 1 at every distance; `DistanceScores` says what others have, and its `reach` has one number of
    each. Raises `UnsupportedModel` for a model whose attention cannot be read, `ProbeError` where no two distances fit it,
    `ArgumentError` for distances of which a block does not stand twice.

    >>> from pytest_induction.planted import induction_head
    >>> scores = measure_distances(induction_head(), distances=[8, 16, 32])
    >>> scores.prefix_matching[:, 1, 0].round(3).tolist(), int(scores.reach()[1, 0])
    ([1.0, 1.0, 1.0], 32)
    """
    whole_number("n_sequences", n_sequences, least=1)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = None if distances is None else _whole(distances)
    positions = _row_length(subject.space, n_positions, 0 if asked is None else max(asked))
    longest = _longest(subject.space, positions)
    chosen = default_distances(longest) if asked is None else asked
    if not SHORTEST_PERIOD <= min(chosen) <= max(chosen) <= longest:
        raise ArgumentError(
            f"`distances` must be from {SHORTEST_PERIOD} to {longest} (half of {positions} positions, and no more than the "
            f"usable ids), got {min(chosen)} to {max(chosen)}"
        )
    rng = np.random.default_rng([seed, STREAM])
    beside = _companions(chosen, longest, positions)
    with progress("matching by distance", n_sequences * len(chosen + beside)):
        probes = [
            filling_sequences(subject.space, period=each, n_positions=positions, rng=rng, n_sequences=n_sequences)
            for each in chosen + beside
        ]
        found = match_periods(subject, probes, rng)[: len(chosen)]
    per_sequence = {
        "prefix_matching": np.stack([each.scores for each in found]),
        "chance": np.stack([each.chance for each in found]),
    }
    described = f"distances {chosen[0]} to {chosen[-1]}, {positions} positions"
    means = {name: values.mean(axis=1) for name, values in per_sequence.items()}
    about = provenance(subject, seed=seed, n_sequences=n_sequences * len(chosen), probe=described)
    return DistanceScores(np.array(chosen, dtype=np.int64), **means, per_sequence=per_sequence, provenance=about)


def default_distances(longest: int) -> list[int]:
    """From 4 to the longest one, both included, two for each doubling."""
    count = 1 + max(1, round(STEPS_TO_DOUBLE * np.log2(longest / SHORTEST_PERIOD)))
    return sorted({round(float(each)) for each in np.geomspace(SHORTEST_PERIOD, longest, count)})


def _companions(distances: list[int], longest: int, n_positions: int) -> list[int]:
    """The period of rows that are measured for the chance at these distances alone; none where they serve each other."""
    if len(distances) > 1 and not any(overlap(each, partner_of(each, distances, n_positions), n_positions) for each in distances):
        return []
    others = [each for each in range(longest, SHORTEST_PERIOD - 1, -1) if each not in distances]
    return [min(others, key=lambda other: sum(overlap(each, other, n_positions) for each in distances))] if others else []


def _whole(distances: Iterable[int]) -> list[int]:
    """The distances asked for, ascending, each once."""
    try:
        found = sorted({whole_number("distances", each, least=SHORTEST_PERIOD) for each in distances})
    except TypeError:
        raise ArgumentError(f"`distances` must be whole numbers, got {distances!r}") from None
    if not found:
        raise ArgumentError("`distances` must hold at least one, got none")
    return found


def _row_length(space: TokenSpace, asked: int | None, furthest: int) -> int:
    """How many positions the rows have: as asked, or the context's, 1,024 at most unless a distance needs more."""
    most = space.n_ctx
    if asked is None:
        wanted = max(LONGEST_ROWS, _start(space) + 2 * furthest)
        return wanted if most is None else min(most, wanted)
    positions = whole_number("n_positions", asked, least=1)
    if most is not None and positions > most:
        raise ArgumentError(f"`n_positions` must be at most {most}, the model's context, got {positions}")
    return positions


def _longest(space: TokenSpace, positions: int) -> int:
    """The longest block that stands twice in a row. Raises `ProbeError` where there are no two lengths."""
    n_usable = len(usable_ids(space))
    longest = min(n_usable, (positions - _start(space)) // 2)
    if longest <= SHORTEST_PERIOD:
        raise ProbeError(
            f"a profile over distances needs blocks of {SHORTEST_PERIOD} and {SHORTEST_PERIOD + 1} different tokens twice over: "
            f"got {positions} positions and {n_usable} usable token ids"
        )
    return longest


def _start(space: TokenSpace) -> int:
    return 0 if space.bos_id is None else 1
