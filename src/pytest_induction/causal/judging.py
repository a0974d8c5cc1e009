"""Is in-context learning gone without some heads, more than without as many others, and do they keep it up by themselves?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pytest_induction.causal.dealing import RANKED, may_do_as_much, mean_differences
from pytest_induction.deciding import MAX_IN_CONTEXT_LEARNING, Judgement, more_needed
from pytest_induction.heads.criteria import EXCESS_SHARE
from pytest_induction.measuring.observing import Array
from pytest_induction.records import Estimate, Verdict
from pytest_induction.statistics import (
    SHARE,
    SMALLEST_SPREAD,
    mean_in_nats,
    mean_interval,
    student_quantile,
    towards,
    with_ends,
)

MIN_SHARE = 0.5  # of in-context learning, that must be gone
N_CONTROLS = max(RANKED)
NAMED = 3  # heads that are in the evidence one by one
MAY_WELL_BE = 0.5  # of the way from a mean to an end of its interval that errs at 1e-5 to 1e-4: two standard errors
Estimates = Mapping[str, Estimate]  # by kind of ablation
SO_FAR = ""  # the reason of what is shown of a part of the claim, and is no verdict yet
OPEN = ("kinds_disagree", "no_controls")  # clear, and yet no answer


@dataclass(frozen=True)
class Ablated:
    """What ablations do, row by row, in nats; kinds of ablation by name.

    `learning` (rows,) is the in-context learning score of the model as it is, negative where it learns; `lost` by how much it
    rises without the heads, in the first of these rows or in all; `controls` (n_sets, rows) without each control set, NaN in rows
    that it was not dealt to, and `usual` (rows,) the mean over those sets that were new in a row: in the first rows of `lost`, or
    in all. `single` (n_heads, rows) is without each of the heads alone, by the first kind of ablation, NaN where it was not
    measured.
    """

    learning: Array
    lost: Mapping[str, Array]
    controls: Mapping[str, Array]
    usual: Mapping[str, Array]
    single: Array

    @classmethod
    def join(cls, rounds: Sequence[Ablated]) -> Ablated:
        """All rounds as one."""
        return cls(
            np.concatenate([part.learning for part in rounds]),
            {kind: np.concatenate([part.lost[kind] for part in rounds]) for kind in rounds[0].lost},
            {kind: np.concatenate([part.controls[kind] for part in rounds], axis=1) for kind in rounds[0].controls},
            {kind: np.concatenate([part.usual[kind] for part in rounds]) for kind in rounds[0].usual},
            np.concatenate([part.single for part in rounds], axis=1),
        )


@dataclass(frozen=True)
class CausalClaim:
    """What is asked: which heads, of what (in words), the least share of it, and which layers had too few heads for controls.

    There are `n_controls` sets in all; with `complete` there are no more such sets.
    """

    heads: tuple[str, ...]
    about: str
    min_share: float = MIN_SHARE
    relaxed: tuple[int, ...] = ()
    complete: bool = False
    n_controls: int = N_CONTROLS

    @property
    def named(self) -> str:
        """The heads, in words."""
        if len(self.heads) > NAMED + 1:
            return f"{', '.join(self.heads[:NAMED])} and {len(self.heads) - NAMED} more"
        *others, last = self.heads
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def min_excess(self) -> float:
        """The share that must be gone beyond what is gone without the controls."""
        return self.min_share * EXCESS_SHARE


@dataclass(frozen=True)
class Kind:
    """What one kind of ablation does, in nats and as shares of in-context learning.

    Of `n_controls` sets that were ablated `as_much` do as much and `more` clearly more; `fewest` must be ablated, and in the end
    `most_as_much` may do as much.
    """

    lost: Estimate
    control: Estimate
    share: Estimate
    excess: Estimate
    n_controls: int
    as_much: int
    more: int
    fewest: int
    most_as_much: int

    @property
    def usual(self) -> float:
        """The share that is gone without a control set, in the mean."""
        return self.share.value - self.excess.value

    @property
    def rank(self) -> float:
        """How many of the sets, these heads and the controls, do as much: a permutation test's p."""
        return (1 + self.as_much) / (1 + self.n_controls)

    @property
    def is_ranked(self) -> bool:
        """Whether enough controls were ablated, and few enough of them do as much."""
        return self.n_controls >= self.fewest and self.as_much <= may_do_as_much(self.n_controls)

    @property
    def is_outranked(self) -> bool:
        """Whether clearly too many do more."""
        return self.more > self.most_as_much


