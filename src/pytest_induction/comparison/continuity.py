"""The assertion of continuity: the members of a family, models or trainings of several sizes, look alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_induction.comparison.families import Runs, members_of, unlike
from pytest_induction.comparison.margins import HEADS, ICL, LATE, OF_MODELS, OF_RUNS, OV, Measure, judge_continuity
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, MAX_TEXT_ROWS, Judgement, extend, priced_claim
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import expect
from pytest_induction.records import Evidence, Provenance
from pytest_induction.runs.opening import load_run
from pytest_induction.runs.phase_change.claims import provenance_of
from pytest_induction.runs.phase_change.finding import ERROR_RATE as ERROR_RATE_OF_RUNS
from pytest_induction.spending import Price, spend_at_most, spent_so_far, what_more
from pytest_induction.spending import notes as budget_notes
from pytest_induction.statistics import FIRST_LOOK, equivalence, look_sizes

if TYPE_CHECKING:
    from pytest_induction.comparison.families import Family
    from pytest_induction.model.protocol import ModelUnderTest

CLAIM = "continuity"
PAIR = 2  # members, where none are given


def price_of_family(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of all members: rounds until it is clear, and the rows of a text. Tokens of each count alike, whatever its size."""
    from pytest_induction.behaviour.text import row_length
    from pytest_induction.measuring.rounds import price_of_probes

    members = PAIR if given["family"] is None else len(given["family"])
    text = 0 if given["text"] is None else given["max_rows"] * row_length(subject)
    first, rounds = (price_of_probes(subject.space, count) for count in (FIRST_LOOK, given["max_sequences"]))
    return Price(members * first.least, members * (rounds.most + text))


@user_facing
@priced_claim(price_of_family)
def assert_continuity(
    family: Family,
    *,
    text: Any = None,
    margins: Mapping[str, float | None] | None = None,
    max_sequences: int = MAX_SEQUENCES,
    max_rows: int = MAX_TEXT_ROWS,
    budget: float | str | None = None,
    error_rate: float | None = None,
    seed: int | None = None,
) -> Evidence:
    """Assert that the members of a family agree: every measure is the same in all of them, within a stated margin.

    `family` are two or more models (whatever `load_model` takes), or two or more training runs (whatever `load_run` takes): a
    sequence, by size, or a mapping of names to them. All models are in memory at once. The paper argues from small models to
    large ones because what is measured looks alike at every size; "looks alike" is shown here by equivalence tests.

    Of models, on the same random tokens for all (ids that every one has, as many as fit the shortest context), with the default
    margins: `prefix_matching` of the best head, 0.1, chosen on every other sequence and measured on those between;
    `repeat_accuracy`, 0.1, and `repeat_loss`, 0.5 nats, on repeated tokens; `ov_eigenvalue` of that head, 0.3, where the weights
    of all are known; and with `text` (a string, a path or token ids) `icl_score`, 0.15 nats, on the same tokens at the
    same places of rows as long as the shortest context. Of runs: `onset` and `end` of the phase change, 0.5 decades of tokens;
    `icl_score`, 0.15 nats, and `prefix_matching` of the best head, 0.1, at the last snapshot. `margins` replaces these by name;
    None leaves a measure out.

    SHOWN where for every measure and pair the interval of the difference, of level 1 - 2 x the error rate, lies within the
    margin (two one-sided tests): never because no difference was found. REFUTED where for some measure and pair the interval
    that holds for all of them together lies wholly outside. Sequences are drawn in rounds until it is clear, at most
    `max_sequences`; of a text `max_rows` rows are taken. Else UNDETERMINED, which fails too and says which measure is not clear,
    and what would settle it. `error_rate` is that of the verdict, by default 0.001 for models and 0.05 for runs, for which
    `max_sequences`, `max_rows` and `seed` mean nothing. Members that all lack something are alike in it, and the summary says so.

    Returns the evidence: `.estimates` has the largest difference of each measure, `.thresholds` the margins, and
    `.provenance.notes` the members. Raises `ExpectationFailed`, which carries it, `ArgumentError` for a family of one or a margin
    of an unknown name, `TextError` or `ArgumentError` where a text is not the same tokens for all: scores per token are then not
    comparable.

    >>> from pytest_induction.planted import induction_head
    >>> assert_continuity({"small": induction_head(n_heads=2), "large": induction_head(n_layers=3)}).reason
    'alike'
    """
    spend_at_most(budget)
    names, members, are_runs = members_of(family)
    given = _margins(margins or {}, OF_RUNS if are_runs else OF_MODELS)
    if error_rate is not None and not 0 < error_rate < 0.5:
        raise ArgumentError(f"`error_rate` must lie between 0 and 0.5, got {error_rate}")
    if are_runs:
        if text is not None:
            raise ArgumentError("`text` is for models: of a run what was recorded is compared")
        return expect(_of_runs(names, members, given, ERROR_RATE_OF_RUNS if error_rate is None else error_rate))
    if text is not None and ICL not in given:
        raise ArgumentError(f"`text` is for the measure {ICL}, which is left out by its margin of None")
    if text is None and (margins or {}).get(ICL) is not None:
        raise ArgumentError(f"`margins` has {ICL}, and {ICL} needs a `text`")
    limits = Limits(
        whole_number("max_sequences", max_sequences, least=1),
        whole_number("max_rows", max_rows, least=2),
        ERROR_RATE if error_rate is None else error_rate,
        None if seed is None else whole_number("seed", seed, least=0),
    )
    return expect(_of_models(names, members, given, text, limits))


