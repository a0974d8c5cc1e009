"""The assertion of every claim that has a score: some head has it. The same rounds, intervals and rule as for induction heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pytest_induction.claims import Claim
from pytest_induction.deciding import Judgement, checked_sampling, in_rounds, priced_claim
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.head_score import HeadScore
from pytest_induction.heads import criteria
from pytest_induction.heads.criteria import MIN_PERIODS, min_excess
from pytest_induction.heads.head_map import head_map
from pytest_induction.heads.table import Thresholds, head_evidence
from pytest_induction.measuring.observing import ModelLike, provenance
from pytest_induction.measuring.rounds import Round, price_of_rounds, probe_round, round_size, rounds_within
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadEvidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most
from pytest_induction.statistics import SHARE, bounded_intervals, known_mean, more_rows

MOST_NEAREST = 3
MAX_SEQUENCES, ERROR_RATE = 231, 1e-3  # as for `assert_has_induction_head`


@user_facing
@priced_claim(price_of_rounds)
def assert_head_score(
    model: ModelLike,
    *,
    claim: Claim,
    min_score: float | None = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has a head with the score of a claim: at least `min_score`, half of it beyond own chance.

    `min_score` is the score's own threshold unless given. Probes are drawn until every head that may have it is told, at most
    `max_sequences`; the verdict is wrong at most at `error_rate`. `budget` is as for `assert_has_induction_head`. Returns the
    evidence, raises as that does.
    """
    spend_at_most(budget)
    score = claim.score
    if score is None:
        raise ArgumentError(f"claim `{claim.name}` has no score, which `assert_head_score` is about")
    threshold = score.threshold if min_score is None else min_score
    check_share("min_score", threshold)
    return expect(evidence_of(load_model(model), claim.name, score, threshold, (max_sequences, error_rate, seed)))


@dataclass(frozen=True)
class OfHead:
    """What one head has of an added score: the score, what is left of it without chance, and at how many periods it has both."""

    head: HeadId
    score: Estimate
    excess: Estimate
    periods_passed: int


def evidence_of(
    subject: ModelUnderTest, claim: str, score: HeadScore, threshold: float, given: tuple[int, float, int | None]
) -> Evidence:
    """The evidence on a claim that some head has a score, with rounds drawn until it is clear or the budget is spent."""
    _ = subject.reading  # refuse by name here, before anything is measured
    sampling = checked_sampling(subject, (whole_number("max_sequences", given[0], least=1), *given[1:]))
    size = round_size(subject.space)

    def draw(number: int) -> Round:
        with progress(claim, size):
            return probe_round(subject, size, sampling.seed, number, n_irregular=0)

    def judged_so_far(rounds: Sequence[Round]) -> Judgement:
        return judge(score, Round.join(rounds), threshold, sampling.error_rate)

    rounds, judged, next_step = in_rounds(draw, judged_so_far, size, rounds_within(subject.space, sampling.max_sequences))
    found = Round.join(rounds)
    return Evidence(
        claim=claim,
        verdict=judged.verdict,
        reason=judged.reason,
        summary=judged.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=len(found.periods), probe=found.described),
        heads=judged.heads,
        nearest=judged.nearest,
        estimates=judged.estimates or {},
        thresholds={f"min_{score.name}": threshold, "min_excess": min_excess(threshold)},
        confidence=1 - sampling.error_rate,
        next_step=next_step,
        head_map=judged.head_map,
    )


def judge(score: HeadScore, found: Round, threshold: float, error_rate: float) -> Judgement:
    """Has some head at least `threshold` of the score, and half of that beyond its own chance, at two periods?

    Half of `error_rate` is for the intervals that are reported of all heads beside; of the rest, all heads share what is spent on
    saying that one has the score, and each by itself may spend it on saying that it has not, as all of them must.
    """
    every = heads_by_score(score, found, threshold, error_rate / 2)
    drawn = head_evidence_of(found, error_rate / 2)
    rows = [replace(drawn[each.head], scores=_named(score, each), periods_passed=each.periods_passed) for each in every]
    clear = [each for each in every if has_score(each, threshold)]
    open_ = [each for each in every if not criteria.is_below(each.score, each.excess, threshold) and each not in clear]
    best = (clear or every)[0]
    estimates = _named(score, best)
    shown = head_map(found.scores[score.name])
    text = f"{best.head} has {score.name} {best.score.value:.3f} ({score.words})"
    with_rows = dict(zip((each.head for each in every), rows, strict=True))
    heads = tuple(with_rows[each.head] for each in clear)
    nearest = tuple(with_rows[each.head] for each in every if each not in clear)[:MOST_NEAREST]
    common: dict[str, Any] = {"heads": heads, "nearest": nearest, "estimates": estimates, "head_map": shown}
    if clear:
        return Judgement(Verdict.SHOWN, "formed", text, **common)
    if not open_:
        return Judgement(Verdict.REFUTED, "no_head_has_it", f"no head has it: the best, {text}", **common)
    count = len(found.periods)
    held_against = ((each, at) for one in open_ for each, at in ((one.score, threshold), (one.excess, min_excess(threshold))))
    more = max((more_rows(each, at, count) for each, at in held_against if each.low <= at <= each.high), default=count)
    summary = f"whether a head has it cannot be told: the best, {text}"
    return Judgement(Verdict.UNDETERMINED, "score_unclear", summary, more_sequences=more, **common)


def has_score(found: OfHead, threshold: float) -> bool:
    """Whether a head is shown to have the score, by the rule for induction heads."""
    return criteria.is_above(found.score, found.excess, threshold) and found.periods_passed >= MIN_PERIODS


def heads_by_score(score: HeadScore, found: Round, threshold: float, error_rate: float) -> list[OfHead]:
    """Every head with its intervals, the strongest first."""
    values, chance = (found.scores[name][:, found.exists] for name in (score.name, score.chance_name))
    left = criteria.excess({"prefix_matching": values, "chance": chance})
    n_heads = values.shape[1]
    above, below = error_rate / 2 / n_heads, error_rate / 2
    scores = bounded_intervals(values, above, below, unit=SHARE)
    excesses = bounded_intervals(left, above, below, lowest=-1.0, unit="excess")
    passed = np.zeros(n_heads, dtype=np.int64)
    for period in np.unique(found.periods):
        rows = found.periods == period
        means = {"prefix_matching": known_mean(values[rows]), "excess": known_mean(left[rows])}
        passed += criteria.matches_by_means(means, threshold)
    places = [HeadId(int(layer), int(head)) for layer, head in np.argwhere(found.exists)]
    every = [OfHead(*each) for each in zip(places, scores, excesses, passed.tolist(), strict=True)]
    return sorted(every, key=lambda each: -each.score.value)


def head_evidence_of(found: Round, error_rate: float) -> dict[HeadId, HeadEvidence]:
    """What is reported of every head beside."""
    return {HeadId(head.layer, head.head): head for head in head_evidence(found, Thresholds(), error_rate)}


def _named(score: HeadScore, found: OfHead) -> dict[str, Estimate]:
    return {score.name: found.score, f"{score.name}_beyond_chance": found.excess}