def share_interval(part: Array, whole: Array, error_rate: float) -> Estimate:
    """Interval of mean(part) / mean(whole), by Fieller: the shares that a paired Student's test does not refute.

    `part` (m,) is of the first m of the rows of `whole` (n,), or of all. The spread of what is tested counts as larger by 0.01
    nats: equal values make no certainty. Raises `ArgumentError` as `mean_interval`; the whole must be clear of 0 at this error
    rate, else no share is refuted and the interval is all numbers.
    """
    for each in (part, whole):
        mean_interval(each[:, None], error_rate, "nats")  # raises for what cannot be used
    count, t = len(part), student_quantile(error_rate / 2, len(part) - 1)
    of_part, of_whole = part.var(ddof=1) / count, whole.var(ddof=1) / len(whole)
    of_both = float(np.cov(np.stack([part, whole[:count]]))[0, 1]) / len(whole)
    least = SMALLEST_SPREAD**2 / count
    x, g = float(part.mean()), float(whole.mean())
    a, b, c = g**2 - t**2 * max(of_whole, least), x * g - t**2 * of_both, x**2 - t**2 * (of_part + least)
    if not a > 0:
        return Estimate(x / g, -math.inf, math.inf, SHARE)
    root = math.sqrt(max(0.0, b**2 - a * c))
    return Estimate(x / g, (b - root) / a, (b + root) / a, SHARE)


def judge_necessity(found: Ablated, claim: CausalClaim, *, error_rate: float) -> Judgement:
    """SHOWN where, in every kind of ablation, enough in-context learning is gone, and more than without the controls.

    SHOWN rests on every statement, and is wrong only where one of them is that is false: each may err at the whole error rate.
    REFUTED rests on any of them, so they share it: the score and, of each kind, the share that is gone, what of it is beyond the
    controls', and which controls do more. So the two ends of an interval err at different rates.
    """
    shared = of_each(error_rate, len(found.lost))
    learning = _score(found.learning, error_rate, len(found.lost))
    if not learning.is_below(MAX_IN_CONTEXT_LEARNING):
        return _without_learning(len(found.learning), claim, learning)
    estimates = {"icl_score": learning}
    kinds = {kind: _of_kind(found, kind, claim, (error_rate, shared)) for kind in found.lost}
    estimates |= {f"{name} {kind}": getattr(of, name) for kind, of in kinds.items() for name in ("lost", "control", "share")}
    estimates |= {f"beyond controls {kind}": of.excess for kind, of in kinds.items()}
    estimates |= {f"rank {kind}": Estimate(of.rank, of.rank, of.rank, SHARE) for kind, of in kinds.items()}
    estimates |= {f"lost without {head} alone": estimate for head, estimate in _strongest(found.single, claim, shared)}
    verdict, reason, summary, more = _weighed(kinds, claim, learning, len(next(iter(found.usual.values()))))
    return Judgement(verdict, reason, summary, estimates=estimates, more_sequences=more)


def judge_removal(found: Ablated, claim: CausalClaim, *, error_rate: float) -> Judgement:
    """Whether enough is gone without the heads by every kind, before any control is ablated.

    Its statements are some of those of `judge_necessity`, at the same rates.
    """
    shared = of_each(error_rate, len(found.lost))
    learning, count = _score(found.learning, error_rate, len(found.lost)), len(next(iter(found.lost.values())))
    if not learning.is_below(MAX_IN_CONTEXT_LEARNING):
        return _without_learning(len(found.learning), claim, learning)
    gone = {kind: _gone_without(found, kind, (error_rate, shared)) for kind in found.lost}
    losses, shares = ({kind: both[at] for kind, both in gone.items()} for at in (0, 1))
    estimates = {"icl_score": learning}
    estimates |= {f"{name} {kind}": of[kind] for kind in losses for name, of in (("lost", losses), ("share", shares))}
    seen = _gone(shares, claim, learning)
    if (failed := _too_little(losses, shares, claim, seen)) is not None:
        return Judgement(Verdict.REFUTED, *failed, estimates=estimates)
    if not (unclear := _unclear(shares.values(), claim.min_share, count)):
        return Judgement(Verdict.SHOWN, SO_FAR, seen, estimates=estimates)
    summary = f"{seen}: too close to {claim.min_share:.2f} to tell"
    return Judgement(Verdict.UNDETERMINED, "effect_unclear", summary, estimates=estimates, more_sequences=max(unclear))


