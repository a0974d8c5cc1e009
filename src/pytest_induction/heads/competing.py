"""Which of several matches wins: the longest, or any? Of heads by their attention, of a model by its logits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.deciding import (
    ERROR_RATE,
    MAX_SEQUENCES,
    Judgement,
    checked_sampling,
    more_needed,
    priced_claim,
    until_clear,
)
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ArgumentError, ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.criteria import MIN_ADVANTAGE, min_excess
from pytest_induction.heads.prices import price_of_competing, price_of_preference
from pytest_induction.heads.semantic import named_heads
from pytest_induction.interventions.arguments import HeadsLike
from pytest_induction.measuring.losses import at_least_float32
from pytest_induction.measuring.observing import Array, ModelLike, joined, numbers, observe, plain, plain_scores, provenance
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.competing import LISTS, MATCHES, UNMATCHED, CompetingRows, competing_rows
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Provenance, Verdict
from pytest_induction.spending import priced, spend_at_most
from pytest_induction.statistics import SMALLEST_SPREAD, mean_in_nats, mean_interval, student_quantile

MIN_PREFERENCE = 0.4  # of a head for the longer match: those of two pretrained models have 0.1 to 0.3, or 0.5 and more
MIN_GAIN = MIN_ADVANTAGE  # nats by which a model must find the successor of the longer match likelier
NEAREST = 5  # heads that are in the evidence
FIRST, _, LAST = MATCHES
LOG_PROBS = (*(f"log_prob_{name}" for name in MATCHES), "log_prob_matched", "log_prob_unmatched")
GRID = np.linspace(-1, 1, 401)  # of preferences that an interval may begin and end at


@dataclass(frozen=True, repr=False)
class CompetingMatchScores(Plotted):
    """What heads attend to, and a model predicts, where matches of one, two and three tokens stand in one row.

    `exactly_one`, `exactly_two` and `exactly_three`, arrays (n_layers, n_heads) of means over sequences, in [0, 1], are the mass
    on the successor of each match at the same query; `unmatched` is that on all three where nothing matches, the null of their
    sum. Where layers differ in their number of heads, a head that a layer does not have is NaN; where attention cannot be read
    they are (0, 0).

    `estimates` has of the model, in nats, the log-probabilities of the three successors, `log_prob_exactly_one` and so on, that
    of any of them, `log_prob_matched`, and the same where nothing matches, `log_prob_unmatched`; and `gain`, by how much the
    successor of the longest match is likelier than that of the shortest. `per_sequence` has all before the mean: name ->
    (n_sequences, n_layers, n_heads), and of the log-probabilities (n_sequences,).
    """

    exactly_one: Array
    exactly_two: Array
    exactly_three: Array
    unmatched: Array
    estimates: Mapping[str, Estimate]
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, more={"preference": self.preference}, by="exactly_three", units={"preference": "from \u22121 to 1"})

    @property
    def excess(self) -> Array:
        """What heads have on all three matches beyond what they have there by position, (n_layers, n_heads)."""
        return self.exactly_one + self.exactly_two + self.exactly_three - self.unmatched

    @property
    def shares(self) -> Array:
        """What of that each match gets, (3, n_layers, n_heads), by raw masses; NaN for heads that match too little to tell."""
        masses = np.stack([self.exactly_one, self.exactly_two, self.exactly_three])
        return self._of_matching(masses / np.maximum(masses.sum(axis=0), np.finfo(float).tiny))

    @property
    def preference(self) -> Array:
        """Of the longest match over the shortest, (three - one) / (three + one): (n_layers, n_heads), in [-1, 1].

        0 where any match counts as much, 1 where only the longer one does; NaN for heads that match too little to tell.
        """
        return preference_of({name: getattr(self, name) for name in LISTS})

    def _of_matching(self, values: Array) -> Array:
        return np.where(self.excess >= min_excess(), values, np.nan)

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`; None where there is no number."""
        derived = {name: plain(getattr(self, name)) for name in ("preference", "shares")}
        estimates = {name: vars(estimate) for name, estimate in self.estimates.items()}
        return plain_scores(self, LISTS) | derived | {"estimates": estimates}


def preference_of(masses: Mapping[str, Array]) -> Array:
    """The preference of each head for the longest match, of the means of each of `LISTS`; NaN where it matches too little."""
    matched = masses[FIRST] + masses["exactly_two"] + masses[LAST]
    found = (masses[LAST] - masses[FIRST]) / np.maximum(masses[LAST] + masses[FIRST], np.finfo(float).tiny)
    return np.where(matched - masses[UNMATCHED] >= min_excess(), found, np.nan)


