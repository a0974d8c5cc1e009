"""The assertion about which part of a model carries recall: attention, states, or the convolutions that bind key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np

from pytest_induction.behaviour.recall import ABOVE_CHANCE, PAIRS
from pytest_induction.causal.judging import MIN_SHARE, share_interval
from pytest_induction.causal.recall_paths import CLEAN, TRIED, Condition, contrasts_of, described, recall_under, shape_of
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, checked_sampling, priced_claim, until_clear
from pytest_induction.errors import ArgumentError, UnsupportedModel, user_facing
from pytest_induction.expectations import check_share, expect
from pytest_induction.interventions.mixers import Kind, residual_stream
from pytest_induction.interventions.taps import taps_of
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.spending import Price, spend_at_most
from pytest_induction.statistics import FIRST_LOOK, bounded_intervals, mean_of_shares, more_rows

PARTS = ("attention", "states", "convolutions")
KINDS: Mapping[str, Kind] = {"attention": "attention", "states": "state"}


@dataclass(frozen=True, eq=False)
class Intervened:
    """What is done to a part: ways of going without it, and controls, as conditions by what they are called."""

    without: Mapping[str, Condition]
    controls: Mapping[str, Condition]


@dataclass(frozen=True)
class Round:
    """Recall accuracy of each row (rows,): of the model as it is, and with each way of going without a part and each control.

    What stands under one name in both is a control of the others.
    """

    clean: Array
    without: Mapping[str, Array]
    controls: Mapping[str, Array]

    @classmethod
    def join(cls, rounds: Sequence[Round]) -> Round:
        """All rounds as one."""

        def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        return cls(
            np.concatenate([each.clean for each in rounds]),
            joined([each.without for each in rounds]),
            joined([each.controls for each in rounds]),
        )


def price_of_carriers(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of each row itself, with the part and with the controls; of a memory also two rows that it is taken from."""
    passes = 1 + len({tap.lag for tap in taps_of(subject.module)} - {0}) if given.get("part") == "convolutions" else 5
    row = passes * (shape_of(subject, given["pairs"]).length + 1)
    return Price(FIRST_LOOK * row, given["max_sequences"] * row + TRIED)


