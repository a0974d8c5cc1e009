"""A later model still has the heads and the behaviour of the one before: a mechanistic regression test."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.behaviour.judging import MIN_ROWS
from pytest_induction.behaviour.text import row_length
from pytest_induction.comparison.margins import ROWS, SEQUENCES
from pytest_induction.comparison.matching import HIGHER_IS_WORSE, MEASURES, Loss, Match, Rates, match_heads
from pytest_induction.comparison.preservation import MAX_ROWS, N_SEQUENCES, Measured, Prober, check_same, chosen, in_role
from pytest_induction.comparison.profiles import ROLES, HeadsProfile, TextScores, read_profile
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, extend, priced_claim
from pytest_induction.errors import ArgumentError, BaselineError, user_facing, whole_number
from pytest_induction.expectations import expect
from pytest_induction.files import expanded, is_file
from pytest_induction.heads.criteria import LEAST, MIN_ADVANTAGE, MIN_PREFIX_MATCHING
from pytest_induction.heads.head_map import head_map
from pytest_induction.heads.induction import list_of_heads
from pytest_induction.heads.prices import price_of_list
from pytest_induction.heads.table import Thresholds, head_evidence
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES as LIST_SEQUENCES
from pytest_induction.measuring.rounds import price_of_probes
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.model.specs import GGUF
from pytest_induction.records import Compared, Estimate, Evidence, HeadEvidence, HeadId, Provenance, TokenSpace, Verdict
from pytest_induction.spending import Price, spend_at_most, spent_so_far, what_more
from pytest_induction.statistics import FIRST_LOOK, Mean, look_sizes

ICL = "icl_score"
MOST_ESTIMATED = 10  # heads
MOST_NAMED = 3  # heads, in the summary
STATUSES = ("lost", "weakened", "worse", "unclear", "moved", "kept")  # what became of something, the worst first
UNREAD = "heads cannot be compared: attention of one of the two cannot be read"


@dataclass(frozen=True)
class Preservation(Judgement):
    """A judgement, every head that was looked for, and what the model does.

    `more_rows` of text beside the `rows` that there were would tell, where sequences would not; `few_rows` are too few to try.
    """

    matches: tuple[Match, ...] = ()
    behaviour: tuple[Loss, ...] = ()
    rows: int = 0
    more_rows: int = 0
    few_rows: bool = False

    @property
    def compared(self) -> tuple[Compared, ...]:
        """Both models side by side, what was lost first, and among those what lost most, in margins."""
        heads = [(match.compared, match.worst.size) for match in self.matches]
        behaviour = [
            (Compared(loss.name, loss.status, *loss.means, loss.difference, loss.margin), loss.size) for loss in self.behaviour
        ]
        ranked = sorted((*heads, *behaviour), key=lambda each: (STATUSES.index(each[0].status), -each[1]))
        return tuple(compared for compared, _ in ranked)


def judge_preserved(
    before: HeadsProfile, after: Measured, margins: Mapping[str, float], *, max_lost: int, error_rate: float
) -> Preservation:
    """SHOWN where every loss is shown to be within its margin, REFUTED where some loss is shown to be beyond.

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
        absent=""
        if matches
        else UNREAD
        if unread
        else "no head of the earlier model is in a role"
        if wanted
        else "heads are not compared",
        took_over=_took_over(after, matches),
    )
    estimates = _estimates(before, after, behaviour, matches, rates)
    return replace(found.judged(), estimates=estimates, matches=matches, behaviour=behaviour)


def _behaves(before: HeadsProfile, margins: Mapping[str, float]) -> bool:
    """Whether something could be lost: what is matched is predicted, or more than the margin is learnt in context."""
    predicts = bool(before.behaviour["advantage"].mean() >= MIN_ADVANTAGE)
    learns = before.text is not None and ICL in margins and bool(before.text.icl_score.mean() < -margins[ICL])
    return learns or (predicts and bool({"repeat_accuracy", "repeat_loss"} & margins.keys()))


def _nothing(*, unread: bool) -> Preservation:
    why = "no behaviour, and its attention cannot be read" if unread else "neither a head in a role nor behaviour"
    summary = f"the earlier model has {why} that could be lost: a comparison with it cannot fail"
    return Preservation(Verdict.UNDETERMINED, "nothing_to_preserve", summary)