def _margins(given: Mapping[str, float | None], known: Mapping[str, Measure]) -> dict[str, float]:
    """The margin of every measure that is not left out."""
    for name, margin in given.items():
        if name not in known:
            raise ArgumentError(f"`margins` has no measure {name!r} of such a family: it has {', '.join(known)}")
        if margin is not None and not (isinstance(margin, (int, float)) and 0 < margin < math.inf):
            raise ArgumentError(f"`margins` of {name} must be a number above 0, or None to leave it out, got {margin!r}")
    wanted = {name: given.get(name, measure.margin) for name, measure in known.items()}
    kept = {name: float(margin) for name, margin in wanted.items() if margin is not None}
    if not kept:
        raise ArgumentError("`margins` leaves out every measure: there is nothing to compare")
    return kept


@dataclass(frozen=True)
class Limits:
    """What a verdict on models may take: sequences, rows of text, error rate, and the seed, None for that of the first model."""

    max_sequences: int
    max_rows: int
    error_rate: float
    seed: int | None


def _of_runs(names: tuple[str, ...], members: Sequence[Any], margins: Mapping[str, float], error_rate: float) -> Evidence:
    opened = [load_run(member) for member in members]
    names = names or unlike(run.name for run in opened)
    runs = Runs(opened, names, error_rate)
    found, notes = runs.measured(margins)
    judgement = judge_continuity(found, margins, names, error_rate=error_rate)
    parts = [provenance_of(run) for run in opened]
    about = _provenance(names, parts, f"{len(opened)} runs", is_run=True)
    evidence = _evidence(judgement, {name: margins[name] for name in found}, about, notes, error_rate)
    return replace(evidence, changes=runs.changes if {"onset", "end"} & margins.keys() else ())


def _evidence(
    judgement: Judgement, thresholds: Mapping[str, float], about: Provenance, notes: tuple[str, ...], error_rate: float
) -> Evidence:
    return Evidence(
        CLAIM,
        judgement.verdict,
        judgement.reason,
        "; ".join((judgement.summary, *notes)),
        replace(about, notes=(*about.notes, *notes)),
        estimates=judgement.estimates or {},
        thresholds=thresholds,
        confidence=1 - error_rate,
        next_step=judgement.next_step,
    )


def _provenance(names: Sequence[str], parts: Sequence[Provenance], probe: str, *, is_run: bool = False) -> Provenance:
    """Where what is said of a family comes from; what each member is stands in the notes."""
    measured_on = (part.probe if is_run else f"{part.how}, weights {part.fingerprint}" for part in parts)
    members = [f"{name} is {part.model}: {what}" for name, part, what in zip(names, parts, measured_on, strict=True)]
    of_all = budget_notes()
    notes = [f"{name}: {note}" for name, part in zip(names, parts, strict=True) for note in part.notes if note not in of_all]
    return replace(
        parts[0],
        model=", ".join(names),
        fingerprint="+".join(part.fingerprint for part in parts),
        backend=_each(part.backend for part in parts),
        n_layers=0,
        n_heads=0,
        dtype=_each(part.dtype for part in parts),
        device=_each(part.device for part in parts),
        layers=(),
        probe=probe,
        notes=(*members, *notes, *of_all),
    )


def _each(texts: Iterable[str]) -> str:
    """All of them, each once."""
    return ", ".join(dict.fromkeys(texts))


def _of_models(
    names: tuple[str, ...], members: Sequence[Any], margins: Mapping[str, float], text: Any, limits: Limits
) -> Evidence:
    from pytest_induction.comparison.family_models import Models
    from pytest_induction.measuring.observing import provenance
    from pytest_induction.model.load import load_model

    subjects = [load_model(member) for member in members]
    if {HEADS, OV} & margins.keys():
        for subject in subjects:
            _ = subject.reading  # refuse by name here, before anything is measured
    names = names or unlike(subject.name for subject in subjects)
    seed = subjects[0].seed if limits.seed is None else limits.seed
    models, looks = Models(subjects, names, seed), look_sizes(limits.max_sequences)
    error_rate = limits.error_rate / len(looks)
    fixed = models.in_context(text, limits.max_rows) if text is not None else {}
    late = fixed.pop(LATE, None)
    eigenvalues, notes = models.eigenvalues() if OV in margins else (None, ())
    begun, rounds = spent_so_far(), list[None]()
    for size in looks:
        if not extend(rounds, partial(models.draw, size)):
            break
        found = {**models.repeats(margins), **models.copying(eigenvalues), **fixed}
        judgement = judge_continuity(found, margins, names, error_rate=error_rate)
        if not judgement.more_sequences:
            break
    if judgement.more_sequences:
        each = (spent_so_far() - begun) / models.n_sequences
        wanted = what_more(judgement.more_sequences * each, f"about {judgement.more_sequences} more sequences")
        judgement = replace(judgement, next_step=wanted or judgement.next_step)
    if late is not None:
        largest = equivalence(late.between, math.inf, error_rate).difference
        judgement = replace(judgement, estimates={**(judgement.estimates or {}), LATE: largest})
    parts = [provenance(subject, seed=seed, n_sequences=models.n_sequences) for subject in subjects]
    about = _provenance(names, parts, f"{models.described}{models.of_text}")
    thresholds = {name: margins[name] for name in found}
    return _evidence(judgement, thresholds, about, (*notes, *models.lacking(margins)), limits.error_rate)
