"""The assertion about which part of a model carries recall: attention, states, or the convolutions that bind key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

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

Part = Literal["attention", "states", "convolutions"]
KINDS: Mapping[str, Kind] = {"attention": "attention", "states": "state"}
VALUE_LAG = 1  # tokens from a key to its value, which a convolution must reach over to bind them


@dataclass(frozen=True, eq=False)
class Intervened:
    """What is done to a part, in words and as conditions, and to each control by its name."""

    words: str
    without: Condition
    controls: Mapping[str, Condition]


@dataclass(frozen=True)
class Round:
    """Recall accuracy of each row: of the model as it is and `without` the part (rows,), and with each control instead."""

    clean: Array
    without: Array
    controls: Mapping[str, Array]

    @classmethod
    def join(cls, rounds: Sequence[Round]) -> Round:
        """All rounds as one."""
        return cls(
            np.concatenate([each.clean for each in rounds]),
            np.concatenate([each.without for each in rounds]),
            {name: np.concatenate([each.controls[name] for each in rounds]) for name in rounds[0].controls},
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
    part: Part,
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
    of another row from the first question on; the control is that they see the row's own pairs in another order. Without
    convolutions, none of them reads the token before, from which a value gets its key; each other lag above 0 is a control. More
    than one part may carry recall: a convolution may bind what a state keeps.

    SHOWN: of what the model recalls above a guess more than `min_share` is lost without the part, and that much more than with
    each control. REFUTED: less is lost ("carries_too_little"). UNDETERMINED where the model does not recall, where a control costs
    as much ("no_more_than_controls"), or there is none ("no_controls"). Rows are compared with themselves.

    `budget` is as for `assert_has_induction_head`. Returns the evidence. `.estimates`: `recall_accuracy`, `without`, one
    `control ...` for each, and `share`, what is lost of the recall above a guess. Raises `ExpectationFailed`, which carries it,
    `UnsupportedModel` where the model has no such part or its blocks are not found, and as `assert_recalls`. See
    `measure_recall_paths` for single layers and taps. Source: Arora et al. 2025 (arXiv 2505.15105), Bick et al. 2025 (2504.18574).

    >>> from pytest_induction.planted import induction_head
    >>> assert_recall_carried_by(induction_head(), "attention").reason
    'carries_recall'
    """
    spend_at_most(budget)
    if part not in get_args(Part):
        raise ArgumentError(f"`part` must be one of {', '.join(get_args(Part))}, got {part!r}")
    check_share("min_share", min_share)
    subject = load_model(model)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))
    shape = shape_of(subject, pairs)
    done = _done_to(subject, part)

    def draw(count: int, number: int) -> Round:
        rows = contrasts_of(subject, pairs, count, np.random.default_rng([sampling.seed, 18, number, shape.pairs]))
        with progress(f"recall carried by {part}", count):
            clean, without, *others = recall_under(subject, rows, [CLEAN, done.without, *done.controls.values()])
        return Round(clean.accuracy, without.accuracy, {k: v.accuracy for k, v in zip(done.controls, others, strict=True)})

    judge = partial(_judged, done.words, 1 / shape.pairs, min_share)
    rounds, found, settle = until_clear(draw, judge, sampling.max_sequences, error_rate)
    count = sum(len(each.clean) for each in rounds)
    evidence = Evidence(
        claim="recall_carried_by",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(
            subject, seed=sampling.seed, n_sequences=count, probe=described(contrasts_of(subject, pairs, 1, np.random.default_rng(0)))
        ),
        estimates=found.estimates or {},
        thresholds={"min_share": min_share},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


def _done_to(subject: ModelUnderTest, part: Part) -> Intervened:
    """What is done to the part of this model. Raises `UnsupportedModel` where it has none."""
    stream, taps = residual_stream(subject), taps_of(subject.module)
    if part == "convolutions":
        of_lag = {lag: tuple(tap for tap in taps if tap.lag == lag) for lag in sorted({tap.lag for tap in taps} - {0})}
        if VALUE_LAG in of_lag:
            controls = {f"lag {lag} cut": Condition(taps=each) for lag, each in of_lag.items() if lag != VALUE_LAG}
            return Intervened(f"lag {VALUE_LAG} of its convolutions", Condition(taps=of_lag[VALUE_LAG]), controls)
    elif mixers := stream.of_kind(KINDS[part]):
        reordered = {"reordered pairs": Condition(mixers=mixers, memory="reordered")}
        return Intervened(f"the pairs in its {part}", Condition(mixers=mixers), reordered)
    seen = [f"{len(stream.of_kind(kind))} x {kind}" for kind in get_args(Kind) if stream.of_kind(kind)]
    lags = ", ".join(map(str, sorted({tap.lag for tap in taps}))) or "none"
    raise UnsupportedModel(
        f"`part` {part!r} is not seen in {subject.name}, which has {' and '.join(seen) or 'no mixers'}, and taps at lags: {lags}; "
        "see `measure_recall_paths(model)`"
    )


def _judged(part: str, chance: float, min_share: float, rounds: Sequence[Round], error_rate: float) -> Judgement:
    return judge_carrier(Round.join(rounds), part, chance=chance, min_share=min_share, error_rate=error_rate)


def judge_carrier(found: Round, part: str, *, chance: float, min_share: float, error_rate: float) -> Judgement:
    """SHOWN where more than `min_share` of the recall above `chance` is lost, and that much more than with each control.

    Every interval holds whatever rows are distributed like, at every look, and misses at half of `error_rate` at either end; all
    are needed, so that none of it is shared out.
    """
    recall, count = mean_of_shares(found.clean, error_rate), len(found.clean)
    estimates = {"recall_accuracy": recall, "without": mean_of_shares(found.without, error_rate)}
    estimates |= {f"control {name}": mean_of_shares(values, error_rate) for name, values in found.controls.items()}
    threshold = chance + ABOVE_CHANCE
    if not recall.is_above(threshold):
        summary = f"the model recalls {recall.value:.3f} where a guess has {chance:.3f}: there is nothing to carry"
        more = 0 if recall.is_below(threshold) else more_rows(recall, threshold, count)
        reason = "recall_unclear" if more else "does_not_recall"
        return Judgement(Verdict.UNDETERMINED, reason, summary, estimates=estimates, more_sequences=more)
    share = share_interval(found.clean - found.without, found.clean - chance, error_rate)
    estimates = {"share": share, **estimates}
    seen = (
        f"without {part} recall falls from {recall.value:.3f} to {estimates['without'].value:.3f}, {100 * share.value:.0f} % of what "
        f"lies above a guess"
    )
    if found.controls:
        seen += f"; to {min(estimates[f'control {name}'].value for name in found.controls):.3f} at the least with controls"
    lost = _above(found.clean, found.without, found.clean, chance, min_share, error_rate)
    beyond = [_above(values, found.without, found.clean, chance, min_share, error_rate) for values in found.controls.values()]
    if lost.is_below(0):
        return Judgement(Verdict.REFUTED, "carries_too_little", seen, estimates=estimates)
    if lost.is_above(0) and beyond and all(each.is_above(0) for each in beyond):
        return Judgement(Verdict.SHOWN, "carries_recall", seen, estimates=estimates)
    open_ones = [each for each in (lost, *beyond) if not each.is_above(0)]
    if any(each.is_below(0) for each in beyond):
        reason, more = "no_more_than_controls", 0
    elif lost.is_above(0) and not beyond:
        reason, more = "no_controls", 0
    else:
        reason, more = "share_unclear", max(more_rows(each, 0.0, count) for each in open_ones)
    return Judgement(Verdict.UNDETERMINED, reason, seen, estimates=estimates, more_sequences=more)


def _above(values: Array, without: Array, clean: Array, chance: float, min_share: float, error_rate: float) -> Estimate:
    """By how much more than `min_share` of the recall above a guess `values` lie above what is left without the part."""
    excess = values - without - min_share * (clean - chance)
    lowest, highest = -1 - min_share * (1 - chance), 1 + min_share * chance
    half = error_rate / 2
    return bounded_intervals(excess[:, None], half, half, lowest=lowest, highest=highest)[0]