def of_each(error_rate: float, n_kinds: int) -> float:
    """What each statement that refutes may spend of a look's error rate: one on the score, three on each kind of ablation."""
    return error_rate / (1 + 3 * n_kinds)


def _score(learning: Array, error_rate: float, n_kinds: int) -> Estimate:
    """The in-context learning score: that there is some is needed for SHOWN, that there is none refutes."""
    return with_ends(partial(mean_in_nats, learning), of_each(error_rate, n_kinds), error_rate)


def judge_learning(learning: Array, claim: CausalClaim, *, error_rate: float, n_kinds: int) -> Judgement:
    """Whether the model learns in context, by the score of rows (n,) in which nothing is ablated.

    The error rate is that of the look, at which so many kinds of ablation would be judged.
    """
    score = _score(learning, error_rate, n_kinds)
    if not score.is_below(MAX_IN_CONTEXT_LEARNING):
        return _without_learning(len(learning), claim, score)
    seen = f"{claim.about} is {-score.value:.3f} nats"
    return Judgement(Verdict.SHOWN, SO_FAR, seen, estimates={"icl_score": score})


def is_out_of_reach(judgement: Judgement, claim: CausalClaim, count: int, most: int) -> bool:
    """Whether what is unclear after `count` rows would not be clear after `most` either, were its mean as far as may well be."""
    if judgement.verdict is not Verdict.UNDETERMINED:
        return False
    estimates = judgement.estimates or {}
    thresholds = {"share": claim.min_share, "beyond controls": claim.min_excess}
    decisive = [(of, thresholds[name]) for key, of in estimates.items() if (name := key.rpartition(" ")[0]) in thresholds]
    if judgement.reason == "learning_unclear":
        decisive = [(estimates["icl_score"], MAX_IN_CONTEXT_LEARNING)]
    elif judgement.reason != "effect_unclear":
        return False
    return any(_rows_at_least(of, threshold, count) > most for of, threshold in decisive if not of.is_above(threshold))


def _rows_at_least(estimate: Estimate, threshold: float, count: int) -> float:
    """How many rows it takes at least to set the estimate apart: its mean is moved by a part of the half of its interval."""
    half = towards(estimate, threshold)
    if not math.isfinite(half):
        return 0.0  # the whole is not clear of 0 yet
    return count * (half / max(1e-9, abs(estimate.value - threshold) + MAY_WELL_BE * half)) ** 2


def as_answer(judgement: Judgement) -> Judgement:
    """The judgement, UNDETERMINED where it is clear what was seen and that more rows would not make an answer of it."""
    return replace(judgement, verdict=Verdict.UNDETERMINED) if judgement.reason in OPEN else judgement


def _without_learning(count: int, claim: CausalClaim, learning: Estimate) -> Judgement:
    seen = f"{claim.about} is {-learning.value:.3f} nats"
    estimates, threshold = {"icl_score": learning}, MAX_IN_CONTEXT_LEARNING
    if learning.is_above(threshold):
        seen = f"there is nothing to remove: {seen}, not above {-threshold:.3f}"
        return Judgement(Verdict.REFUTED, "nothing_to_remove", seen, estimates=estimates)
    seen = f"whether there is anything to remove is not clear: {seen}, too close to {-threshold:.3f}"
    more = more_needed(learning, threshold, count)
    return Judgement(Verdict.UNDETERMINED, "learning_unclear", seen, estimates=estimates, more_sequences=more)


def _gone_without(found: Ablated, kind: str, rates: tuple[float, float]) -> tuple[Estimate, Estimate]:
    """What is lost without the heads, and which share of what the model learns that is; rates as those of `_of_kind`."""
    whole, shared = rates
    lost = found.lost[kind]
    return mean_in_nats(lost, shared), with_ends(partial(share_interval, lost, -found.learning), whole, shared)