@user_facing
@priced(price_of_competing)
def measure_competing_matches(
    model: ModelLike, *, n_sequences: int = 24, error_rate: float = ERROR_RATE, seed: int | None = None
) -> CompetingMatchScores:
    """Measure which match heads attend to, and the model follows, if a row has three: of one token, of two, and of three.

    Rows have up to 128 random tokens behind the first one. Each of six queries `a` behind `x y` has three earlier matches, `a`,
    `y a` and `x y a`, each followed by a token of its own, in each of their six orders equally often. At six other queries a new
    token stands behind `x y`. Contexts and vocabularies that are smaller have fewer: 18 positions and 10 ids are one query.

    | a head that | 1 | 2 | 3 | nothing matches | preference |
    |---|---|---|---|---|---|
    | attends after every match evenly, or the latest | 1/3 | 1/3 | 1/3 | 0 | 0 |
    | does so where two tokens match | 0 | 1/2 | 1/2 | 0 | 1 |
    | does so where three match, or takes the longest | 0 | 0 | 1 | 0 | 1 |
    | is uniform over the past | u | u | u | 3 u | not told |
    | rests on the first token, or counts back | 0 | 0 | 0 | 0 | not told |

    u is about 1 / (q + 1) at a query q. A model that copies by a head of the first kind has a gain of 0. What cannot be read is
    left out: `estimates` need logits alone. Costs one pass over its rows, 2.6 bare passes unless told otherwise. Raises
    `ProbeError` where not even one query fits, `ModelError` for logits or attention that are not finite.

    >>> from pytest_induction.planted import longest_match_head
    >>> scores = measure_competing_matches(longest_match_head())
    >>> round(scores.preference[1, 0], 3), round(scores.estimates["gain"].value, 3)
    (1.0, 16.0)
    """
    whole_number("n_sequences", n_sequences, least=2)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = competing_rows(subject.space, rng=np.random.default_rng([seed, 21]), n_sequences=n_sequences)
    with progress("competing matches", n_sequences):
        found = masses_and_log_probs(subject, rows)
    means = {name: found[name].mean(axis=0) if name in found else np.zeros((0, 0)) for name in LISTS}
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=described(rows))
    return CompetingMatchScores(**means, estimates=_estimates(found, error_rate), per_sequence=found, provenance=about)


def described(rows: CompetingRows) -> str:
    """What was probed with, in a few words."""
    return f"matches of one, two and three tokens that compete, {rows.n_groups} a row, {rows.n_positions} positions"


def masses_and_log_probs(
    subject: ModelUnderTest, rows: CompetingRows, *, heads: bool = True, logits: bool = True, depth: int | None = None
) -> dict[str, Array]:
    """What heads have of each of `LISTS`, (rows, n_layers, n_heads), and each of `LOG_PROBS` of the model, (rows,).

    One pass for both. Without `logits` heads alone, of the first `depth` layers where it is given; without `heads`, or where
    attention cannot be read, the log-probabilities alone.
    """
    asked, reads = torch.from_numpy(rows.asked), heads and subject.backend is not None

    def measured(batch: Tensor, part: slice) -> dict[str, Array]:
        if not reads:
            return _log_probs(subject, subject.logits(batch, positions=asked), rows, part)
        found, predicted = observe(subject, batch, rows.scores(subject.device, part), logits=logits, depth=depth)
        return found | _log_probs(subject, predicted[:, asked.to(predicted.device)], rows, part) if logits else found

    return joined(in_batches(subject, torch.from_numpy(rows.tokens), measured, logits=logits))


def _log_probs(subject: ModelUnderTest, logits: Tensor, rows: CompetingRows, part: slice) -> dict[str, Array]:
    """Each of `LOG_PROBS`, means over the queries of a row, (rows,).

    `logits` (rows, asked, d_vocab) are those of the queries alone.
    """
    place = {position: index for index, position in enumerate(rows.asked.tolist())}
    successors, found = torch.from_numpy(rows.successors[part]).to(logits.device), []
    for queries in (rows.queries[part], rows.unmatched[part]):
        at = torch.tensor([[place[query] for query in row] for row in queries.tolist()], device=logits.device)
        chosen = at_least_float32(logits[torch.arange(len(at), device=logits.device)[:, None], at])
        found.append(chosen.gather(-1, successors) - chosen.logsumexp(-1, keepdim=True))  # rows, groups, matches
    any_of = torch.stack([each.logsumexp(-1).mean(1) for each in found], dim=1)
    values = numbers(torch.cat([found[0].mean(1), any_of], dim=1)).T
    if not np.isfinite(values).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) where matches compete")
    return dict(zip(LOG_PROBS, values, strict=True))


