"""Measure how many tokens must match before a head attends to what came next: on rows of segments at irregular distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.deciding import (
    ERROR_RATE,
    MAX_SEQUENCES,
    Judgement,
    checked_sampling,
    more_needed,
    priced_claim,
    until_clear,
)
from pytest_induction.display import Plotted
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, excess
from pytest_induction.heads.generalizing import MIN_EXCESS
from pytest_induction.heads.prices import price_of_match_length
from pytest_induction.heads.semantic import named_heads
from pytest_induction.interventions.arguments import HeadsLike
from pytest_induction.measuring.observing import Array, ModelLike, masses_of, plain_scores, provenance
from pytest_induction.measuring.rounds import price_of_probes, score_irregular
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.irregular import LENGTHS, LISTS, IrregularRows, irregular_sequences
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Provenance, Verdict
from pytest_induction.spending import Price, priced, spend_at_most
from pytest_induction.statistics import mean_interval

POSITIONS = LONGEST_PERIOD * COPIES  # of the rows, behind the first token: as many as the longest periodic probe has
SHOWN_HEADS = 5  # in the evidence, those that decide first
WORDS = ("one token matches", "two tokens match", "three tokens or more match")


@dataclass(frozen=True, repr=False)
class MatchLengthScores(Plotted):
    """Prefix matching of every head by how many tokens match, arrays (n_layers, n_heads) of means over sequences, in [0, 1].

    `exactly_one`, `exactly_two` and `three_or_more` are the mass on the position after the earlier occurrence where so many
    tokens up to the query match. `after_breaks` is their null: the mass on the position that would come next where a match has
    just ended. `per_sequence` holds the same before the mean: name -> (n_sequences, n_layers, n_heads). Where layers differ in
    their number of heads, a head that a layer does not have is NaN.
    """

    exactly_one: Array
    exactly_two: Array
    three_or_more: Array
    after_breaks: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def match_length(self, min_prefix_matching: float = MIN_PREFIX_MATCHING) -> NDArray[np.int64]:
        """The least number of matching tokens with which a head matches: 1, 2 or 3, where 3 stands for more too, and 0 for none.

        A head matches where its score exceeds `after_breaks` by `min_prefix_matching` or more. Array (n_layers, n_heads), 0 also
        for a head that a layer does not have.
        """
        if not 0 < min_prefix_matching <= 1:
            raise ArgumentError(f"`min_prefix_matching` must be above 0 and at most 1, got {min_prefix_matching!r}")
        beyond = np.stack([excess({"prefix_matching": getattr(self, name), "chance": self.after_breaks}) for name in LENGTHS])
        reached = beyond >= min_prefix_matching  # NaN reaches nothing
        return np.where(reached.any(axis=0), reached.argmax(axis=0) + 1, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`."""
        return plain_scores(self, LISTS)


def price_of_match_lengths(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of one pass over rows of one length, shorter where the model has few ids."""
    most = given["n_sequences"] * (POSITIONS + (subject.space.bos_id is not None))
    return Price(min(most, price_of_probes(subject.space, given["n_sequences"]).least), most)


@user_facing
@priced(price_of_match_lengths)
def measure_match_lengths(model: ModelLike, *, n_sequences: int = 26, seed: int | None = None) -> MatchLengthScores:
    """Measure prefix matching of every head where exactly one, exactly two, and three or four tokens match.

    The rows have segments of four random tokens. Each segment occurs twice, at distances that differ from each other; all
    other tokens occur once. At the i-th token of a second occurrence exactly i tokens match, and the right key is the position
    after the first occurrence of that token. What follows a segment is another token each time: there nothing matches, and the
    key that would come next at the same distance, `after_breaks`, tells heads that match from heads that go on counting. Rows
    have as many positions as the longest periodic probe, 100 and the first token; fewer where the context is shorter or the
    vocabulary smaller.

    | a head that | 1 | 2 | 3 or more | break | match length |
    |---|---|---|---|---|---|
    | attends after every earlier occurrence, or the latest | 1 | 1 | 1 | 0 | 1 |
    | does so where the token before matches too | 0 | 1 | 1 | 0 | 2 |
    | does so where the two tokens before match too | 0 | 0 | 1 | 0 | 3 |
    | notices a distance by the four tokens before, and counts on | 0 | 0 | 0 | 1 | 0 |
    | notices it by the token before, and counts on | 0 | 1 | 1 | 1 | 0 |
    | always counts back as far | c | c | c | c | 0 |
    | is uniform over the past | u | u | u | u | 0 |
    | rests on the first token | 0 | 0 | 0 | 0 | 0 |

    c is the share of segments that recur at that very distance: at most one of those in a row. u is the mean of 1 / (q + 1) over
    the queries q, about 0.02 for 101 positions. See docs/metrics.md. Raises `ModelError` for a model whose attention cannot be
    read, `ProbeError` for one with fewer than six usable ids or without room for two occurrences.

    >>> scores = measure_match_lengths(model)                        # doctest: +SKIP
    >>> scores.match_length()                                        # doctest: +SKIP
    array([[0, 0, 0, 0],
           [1, 0, 0, 0]])
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    subject = load_model(model)
    seed = subject.seed if seed is None else seed
    rows = _rows(subject, n_sequences, np.random.default_rng([seed, 14]))
    with progress("match lengths of heads", n_sequences):
        per_sequence = score_irregular(subject, rows)
    means = {name: scores.mean(axis=0) for name, scores in per_sequence.items()}
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=_described(rows))
    return MatchLengthScores(**means, per_sequence=per_sequence, provenance=about)


