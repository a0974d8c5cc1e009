"""Does a later model still have the heads and the behaviour of the one before? Non-inferiority, by role and not by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_induction.criteria import MIN_ADVANTAGE
from pytest_induction.observing import Array
from pytest_induction.preservation import Measured, chosen, in_role
from pytest_induction.profiles import ROLES, HeadsProfile
from pytest_induction.records import Estimate, HeadId, Verdict
from pytest_induction.statistics import Mean
from pytest_induction.verdicts.behaviour import MIN_ROWS
from pytest_induction.verdicts.continuity import ROWS, SEQUENCES
from pytest_induction.verdicts.judgement import Judgement
from pytest_induction.verdicts.losses import HIGHER_IS_WORSE, MEASURES, Loss, Rates
from pytest_induction.verdicts.matching import Match, match_heads

ICL = "in_context_learning"
MOST_NAMED = 10  # heads, in the summary and among the estimates
MOST_IN_FULL = 3  # with their intervals
UNREAD = "heads cannot be compared: attention of one of the two cannot be read"


@dataclass(frozen=True)
class Preservation(Judgement):
    """A judgement, and every head that was looked for.

    `more_rows` of text beside the `rows` that there were would tell, where sequences would not; `few_rows` are too few to try.
    """

    matches: tuple[Match, ...] = ()
    rows: int = 0
    more_rows: int = 0
    few_rows: bool = False


def judge_preserved(
    before: HeadsProfile, after: Measured, margins: Mapping[str, float], *, max_lost: int, error_rate: float
) -> Preservation:
    """FORMED where every loss is shown to be within its margin, NOT_FORMED where some loss is shown to be beyond.

    `margins` are by the names of `MEASURES`; a measure without one is left out. All that is compared is paired by sequence. Heads
    are matched on every other sequence and measured on those between. *Within*: one-sided, at all of `error_rate` each, for all
    must be; of heads all but `max_lost`, so that theirs is a share of one in `max_lost` + 1 (of the heads that truly lost too
    much one at least must pass, and so many may). *Beyond*: `error_rate` is shared by all that is compared; of heads it is shown
    that no assignment to whatever heads the later model has leaves all but `max_lost` within.
    """
    wanted = [role for role, names in ROLES.items() if names[0] in margins]
    heads = [head for head in before.heads or () if head.role in wanted]
    if not heads and not _behaves(before, margins):
        return _nothing(unread=bool(wanted) and before.heads is None)
    unread = bool(wanted) and (before.heads is None or after.scores is None)
    claims = sum(len(ROLES[head.role]) for head in heads) + len(margins.keys() - {names[0] for names in ROLES.values()})
    rates = Rates(error_rate, error_rate / max(1, claims), error_rate / (max_lost + 1))
    behaviour, few = _behaviour(before, after, margins, rates)
    matches, missing = match_heads(heads, after, margins, rates) if heads and not unread else ((), 0)
    found = _Found(
        behaviour,
        matches,
        missing,
        max_lost,
        problem=UNREAD if unread else few,
        few_rows=bool(few) and not unread,
        absent="" if matches else UNREAD if unread else "no head before is in a role" if wanted else "heads are not compared",
        took_over=_took_over(after, matches),
    )
    return replace(found.judged(), estimates=_estimates(before, after, behaviour, matches, rates), matches=matches)


def _behaves(before: HeadsProfile, margins: Mapping[str, float]) -> bool:
    """Whether something could be lost: what is matched is predicted, or more than the margin is learnt in context."""
    predicts = bool(before.behaviour["advantage"].mean() >= MIN_ADVANTAGE)
    learns = before.text is not None and ICL in margins and bool(before.text.in_context_learning.mean() < -margins[ICL])
    return learns or (predicts and bool({"later_accuracy", "later_loss"} & margins.keys()))


def _nothing(*, unread: bool) -> Preservation:
    why = "no behaviour, and its attention cannot be read" if unread else "neither a head in a role nor behaviour"
    summary = f"the model before has {why} that could be lost: a comparison with it cannot fail"
    return Preservation(Verdict.UNDETERMINED, "nothing_to_preserve", summary)


def _behaviour(before: HeadsProfile, after: Measured, margins: Mapping[str, float], rates: Rates) -> tuple[tuple[Loss, ...], str]:
    """The losses of behaviour that have a margin, and why in-context learning cannot be told where rows are too few."""
    found = []
    for name in ("later_accuracy", "later_loss"):
        if name in margins:
            values = _worse(name, before.behaviour[name], after.found.behaviour[name])
            mean = Mean.of(values, MEASURES[name].unit)
            found.append(Loss(name, mean, margins[name], rates.within, rates.beyond, len(values)))
    if ICL not in margins or before.text is None or after.text is None:
        return tuple(found), ""
    values = _worse(ICL, before.text.in_context_learning, after.text.in_context_learning)
    if len(values) < MIN_ROWS:
        return tuple(found), f"{len(values)} rows of text are too few for in-context learning, {MIN_ROWS} are needed"
    mean = Mean.of(values, "nats")
    return (*found, Loss(ICL, mean, margins[ICL], rates.within, rates.beyond, len(values), ROWS)), ""


def _worse(name: str, before: Array, after: Array) -> Array:
    return after - before if name in HIGHER_IS_WORSE else before - after


@dataclass(frozen=True)
class _Found:
    """Behaviour and heads as they were compared. `problem` is why not all could be, `absent` why no heads were."""

    behaviour: tuple[Loss, ...]
    matches: tuple[Match, ...]
    missing: int
    max_lost: int
    problem: str
    few_rows: bool
    absent: str
    took_over: str

    def judged(self) -> Preservation:
        worse = [loss for loss in self.behaviour if loss.is_beyond]
        open_ones = [loss for loss in self.behaviour if not loss.is_within]
        heads = [match for match in self.matches if not match.is_kept]
        heads_lost = self.missing > self.max_lost
        if worse or heads_lost:
            reason = "both_lost" if worse and heads_lost else "behaviour_lost" if worse else "mechanism_lost"
            return Preservation(Verdict.NOT_FORMED, reason, self._said(worse, open_ones))
        if not open_ones and not self.problem and len(heads) <= self.max_lost:
            return Preservation(Verdict.FORMED, "preserved", self._said((), ()))
        of_text = [loss for loss in open_ones if loss.rows == ROWS]
        more = [loss.more for loss in (*(match.worst for match in heads), *open_ones) if loss.rows == SEQUENCES]
        in_full = _listed([f"{match.name}, {match.worst}" for match in heads], MOST_IN_FULL)
        unclear = f"whether all is kept is not clear: {'; '.join((*map(str, open_ones), *in_full))}"
        return Preservation(
            Verdict.UNDETERMINED,
            "not_comparable" if self.problem else "difference_unclear",
            self.problem or unclear,
            more_sequences=max(more, default=0),
            rows=max((loss.count for loss in of_text), default=0),
            more_rows=max((loss.more for loss in of_text), default=0),
            few_rows=self.few_rows,
        )

    def _said(self, worse: Sequence[Loss], open_ones: Sequence[Loss]) -> str:
        """Heads, then behaviour, in one sentence."""
        gone = [str(match) for match in self.matches if match.status in ("lost", "weakened")]
        moved = [str(match) for match in self.matches if match.status == "moved"]
        unclear = [match.name for match in self.matches if match.status == "unclear"]
        count, stayed = len(self.matches), sum(match.status == "kept" for match in self.matches)
        parts = _listed([*gone, *moved])
        if stayed:
            parts.append(f"{'all' if stayed == count else f'{stayed} of'} {count} head{'s' * (count > 1)} kept in place")
        parts += [f"not clear: {', '.join(_listed(unclear))}"] if unclear else []
        parts += [self.absent] if self.absent else []
        if worse:
            parts += map(str, worse)
        elif self.behaviour:
            largest = max(self.behaviour, key=lambda loss: loss.size)
            by = f", {self.took_over}" if gone and self.took_over else ""
            parts.append(f"behaviour is {'not clear' if open_ones else f'kept{by}'}: {largest}")
        return "; ".join(parts)


def _listed(said: Sequence[str], most: int = MOST_NAMED) -> list[str]:
    """The first of them, and how many there are beside."""
    return [*said[:most], *([f"and {len(said) - most} more"] if len(said) > most else [])]


def _took_over(after: Measured, matches: Sequence[Match]) -> str:
    """The later model's strongest heads that match prefixes, where heads of that role were looked for."""
    if after.scores is None or not any(match.role == "induction" for match in matches):
        return ""
    means = chosen(after.scores["prefix_matching"]).mean(axis=0)
    places = np.argwhere(in_role(after.scores, "induction") & ~after.ruled_out)
    strongest = sorted(places.tolist(), key=lambda place: -means[tuple(place)])[:3]
    named = ", ".join(f"{HeadId(layer, head)} ({means[layer, head]:.2f})" for layer, head in strongest)
    return f"by {named}" if named else "though no head matches prefixes"


def _estimates(
    before: HeadsProfile, after: Measured, behaviour: Sequence[Loss], matches: Sequence[Match], rates: Rates
) -> dict[str, Estimate]:
    """Losses by measure, and by head the largest."""
    found = {loss.name: loss.estimate for loss in behaviour}
    if ICL in found and before.text is not None and after.text is not None:
        late = Mean.of(_worse("late_loss", before.text.late_loss, after.text.late_loss), "nats")
        found["late_loss"] = late.interval(rates.within)
    largest = sorted(matches, key=lambda match: -match.worst.size)[:MOST_NAMED]
    return found | {f"{loss.name} {match.before}": loss.estimate for match in largest for loss in match.losses}
