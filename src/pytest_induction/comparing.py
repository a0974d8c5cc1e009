"""`python -m pytest_induction compare A B`: what each of the two is, opened and measured, and both side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_induction.baselines.store import Numbers
from pytest_induction.comparison.sides import UNKNOWN, Side, SideBySide, unpaired_rows
from pytest_induction.errors import ArgumentError, BaselineError, ExpectationFailed, ModelError, ReportError, RunError, reason
from pytest_induction.files import expanded, is_directory, is_file, is_there, read_text
from pytest_induction.model.specs import ADAPTER_CONFIG, CONFIG, FORMS, GGUF, gguf_file
from pytest_induction.ranges import SCORES
from pytest_induction.records import OF_DIFFERENCES, ChartData, Estimate, Evidence, HeadId
from pytest_induction.schema import parsed
from pytest_induction.statistics import SHARE

if TYPE_CHECKING:
    from pytest_induction.comparison.preservation import Measured
    from pytest_induction.comparison.profiles import HeadsProfile
    from pytest_induction.measuring.rounds import Round
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.runs.record import Snapshot, TrainingRun

MAPPED = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
OF_TRAINING = (  # recorded of runs alone
    *("foretold_gap", "match_gain", "common_advantage", "rare_advantage"),
    *("markov_unigram_kl", "markov_bigram_kl", "in_context_preference"),
)
BEHAVIOUR = (
    "repeat_accuracy",
    "repeat_loss",
    "icl_score",
    "advantage",
    "first_loss",
    "early_loss",
    "late_loss",
    "loss",
    *OF_TRAINING,
)
CURVES = ("loss", "icl_score", "repeat_loss", "repeat_accuracy", *OF_TRAINING)
BEST = {"prefix_matching": "prefix matching of the best head", "previous_token": "previous token of the best head"}
N_SEQUENCES = 24  # of a model that is measured on sequences of its own
MOST_POINTS = 240  # of a curve
LARGEST = 2**26  # bytes of a file
WHAT = f"a model ({FORMS}), a run or log, the JSON of a report or of evidence, or a baseline file"
HEAD = re.compile(r"(?:(?P<score>\w+)\.)?L(?P<layer>\d{1,6})H(?P<head>\d{1,6})(?:\.(?P<after>\w+))?")
UNJUDGED = (
    "no verdict: two models, or a profile and a model, are judged on the same sequences, and two trainings by their changes"
)


@dataclass(frozen=True)
class Settings:
    """How models are loaded and probed: `text` is for in-context learning, `loading` as `load_model` takes it."""

    text: Path | None
    seed: int
    loading: Mapping[str, Any]


@dataclass(frozen=True)
class NamedModel:
    """A model that is not loaded yet."""

    spec: str


@dataclass(frozen=True)
class Kept:
    """An entry of numbers of a baseline file."""

    name: str
    numbers: Numbers


@dataclass(frozen=True)
class Recorded:
    """The verdicts on one model or run, and its charts."""

    evidence: tuple[Evidence, ...]
    charts: tuple[ChartData, ...]


@dataclass(frozen=True)
class Trained:
    """A run, and the snapshot of it that is looked at: that of `step`, or the last."""

    run: TrainingRun
    step: int | None


Opened = Any  # NamedModel | HeadsProfile | Kept | Recorded | Trained


def compare(first: str, second: str, settings: Settings) -> SideBySide:
    """Both side by side. Raises an error of ours, of one line, where either cannot be opened or measured.

    Two of one name, as runs that were both recorded as `run`, are called as they were given.
    """
    found = _compared(first, second, settings)
    if found.before.name != found.after.name or first == second:
        return found
    return replace(found, before=replace(found.before, name=first), after=replace(found.after, name=second))


def _compared(first: str, second: str, settings: Settings) -> SideBySide:
    from pytest_induction.comparison.profiles import HeadsProfile

    one, other = opened(first), opened(second)
    if isinstance(other, NamedModel) and isinstance(one, (NamedModel, HeadsProfile)):
        return _judged(one, other, settings)
    if isinstance(one, Trained) and isinstance(other, Trained):
        return _of_runs(one, other)
    before, after = _side(one, settings), _side(other, settings)
    missing = () if set(before.scores) & set(after.scores) else ("no score of heads is known of both",)
    return SideBySide(before, after, unpaired_rows(before, after), missing=(UNJUDGED, *missing))


def opened(spec: str) -> Opened:
    """What somebody named, models not loaded yet; `PATH@PART` is a step of a run, an entry of a baseline, a model of records."""
    if spec.startswith("hf:") or "://" in spec:
        return NamedModel(spec) if spec.startswith("hf:") else _trained(*_parted(spec))
    name, part = _parted(spec)
    path = expanded(name)
    place, colon, factory = spec.rpartition(":")
    if not is_there(path):
        if colon and place and factory.isidentifier():
            return NamedModel(spec)
        raise ArgumentError(f"there is nothing at {spec!r}: expected {WHAT}")
    if is_file(path) and path.suffix != GGUF:
        return _of_file(path, part)
    is_model = path.suffix == GGUF or (
        is_directory(path) and (any(is_there(path / each) for each in (CONFIG, ADAPTER_CONFIG)) or gguf_file(path) is not None)
    )
    if is_model and part:
        raise ArgumentError(f"{name!r} is a model, which has no part {part!r}: leave it out")
    return NamedModel(name) if is_model else _trained(name, part)


def _parted(spec: str) -> tuple[str, str]:
    """A path, and which part of what lies there is meant."""
    if is_there(expanded(spec)) or "@" not in spec:
        return spec, ""
    name, _, part = spec.rpartition("@")
    return name, part


def _of_file(path: Path, part: str) -> Opened:
    """What a file holds by its own account; a log where it says nothing."""
    from pytest_induction.baselines import store
    from pytest_induction.comparison.profiles import WHAT as PROFILE
    from pytest_induction.comparison.profiles import HeadsProfile
    from pytest_induction.report.session_records import WHAT as RECORDS

    data = _json(path) if path.suffix == ".json" else None
    what = data.get("what") if isinstance(data, dict) else None
    if isinstance(data, dict) and what == PROFILE:
        return HeadsProfile.from_dict(data, repr(str(path)))
    if what == store.WHAT:
        return _entry(path, part)
    if what == RECORDS:
        return _records(path, part)
    if isinstance(data, dict) and {"claim", "verdict"} <= data.keys():
        try:
            return Recorded((Evidence.from_dict(data),), ())
        except ValueError as error:
            raise ReportError(f"{str(path)!r} is no evidence: {error}") from None
    return _trained(str(path), part)


def _json(path: Path) -> Any:
    try:
        return parsed(read_text(path, LARGEST))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{str(path)!r} cannot be read: {reason(error)}") from None
    except ValueError:
        return None  # a log may be JSON lines, whatever its name


def _entry(path: Path, part: str) -> Opened:
    """An entry of a baseline file, the only one unless it is named."""
    from pytest_induction.baselines.store import Heads, read_baseline
    from pytest_induction.comparison.profiles import HeadsProfile

    entries = read_baseline(path)
    name = _chosen(entries, part, str(path), "entries")
    entry = entries[name]
    if isinstance(entry, Heads):
        return HeadsProfile.from_dict(entry.profile, f"entry {name!r} of {str(path)!r}")
    return Kept(name, entry)


def _records(path: Path, part: str) -> Recorded:
    """The verdicts and charts of one model or run of a report, the only one unless it is named."""
    from pytest_induction.report.session_records import read_records
    from pytest_induction.report.view import by_model

    records = read_records(path)
    groups = {key: list(group) for key, group in by_model(records.evidence).items()}
    known = {
        f"{name} ({fingerprint[:8]})" if _is_twice(name, groups) else name: (name, fingerprint) for name, fingerprint in groups
    }
    key = known[_chosen(known, part, str(path), "models and runs")]
    charts = tuple(each for each in records.charts if (each.model, each.fingerprint) == key and not each.missing)
    return Recorded(tuple(groups[key]), charts)


def _is_twice(name: str, keys: Iterable[tuple[str, str]]) -> bool:
    return sum(each == name for each, _ in keys) > 1


def _chosen(known: Iterable[str], part: str, where: str, what: str) -> str:
    """The part that is meant. Raises `BaselineError` where it is not there, or there are several and none was named."""
    names = list(known)
    if part in names:
        return part
    if not part and len(names) == 1:
        return names[0]
    listed = ", ".join(map(repr, names[:10])) or "none"
    asked = f"there is no {part!r}" if part else f"name one: {where}@NAME"
    raise BaselineError(f"{where!r} has {len(names)} {what} ({listed}): {asked}")


def _trained(name: str, part: str) -> Trained:
    from pytest_induction.runs.opening import load_run

    if part and not part.isdecimal():
        raise ArgumentError(f"a snapshot of a run is named by its step, as {name}@400, got {part!r}")
    run = load_run(name)
    if not len(run):
        raise RunError(f"run {run.name!r} has no snapshots yet")
    step = int(part) if part else None
    if step is not None and step not in run.steps:
        near = min(run.steps.tolist(), key=lambda each: abs(each - step))
        raise RunError(f"run {run.name!r} has no snapshot of step {step}: the nearest is of step {near}")
    return Trained(run, step)


def _judged(one: NamedModel | HeadsProfile, other: NamedModel, settings: Settings) -> SideBySide:
    """A model held against another, or what was kept of it, on the same sequences; each by itself where these do not fit both."""
    from pytest_induction.comparison.preserved import hold_against
    from pytest_induction.comparison.profiles import HeadsProfile

    before, after = _loaded(one, settings), _loaded(other, settings)
    seed = settings.seed if isinstance(one, NamedModel) else None
    try:
        held = hold_against(before, after, text=settings.text, seed=seed)
    except ModelError as error:
        sides = [_side(each, settings) for each in (before, after)]
        missing = (f"not on the same sequences: {error}", UNJUDGED)
        return SideBySide(sides[0], sides[1], unpaired_rows(*sides), missing=missing)
    first = _of_profile(held.before) if isinstance(held.before, HeadsProfile) else _of_measured(before, held.before)
    evidence, second = held.evidence, _of_measured(after, held.after)
    rows = evidence.compared or unpaired_rows(first, second)
    return SideBySide(first, second, rows, evidence, is_paired=bool(evidence.compared))


def _loaded(given: Any, settings: Settings) -> Any:
    from pytest_induction.model.load import load_model

    return load_model(given.spec, seed=settings.seed, **settings.loading) if isinstance(given, NamedModel) else given


def _side(given: Opened, settings: Settings) -> Side:
    """What is known of one by itself; a model is measured for it."""
    if isinstance(given, Kept):
        return _of_numbers(given)
    if isinstance(given, Recorded):
        return _of_records(given)
    if isinstance(given, Trained):
        return _of_snapshot(given)
    from pytest_induction.comparison.profiles import HeadsProfile

    return _of_profile(given) if isinstance(given, HeadsProfile) else _of_model(_loaded(given, settings), settings)


def _of_model(subject: ModelUnderTest, settings: Settings) -> Side:
    """On sequences of its own."""
    from pytest_induction.comparison.preservation import MAX_ROWS, Prober
    from pytest_induction.deciding import ERROR_RATE
    from pytest_induction.statistics import look_sizes, mean_interval

    prober = Prober(subject, subject.space, settings.seed)
    for size in look_sizes(N_SEQUENCES):
        prober.draw(size)
    side = _of_measured(subject, prober.measured())
    if settings.text is None:
        return side
    found = prober.in_context(prober.rows(settings.text, MAX_ROWS), MAX_ROWS)
    (score,) = mean_interval(found.icl_score[:, None], ERROR_RATE, "nats")
    return replace(side, behaviour={**side.behaviour, "icl_score": score})


def _of_measured(subject: ModelUnderTest, measured: Measured) -> Side:
    """A model as it was measured: intervals hold for all of its heads together."""
    from pytest_induction.deciding import ERROR_RATE, behaviour_of
    from pytest_induction.measuring.observing import provenance

    found, about = measured.found, provenance(subject)
    scores = {} if measured.scores is None else {name: _intervals(found, name) for name in MAPPED}
    return Side(
        subject.name,
        "model",
        f"{about.how}, weights {about.fingerprint}; {len(found.periods)} sequences, {found.described}",
        scores,
        behaviour_of(found.behaviour, ERROR_RATE),
        tuple(subject.reading.heads) if scores else (),
        about.notes + measured.notes,
    )


def _intervals(found: Round, name: str) -> dict[HeadId, Estimate]:
    import numpy as np

    from pytest_induction.deciding import ERROR_RATE
    from pytest_induction.statistics import bounded_intervals

    places = np.argwhere(found.exists).tolist()
    each = ERROR_RATE / 2 / max(1, len(places))
    estimates = bounded_intervals(found.scores[name][:, found.exists], each, each, unit=SHARE)
    return {HeadId(layer, head): estimate for (layer, head), estimate in zip(places, estimates, strict=True)}


def _of_profile(profile: HeadsProfile) -> Side:
    """What was kept of a model: the heads that had a role."""
    from pytest_induction.deciding import ERROR_RATE
    from pytest_induction.statistics import mean_interval

    about, heads = profile.provenance, profile.heads or ()
    scores: dict[str, dict[HeadId, Estimate]] = {}
    for head in heads:
        for name, values in head.scores.items():
            (estimate,) = mean_interval(values[:, None], ERROR_RATE / max(1, len(heads)))
            scores.setdefault(name, {})[HeadId(head.layer, head.head)] = estimate
    behaviour = {
        name: mean_interval(values[:, None], ERROR_RATE, _unit(name))[0]
        for name, values in profile.behaviour.items()
        if name in BEHAVIOUR
    }
    if profile.text is not None:
        behaviour["icl_score"] = mean_interval(profile.text.icl_score[:, None], ERROR_RATE, "nats")[0]
    layers = (about.n_heads,) * about.n_layers
    described = f"{about.how}, weights {about.fingerprint}; {about.n_sequences} sequences, {about.probe}"
    return Side(about.model, "profile of a model", described, scores, behaviour, layers, about.notes)


def _unit(name: str) -> str:
    return SHARE if SCORES[name].unit == SHARE else "nats"


def _known(value: float, unit: str) -> Estimate:
    """A number of which no interval is known."""
    return Estimate(value, UNKNOWN, UNKNOWN, unit)


def _of_numbers(kept: Kept) -> Side:
    """Numbers of a baseline: scores of heads and behaviour by their names, without intervals."""
    scores: dict[str, dict[HeadId, Estimate]] = {}
    behaviour: dict[str, Estimate] = {}
    for name, field in kept.numbers.fields.items():
        found = HEAD.fullmatch(name)
        if found is not None and (score := found["score"] or found["after"]) in MAPPED:
            head = HeadId(int(found["layer"]), int(found["head"]))
            scores.setdefault(str(score), {})[head] = _known(field.value, SHARE)
        elif name in BEHAVIOUR:
            behaviour[name] = _known(field.value, _unit(name))
    about = ", ".join(f"{name} {value}" for name, value in kept.numbers.environment.items())
    return Side(kept.name, "baseline", about, scores, behaviour, _layers(scores))


def _layers(scores: Mapping[str, Mapping[HeadId, Estimate]]) -> tuple[int, ...]:
    """How many heads each layer has at least."""
    counts: dict[int, int] = {}
    for head in (head for each in scores.values() for head in each):
        counts[head.layer] = max(counts.get(head.layer, 0), head.head + 1)
    return tuple(counts.get(layer, 0) for layer in range(max(counts, default=-1) + 1))


def _of_records(recorded: Recorded) -> Side:
    """What a report has of a model or run: of all heads where its charts have them, else of those that verdicts name."""
    about = recorded.evidence[0].provenance
    scores = _of_verdicts(recorded.evidence)
    drawn = {chart.kind: chart.data for chart in recorded.charts}
    for score in drawn.get("heads", {}).get("scores", ()):
        if score["name"] in MAPPED:
            scores[score["name"]] = _of_chart(score)
    estimates = {
        name: estimate
        for evidence in recorded.evidence
        if evidence.claim not in OF_DIFFERENCES
        for name, estimate in evidence.estimates.items()
        if name in BEHAVIOUR and estimate.unit == _unit(name)
    }
    how = about.probe if about.is_run else about.how
    side = Side(
        about.model, "run" if about.is_run else "model", f"{how}, {about.fingerprint}", scores, estimates, _layers(scores)
    )
    changes = max((each.changes for each in recorded.evidence), key=len)
    return replace(side, kind=f"report on a {side.kind}", notes=about.notes, changes=changes)


def _of_verdicts(every: Iterable[Evidence]) -> dict[str, dict[HeadId, Estimate]]:
    """The heads that verdicts name with their intervals; of all others what the head maps of prefix matching have."""
    mapped: dict[HeadId, Estimate] = {}
    named: dict[HeadId, Estimate] = {}
    for evidence in every:
        heads = (*evidence.heads, *evidence.nearest)
        if any(head.scores for head in heads):  # the map is of a score that somebody has added
            continue
        places = ((layer, head, value) for layer, row in enumerate(evidence.head_map) for head, value in enumerate(row))
        mapped |= {HeadId(layer, head): _known(value, SHARE) for layer, head, value in places if value is not None}
        named |= {HeadId(head.layer, head.head): head.prefix_matching for head in heads}
    return {"prefix_matching": {**mapped, **named}} if mapped or named else {}


def _of_chart(score: Mapping[str, Any]) -> dict[HeadId, Estimate]:
    return {
        HeadId(layer, head): Estimate(value, _at(score["low"], layer, head), _at(score["high"], layer, head), SHARE)
        for layer, row in enumerate(score["value"])
        for head, value in enumerate(row)
        if value is not None
    }


def _at(matrix: Any, layer: int, head: int) -> float:
    value = matrix[layer][head]
    return UNKNOWN if value is None else float(value)


def _of_runs(one: Trained, other: Trained) -> SideBySide:
    """Two trainings, or two snapshots: their curves over one axis, and whether the trainings are alike."""
    from pytest_induction.runs.record import Axis

    axes = [Axis.of(each.run) if len(each.run) > 1 and each.run.steps[0] >= 0 else None for each in (one, other)]
    unit = "tokens" if all(axis is not None and axis.tokens is not None for axis in axes) else "steps"
    sides = [_with_curves(_of_snapshot(each), each.run, axis, unit) for each, axis in zip((one, other), axes, strict=True)]
    evidence, missing = None, [f"{each.run.name} has one snapshot: no curves" for each in (one, other) if len(each.run) < 2]
    if one.step is None and other.step is None and not missing:
        evidence, why = _alike(one.run, other.run)
        missing += [why] if why else []
    return SideBySide(sides[0], sides[1], unpaired_rows(*sides), evidence, unit, tuple(missing))


def _alike(one: TrainingRun, other: TrainingRun) -> tuple[Evidence | None, str]:
    """What `assert_continuity` finds; why nothing, where the runs have nothing that it compares."""
    from pytest_induction.comparison.continuity import assert_continuity

    try:
        return assert_continuity([one, other]), ""
    except ExpectationFailed as failed:
        return failed.evidence, ""
    except (RunError, ArgumentError) as error:
        return None, f"no verdict on whether they are alike: {error}"


def _with_curves(side: Side, run: TrainingRun, axis: Any, unit: str) -> Side:
    """The side with the curves of its run, and when induction formed."""
    import numpy as np

    from pytest_induction.runs.phase_change.finding import find_phase_changes

    if axis is None:
        return side
    x = np.log10(axis.steps) if unit == "steps" else axis.x
    columns = {name: run.column(name) for name in CURVES} | {BEST[name]: run.best_of_heads(name)[0] for name in BEST}
    curves = {}
    for name, values in columns.items():
        known = np.flatnonzero(np.isfinite(values))
        drawn = (
            known[np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_POINTS)).round().astype(int))]
            if len(known)
            else known
        )
        if len(drawn) > 1:
            curves[name] = (
                [round(each, 4) for each in x[drawn].tolist()],
                [float(f"{each:.5g}") for each in values[drawn].tolist()],
            )
    found = find_phase_changes(run)
    return replace(side, curves=curves, changes=found.changes, window=_window(found.induction, unit))


def _window(change: Any, unit: str) -> tuple[float, float] | None:
    """Where induction formed, on the common axis."""
    import math

    ends = () if change is None else (change.onset, change.end)
    places = [getattr(moment, unit if unit == "tokens" else "step") for moment in ends if moment is not None]
    if len(places) < 2 or any(place is None or place.value <= 0 for place in places):
        return None
    return math.log10(places[0].value), math.log10(places[1].value)


def _of_snapshot(trained: Trained) -> Side:
    """One snapshot of a run, the last unless its step was given."""
    run = trained.run
    shot = next((each for each in run.snapshots if each.step == trained.step), run.snapshots[-1])
    scores = {name: found for name in MAPPED if (found := _of_array(shot, name))}
    behaviour = {name: _of_number(shot, name) for name in BEHAVIOUR if getattr(shot, name) is not None}
    span = f"step {shot.step} of {len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}, from a {run.source}"
    named = run.name if trained.step is None else f"{run.name}@{trained.step}"
    return Side(named, "run", span, scores, behaviour, _layers(scores), run.notes)


def _of_array(shot: Snapshot, name: str) -> dict[HeadId, Estimate]:
    import numpy as np

    values, errors = getattr(shot, name), shot.errors.get(name)
    if values is None:
        return {}
    places = np.argwhere(np.isfinite(values)).tolist()
    spread = errors if isinstance(errors, np.ndarray) and errors.shape == values.shape else np.full(values.shape, np.nan)
    return {
        HeadId(layer, head): _within(float(values[layer, head]), float(spread[layer, head]), shot.n_sequences, SHARE, len(places))
        for layer, head in places
    }


def _of_number(shot: Snapshot, name: str) -> Estimate:
    error = shot.errors.get(name)
    return _within(float(getattr(shot, name)), error if isinstance(error, float) else UNKNOWN, shot.n_sequences, _unit(name), 1)


def _within(value: float, error: float, count: int, unit: str, claims: int) -> Estimate:
    """A mean with Student's interval, as far as its standard error is known."""
    from pytest_induction.deciding import ERROR_RATE
    from pytest_induction.statistics import Mean

    if not error >= 0 or count < 2:
        return _known(value, unit)
    return Mean(value, error, count - 1, unit).interval(ERROR_RATE / 2 / claims)