def _estimates(found: Mapping[str, Array], error_rate: float) -> dict[str, Estimate]:
    """Of the model, in nats: how likely each successor is, and the gain of the longest match; each at the whole error rate."""
    columns = {name: found[name] for name in LOG_PROBS} | {"gain": gain_of(found)}
    return {name: mean_in_nats(values, error_rate) for name, values in columns.items()}


def gain_of(found: Mapping[str, Array]) -> Array:
    """By how much the successor of the longest match is likelier than that of the shortest, (rows,), in nats."""
    return found[f"log_prob_{LAST}"] - found[f"log_prob_{FIRST}"]


def _raised(found: Mapping[str, Array]) -> Array:
    """By how much some successor of a match is likelier than where nothing matches, (rows,), in nats."""
    return found["log_prob_matched"] - found["log_prob_unmatched"]


def preference_intervals(shortest: Array, longest: Array, error_rate: float) -> list[Estimate]:
    """The interval of (longest - shortest) / (longest + shortest), a ratio of means over rows, of each column of (n, columns).

    After Fieller: it holds each ratio r for which the mean of longest - shortest - r (longest + shortest) is not shown to differ
    from 0, by Student's interval, whose spread counts as at least 0.01; wider by up to 0.005 on each side, as only so many ratios
    are tried. All of them miss at most at `error_rate`, which is divided by the columns. From -1 to 1 where nothing is shown.
    """
    count, columns = shortest.shape
    apart, both = longest - shortest, longest + shortest
    half = student_quantile(error_rate / columns / 2, count - 1) / np.sqrt(count)
    ratios = GRID[:, None]
    covariance = ((apart - apart.mean(0)) * (both - both.mean(0))).sum(0) / (count - 1)
    variance = apart.var(0, ddof=1) - 2 * ratios * covariance + ratios**2 * both.var(0, ddof=1)
    off = apart.mean(0) - ratios * both.mean(0)
    reach = half * np.sqrt(np.maximum(variance, SMALLEST_SPREAD**2))
    below = np.logical_and.accumulate(off > reach, axis=0).sum(axis=0)  # ratios that are shown to be too low
    above = np.logical_and.accumulate(off[::-1] < -reach[::-1], axis=0).sum(axis=0)
    low, high = GRID[np.maximum(below - 1, 0)], GRID[::-1][np.maximum(above - 1, 0)]
    value = apart.mean(0) / np.maximum(both.mean(0), np.finfo(float).tiny)
    ends = zip(value.tolist(), np.minimum(low, value).tolist(), np.maximum(high, value).tolist(), strict=True)
    return [Estimate(middle, least, most, "preference") for middle, least, most in ends]


@dataclass(frozen=True)
class Preferring:
    """One head: what it has on all matches beyond chance, and its preference for the longest."""

    head: HeadId
    excess: Estimate
    preference: Estimate
    least: float

    @property
    def matches(self) -> bool:
        return self.excess.is_above(min_excess())

    @property
    def is_none(self) -> bool:
        """Whether it is shown to match too little for a preference."""
        return self.excess.is_below(min_excess())

    @property
    def prefers(self) -> bool:
        return self.matches and self.preference.is_above(self.least)

    @property
    def takes_any(self) -> bool:
        """Whether it is shown to match, and not to prefer the longest match by enough."""
        return self.matches and self.preference.is_below(self.least)

    @property
    def is_open(self) -> bool:
        return not (self.is_none or self.prefers or self.takes_any)

    def more_needed(self, count: int) -> int:
        """How many more sequences would tell."""
        if not self.matches:
            return more_needed(self.excess, min_excess(), count)
        return more_needed(self.preference, self.least, count)

    def __str__(self) -> str:
        found = self.preference
        return f"{self.head} has preference {found.value:.3f} ({found.low:.3f}..{found.high:.3f})"


def preferring(found: Mapping[str, Array], heads: Sequence[HeadId], least: float, error_rate: float) -> list[Preferring]:
    """Each of the heads with intervals that hold for all of them together, the strongest preference among those that match first.

    `found` has each of `LISTS`, (rows, heads).
    """
    matched = np.sum([found[name] for name in MATCHES], axis=0)
    excess = mean_interval(matched - found[UNMATCHED], error_rate / 2, "excess")
    preferences = preference_intervals(found[FIRST], found[LAST], error_rate / 2)
    known = [Preferring(*each, least) for each in zip(heads, excess, preferences, strict=True)]
    return sorted(known, key=lambda each: (each.is_none, -each.preference.low, -each.excess.value))


