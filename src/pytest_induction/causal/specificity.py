"""Do some heads carry what a match in a text foretells, more than all else and more than as many others do?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_induction.behaviour.matches import CLASSES, FORETOLD, GROUPS, UNMATCHED_SEEN, mean_of_tokens
from pytest_induction.causal.dealing import may_do_as_much, mean_differences
from pytest_induction.causal.judging import CausalClaim
from pytest_induction.deciding import Judgement, more_needed
from pytest_induction.heads.criteria import EXCESS_SHARE
from pytest_induction.measuring.observing import Array
from pytest_induction.records import Estimate, Verdict
from pytest_induction.statistics import SHARE, mean_in_nats

MIN_SPECIFICITY = 0.1  # nats by which foretold tokens must lose more than all others
MIN_GAP = 0.1  # nats by which foretold tokens must cost less than unmatched ones for there to be anything to carry
MIN_FORETOLD = 100  # tokens of a text that a match foretells: of fewer no mean is judged
DECIDING = 0.8  # of the error rate of a look, for what decides; the rest is for losses by class
REST = tuple(number for number in range(len(CLASSES)) if number not in FORETOLD)


@dataclass(frozen=True)
class Rises:
    """What mean ablations do to the losses of rows of a text, by the class of the token.

    `counts` (rows, groups) is how many tokens of a row are of each of `GROUPS`, and sums over these tokens are in nats: `clean`
    (rows, groups) of the losses of the model as it is, `lost` (rows, groups) of by how much they rise without the heads.
    `controls` (n_sets, rows, 2) is that of foretold tokens and of the rest without each control set, NaN in rows that it was not
    dealt to, and `usual` (rows, 2) the mean over those sets that were new in a row.
    """

    counts: Array
    clean: Array
    lost: Array
    controls: Array
    usual: Array

    @classmethod
    def join(cls, rounds: Sequence[Rises]) -> Rises:
        """All rounds as one."""
        joined = {name: np.concatenate([getattr(part, name) for part in rounds]) for name in ("counts", "clean", "lost", "usual")}
        return cls(controls=np.concatenate([part.controls for part in rounds], axis=1), **joined)


def halves(sums: Array) -> Array:
    """Sums (..., groups) of foretold tokens and of all the rest, (..., 2)."""
    return np.stack([sums[..., FORETOLD].sum(-1), sums[..., REST].sum(-1)], axis=-1)


def specificity(sums: Array, counts: Array) -> Array:
    """By how much more foretold tokens lose than all others, (rows,): numbers whose mean is the difference of the two means.

    Both are (rows, 2), as `halves` has them. 0 where heads do nothing, or as much to all tokens.
    """
    return mean_of_tokens(sums[:, 0], counts[:, 0]) - mean_of_tokens(sums[:, 1], counts[:, 1])


def judge_specificity(found: Rises, claim: CausalClaim, *, min_specificity: float, error_rate: float) -> Judgement:
    """SHOWN where the heads carry what is foretold above all else by enough, and more than the controls.

    The error rate is shared by four statements: that the model uses what is foretold, by how much the loss of that rises without
    the heads, their specificity, and what of it is beyond the controls'; a fifth of it is for losses by class. Heads that only
    harm all other tokens are specific too, and carry nothing: what is foretold must itself lose as much.
    """
    each = error_rate * DECIDING / 4
    if (without := judge_gap(found.clean, found.counts, error_rate=each)) is not None:
        return without
    counts, lost = halves(found.counts), halves(found.lost)
    own, usual = specificity(lost, counts), specificity(found.usual, counts)
    n_sets, as_much = _as_specific(found)
    rank = (1 + as_much) / (1 + n_sets)
    decisive = {
        "specificity": mean_in_nats(own, each),
        "lost foretold": mean_in_nats(mean_of_tokens(lost[:, 0], counts[:, 0]), each),
        "beyond controls": mean_in_nats(own - usual, each),
    }
    estimates = {
        **decisive,
        "rank": Estimate(rank, rank, rank, SHARE),
        "gap": mean_in_nats(gap_of(found.clean, found.counts), each),
        **_by_class(found, error_rate * (1 - DECIDING)),
    }
    of_heads, of_sets = (sums.sum(0) / counts.sum(0) for sums in (lost, found.usual))
    sets = f"{n_sets} set{'s' if n_sets != 1 else ''} of as many others"
    seen = (
        f"without {claim.named} the loss of tokens that a match foretells rises by {of_heads[0]:.2f} nats and that of all others "
        f"by {of_heads[1]:.2f}, without {sets} by {of_sets[0]:.2f} and {of_sets[1]:.2f}"
    )
    thresholds = dict.fromkeys(decisive, min_specificity) | {"beyond controls": min_specificity * EXCESS_SHARE}
    verdict, reason, text, more = _weighed(decisive, thresholds, claim, (n_sets, as_much, len(counts)))
    return Judgement(verdict, reason, f"{seen}{text}", estimates=estimates, more_sequences=more)


def _weighed(
    decisive: Mapping[str, Estimate], thresholds: Mapping[str, float], claim: CausalClaim, seen: tuple[int, int, int]
) -> tuple[Verdict, str, str, int]:
    """The verdict, its reason, what to say of it, and how many more rows it would take; `seen` is sets, as many, and rows."""
    n_sets, as_much, n_rows = seen
    allowed = 0 if claim.complete else may_do_as_much(n_sets)
    is_equalled = decisive["beyond controls"].is_below(thresholds["beyond controls"])
    if (failed := _failed(decisive, thresholds)) is not None:
        return Verdict.REFUTED, *failed, 0
    if claim.relaxed and (is_equalled or as_much > allowed):
        several = len(claim.relaxed) > 1
        layers = f"layer{'s' if several else ''} {' and '.join(map(str, claim.relaxed))} ha{'ve' if several else 's'}"
        return Verdict.UNDETERMINED, "no_controls", f", but {layers} too few other heads to compare with", 0
    if is_equalled:
        return Verdict.REFUTED, "no_more_than_controls", f": less than {thresholds['beyond controls']:.2f} nats beyond these", 0
    unclear = [name for name, each in decisive.items() if not each.is_above(thresholds[name])]
    if unclear:
        more = max(more_needed(decisive[name], thresholds[name], n_rows) for name in unclear)
        text = f": too close to {thresholds['specificity']:.2f} nats, by itself or apart, to tell"
        return Verdict.UNDETERMINED, "effect_unclear", text, more
    if as_much > allowed or n_sets < claim.n_controls:
        text = f"{as_much} of them are as specific" if as_much > allowed else f"{claim.n_controls} are needed"
        return Verdict.UNDETERMINED, "rank_unclear", f", but {text}", n_rows
    return Verdict.SHOWN, "induction", "", 0


def _failed(decisive: Mapping[str, Estimate], thresholds: Mapping[str, float]) -> tuple[str, str] | None:
    """Reason and summary where it is clear that the heads carry too little; else None."""
    if decisive["lost foretold"].is_below(thresholds["lost foretold"]):
        return "carries_too_little", f": less than {thresholds['lost foretold']:.2f} nats"
    if decisive["specificity"].is_below(thresholds["specificity"]):
        return "not_specific", f": less than {thresholds['specificity']:.2f} nats apart"
    return None


def _as_specific(found: Rises) -> tuple[int, int]:
    """How many control sets were ablated, and how many of them are as specific as the heads in the same rows."""
    scale = halves(found.counts).mean(0)
    of_heads, of_sets = halves(found.lost) / scale, found.controls / scale
    differences = mean_differences(of_sets[..., 0] - of_sets[..., 1], of_heads[:, 0] - of_heads[:, 1])
    return int(np.isfinite(differences).sum()), int((differences >= 0).sum())


def gap_of(sums: Array, counts: Array) -> Array:
    """By how many nats foretold tokens cost less than unmatched ones that were seen, as numbers of rows (rows,).

    Both are (rows, groups): losses, summed, and tokens, some of them of each of the two kinds.
    """
    seen = mean_of_tokens(sums[:, UNMATCHED_SEEN], counts[:, UNMATCHED_SEEN])
    return seen - mean_of_tokens(halves(sums)[:, 0], halves(counts)[:, 0])


def judge_gap(sums: Array, counts: Array, *, error_rate: float) -> Judgement | None:
    """The judgement where the model is not shown to use what is foretold, or too little is; None where heads can be judged."""
    n_rows, n_foretold = len(counts), int(halves(counts)[:, 0].sum())
    if n_foretold < MIN_FORETOLD:
        missing = few_foretold(n_foretold, n_rows)
        more = -(-MIN_FORETOLD * n_rows // max(1, n_foretold)) - n_rows
        return Judgement(Verdict.UNDETERMINED, "few_matches", missing, more_sequences=more)
    if not counts[:, UNMATCHED_SEEN].any():
        summary = f"every token in {n_rows} rows that was seen before follows a match: there is nothing to compare with"
        return Judgement(Verdict.UNDETERMINED, "few_matches", summary)
    gap = mean_in_nats(gap_of(sums, counts), error_rate)
    if gap.is_above(MIN_GAP):
        return None
    seen = f"tokens that a match foretells cost {gap.value:.2f} nats less than unmatched ones that were seen"
    if gap.is_below(MIN_GAP):
        summary = f"the model does not use what a match foretells: {seen}, not {MIN_GAP:.2f}"
        return Judgement(Verdict.UNDETERMINED, "does_not_use_matches", summary, estimates={"gap": gap})
    summary = f"whether the model uses what a match foretells is not clear: {seen}, too close to {MIN_GAP:.2f}"
    more = more_needed(gap, MIN_GAP, n_rows)
    return Judgement(Verdict.UNDETERMINED, "gap_unclear", summary, estimates={"gap": gap}, more_sequences=more)


def few_foretold(count: int, n_rows: int) -> str:
    """The summary where rows have too few tokens for a mean."""
    return f"{count} tokens in {n_rows} rows are foretold by a match of two tokens or more: at least {MIN_FORETOLD} are needed"


def _by_class(found: Rises, error_rate: float) -> Mapping[str, Estimate]:
    """By how much the loss of the tokens of each group rises without the heads, of those with tokens in two rows or more."""
    measured = [number for number in range(len(GROUPS)) if (found.counts[:, number] > 0).sum() > 1]
    return {
        f"lost {GROUPS[number]}": mean_in_nats(
            mean_of_tokens(found.lost[:, number], found.counts[:, number]), error_rate / len(measured)
        )
        for number in measured
    }