def _behaviour(before: HeadsProfile, after: Measured, margins: Mapping[str, float], rates: Rates) -> tuple[tuple[Loss, ...], str]:
    """The losses of behaviour that have a margin, and why in-context learning cannot be told where rows are too few."""
    compared = (name for name in ("repeat_accuracy", "repeat_loss") if name in margins)
    found = [_loss(name, before.behaviour[name], after.found.behaviour[name], margins, rates) for name in compared]
    if ICL not in margins or before.text is None or after.text is None:
        return tuple(found), ""
    scores = before.text.icl_score, after.text.icl_score
    if len(scores[0]) < MIN_ROWS:
        return tuple(found), f"{len(scores[0])} rows of text are too few for in-context learning, {MIN_ROWS} are needed"
    return (*found, replace(_loss(ICL, *scores, margins, rates), rows=ROWS)), ""


def _loss(name: str, before: Array, after: Array, margins: Mapping[str, float], rates: Rates) -> Loss:
    """What was lost of a behaviour, by sequence or row."""
    mean = Mean.of(_worse(name, before, after), MEASURES[name].unit)
    means = float(before.mean()), float(after.mean())
    return Loss(name, means, mean, margins[name], rates.within, rates.beyond, len(before))


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
            return Preservation(Verdict.REFUTED, reason, self._summary(worse, open_ones))
        if not open_ones and not self.problem and len(heads) <= self.max_lost:
            return Preservation(Verdict.SHOWN, "preserved", self._summary((), ()))
        of_text = [loss for loss in open_ones if loss.rows == ROWS]
        more = [loss.more for loss in (*(match.worst for match in heads), *open_ones) if loss.rows == SEQUENCES]
        in_full = _listed([f"{match.name}, {match.worst}" for match in heads])
        unclear = f"whether everything is kept is not clear: {'; '.join((*map(str, open_ones), *in_full))}"
        return Preservation(
            Verdict.UNDETERMINED,
            "not_comparable" if self.problem else "difference_unclear",
            self.problem or unclear,
            more_sequences=max(more, default=0),
            rows=max((loss.count for loss in of_text), default=0),
            more_rows=max((loss.more for loss in of_text), default=0),
            few_rows=self.few_rows,
        )

    def _summary(self, worse: Sequence[Loss], open_ones: Sequence[Loss]) -> str:
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


