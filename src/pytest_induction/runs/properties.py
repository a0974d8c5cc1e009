"""Does a property hold on generated sequences: of a model, and from which snapshot of a training on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_induction.display import Displayed, View, cells, rows_table
from pytest_induction.errors import RunError, user_facing, whole_number
from pytest_induction.expectations import checked_bounds, expect
from pytest_induction.formatting import fitted
from pytest_induction.probes.sequences import ProbeSequence, line
from pytest_induction.progress import progress
from pytest_induction.properties.claims import Example, Property, PropertyClaim
from pytest_induction.records import Estimate, Evidence, Verdict
from pytest_induction.runs.checkpoints.trainings import opened
from pytest_induction.runs.lines import hunted_steps, labels_of
from pytest_induction.runs.phase_change.claims import provenance_of
from pytest_induction.runs.record import Hunted, TrainingRun

if TYPE_CHECKING:
    from pytest_induction.measuring.observing import ModelLike
    from pytest_induction.runs.checkpoints.loading import Factory
    from pytest_induction.runs.checkpoints.trainings import TrainingLike

MAX_EXAMPLES = 200
PropertyName = str  # of a ready property, or path/file.py:function
ONSET = "holds_from_"  # what the estimate of it is called, with its unit


@dataclass(frozen=True, eq=False, repr=False)
class PropertyOverTraining(Displayed, Mapping[int, Example | None]):
    """At which snapshots of a training a property holds on generated sequences, and what fails at the others.

    A mapping: the step of each snapshot that could be looked at -> the smallest sequence that fails there (a tuple of them where
    the property is of pairs), or None where none does. `name` is the property as it is written, with its options. `run` is the
    training, `run.snapshots[i].hunts[name]` what was found at each snapshot, a `Hunted`. "Holds" is said of the sequences that
    were looked at, never of all there are.
    """

    name: str
    run: TrainingRun

    def view(self) -> View:
        """What there is to show."""
        rows = [
            {"step": step, "holds": each.holds, **cells(each), "counterexample": ", ".join(map(repr, each.counterexample))}
            for step, each in self.hunts.items()
        ]
        return View(str(self), (), (rows_table("snapshots", rows),))

    def __getitem__(self, step: int) -> Example | None:
        return self.counterexamples[step]

    def __iter__(self) -> Iterator[int]:
        return iter(self.holds)

    def __len__(self) -> int:
        return len(self.holds)

    def __str__(self) -> str:
        until, onset = self.fails_until, self.holds_from
        many = f"fails at {sum(not holds for holds in self.holds.values())} of {_snapshots(len(self))}"
        fails = "" if until is None else f"{many}, the last step {until}: {self[until]!r}"
        holds = "" if onset is None else f"holds from step {onset} on, as far as was looked at"
        return f"{self.name} over {self.run.name}: {'; '.join(filter(None, (holds, fails))) or 'not looked at'}"

    @property
    def hunts(self) -> dict[int, Hunted]:
        """Step -> what was found, of every snapshot that was to be looked at."""
        return {int(self.run.steps[place]): hunted for place, hunted in hunted_steps(self.run, self.name)}

    @property
    def holds(self) -> dict[int, bool]:
        """Step -> whether it holds there, of every snapshot that could be looked at."""
        return {step: hunted.holds for step, hunted in self.hunts.items() if hunted.holds is not None}

    @property
    def holds_from(self) -> int | None:
        """The step of the snapshot from which on it holds at all that could be looked at; None where it fails at the last."""
        found = None
        for step, holds in reversed(self.holds.items()):
            if not holds:
                break
            found = step
        return found

    @property
    def fails_until(self) -> int | None:
        """The step of the last snapshot at which it fails; None where it fails at none."""
        return next((step for step, holds in reversed(self.holds.items()) if not holds), None)

    @property
    def counterexamples(self) -> dict[int, Example | None]:
        """The mapping itself, as a dict."""
        return {step: _example(each) for step, each in self.hunts.items() if each.holds is not None}

    @property
    def shortest_periods(self) -> dict[int, int]:
        """Step -> the shortest period of all sequences that were seen to fail there."""
        return {step: each.shortest_period for step, each in self.hunts.items() if each.shortest_period is not None}

    @property
    def fewest_copies(self) -> dict[int, int]:
        """Step -> the smallest number of copies of all sequences that were seen to fail there."""
        return {step: each.fewest_copies for step, each in self.hunts.items() if each.fewest_copies is not None}

    @property
    def n_examples(self) -> int:
        """How many sequences were looked at, over all snapshots."""
        return sum(each.n_examples for each in self.hunts.values())


@user_facing
def assert_property_holds(
    model: ModelLike,
    *,
    property: PropertyName | Property,  # noqa: A002 - what it is
    options: Mapping[str, Any] | None = None,
    probes: str | None = None,
    probe_options: Mapping[str, Any] | None = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int | None = None,
) -> Evidence:
    """Assert that a property holds on every sequence that hypothesis generates: `check_property` as a claim, for gates too.

    `property` is a ready one by its name, a function, or what names one (`path/file.py:function`), with the keyword arguments
    `options`; `probes` the name of one of `pytest_induction.probes.strategies`, needed where the property is your own, and
    `probe_options` what it is given, such as {"period": (10, 15)}.

    Returns the evidence. No confidence is stated: sequences are searched for one that fails, and no sample. Raises
    `ExpectationFailed`, which carries the evidence; its summary has the smallest sequence that fails.

    >>> assert_property_holds(model, property="completes_repeats", options={"min_accuracy": 0.5})     # doctest: +SKIP
    """
    from pytest_induction.measuring.observing import provenance
    from pytest_induction.model.load import load_model
    from pytest_induction.properties.hunt import Hunt, strategy_for

    claim = PropertyClaim.of(_meant(property), dict(options or {}))
    most = whole_number("max_examples", max_examples, least=1)
    hunt = Hunt(load_model(model), claim)
    with progress(str(claim), most):
        failed = hunt.search(strategy_for(_probes(probes, probe_options, claim), claim, hunt.subject), most, seed, climb=False)
    if failed is None:
        hunt.check_asked()
    about = provenance(hunt.subject, n_sequences=hunt.n_examples, probe="generated and shrunk")
    if failed is not None:
        summary = f"{claim} fails: {hunt.failure(failed).splitlines()[0]}"
        settle = f"look at this one alone: check_property(model, {claim.name!r}, probes=[{line(failed)}]{_given(claim)})"
        evidence = Evidence("property_holds", Verdict.REFUTED, "fails", summary, about, confidence=None, next_step=settle)
    else:
        margin, worst = hunt.worst
        near = "" if margin is None else f", by {margin:.3g} at least: {worst!r}"
        summary = f"{claim} holds on all of {hunt.n_examples} generated sequences{near}"
        evidence = Evidence("property_holds", Verdict.SHOWN, "holds", summary, about, confidence=None)
    return expect(evidence)


@user_facing
def assert_property_holds_from(
    run: TrainingLike,
    *,
    property: PropertyName | Property,  # noqa: A002 - what it is
    options: Mapping[str, Any] | None = None,
    probes: str | None = None,
    probe_options: Mapping[str, Any] | None = None,
    before_tokens: float | None = None,
    before_step: float | None = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int | None = None,
    bisect: bool = True,
) -> Evidence:
    """Assert that a property holds on generated sequences from some snapshot of a training on, up to the last one.

    `run` is a training whose weights are there, or in which a recorder hunted this property (see `check_property`). With
    `before_tokens` or `before_step` that snapshot must come by then. The property begins to hold somewhere after the last
    snapshot at which it fails: where the bound lies between that one and the next, the verdict is UNDETERMINED. `property`,
    `options`, `probes` and `probe_options` as in `assert_property_holds`.

    Returns the evidence with the estimates `holds_from_steps` and `holds_from_tokens`, from the last snapshot at which it fails
    to the first from which on it holds. No confidence is stated: sequences are searched for one that fails, and no sample.

    >>> assert_property_holds_from(run, property="completes_repeats", before_tokens=2e6)              # doctest: +SKIP
    """
    claim = PropertyClaim.of(_meant(property), dict(options or {}))
    most = whole_number("max_examples", max_examples, least=1)
    thresholds = checked_bounds(before_tokens=before_tokens, before_step=before_step)
    chosen = _probes(probes, probe_options, claim)
    history = found_over(run, claim, probes=chosen, most=most, seed=seed, factory=None, bisect=bisect, climb=False)
    return expect(judged_over(history, thresholds=thresholds))


def found_over(
    given: TrainingLike,
    claim: PropertyClaim,
    *,
    probes: Any,
    most: int,
    seed: int | None,
    factory: Factory | None,
    steps: Iterable[int] | None = None,
    bisect: bool,
    climb: bool,
) -> PropertyOverTraining:
    """What the hunt finds over a training; of one without weights, what its recorder found."""
    run, models = opened(given, factory=factory, steps=steps)
    label = str(claim)
    if models is not None:
        from pytest_induction.runs.hunting import Hunting, hunted_over

        hunting = Hunting(claim, run.name, probes=probes, most=most, seed=seed, climb=climb, keep=True)
        return PropertyOverTraining(label, hunted_over(run, models, hunting, bisect=bisect))
    if not hunted_steps(run, label):
        seen = ", ".join(labels_of(run))
        raise RunError(
            f"run {run.name!r} has no weights, and `{label}` was not hunted while it was recorded"
            f"{f' (only {seen})' if seen else ''}: name its checkpoints, or record it with hunt=({claim.name!r},)"
        )
    return PropertyOverTraining(label, run)


def judged_over(
    history: PropertyOverTraining,
    *,
    holds_from: int | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Evidence:
    """The verdict on what was found: at all snapshots from a step on, or from some snapshot on that comes before the bounds."""
    thresholds = thresholds or {}
    verdict, reason, summary, settle = _judged(history, holds_from, thresholds)
    return Evidence(
        "property_holds_from",
        verdict,
        reason,
        f"{history.name} {summary}",
        provenance_of(history.run),
        estimates=_onset(history),
        thresholds=dict(thresholds),
        confidence=None,
        next_step=settle,
        is_asserted=True,
    )


def failure_of(history: PropertyOverTraining, claim: PropertyClaim, evidence: Evidence) -> tuple[str, Example | None]:
    """The message of a training that fails, and the smallest sequence that fails at the last snapshot at which one does."""
    step = history.fails_until
    example = None if step is None else history.counterexamples[step]
    about = evidence.provenance
    next_step = (
        "" if example is None else f"probes=[{line(example)}]{_given(claim)}) of the model at step {step} looks at it alone"
    )
    message = fitted(
        f"{claim.name} does not hold: {evidence.summary.removeprefix(history.name).lstrip()}",
        [f"  why: {history.hunts[step].failure}"] if step is not None else [],
        f"  measured: {about.model}, {about.probe}",
        f"  next: check_property(model, {claim.name}, {next_step}",
    )
    return message, example


Judged = tuple[Verdict, str, str, str]


def _judged(history: PropertyOverTraining, holds_from: int | None, bounds: Mapping[str, float]) -> Judged:
    run, holds = history.run, history.holds
    last = int(run.steps[-1]) if len(run) else None
    fails_until, onset = history.fails_until, history.holds_from
    if not holds:
        problem = next((each.problem for each in history.hunts.values() if each.problem), "the run is empty")
        return Verdict.UNDETERMINED, "not_looked_at", f"could be looked at in no snapshot: {problem}", LOAD
    if holds_from is not None:
        return _from_step(history, holds_from)
    if fails_until is not None and (onset is None):
        if fails_until != last:
            seen = f"fails at step {fails_until}, the last that could be looked at: {_failing(history, fails_until)}"
            return Verdict.UNDETERMINED, "end_not_looked_at", seen, _to_settle(history, fails_until)
        seen = f"fails at the last snapshot, step {last}: {_failing(history, fails_until)}"
        return Verdict.REFUTED, "fails_at_the_end", seen, ""
    late = _too_late(history, bounds)
    if late is not None and late[0] is Verdict.REFUTED:
        return late
    unknown = _unknown(history, onset or 0)
    return unknown or late or (Verdict.SHOWN, "holds", _holding(history, onset or 0), "")


LOAD = "see why a checkpoint cannot be loaded: `python -m pytest_induction sweep`"
RECORD = "record with a larger `max_overhead`, or with `recorder.final(...)` at the end; or name the checkpoints"


def _from_step(history: PropertyOverTraining, holds_from: int) -> Judged:
    """Whether it holds at every snapshot from a step on."""
    after = [int(step) for step in history.run.steps if step >= holds_from]
    if not after:
        seen = f"is not known from step {holds_from} on: the last snapshot is of step {history.run.steps[-1]}"
        return Verdict.UNDETERMINED, "no_snapshots", seen, "train further, or ask from an earlier step on"
    failing = [step for step in after if history.holds.get(step) is False]
    if failing:
        many = f"at {len(failing)} of {len(after)} snapshots from step {holds_from} on, the last"
        seen = f"fails {many} step {failing[-1]}: {_failing(history, failing[-1])}"
        return Verdict.REFUTED, "fails_later", seen, ""
    onset = history.holds_from
    if onset is None or (onset > after[0] and history.fails_until is not None):
        seen = f"was not looked at between step {history.fails_until}, where it fails, and step {onset}"
        return Verdict.UNDETERMINED, "holds_from_unclear", seen, RECORD
    return _unknown(history, after[0]) or (Verdict.SHOWN, "holds", _holding(history, onset), "")


def _too_late(history: PropertyOverTraining, bounds: Mapping[str, float]) -> Judged | None:
    """What is wrong with when it begins to hold, if anything is."""
    estimates = _onset(history)
    for name, bound in bounds.items():
        unit = "tokens" if name == "before_tokens" else "steps"
        onset = estimates.get(f"{ONSET}{unit}")
        if onset is None:
            seen = f"{_holding(history, history.holds_from or 0)}; the number of tokens is not known"
            return (
                Verdict.UNDETERMINED,
                "tokens_not_known",
                seen,
                "ask with `before_step`, or give the tokens of a step (`sweep(..., tokens_per_step=)`)",
            )
        between = f"begins to hold {_between(onset, unit)}, and must by {bound:.4g}"
        if history.fails_until is not None and onset.low >= bound:
            seen = f"{between}; at step {history.fails_until} this fails: {_failing(history, history.fails_until)}"
            return Verdict.REFUTED, "too_late", seen, ""
        if onset.high > bound:
            return Verdict.UNDETERMINED, "holds_from_unclear", between, "look at checkpoints between the two"
    return None


def _between(onset: Estimate, unit: str) -> str:
    if math.isnan(onset.low):
        return f"at the first snapshot already, of {onset.high:.4g} {unit}"
    return f"after {onset.low:.4g} {unit} and by {onset.high:.4g}"


def _unknown(history: PropertyOverTraining, first: int) -> Judged | None:
    """What keeps it from being known that it holds at all snapshots from a step on, if anything does."""
    broken = [(step, each.problem) for step, each in history.hunts.items() if step >= first and each.problem]
    if broken:
        (step, problem), more = broken[0], f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        seen = f"could not be looked at at step {step}{more}: {problem}"
        return Verdict.UNDETERMINED, "not_looked_at", seen, LOAD
    last, looked = int(history.run.steps[-1]), max(history.holds)
    if looked != last:
        seen = f"holds from step {history.holds_from} to step {looked}, and was not looked at after that, up to step {last}"
        return Verdict.UNDETERMINED, "end_not_looked_at", seen, _to_settle(history, looked)
    return None


def _to_settle(history: PropertyOverTraining, step: int) -> str:
    """What to do where the last snapshots were not looked at."""
    return LOAD if any(each.problem for at, each in history.hunts.items() if at > step) else RECORD


def _holding(history: PropertyOverTraining, first: int) -> str:
    """From when on it holds, and on what: nobody has seen all sequences."""
    at = [each for step, each in history.hunts.items() if step >= first and each.holds]
    own = [each.n_examples for each in at if not each.is_replayed]
    many = f"{min(own)}" if own and min(own) == max(own) else f"{min(own, default=0)} to {max(own, default=0)}"
    parts = [f"on all of {many} sequences generated at {'each of ' if len(own) > 1 else ''}{_snapshots(len(own))}"]
    if len(own) < len(at):
        parts.append(f"at the {len(at) - len(own)} others on what failed before or held by the least")
    left_out = sum(step >= first for step in map(int, history.run.steps)) - len(at)
    if left_out:
        parts.append(f"{_snapshots(left_out)} between not looked at")
    until = history.fails_until
    before = "" if until is None else f"; at step {until} this fails: {_failing(history, until)}"
    return f"holds from step {history.holds_from} on: {', '.join(parts)}{before}"


def _snapshots(count: int) -> str:
    return f"{count} snapshot{'s' if count != 1 else ''}"


def _failing(history: PropertyOverTraining, step: int) -> str:
    return repr(history.counterexamples[step])


def _onset(history: PropertyOverTraining) -> dict[str, Estimate]:
    """When it begins to hold: after the last snapshot at which it fails (NaN where there is none), by the next."""
    onset, until = history.holds_from, history.fails_until
    if onset is None:
        return {}
    place = {int(step): number for number, step in enumerate(history.run.steps)}
    known = {"steps": history.run.steps.astype(float), "tokens": history.run.tokens}
    found = {}
    for unit, values in known.items():
        high = float(values[place[onset]])
        low = math.nan if until is None else float(values[place[until]])
        if math.isfinite(high):
            found[f"{ONSET}{unit}"] = Estimate(high, low, high, unit)
    return found


def _example(hunted: Hunted) -> Example | None:
    found: tuple[ProbeSequence, ...] = hunted.counterexample
    return None if not found else found[0] if len(found) == 1 else found


def _meant(given: PropertyName | Property) -> str | Property:
    """A property, its function found where that is named by a file or module."""
    if not isinstance(given, str) or ":" not in given:
        return given
    from pytest_induction.model.factories import function_named

    return function_named(given)


def _probes(probes: Any, options: Mapping[str, Any] | None, claim: PropertyClaim) -> Any:
    """What draws the sequences: a strategy by its name with its options, lists as the pairs that they stand for in a file."""
    if not options:
        return probes
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

    def drawn(model: Any) -> Any:
        from pytest_induction.properties.hunt import strategy_for

        return strategy_for(probes, claim, model, given)

    return drawn


def _given(claim: PropertyClaim) -> str:
    return "".join(f", {name}={value!r}" for name, value in claim.options.items())