def _of_kind(found: Ablated, kind: str, claim: CausalClaim, rates: tuple[float, float]) -> Kind:
    """`rates`: of what SHOWN needs, and of each statement that refutes."""
    whole, shared = rates
    usual = found.usual[kind]
    dealt = found.lost[kind][: len(usual)]  # of those rows in which controls were ablated too
    differences = mean_differences(found.controls[kind], dealt)
    ablated = int(np.isfinite(differences).sum())
    more = [_is_above(found.controls[kind][number] - dealt, shared / ablated) for number in np.flatnonzero(differences > 0)]
    lost, share = _gone_without(found, kind, rates)
    is_first = kind == next(iter(found.lost))  # the others confirm, on fewer controls
    enough = min(claim.n_controls, *RANKED) if is_first else 1
    return Kind(
        lost,
        mean_in_nats(usual, shared),
        share,
        with_ends(partial(share_interval, dealt - usual, -found.learning), whole, shared),
        n_controls=ablated,
        as_much=int((differences >= 0).sum()),
        more=sum(more),
        fewest=enough,
        most_as_much=may_do_as_much(claim.n_controls),
    )


def _is_above(values: Array, error_rate: float) -> bool:
    """Whether the mean of those rows (n,) that were measured is above 0."""
    taken = values[np.isfinite(values)]
    return len(taken) > 1 and mean_in_nats(taken, error_rate).is_above(0)


def _strongest(single: Array, claim: CausalClaim, error_rate: float) -> list[tuple[str, Estimate]]:
    """The heads that do most by themselves, of those that were measured alone in two rows or more."""
    measured = np.flatnonzero(np.isfinite(single).sum(axis=1) > 1)
    each = [single[number][np.isfinite(single[number])] for number in measured]
    found = [mean_interval(values[:, None], error_rate / len(each), "nats")[0] for values in each]
    named = zip((claim.heads[number] for number in measured), found, strict=True)
    return sorted(named, key=lambda one: -one[1].value)[:NAMED]


def _weighed(kinds: Mapping[str, Kind], claim: CausalClaim, learning: Estimate, count: int) -> tuple[Verdict, str, str, int]:
    """The verdict, its reason and summary, and how many more rows it would take."""
    seen = _gone({kind: of.share for kind, of in kinds.items()}, claim, learning)
    against = f"without {_controls(kinds, claim)} {_span([of.usual for of in kinds.values()])} is"
    if (failed := _failed(kinds, claim, seen, against)) is not None:
        return Verdict.REFUTED, *failed, 0
    shares, excesses = ([getattr(of, name) for of in kinds.values()] for name in ("share", "excess"))
    unclear = [*_unclear(shares, claim.min_share, count), *_unclear(excesses, claim.min_excess, count)]
    if unclear:
        both = f"{claim.min_share:.2f}, or {claim.min_excess:.2f} apart,"
        return Verdict.UNDETERMINED, "effect_unclear", f"{seen}, {against}: too close to {both} to tell", max(unclear)
    if not all(of.is_ranked for of in kinds.values()):
        few = all(of.as_much <= may_do_as_much(of.n_controls) for of in kinds.values())
        what = f"{_controls(kinds, claim)} are too few" if few else "too many controls do as much"
        return Verdict.UNDETERMINED, "rank_unclear", f"{seen}, but {what}: {_ranks(kinds)}", count
    return Verdict.SHOWN, "necessary", f"{seen}, {against}", 0


def _failed(kinds: Mapping[str, Kind], claim: CausalClaim, seen: str, against: str) -> tuple[str, str] | None:
    """Reason and summary where it is clear that more rows would not make the heads necessary; else None."""
    shares, excesses = ({kind: getattr(of, name) for kind, of in kinds.items()} for name in ("share", "excess"))
    if (failed := _too_little({kind: of.lost for kind, of in kinds.items()}, shares, claim, seen)) is not None:
        return failed
    if any(of.is_below(claim.min_excess) for of in excesses.values()):
        reason, summary = "no_more_than_controls", f"less than {claim.min_excess:.2f} apart by {_lowest(excesses)}"
    elif any(not of.is_ranked and (claim.relaxed or of.is_outranked) for of in kinds.values()):
        reason, summary = "no_more_than_controls", f"too many of them do as much: {_ranks(kinds)}"
    else:
        return None
    if not claim.relaxed:
        return reason, f"{seen}, but {against}: {summary}"
    layers = " and ".join(map(str, claim.relaxed))
    few = f"layer{'s' if len(claim.relaxed) > 1 else ''} {layers} ha{'ve' if len(claim.relaxed) > 1 else 's'}"
    return "no_controls", f"{seen}, but {few} too few other heads to compare with, and {against}: {summary}"