def judge_named(known: Sequence[Preferring], count: int) -> Judgement:
    """Does each of these heads prefer the longest match? Where one is shown not to match it has no preference: UNDETERMINED."""
    estimates, least = _of_heads(known), known[0].least
    against = [each for each in known if each.takes_any]
    if against:
        summary = f"{against[0]} for the longest of three matches, below {least:.3f}"
        return Judgement(Verdict.REFUTED, "does_not_prefer", summary, estimates=estimates)
    without = [each for each in known if each.is_none]
    if without:
        named = ", ".join(str(each.head) for each in without)
        summary = f"{named} attends to matches with less than {min_excess():.3f} beyond chance, too little for a preference"
        return Judgement(Verdict.UNDETERMINED, "head_does_not_match", summary, estimates=estimates)
    unclear = [each for each in known if each.is_open]
    if unclear:
        return _unclear(unclear[0], estimates, max(each.more_needed(count) for each in unclear))
    summary = f"the longest of three matches is preferred: {', '.join(map(str, known[:NEAREST]))}"
    return Judgement(Verdict.SHOWN, "prefers", summary, estimates=estimates)


def judge_model(
    found: Mapping[str, Array], heads: Sequence[HeadId], *, min_preference: float, min_gain: float, error_rate: float
) -> Judgement:
    """Does the model follow the longest match, and some head prefer it? Where attention cannot be read, the model alone.

    `found` has of each of `LISTS` the masses (rows, heads), none without `heads`, and the log-probabilities (rows,). A model that
    makes nothing of matches is UNDETERMINED: it has no preference among them.
    """
    count, share = len(gain_of(found)), 2 if heads else 1
    raised, gain = mean_interval(np.stack([_raised(found), gain_of(found)], axis=1), error_rate / share, "nats")
    known = preferring(found, heads, min_preference, error_rate / share) if heads else []
    estimates = {"gain": gain, "raised": raised, **_of_heads(known)}
    gained = f"three matching tokens gain {gain.value:.2f} nats over one ({gain.low:.2f}..{gain.high:.2f})"
    if raised.is_below(MIN_ADVANTAGE):
        summary = f"the token after a match gains {raised.value:.2f} nats, below {MIN_ADVANTAGE:.2f}: the model uses no matches"
        return Judgement(Verdict.UNDETERMINED, "matches_not_used", summary, estimates=estimates)
    if not raised.is_above(MIN_ADVANTAGE):
        summary = f"whether the model uses matches is too close to tell: the token after one gains {raised.value:.2f} nats"
        more = more_needed(raised, MIN_ADVANTAGE, count)
        return Judgement(Verdict.UNDETERMINED, "use_unclear", summary, estimates=estimates, more_sequences=more)
    if gain.is_below(min_gain):
        return Judgement(Verdict.REFUTED, "gains_too_little", f"{gained}, below {min_gain:.2f}", estimates=estimates)
    if heads and not any(each.prefers for each in known):
        return _without_head(known, gained, estimates, count)
    if not gain.is_above(min_gain):
        summary, more = f"{gained}, too close to {min_gain:.2f}", more_needed(gain, min_gain, count)
        return Judgement(Verdict.UNDETERMINED, "gain_unclear", summary, estimates=estimates, more_sequences=more)
    return Judgement(Verdict.SHOWN, "prefers", f"{gained}{_kinds(known)}", estimates=estimates)


def _without_head(known: Sequence[Preferring], gained: str, estimates: Mapping[str, Estimate], count: int) -> Judgement:
    """No head is shown to prefer the longest match: shown not to, not clear, or none matches."""
    unclear = [each for each in known if each.is_open]
    if unclear:
        return _unclear(unclear[0], estimates, min(each.more_needed(count) for each in unclear))
    against = [each for each in known if each.takes_any]
    if against:
        summary = f"no head prefers the longest of three matches: {against[0]}, below {against[0].least:.3f}; {gained}"
        return Judgement(Verdict.REFUTED, "no_head_prefers", summary, estimates=estimates)
    summary = f"no head attends to matches with {min_excess():.3f} beyond chance; {gained}"
    return Judgement(Verdict.UNDETERMINED, "no_head_matches_alone", summary, estimates=estimates)


def _unclear(head: Preferring, estimates: Mapping[str, Estimate], more: int) -> Judgement:
    summary = f"whether a head prefers the longest of three matches is not clear: {head}, against {head.least:.3f}"
    return Judgement(Verdict.UNDETERMINED, "preference_unclear", summary, estimates=estimates, more_sequences=more)


