"""What is looked at beside the usual probes before a model is said to have no induction head, and what that leaves room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from pytest_induction.errors import ModelError, ProbeError
from pytest_induction.heads.criteria import excess
from pytest_induction.heads.distances import LONGEST_ROWS, Matching, match_periods, overlap
from pytest_induction.measuring.observing import PERIODS_AT_ONCE, Array
from pytest_induction.model.declared import boundary_ids
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import (
    SHORTEST_PERIOD,
    Ids,
    Probe,
    filling_sequences,
    fitting_shape,
    repeated_sequences,
    usable_ids,
    usual_length,
)
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, HeadEvidence, HeadId, TokenSpace
from pytest_induction.statistics import known_mean, mean_interval

ROWS = 4  # of each period; an interval over so few needs heads that have next to nothing, which is what absence means
MOST_LONG_ROWS = (16, 4)  # of these, of rows as long as the context: of a small model, and of others
MORE_ROWS = (1, 4, 16, 48)  # times as many rows that a claim of absence looks at beside the usual ones, until these tell
SHORT_PERIODS = (17, 23)  # of which one is drawn
CLOSE_PERIODS = (5, 7, 11)  # those of them that are below the periods of usual probes; without common factors
MOST_ALTERNATIVES = 4  # other first tokens
STREAMS = {"longer rows": 41, "first tokens": 42, "close repeats": 43}  # of the random numbers of a seed


@dataclass(frozen=True)
class Look:
    """One place where heads may match: `name` says which, in plain words, `reason` in one that a verdict on it gives.

    `scores` (rows, n_layers, n_heads) is the prefix matching of each row, `chance` what each head has of it without matching, and
    `periods` (rows,) the period of each row.
    """

    name: str
    n_positions: int
    scores: Array
    chance: Array
    periods: Ids
    reason: str = "in_longer_rows"

    @property
    def excess(self) -> Array:
        """What is left without chance, (rows, n_layers, n_heads)."""
        return excess({"prefix_matching": self.scores, "chance": self.chance})


def longer_rows(subject: ModelUnderTest, seed: int, *, longest: int = LONGEST_ROWS, n_rows: int = ROWS) -> list[Look]:
    """Rows that fill the context, of at most `longest` positions: of a short period, a middle one, and the longest that fits.

    `n_rows` of each, and two looks at them: at all queries that have an earlier occurrence, and at those in the last quarter of
    the row alone, where a head shows that matches only far into a row; that is why short contexts are looked at too. A model that
    declares no context is tried, with half the length where it fails, and so on. Nothing where no two periods fit.

    One forward pass of these rows for each period; several passes of fewer rows, where memory asks for that.
    """
    return subject.remember(("longer rows", seed, longest, n_rows), partial(_longer_rows, subject, seed, longest, n_rows))


def _longer_rows(subject: ModelUnderTest, seed: int, longest: int, n_rows: int) -> list[Look]:
    n_positions, usual = longer_length(subject, longest), usual_length(subject.space)
    rng = np.random.default_rng([seed, STREAMS["longer rows"]])
    periods = spanning_periods(subject.space, n_positions, rng)
    if len(periods) < 2:
        return []
    drawn = partial(filling_sequences, subject.space, n_positions=n_positions, rng=rng, n_sequences=n_rows)
    probes = [drawn(period=period) for period in periods]
    with progress("longer rows", n_rows * len(probes)):
        found = match_periods(subject, probes, rng)
    reason = "in_longer_rows" if n_positions > usual else "late_in_rows"
    return [replace(look, reason=reason) for each in found for look in _two_looks(each)]


def _two_looks(found: Matching) -> tuple[Look, Look]:
    name = f"rows of {found.n_positions} positions, period {found.period}"
    periods = np.full(len(found.scores), found.period)
    whole = Look(name, found.n_positions, found.scores, found.chance, periods)
    return whole, Look(f"{name}, their last quarter", found.n_positions, found.late_scores, found.late_chance, periods)


def close_repeats(subject: ModelUnderTest, seed: int, *, n_rows: int = ROWS) -> list[Look]:
    """Rows as long as the longest usual probe, of periods shorter than any of theirs: for heads that reach no further.

    `n_rows` of each of up to three periods, one forward pass each. Nothing where the usual probes have these periods, as in short
    contexts.
    """
    return subject.remember(("close repeats", seed, n_rows), partial(_close_repeats, subject, seed, n_rows))


def _close_repeats(subject: ModelUnderTest, seed: int, n_rows: int) -> list[Look]:
    shorter = [period for period in CLOSE_PERIODS if period < fitting_shape(subject.space)[0][0]]
    if len(shorter) < 2:  # each is held against another
        return []
    rng = np.random.default_rng([seed, STREAMS["close repeats"]])
    drawn = partial(filling_sequences, subject.space, n_positions=usual_length(subject.space), rng=rng, n_sequences=n_rows)
    probes = [drawn(period=period) for period in shorter]
    with progress("close repeats", n_rows * len(probes)):
        found = match_periods(subject, probes, rng)
    return [
        Look(
            f"rows that repeat every {each.period} tokens",
            each.n_positions,
            each.scores,
            each.chance,
            np.full(n_rows, each.period),
            "at_short_distances",
        )
        for each in found
    ]


def longer_length(subject: ModelUnderTest, longest: int = LONGEST_ROWS) -> int:
    """How many positions longer rows have: what the context has, at most `longest`, and what usual probes have at least."""
    space = subject.space
    least = usual_length(space)
    if space.n_ctx is not None:
        return max(least, min(longest, space.n_ctx))
    n_positions, row = longest, np.resize(usable_ids(space), longest)
    while n_positions > least:
        if _runs(subject, row[:n_positions]):
            return n_positions
        n_positions //= 2
    return least


def _runs(subject: ModelUnderTest, row: Ids) -> bool:
    """Whether the attention of a row can be measured."""
    try:
        subject.observe(torch.from_numpy(row)[None], lambda layer, attention: None)
    except ModelError:
        return False
    return True


def spanning_periods(space: TokenSpace, n_positions: int, rng: np.random.Generator) -> list[int]:
    """A short period, the longest of which a block stands twice, and the one between, in ascending order: two at least.

    The longest is up to a tenth shorter where the copies of the others then meet its own less.
    """
    most = min(len(usable_ids(space)), (n_positions - int(space.bos_id is not None)) // 2)
    short = min(int(rng.integers(SHORT_PERIODS[0], SHORT_PERIODS[1] + 1)), max(SHORTEST_PERIOD, most - 1))
    middle = max(short, round(math.sqrt(short * most)))
    nearly = range(most, max(middle, most - most // 10 - 1), -1)
    long = min(nearly, key=lambda each: overlap(short, each, n_positions) + overlap(middle, each, n_positions))
    return sorted({short, middle, long})


def other_first_tokens(subject: ModelUnderTest, seed: int, *, n_rows: int = 1) -> list[Look]:
    """Rows of the usual periods that begin otherwise than the model declares, or with some token where it declares none.

    With no first token where one is declared; then with ids that are declared to begin, end or fill up sequences, with ids 0, 1
    and 2, and with the last usable one: four alternatives in all. `n_rows` for each of up to seven periods; no alternative stands
    anywhere else in a row. Seven forward passes at most of rows with a first token, and as many without one.
    """
    return subject.remember(("first tokens", seed, n_rows), partial(_other_first_tokens, subject, seed, n_rows))


def _other_first_tokens(subject: ModelUnderTest, seed: int, n_rows: int) -> list[Look]:
    rng = np.random.default_rng([seed, STREAMS["first tokens"]])
    space, alternatives = subject.space, other_beginnings(subject)
    unused = {*alternatives, *(() if space.bos_id is None else (space.bos_id,))}
    apart = replace(space, excluded=space.excluded | unused)
    groups: list[tuple[TokenSpace, list[int]]] = [] if space.bos_id is None else [(replace(apart, bos_id=None), [])]
    if alternatives:
        groups.append((replace(apart, bos_id=alternatives[0]), alternatives))
    looks: list[Look] = []
    with progress("other first tokens", PERIODS_AT_ONCE * n_rows * sum(max(1, len(first)) for _, first in groups)):
        for begun, first in groups:
            try:
                probes = _beginning_with(begun, first, n_rows, rng)
            except ProbeError:  # a token more does not fit the context, or too few ids are left beside the alternatives
                continue
            names = [f"sequences that begin with token {token}" for token in first] or ["sequences without a first token"]
            looks += _by_first_token(names, match_periods(subject, probes, rng))
    return looks


def _beginning_with(space: TokenSpace, first: Sequence[int], n_rows: int, rng: np.random.Generator) -> list[Probe]:
    """Usual probes with rows for each first token in turn, or without any; one probe for each of up to seven periods."""
    fitting, copies = fitting_shape(space)
    periods = sorted(int(each) for each in rng.choice(np.asarray(fitting), min(PERIODS_AT_ONCE, len(fitting)), replace=False))
    probes = []
    for period in periods:
        probe = repeated_sequences(space, period=period, rng=rng, n_sequences=n_rows * max(1, len(first)), repeats=copies)
        if first:
            probe.tokens[:, 0] = np.tile(first, n_rows)
        probes.append(probe)
    return probes


def _by_first_token(names: Sequence[str], found: Sequence[Matching]) -> list[Look]:
    """A look for each first token, at its rows of all periods."""
    longest, step = max(each.n_positions for each in found), len(names)
    looks = []
    for place, name in enumerate(names):
        scores = np.concatenate([each.scores[place::step] for each in found])
        chance = np.concatenate([each.chance[place::step] for each in found])
        periods = np.repeat([each.period for each in found], len(scores) // len(found))
        looks.append(Look(name, longest, scores, chance, periods, "other_first_token"))
    return looks


def other_beginnings(subject: ModelUnderTest) -> list[int]:
    """First tokens that are tried beside the declared one, or beside none."""
    space = subject.space
    declared = boundary_ids([subject.given, subject.module, subject.weights], subject.tokenizer)
    ids = dict.fromkeys([*declared, 0, 1, 2, int(usable_ids(space)[-1])])
    found = [token for token in ids if 0 <= token < space.d_vocab and token != space.bos_id]
    return found[: MOST_ALTERNATIVES - int(space.bos_id is not None)]


@dataclass(frozen=True)
class Strongest:
    """The strongest head of a look, with intervals over its rows.

    `excess` is what is left of its prefix matching without chance, `positive` the same where a row that has less than by chance
    counts as 0, `highest_at_a_period` the highest mean of the excess over the rows of one period.
    """

    look: str
    reason: str
    n_positions: int
    head: HeadId
    prefix_matching: Estimate
    excess: Estimate
    positive: Estimate
    highest_at_a_period: float

    def is_below(self, threshold: float) -> bool:
        """True only if one of the two intervals lies wholly below, and every period's mean does; NaN is below nothing.

        The mean of `positive` is never lower than that of `excess`, so either will do: chance that varies widens one alone.
        """
        below = self.excess.is_below(threshold) or self.positive.is_below(threshold)
        return below and self.highest_at_a_period < threshold

    def is_above(self, threshold: float) -> bool:
        """True only if the interval of what is left lies wholly above."""
        return self.excess.is_above(threshold)


def beyond(looks: Sequence[Look], max_prefix_matching: float, error_rate: float) -> tuple[Strongest, ...]:
    """The looks that do not show every head to be below, each with the strongest head that is not; the strongest first."""
    found = (
        next((head for head in _heads_of(look, error_rate) if not head.is_below(max_prefix_matching)), None) for look in looks
    )
    return tuple(sorted((each for each in found if each is not None), key=lambda each: -each.excess.value))


def summed_by_layer(left: Array, without: Sequence[HeadEvidence] = ()) -> tuple[float, ...]:
    """Of each layer the sum over its heads of their mean excess, where that is positive, from what is `left` of every head
    without chance, (rows, n_layers, n_heads).

    Heads `without` which it is asked for count as nothing.
    """
    means = known_mean(left)
    for head in without:
        means[head.layer, head.head] = 0.0
    return tuple(float(total) for total in np.where(means > 0, means, 0.0).sum(axis=1))


def _heads_of(look: Look, error_rate: float) -> list[Strongest]:
    """Every head of a look, the one with the highest mean excess first."""
    exists = ~np.isnan(look.scores).all(axis=0)  # a layer may have fewer heads than another
    scores, left = look.scores[:, exists], look.excess[:, exists]
    by_period = np.stack([left[look.periods == period].mean(axis=0) for period in np.unique(look.periods)])
    rate = error_rate * left.shape[1]  # each head at the stated rate: all of them must be below
    measures = (
        mean_interval(scores, rate),
        mean_interval(left, rate, "excess"),
        mean_interval(np.maximum(left, 0.0), rate, "excess"),
        by_period.max(axis=0).tolist(),
    )
    found = [
        Strongest(look.name, look.reason, look.n_positions, HeadId(int(layer), int(head)), *estimates)
        for (layer, head), *estimates in zip(np.argwhere(exists), *measures, strict=True)
    ]
    return sorted(found, key=lambda each: -each.excess.value)