def _listed(names: Sequence[str]) -> list[str]:
    """The first of them, and how many there are beside."""
    return [*names[:MOST_NAMED], *([f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else [])]


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
    largest = sorted(matches, key=lambda match: -match.worst.size)[:MOST_ESTIMATED]
    return found | {f"{loss.name} {match.before}": loss.estimate for match in largest for loss in match.losses}


MOST_ERROR = 0.5  # beyond, an interval would not hold its own middle
OF_HEADS = tuple(names[0] for names in ROLES.values())


@user_facing
def profile_of(
    model: ModelLike,
    *,
    text: Any = None,
    n_sequences: int = N_SEQUENCES,
    seed: int | None = None,
    space: TokenSpace | None = None,
    max_rows: int = MAX_ROWS,
) -> HeadsProfile:
    """Measure what `assert_heads_preserved` holds later models against; `.to_dict()` is plain data for a JSON file.

    `n_sequences` repeated rows of random tokens are drawn from `space`, that of the model unless given: a smaller one (fewer ids,
    a shorter context) serves later models that have no more. With `text` (as for `assert_learns_in_context`) in-context learning
    is measured too, on at most `max_rows` rows of it.

    A head is kept for every role that it has: "induction" heads are those of the list that `find_induction_heads` gives, on
    sequences of their own, so that near and undecided ones are left out, and silent ones and those that suppress or follow a
    period; "previous_token" and "duplicate_token" heads have a mean of 0.3 over every other sequence.

    Raises `ModelError` for a model that cannot be measured, `ProbeError` where no probe fits it.

    >>> from pytest_induction.planted import induction_head
    >>> [(head.role, head.layer, head.head) for head in profile_of(induction_head()).heads]
    [('induction', 1, 0), ('previous_token', 0, 0)]
    """
    subject = load_model(model)
    if space is not None and not isinstance(space, TokenSpace):
        raise ArgumentError(f"`space` must be a `TokenSpace`, got `{type(space).__name__}`")
    prober = _prober_before(subject, space or subject.space, seed if seed is None else whole_number("seed", seed, least=0))
    count, most = whole_number("n_sequences", n_sequences, least=FIRST_LOOK), whole_number("max_rows", max_rows, least=2)
    scores = None if text is None else prober.in_context(prober.rows(text, most), most)
    for size in look_sizes(count):
        prober.draw(size)
    profile = prober.profile(scores)
    return replace(profile, probed=replace(profile.probed, digest=prober.digest(count)))


def _prober_before(subject: ModelUnderTest, space: TokenSpace, seed: int | None) -> Prober:
    """What measures a model that later ones are held against."""
    prober = Prober(subject, space, subject.seed if seed is None else seed)
    if subject.backend is not None:
        listed = list_of_heads(prober.alike, Thresholds(), (LIST_SEQUENCES, ERROR_RATE, prober.seed))
        prober.listed = [HeadId(head.layer, head.head) for head in listed.heads]
        prober.notes = tuple(note for note in listed.provenance.notes if note not in subject.notes)
    return prober


def price_of_comparison(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of both models: rounds until it is clear, what heads write, and the rows of a text."""
    listed = price_of_list(subject, {"max_sequences": LIST_SEQUENCES})
    rounds = price_of_probes(subject.space, 2 * given["max_sequences"])
    text = 0 if given["text"] is None else given["max_rows"] * row_length(subject)
    return Price(price_of_probes(subject.space, FIRST_LOOK).least, 2 * (listed.most + rounds.most + text))


@user_facing
@priced_claim(price_of_comparison)
def assert_heads_preserved(
    before: ModelLike | HeadsProfile | os.PathLike[str],
    after: ModelLike,
    *,
    entry: str | None = None,
    text: Any = None,
    margins: Mapping[str, float | None] | None = None,
    max_lost: int = 0,
    max_sequences: int = MAX_SEQUENCES,
    max_rows: int = MAX_ROWS,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that a later model has kept what an earlier one could do, and the heads that do it, under whatever head numbers.

    `after` is a quantised, pruned, fine-tuned or refactored model, or the next checkpoint (anything `load_model` takes). `before`
    is a model too, or what was kept of one: a `HeadsProfile` (`profile_of` makes it), a JSON file with what its `to_dict` gives,
    or a baseline file; `entry` names the entry if the file has several. Both are measured on the same token ids, drawn from
    the vocabulary of the model before, and every difference is paired by sequence.

    Each head before that matches prefixes (and does not suppress), attends to the previous token or to duplicates is matched
    with a head after: with the one at its place as long as that is within the margin, else so that as many as possible are, and
    as little as possible is lost. Matches are chosen on every other sequence and measured on those between. By default it may
    lose `prefix_matching` 0.1, in itself and beyond its chance, `previous_token` 0.1, `duplicate_token` 0.1; the model
    `repeat_accuracy` 0.05 and `repeat_loss` 0.25 nats on repeated tokens, and with `text` (a string, a path or token ids; of a
    long one `max_rows` rows are taken) `icl_score` 0.1 nats. `margins` replaces these by name; None leaves a measure out.

    SHOWN where every loss is shown to be within its margin; what improves passes. REFUTED where some loss is shown to be
    beyond: "behaviour_lost", "mechanism_lost" (heads, while behaviour is not shown to be worse) or "both_lost". Up to `max_lost`
    heads may be lost or weakened. Sequences are drawn in rounds until it is clear, at most `max_sequences`, or those that a
    profile has; then the verdict is UNDETERMINED, which fails too and says what would settle it. It also is where the model
    before has nothing that could be lost. `budget` is as for `assert_has_induction_head`, for both models together. `error_rate`
    is the most with which either verdict may be wrong.

    Returns the evidence: `.summary` names heads that were lost, weakened or moved, `.heads` are those after that induction heads
    before were matched with, `.estimates` has losses, above 0 where it got worse, of behaviour by measure and of the ten heads
    with the largest by name ("prefix_matching L1H0", numbered as before), `.thresholds` the margins; `.provenance` is that of the
    later model, and its notes say what the one before was. Raises `ExpectationFailed`, which carries it; `ModelError` where the
    later model lacks ids or positions of the probes; `BaselineError` for a file that is damaged, or whose probes or text are
    others; `ArgumentError` for margins that no head could exceed.

    >>> from pytest_induction.planted import induction_head
    >>> assert_heads_preserved(induction_head(head=0), induction_head(head=3)).summary.partition(";")[0]
    'L1H0 -> L1H3 moved'
    """
    spend_at_most(budget)
    if not 0 < error_rate < MOST_ERROR:
        raise ArgumentError(f"`error_rate` must lie between 0 and {MOST_ERROR}, got {error_rate}")
    limits = _Limits(
        whole_number("max_lost", max_lost, least=0),
        whole_number("max_sequences", max_sequences, least=1),
        whole_number("max_rows", max_rows, least=2),
        error_rate,
    )
    given = _margins(margins or {}, text)
    given_seed = None if seed is None else whole_number("seed", seed, least=0)
    kept, where = _kept(before, entry)
    pair = _pair_of(kept, where, load_model(after), text, limits, given_seed)
    return expect(_held(pair, given, limits).evidence)


@dataclass(frozen=True)
class _Limits:
    max_lost: int = 0
    max_sequences: int = MAX_SEQUENCES
    max_rows: int = MAX_ROWS
    error_rate: float = ERROR_RATE


@dataclass(frozen=True)
class Held:
    """A later model held against the one before: the evidence, and what was measured of both on the same sequences.

    `before` is a profile where no more is known of the first one.
    """

    evidence: Evidence
    before: Measured | HeadsProfile
    after: Measured


def hold_against(
    before: ModelUnderTest | HeadsProfile, after: ModelUnderTest, *, text: Any = None, seed: int | None = None
) -> Held:
    """What `assert_heads_preserved` finds, with its default margins, whatever the verdict is."""
    limits, where = _Limits(), f"the profile of {before.provenance.model}" if isinstance(before, HeadsProfile) else ""
    pair = _pair_of(before, where, after, text, limits, seed)
    return _held(pair, _margins({}, text if pair.texts[1] is not None else None), limits)


def _pair_of(kept: Any, where: str, later: ModelUnderTest, text: Any, limits: _Limits, seed: int | None) -> _Pair:
    if isinstance(kept, HeadsProfile):
        return _of_profile(kept, where, later, text, seed)
    return _of_models(load_model(kept), later, text, limits, seed)


def _margins(given: Mapping[str, float | None], text: Any) -> dict[str, float]:
    """The margin of every measure that is not left out."""
    for name, margin in given.items():
        if name not in MEASURES:
            raise ArgumentError(f"`margins` has no measure {name!r}: it has {', '.join(MEASURES)}")
        most = LEAST.get(name, math.inf)
        number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
        if margin is not None and not (number and 0 < margin < most):
            below = f" and below {most:.3f}, what a head must have to count," if math.isfinite(most) else ""
            raise ArgumentError(f"`margins` of {name} must be a number above 0{below} or None to leave it out, got {margin!r}")
    if text is None and given.get(ICL) is not None:
        raise ArgumentError(f"`margins` has {ICL}, and {ICL} needs a `text`")
    if text is not None and ICL in given and given[ICL] is None:
        raise ArgumentError(f"`text` is for the measure {ICL}, which is left out by its margin of None")
    wanted = {name: given.get(name, measure.margin) for name, measure in MEASURES.items() if name != ICL or text is not None}
    kept = {name: float(margin) for name, margin in wanted.items() if margin is not None}
    if not kept:
        raise ArgumentError("`margins` leaves out every measure: there is nothing to compare")
    return kept


def _kept(before: Any, entry: str | None) -> tuple[Any, str]:
    """The model before, or the profile that `before` is or is the file of, with what to call that."""
    where = ""
    if isinstance(before, HeadsProfile):
        where = f"the profile of {before.provenance.model}"
    elif isinstance(before, (str, os.PathLike)):
        path = expanded(before)
        if path.suffix == ".json" or (is_file(path) and path.suffix != GGUF):
            return read_profile(path, entry), repr(os.fspath(before))
    if entry is not None:
        raise ArgumentError("`entry` names an entry of a baseline file, and `before` is none")
    return before, where


@dataclass(frozen=True)
class _Pair:
    """The model before, or what was kept of it, and the later one, with the rows of text of both."""

    before: Prober | HeadsProfile
    after: Prober
    texts: tuple[TextScores | None, TextScores | None]
    notes: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """How many sequences there are of the model before."""
        return self.before.probed.n_sequences if isinstance(self.before, HeadsProfile) else sys.maxsize

    @property
    def of_text(self) -> str:
        """What of a text was compared."""
        scores = self.texts[1]
        return "" if scores is None else f"; {len(scores.late_loss)} rows of {scores.n_positions} positions of text"

    def draw(self, size: int) -> tuple[HeadsProfile, Measured]:
        """Draw up to `size` sequences; what is kept of the model before on them, and what the later one does there."""
        self.after.draw(size)
        if isinstance(self.before, HeadsProfile):
            profile = self.before.first(size)
        else:
            self.before.draw(size)
            profile = self.before.profile(self.texts[0])
        return profile, self.after.measured(self.texts[1])


def _of_models(before: ModelUnderTest, later: ModelUnderTest, text: Any, limits: _Limits, seed: int | None) -> _Pair:
    first = _prober_before(before, before.space, seed)
    second = Prober(later, first.space, first.seed)
    if text is None:
        return _Pair(first, second, (None, None))
    rows = first.rows(text, limits.max_rows)
    if later.tokenizer is not None and not np.array_equal(second.rows(text, limits.max_rows), rows):
        raise ArgumentError(
            f"`text` is not the same tokens for {before.name} and {later.name}: in-context learning scores per token are then "
            "not comparable; compare models of one tokenizer, or leave the text out"
        )
    return _Pair(first, second, (first.in_context(rows, limits.max_rows), second.in_context(rows, limits.max_rows)))


def _of_profile(kept: HeadsProfile, where: str, later: ModelUnderTest, text: Any, seed: int | None) -> _Pair:
    if seed not in (None, kept.probed.seed):
        raise ArgumentError(f"`seed` is {seed}, {where} was drawn with seed {kept.probed.seed}: leave it out, or take it anew")
    prober = Prober(later, kept.probed.space, kept.probed.seed)
    check_same(prober, kept, where)
    if kept.text is None:
        if text is not None:
            raise BaselineError(f"{where} has no text to compare with: take it anew with `text=`, or leave the text out")
        return _Pair(kept, prober, (None, None))
    if text is None:
        return _Pair(kept, prober, (kept.text, None), ("in-context learning is not compared: no `text` was given",))
    scores = prober.in_context(prober.rows(text, kept.text.max_rows), kept.text.max_rows)
    if scores.digest != kept.text.digest:
        raise BaselineError(f"`text` makes other rows of token ids than that of {where}: give the same text, or take it anew")
    return _Pair(kept, prober, (kept.text, scores))


def _held(pair: _Pair, margins: Mapping[str, float], limits: _Limits) -> Held:
    """Look at ever more sequences until it is clear, or there are no more."""
    looks = look_sizes(min(limits.max_sequences, pair.most))
    error_rate = limits.error_rate / len(looks)
    begun, seen = spent_so_far(), list[tuple[HeadsProfile, Measured]]()
    for look in looks:
        if not extend(seen, partial(pair.draw, look)):
            break
        size, (profile, later) = look, seen[-1]
        found = judge_preserved(profile, later, margins, max_lost=limits.max_lost, error_rate=error_rate)
        if not found.more_sequences:
            break
    each = (spent_so_far() - begun) / size
    about = provenance(pair.after.subject, seed=profile.probed.seed, n_sequences=size, probe=later.found.described + pair.of_text)
    notes = about.notes + later.notes + pair.notes + _notes(profile.provenance)
    heads = _heads(later, found, error_rate)
    evidence = Evidence(
        claim="heads_preserved",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=replace(about, notes=notes),
        heads=heads,
        estimates=found.estimates or {},
        thresholds={**margins, "min_prefix_matching": MIN_PREFIX_MATCHING} if heads else margins,
        confidence=1 - limits.error_rate,
        next_step=_settle(found, size, each, is_profile=isinstance(pair.before, HeadsProfile), spent=size < pair.most),
        head_map=() if later.scores is None else head_map(later.scores["prefix_matching"]),
        compared=found.compared,
        before=profile.provenance,
    )
    return Held(evidence, pair.before if isinstance(pair.before, HeadsProfile) else pair.before.measured(), later)


def _notes(before: Provenance) -> tuple[str, ...]:
    """What the model before was."""
    return (
        f"before is {before.model}: {before.how}, weights {before.fingerprint}",
        *(f"before: {note}" for note in before.notes),
    )


def _heads(later: Measured, found: Preservation, error_rate: float) -> tuple[HeadEvidence, ...]:
    """The later model's heads that induction heads before were matched with and that are within the margin, strongest first."""
    kept = {match.after for match in found.matches if match.is_kept and match.role == "induction"}
    if not kept:
        return ()
    every = head_evidence(later.found, Thresholds(), error_rate, complete=True)
    return tuple(head for head in every if HeadId(head.layer, head.head) in kept)


def _settle(found: Preservation, size: int, each: float, *, is_profile: bool, spent: bool) -> str:
    """What would tell, as an instruction."""
    if found.few_rows:
        return f"give a text of {MIN_ROWS} rows or more"
    if found.reason == "not_comparable":
        left_out = ", ".join(f'"{name}": None' for name in OF_HEADS)
        return f"compare behaviour alone: margins={{{left_out}}}"
    again = "profile the model before again with " if is_profile else ""
    wanted = []
    more = found.more_sequences
    larger = what_more(more * each, f"about {more} more sequences") if more else ""
    if larger:
        wanted.append(larger)
    elif found.more_sequences:
        option = "max_sequences" if spent or not is_profile else "n_sequences"
        where = again if option == "n_sequences" else ""
        wanted.append(f"about {found.more_sequences} more sequences: {where}{option}={size + found.more_sequences}")
    if found.more_rows:
        wanted.append(f"about {found.more_rows} more rows of text: {again}max_rows={found.rows + found.more_rows}")
    return "; ".join(wanted)