def _kinds(known: Sequence[Preferring]) -> str:
    """The heads of both kinds, as the end of a sentence."""
    prefer, take_any = [each for each in known if each.prefers], [each for each in known if each.takes_any]
    if not prefer:
        return ""
    return f"; {prefer[0]} for the longest match; shown to prefer it: {len(prefer)} heads, shown not to: {len(take_any)}"


def _of_heads(known: Sequence[Preferring]) -> dict[str, Estimate]:
    """Of those nearest to the claim, what they have on matches and their preference."""
    shown = [each for each in known if not each.is_none][:NEAREST] or known[:1]
    found = {f"preference {each.head}": each.preference for each in shown}
    return found | {f"excess {each.head}": each.excess for each in shown}


@user_facing
@priced_claim(price_of_preference)
def assert_prefers_longer_match(
    model: ModelLike,
    heads: HeadsLike | None = None,
    *,
    min_preference: float = MIN_PREFERENCE,
    min_gain: float = MIN_GAIN,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the longest of several matches wins: the token that followed the last three, not the one after the last.

    The rows are those of `measure_competing_matches`. Without `heads` this is about the model: its gain, log p of what followed
    the match of three tokens minus that of what followed the match of one, is above `min_gain` in nats, and some head prefers the
    longest match. Where attention cannot be read, the gain alone decides: it needs logits only. With `heads`, such as "L1H3", it
    is about these: each of them prefers it.

    A head prefers the longest match where the interval of (three - one) / (three + one), of its attention to the successors of
    both, lies above `min_preference`: 0 for a head to which any match is as good, 1 for one that takes the longest. REFUTED where
    the gain, or the preference of every head that matches, is shown to be below, or that of a named head. A model that makes
    nothing of matches, a head that attends to them with less than 0.15 beyond chance, has no preference: UNDETERMINED.

    Rows are drawn in rounds until that is clear, at most `max_sequences`. `budget` is as for `assert_has_induction_head`.
    `error_rate` is for the gain, all heads and rounds together. Returns the evidence, raises as `assert_heads_generalize`.
    Sources: Akyurek et al. 2024 (n-gram heads), Edelman et al. 2024; the rows and the preference are ours.

    >>> from pytest_induction.planted import longest_match_head
    >>> assert_prefers_longer_match(longest_match_head()).reason
    'prefers'
    """
    spend_at_most(budget)
    check_share("min_preference", min_preference)
    if not 0 <= min_gain < np.inf:
        raise ArgumentError(f"`min_gain` must be at least 0 nats, got {min_gain}")
    subject = load_model(model)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))
    asked = named_heads(subject, heads) if heads is not None or subject.backend is not None else ()
    sequences = _Sequences(subject, asked, heads is None, sampling.seed)

    def judge(rounds: list[Mapping[str, Array]], rate: float) -> Judgement:
        found = joined(rounds)
        if heads is None:
            return judge_model(found, asked, min_preference=min_preference, min_gain=min_gain, error_rate=rate)
        return judge_named(preferring(found, asked, min_preference, rate), len(found[FIRST]))

    rounds, found, settle = until_clear(sequences.round, judge, sampling.max_sequences, error_rate)
    count = sum(len(next(iter(each.values()))) for each in rounds)
    evidence = Evidence(
        claim="prefers_longer_match",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=count, probe=sequences.described),
        estimates=found.estimates or {},
        thresholds={"min_preference": min_preference} | ({"min_gain": min_gain} if heads is None else {}),
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


@dataclass
class _Sequences:
    """Rounds of rows: what heads have on each match, (rows, heads), and the model's log-probabilities where it is about that."""

    subject: ModelUnderTest
    heads: Sequence[HeadId]
    of_model: bool
    seed: int
    described: str = ""

    def round(self, n_sequences: int, number: int) -> Mapping[str, Array]:
        """One round; the same for the same seed and number."""
        subject, depth = self.subject, None if self.of_model else max(each.layer for each in self.heads) + 1
        rows = competing_rows(subject.space, rng=np.random.default_rng([self.seed, 22, number]), n_sequences=n_sequences)
        self.described = described(rows)
        key = ("competing matches", n_sequences, self.seed, number, depth)
        measure = partial(masses_and_log_probs, subject, rows, heads=bool(self.heads), logits=self.of_model, depth=depth)
        with progress("prefers_longer_match", n_sequences):
            found = subject.remember(key, measure)
        places = [each.layer for each in self.heads], [each.head for each in self.heads]
        return {name: values if values.ndim == 1 else values[:, places[0], places[1]] for name, values in found.items()}