def _rows(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> IrregularRows:
    n_positions = POSITIONS + (subject.space.bos_id is not None)
    return irregular_sequences(subject.space, n_positions=n_positions, rng=rng, n_sequences=n_sequences)


def _described(rows: IrregularRows) -> str:
    count = len(rows.exactly_one[0])
    return f"segments at irregular distances, {count} a row, {rows.n_positions} positions"


def judge_match_length(
    beyond: Array, heads: Sequence[HeadId], match_length: int, *, is_named: bool, least: float, error_rate: float
) -> Judgement:
    """Do heads attend to what followed a match of that length? Of named heads each, else some one.

    `beyond` (rows, heads) is their mass there without `after_breaks`. Intervals hold for all heads together.
    """
    known = sorted(zip(heads, mean_interval(beyond, error_rate, "excess"), strict=True), key=lambda each: -each[1].value)
    known = known[::-1] if is_named else known  # those that decide first
    estimates = {f"excess {head}": found for head, found in known[:SHOWN_HEADS]}
    above, below = sum(each.is_above(least) for _, each in known), sum(each.is_below(least) for _, each in known)
    where, (head, found) = WORDS[match_length - 1], known[0]
    seen = f"{_with_interval(head, found)} where {where}"
    if above == len(known) or (above and not is_named):
        return Judgement(Verdict.SHOWN, "matches", seen, estimates=estimates)
    if below == len(known) or (below and is_named):
        summary = f"{seen}, below {least:.3f}" if is_named else f"no head matches where {where}: {seen}"
        return Judgement(Verdict.REFUTED, "no_match_of_that_length", summary, estimates=estimates)
    unclear = [each for _, each in known if not each.is_above(least) and not each.is_below(least)]
    more = [more_needed(each, least, len(beyond)) for each in unclear]
    summary = f"whether heads match where {where} is too close to {least:.3f} to tell: {seen}"
    wanted = max(more) if is_named else min(more)
    return Judgement(Verdict.UNDETERMINED, "match_length_unclear", summary, estimates=estimates, more_sequences=wanted)


def _with_interval(head: HeadId, found: Estimate) -> str:
    return f"{head} has excess {found.value:.3f} ({found.low:.3f}..{found.high:.3f})"


@user_facing
@priced_claim(price_of_match_length)
def assert_match_length(
    model: ModelLike,
    heads: HeadsLike | None = None,
    *,
    match_length: int = 2,
    min_excess: float = MIN_EXCESS,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that heads attend to the next token where `match_length` tokens match: exactly 1, exactly 2, or 3 and more.

    With `heads`, such as "L1H3", each of these, else some head of the model. The rows and masses are those of
    `measure_match_lengths`: what a head has where so many tokens match, without what it has where a match has just ended, must
    lie with its whole interval above `min_excess`. A head that needs one token only does so at every length; one that needs two,
    an n-gram head, at 2 and 3. Which of several matches a head prefers is for `assert_prefers_longer_match`.

    This asks less than `assert_has_induction_head(match_length=...)`, which is about heads that copy, and match at several
    periods too. REFUTED where all heads lie below, or one of those that are named. Rows are drawn in rounds until that is clear,
    at most `max_sequences`; `budget` is as for that assertion. `error_rate` is for all heads and rounds together. Returns the
    evidence, raises as `assert_heads_generalize`. Source: Akyurek et al. 2024 (n-gram heads); the rows are ours.

    >>> from pytest_induction.planted import ngram_head
    >>> assert_match_length(ngram_head(length=2), "L1H0").reason
    'matches'
    """
    spend_at_most(budget)
    check_share("min_excess", min_excess)
    if whole_number("match_length", match_length, least=1) > len(LENGTHS):
        raise ArgumentError(f"`match_length` must be 1, 2 or {len(LENGTHS)} (three tokens or more), got {match_length}")
    subject = load_model(model)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))
    asked, described = named_heads(subject, heads), ""
    depth = max(head.layer for head in asked) + 1
    places = [head.layer for head in asked], [head.head for head in asked]

    def draw(n_sequences: int, number: int) -> Array:
        nonlocal described
        rows = _rows(subject, n_sequences, np.random.default_rng([sampling.seed, 23, number]))
        described = _described(rows)
        key = ("match length", n_sequences, sampling.seed, number, depth)
        with progress("match_length", n_sequences):
            found = subject.remember(key, lambda: _masses(subject, rows, depth))
        name = [*LENGTHS][match_length - 1]
        return (found[name] - found["after_breaks"])[:, places[0], places[1]]

    def judge(rounds: list[Array], rate: float) -> Judgement:
        options: dict[str, Any] = {"is_named": heads is not None, "least": min_excess, "error_rate": rate}
        return judge_match_length(np.concatenate(rounds), asked, match_length, **options)

    rounds, found, settle = until_clear(draw, judge, sampling.max_sequences, error_rate)
    evidence = Evidence(
        claim="match_length",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=sum(map(len, rounds)), probe=described),
        estimates=found.estimates or {},
        thresholds={"min_excess": min_excess, "match_length": float(match_length)},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


def _masses(subject: ModelUnderTest, rows: IrregularRows, depth: int) -> dict[str, Array]:
    """The mass of the heads of the first layers on the keys of each of `LISTS`, (rows, n_layers, n_heads)."""
    return masses_of(subject, rows.tokens, lambda part: rows.scores(subject.device, part), depth=depth)