def _too_little(losses: Estimates, shares: Estimates, claim: CausalClaim, seen: str) -> tuple[str, str] | None:
    """The same by what is gone without the heads alone, whatever controls do."""
    if any(of.is_above(0) for of in losses.values()) and any(of.is_below(0) for of in losses.values()):
        text = ", ".join(f"{of.value:+.2f} nats by {kind}" for kind, of in losses.items())
        return "kinds_disagree", f"the kinds of ablation disagree: without {claim.named} {text} are lost"
    if any(of.is_below(claim.min_share) for of in shares.values()):
        return "removes_too_little", f"{seen}, less than {claim.min_share:.2f} by {_lowest(shares)}"
    return None


def _unclear(estimates: Iterable[Estimate], threshold: float, count: int) -> list[int]:
    """How many more rows each estimate would take that is not shown to be above the threshold."""
    return [
        more_needed(estimate, threshold, count) if math.isfinite(towards(estimate, threshold)) else count
        for estimate in estimates
        if not estimate.is_above(threshold)
    ]


def _gone(shares: Estimates, claim: CausalClaim, learning: Estimate) -> str:
    span = _span([share.value for share in shares.values()])
    return f"without {claim.named} {span} of {claim.about} ({-learning.value:.2f} nats) is gone"


def _span(values: Sequence[float]) -> str:
    """From the lowest to the highest share over kinds of ablation, in percent."""
    return _percent(min(values), max(values))


def _ranks(kinds: Mapping[str, Kind]) -> str:
    return f"rank {', '.join(f'{of.rank:.3f} by {kind}' for kind, of in kinds.items())}"


def _percent(low: float, high: float) -> str:
    first, last = (f"{100 * value:.0f}" for value in (low, high))
    return f"{first} %" if first == last else f"{first} to {last} %"


def _controls(kinds: Mapping[str, Kind], claim: CausalClaim) -> str:
    count = next(iter(kinds.values())).n_controls
    qualifiers = [*(["all there are"] if claim.complete else []), *(["from other layers too"] if claim.relaxed else [])]
    aside = f" ({', '.join(qualifiers)})" if qualifiers else ""
    return f"{count} set{'s' if count != 1 else ''} of as many others{aside}"


def _lowest(estimates: Estimates) -> str:
    """The kind of ablation that does least, with its interval."""
    kind, estimate = min(estimates.items(), key=lambda one: one[1].value)
    return f"{kind} ({estimate.low:.2f}..{estimate.high:.2f})"


def judge_sufficiency(judgement: Judgement, found: Ablated, claim: CausalClaim, *, error_rate: float) -> Judgement:
    """A judgement that heads are necessary, with how much stays where all others of their layers are ablated and they are not.

    `found` has of these rows, or of the first of them, what is lost with all others ablated, with all but the controls, and with
    all but each of the heads alone. They are sufficient where, in every kind, `min_share` or more stays, and by half of that more
    than with controls.
    """
    each = error_rate / (2 * len(found.lost))
    gained = -found.learning
    kept = {kind: _rest(lost, gained, each) for kind, lost in found.lost.items()}
    excess = {kind: share_interval(found.usual[kind] - lost, gained, each) for kind, lost in found.lost.items()}
    alone = [
        (head, _rest(lost[taken], gained, each))
        for head, lost in zip(claim.heads, found.single, strict=True)
        if (taken := np.isfinite(lost)).sum() > 1
    ]
    strongest = sorted(alone, key=lambda one: -one[1].value)[:NAMED]
    named = {
        **{f"kept {kind}": estimate for kind, estimate in kept.items()},
        **{f"kept beyond controls {kind}": estimate for kind, estimate in excess.items()},
        **({f"kept by {head} alone": estimate for head, estimate in strongest} if len(claim.heads) > 1 else {}),
    }
    values = sorted(estimate.value for estimate in kept.values())
    seen = f"{judgement.summary}; with all others of their layers ablated {_percent(values[0], values[-1])} stays"
    sufficient = all(of.is_above(claim.min_share) for of in kept.values())
    sufficient = sufficient and all(of.is_above(claim.min_excess) for of in excess.values())
    reason = "necessary_and_sufficient" if sufficient else judgement.reason
    return replace(judgement, reason=reason, summary=seen, estimates={**(judgement.estimates or {}), **named})


def _rest(lost: Array, gained: Array, error_rate: float) -> Estimate:
    """The share that is not lost: both of rows, (m,) and (n,)."""
    share = share_interval(lost, gained, error_rate)
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, SHARE)