@user_facing
@priced_claim(price_of_carriers)
def assert_recall_carried_by(
    model: ModelLike,
    part: str,
    *,
    pairs: int = PAIRS,
    min_share: float = MIN_SHARE,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that one part of the model carries its recall of key-value pairs: without it, recall falls towards a guess.

    `part` is "attention", "states" or "convolutions". Without attention, or without states, all mixers of that kind see the pairs
    of another row from the first question on; the control is that they see the row's own pairs in another order. Of convolutions
    every lag above 0 is cut, one at a time in all of them; the other lags are the controls of each. Which lag binds key and value
    is for the model to choose: with three lags it may match two tokens late. More than one part may carry recall: a convolution
    may bind what a state keeps.

    SHOWN: of what the model recalls above a guess more than `min_share` is lost without the part (without some lag), and that
    much more than with a control. REFUTED: less is lost, for every lag that is cut ("carries_too_little"). UNDETERMINED where the
    model does not recall, where controls cost as much ("no_more_than_controls"), or there are none ("no_controls"). Rows are
    compared with themselves, and the error rate is shared out among lags.

    `budget` is as for `assert_has_induction_head`. Returns the evidence. `.estimates`: `recall_accuracy`; `share`, what is lost
    of the recall above a guess without the part (the lag that costs most); and recall in each case, as `without lag 2` or
    `control reordered pairs`. Raises `ExpectationFailed`, which carries it, `UnsupportedModel` where the model has no such part
    or its blocks are not found, and as `assert_recalls`. See `measure_recall_paths` for single layers and taps. Source: Arora et
    al. 2025 (arXiv 2505.15105), Bick et al. 2025 (2504.18574).

    >>> from pytest_induction.planted import induction_head
    >>> assert_recall_carried_by(induction_head(), "attention").reason
    'carries_recall'
    """
    spend_at_most(budget)
    if part not in PARTS:
        raise ArgumentError(f"`part` must be one of {', '.join(PARTS)}, got {part!r}")
    check_share("min_share", min_share)
    subject = load_model(model)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))
    shape = shape_of(subject, pairs)
    done = _done_to(subject, part)

    def draw(count: int, number: int) -> Round:
        rows = contrasts_of(subject, pairs, count, np.random.default_rng([sampling.seed, 18, number, shape.pairs]))
        conditions = {**done.without, **done.controls}
        with progress(f"recall carried by {part}", count):
            clean, *changed = recall_under(subject, rows, [CLEAN, *conditions.values()])
        found = {name: each.accuracy for name, each in zip(conditions, changed, strict=True)}
        return Round(clean.accuracy, {name: found[name] for name in done.without}, {name: found[name] for name in done.controls})

    judge = partial(_judged, part, 1 / shape.pairs, min_share)
    rounds, found, settle = until_clear(draw, judge, sampling.max_sequences, error_rate)
    count = sum(len(each.clean) for each in rounds)
    evidence = Evidence(
        claim="recall_carried_by",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(
            subject,
            seed=sampling.seed,
            n_sequences=count,
            probe=described(contrasts_of(subject, pairs, 1, np.random.default_rng(0))),
        ),
        estimates=found.estimates or {},
        thresholds={"min_share": min_share},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


def _done_to(subject: ModelUnderTest, part: str) -> Intervened:
    """What is done to the part of this model. Raises `UnsupportedModel` where it has none."""
    stream, taps = residual_stream(subject), taps_of(subject.module)
    if part == "convolutions":
        lags = sorted({tap.lag for tap in taps} - {0})
        if lags:
            cut = {f"lag {lag}": Condition(taps=tuple(tap for tap in taps if tap.lag == lag)) for lag in lags}
            return Intervened(cut, cut if len(cut) > 1 else {})
    elif mixers := stream.of_kind(KINDS[part]):
        reordered = {"reordered pairs": Condition(mixers=mixers, memory="reordered")}
        return Intervened({f"the pairs in its {part}": Condition(mixers=mixers)}, reordered)
    seen = [f"{len(stream.of_kind(kind))} x {kind}" for kind in get_args(Kind) if stream.of_kind(kind)]
    known = ", ".join(map(str, sorted({tap.lag for tap in taps}))) or "none"
    raise UnsupportedModel(
        f"`part` {part!r} is not seen in {subject.name}, which has {' and '.join(seen) or 'no mixers'}, and taps at lags: "
        f"{known}; see `measure_recall_paths(model)`"
    )


def _judged(part: str, chance: float, min_share: float, rounds: Sequence[Round], error_rate: float) -> Judgement:
    return judge_carrier(Round.join(rounds), part, chance=chance, min_share=min_share, error_rate=error_rate)


def judge_carrier(found: Round, part: str, *, chance: float, min_share: float, error_rate: float) -> Judgement:
    """SHOWN where in some way more than `min_share` of the recall above `chance` is lost, and that much more than with a control.

    Every interval holds whatever rows are distributed like, at every look. One of them may be chosen, so the rate is shared out
    among all ways and their controls.
    """
    recall, count = mean_of_shares(found.clean, error_rate), len(found.clean)
    estimates = {"recall_accuracy": recall}
    estimates |= {f"without {name}": mean_of_shares(values, error_rate) for name, values in found.without.items()}
    estimates |= {
        f"control {name}": mean_of_shares(values, error_rate)
        for name, values in found.controls.items()
        if name not in found.without
    }
    threshold = chance + ABOVE_CHANCE
    if not recall.is_above(threshold):
        summary = f"the model recalls {recall.value:.3f} where guessing gives {chance:.3f}: there is nothing to carry"
        more = 0 if recall.is_below(threshold) else more_rows(recall, threshold, count)
        reason = "recall_unclear" if more else "does_not_recall"
        return Judgement(Verdict.UNDETERMINED, reason, summary, estimates=estimates, more_sequences=more)
    rate = error_rate / (len(found.without) * (1 + len(found.controls)))
    excess = partial(_excess, found.clean, chance, min_share, rate)
    lost = {name: excess(found.clean, without) for name, without in found.without.items()}
    beyond = {
        name: {other: excess(values, without) for other, values in found.controls.items() if other != name}
        for name, without in found.without.items()
    }
    costly = max(lost, key=lambda name: lost[name].value)
    share = share_interval(found.clean - found.without[costly], found.clean - chance, error_rate / len(lost))
    estimates = {"share": share, **estimates}
    seen = _in_words(estimates, costly, beyond[costly], share)
    if all(each.is_below(0) for each in lost.values()):
        return Judgement(Verdict.REFUTED, "carries_too_little", seen, estimates=estimates)
    carrying = [name for name, each in lost.items() if each.is_above(0)]
    if any(each.is_above(0) for name in carrying for each in beyond[name].values()):
        return Judgement(Verdict.SHOWN, "carries_recall", seen, estimates=estimates)
    reason, more = "share_unclear", more_rows(lost[costly], 0.0, count)
    if carrying and not any(beyond.values()):
        reason, more = "no_controls", 0
    elif carrying and all(each.is_below(0) for name in carrying for each in beyond[name].values()):
        reason, more = "no_more_than_controls", 0
    elif carrying:
        more = max(more_rows(each, 0.0, count) for each in beyond[costly].values())
    return Judgement(Verdict.UNDETERMINED, reason, f"{seen} ({part})", estimates=estimates, more_sequences=more)


def _in_words(estimates: Mapping[str, Estimate], costly: str, controls: Mapping[str, Estimate], share: Estimate) -> str:
    """What is lost without the part, or the lag, that costs most, and with the control that costs least."""
    recall, without = estimates["recall_accuracy"], estimates[f"without {costly}"]
    lost = (
        f"without {costly} recall falls from {recall.value:.3f} to {without.value:.3f}, {100 * share.value:.0f} % of what lies "
        "above a guess"
    )
    if not controls:
        return lost
    kindest = max(controls, key=lambda name: controls[name].value)
    known = estimates.get(f"control {kindest}") or estimates[f"without {kindest}"]
    return f"{lost}; with {kindest} {'cut' if kindest.startswith('lag') else 'there'} instead it has {known.value:.3f}"


def _excess(clean: Array, chance: float, min_share: float, rate: float, values: Array, without: Array) -> Estimate:
    """By how much more than `min_share` of the recall above a guess `values` lie above what is left without the part."""
    excess = values - without - min_share * (clean - chance)
    lowest, highest = -1 - min_share * (1 - chance), 1 + min_share * chance
    return bounded_intervals(excess[:, None], rate / 2, rate / 2, lowest=lowest, highest=highest)[0]
