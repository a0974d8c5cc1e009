"""The file of a baseline: JSON, one number a line, and which numbers of a measurement it keeps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pytest_induction.display import Displayed, View, cells, rows_table
from pytest_induction.errors import ArgumentError, BaselineError, meant, reason
from pytest_induction.files import read_text, replace_text
from pytest_induction.formatting import in_json
from pytest_induction.locks import alone_beside
from pytest_induction.ranges import SIZE, is_known, kept
from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, HeadId, HeadList, Provenance
from pytest_induction.schema import Unfit, parsed, read, shown

DIGITS = 9  # that are kept of a number: float32 has no more
OF_HEADS = (  # what is kept of scores of heads, by the class that has them all
    ("prefix_matching", "previous_token"),  # `HeadScores`: the two halves of the circuit
    ("exactly_one", "exactly_two", "three_or_more", "after_breaks"),  # `MatchLengthScores`
    ("exactly_one", "exactly_two", "exactly_three", "unmatched", "preference"),  # `CompetingMatchScores`
    ("written", "written_null", "attention", "argmax"),  # `RetrievalScores`
)
WORDS = ("bool", "bool_", "str", "bytes", "NoneType")  # types that are no numbers, whatever `float` makes of them
OF_LENGTHS = ("exactly_one", "exactly_two", "three_or_more")  # of a listed head, as `MatchLengthScores` calls them
ACCEPTED = (
    "a mapping of names to numbers, an `Evidence`, a `HeadList`, a `HeadScores`, a `MatchLengthScores`, a "
    "`CompetingMatchScores` or a `RetrievalScores`"
)


def fields_of(measured: Any) -> dict[str, float]:
    """The numbers of a measurement by name, to nine digits.

    Of a mapping all numbers, those of a mapping inside it as "outer.inner". Of an `Evidence` its estimates, the prefix matching
    of the heads for which the claim holds ("L1H0.prefix_matching"), what its pairs do together, and how far and where the
    series of a run changed. Of a `HeadList` its estimates, and of each of its heads prefix matching and, where they were
    measured, the masses of each match length ("L1H0.exactly_two"). Of `HeadScores` prefix matching and attention to the
    previous token of every head ("prefix_matching.L1H0") and added scores, of `MatchLengthScores` all four scores of every head
    ("exactly_two.L1H0"), and of `CompetingMatchScores` these, the preference of the heads that have one, and what the model
    predicts ("gain"); of `RetrievalScores` what every head writes and attends to ("written.L1H1"), and "accuracy" and
    "log_odds" of the model. Raises `ArgumentError` for anything else, for no number at all, and for one that is not finite.
    """
    if not _is_whole(measured):
        raise ArgumentError(f"`measured` must be {ACCEPTED}, got `{type(measured).__name__}`")
    found: dict[str, float] = {}
    for name, value in _parts("", measured):
        if name in found:
            raise ArgumentError(f"`measured` has the field {name!r} twice")
        found[name] = _number(name, value)
    if not found:
        raise ArgumentError("`measured` has no numbers: there is nothing to compare")
    return found


def rounded(value: float) -> float:
    """The number as a baseline keeps it."""
    return float(f"{value:.{DIGITS}g}") + 0.0  # no negative zero


def provenance_in(measured: Any) -> Provenance | None:
    """Where a measurement comes from, if it says so; of a mapping what the first part that does says."""
    if isinstance(measured, Mapping):
        return next((found for each in measured.values() if (found := provenance_in(each)) is not None), None)
    about = getattr(measured, "provenance", None)
    return about if isinstance(about, Provenance) else None


def _is_whole(value: Any) -> bool:
    """Whether it has fields, and is no number."""
    return isinstance(value, (Mapping, Evidence, HeadList)) or bool(_of_heads(value))


def _of_heads(value: Any) -> tuple[str, ...]:
    """The scores of every head that are kept of a measurement; nothing where it is no such one."""
    return next((names for names in OF_HEADS if all(hasattr(value, name) for name in (*names, "per_sequence"))), ())


def _parts(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every field below `prefix`, by its whole name."""
    if isinstance(value, Evidence):
        named = _of_evidence(value)
    elif isinstance(value, HeadList):
        named = _of_list(value)
    elif kept := _of_heads(value):
        named = _of_scores(value, kept)
    elif isinstance(value, Mapping):
        named = ((str(name), each) for name, each in value.items())
    else:
        yield prefix, value
        return
    for name, each in named:
        if not name.strip() or not name.isprintable():
            raise ArgumentError(f"`measured` has a field named {name!r}: a name must be printable, and not blank")
        yield from _parts(f"{prefix}.{name}" if prefix else name, each)


def _of_evidence(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    yield from evidence.estimates.items()
    for head in evidence.heads:
        yield f"{head}.prefix_matching", head.prefix_matching
        yield from ((f"{head}.{name}", score) for name, score in head.scores.items())
    for pair in evidence.pairs:
        yield f"{pair}.composed", pair.composed
    for change in evidence.changes:
        yield from _of_change(change)


def _of_list(listed: HeadList) -> Iterator[tuple[str, Any]]:
    yield from listed.estimates.items()
    for head in listed.heads:
        yield from _of_head(head)


def _of_head(head: HeadEvidence) -> Iterator[tuple[str, Any]]:
    yield f"{head}.prefix_matching", head.prefix_matching
    for name, mass in zip(OF_LENGTHS, head.match_lengths, strict=False):  # none, where they were not measured
        yield f"{head}.{name}", mass


def _of_change(change: Change) -> Iterator[tuple[str, Any]]:
    if change.change is not None:
        yield f"{change.series}.change", change.change
    if change.midpoint is not None:
        yield f"{change.series}.midpoint", change.midpoint.tokens or change.midpoint.step


def _of_scores(scores: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Of the model what there is, and of every head, added scores too: one that a layer does not have is NaN."""
    yield from getattr(scores, "estimates", {}).items()
    arrays = {name: getattr(scores, name) for name in names} | dict(getattr(scores, "added", {}))
    for name, values in arrays.items():
        for layer, row in enumerate(values.tolist()):
            for head, value in enumerate(row):
                if not math.isnan(value):
                    yield f"{name}.{HeadId(layer, head)}", value


def _number(name: str, value: Any) -> float:
    if isinstance(value, Estimate):
        value = value.value
    try:
        number = math.nan if type(value).__name__ in WORDS else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value).partition("\n")[0]
        raise ArgumentError(f"`measured` must have finite numbers, {name!r} is {shown[:60]}")
    problem = kept(name)(number)
    if problem:
        raise ArgumentError(f"`measured`: {name!r} {problem}")
    return rounded(number)


SCHEMA = 1
WHAT = "pytest-induction baseline"
LARGEST = 2**26  # bytes of a file


@dataclass(frozen=True)
class Field:
    """A number and how far one may be from it; None where the default tolerance holds."""

    value: float
    tolerance: float | None = None


@dataclass(frozen=True, repr=False)
class Numbers(Displayed):
    """An entry of numbers by name, and where they were measured."""

    fields: Mapping[str, Field]
    environment: Mapping[str, str]

    def view(self) -> View:
        """What there is to show."""
        rows = [{"field": name, **cells(self.fields[name])} for name in sorted(self.fields, key=natural)]
        return View(
            f"baseline of {len(rows)} number{'s' if len(rows) != 1 else ''}", _environment(self), (rows_table("fields", rows),)
        )

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        names = sorted(self.fields, key=natural)
        fields = {name: {key: value for key, value in vars(self.fields[name]).items() if value is not None} for name in names}
        return {"kind": "numbers", "environment": dict(self.environment), "fields": fields}


@dataclass(frozen=True, repr=False)
class Heads(Displayed):
    """An entry that holds what was kept of a model's heads, as `HeadsProfile.to_dict` makes it."""

    profile: Mapping[str, Any]
    environment: Mapping[str, str]

    def view(self) -> View:
        """What there is to show."""
        heads = self.profile.get("heads") or []
        rows = [{"role": head["role"], "layer": head["layer"], "head": head["head"]} for head in heads]
        return View(
            f"baseline of {len(rows)} head{'s' if len(rows) != 1 else ''}", _environment(self), (rows_table("heads", rows),)
        )

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        return {"kind": "heads", "environment": dict(self.environment), "profile": dict(self.profile)}


def _environment(entry: Numbers | Heads) -> tuple[str, ...]:
    return (", ".join(f"{name} {value}" for name, value in entry.environment.items()),)


Entry = Numbers | Heads
LAYOUT: Mapping[str, str] = {"numbers": "fields", "heads": "profile"}
"""Each kind of entry, and what it has beside `kind` and `environment`."""


def read_baseline(path: Path) -> dict[str, Entry]:
    """The entries of a file by name; none where there is no file. Raises `BaselineError`, which says what is wrong."""
    try:
        text = read_text(path, LARGEST)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path} cannot be read: {reason(error)}") from None
    try:
        data = parsed(text)
    except ValueError as error:
        message = str(error).partition("\n")[0]
        raise BaselineError(f"{path} is damaged: {message}; mend it by hand, or have it from version control") from None
    try:
        return _entries(data)
    except _Damage as error:
        raise BaselineError(f"{path}: {error}") from None


def write_baseline(path: Path, entries: Mapping[str, Entry]) -> None:
    """Write the file in one step: it is there whole, or as it was. Raises `BaselineError` if it cannot be written."""
    try:
        replace_text(path, as_text(entries))
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path} cannot be written: {reason(error)}") from None


def merge_into(path: Path, data: Mapping[str, Mapping[str, Any]]) -> None:
    """Put entries, as their `to_dict` has them, into the file as it is now. Raises `BaselineError` if that cannot be done.

    No other process that does so comes between the reading and the writing: each finds what the others have written.
    """
    if not data:
        return
    entries = {name: entry_of(each) for name, each in data.items()}
    try:
        with alone_beside(path):
            write_baseline(path, {**read_baseline(path), **entries})
    except OSError as error:
        raise BaselineError(f"{path} cannot be written: {reason(error)}") from None


def as_text(entries: Mapping[str, Entry]) -> str:
    """The file's text. Raises `ValueError` for a number that is not finite."""
    held = {name: _kept(entries[name].to_dict()) for name in sorted(entries, key=natural)}
    data = {"schema": SCHEMA, "what": WHAT, "entries": held}
    return in_json(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def entry_of(data: Mapping[str, Any]) -> Entry:
    """The inverse of an entry's `to_dict`. Raises `ValueError`, which says what is wrong."""
    kind = str(data.get("kind"))
    if kind not in LAYOUT:
        raise _Damage(f"expected a `kind` of {' or '.join(map(repr, LAYOUT))}, got {shown(data.get('kind'))}")
    _check_keys(data, ("kind", "environment", LAYOUT[kind]))
    environment: dict[str, str] = _read(dict[str, str], data, "environment")
    held: dict[str, Any] = _read(dict[str, Any], data, LAYOUT[kind]) if kind == "heads" else _mapping(data, LAYOUT[kind])
    if kind == "heads":
        return Heads(held, environment)
    if not held:
        raise _Damage("it has no fields")
    return Numbers({name: _field(name, each) for name, each in held.items()}, environment)


def natural(name: str) -> list[tuple[int, str]]:
    """What names are sorted by: the numbers in them as numbers, so that L0H10 comes after L0H2."""
    parts = re.split(r"(\d+)", name)
    digits = [part.lstrip("0") if index % 2 else part for index, part in enumerate(parts)]
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(digits)]  # a number, however long


class _Damage(ValueError):
    """Something in a file is not as it must be."""


def _entries(data: Any) -> dict[str, Entry]:
    if not isinstance(data, dict) or data.get("what") != WHAT:
        raise _Damage(f"this is no baseline, whose `what` is {WHAT!r}: name another file")
    if data.get("schema") != SCHEMA:
        raise _Damage(f"expected schema {SCHEMA}, got {shown(data.get('schema'))}: use the version that wrote it")
    _check_keys(data, ("schema", "what", "entries"))
    found: dict[str, Entry] = {}
    for name, each in _mapping(data, "entries").items():
        try:
            found[name] = entry_of(_mapping({name: each}, name))
        except _Damage as error:
            raise _Damage(f"entry {name!r}: {error}") from None
    return found


def _field(name: str, data: Any) -> Field:
    if not isinstance(data, dict) or "value" not in data:
        raise _Damage(f"field {name!r} must have a `value`")
    try:
        _check_keys(data, ("value", "tolerance"))
    except _Damage as error:
        raise _Damage(f"field {name!r}: {error}") from None
    for key, known in (("value", kept(name)), ("tolerance", SIZE)):
        if key in data:
            try:
                read(Annotated[float, known, is_known], data[key])
            except Unfit as error:
                raise _Damage(f"field {name!r}: `{key}` {error.problem}") from None
    tolerance = data.get("tolerance")
    return Field(rounded(data["value"]), None if tolerance is None else rounded(tolerance))


def _read(kind: Any, data: Mapping[str, Any], key: str) -> Any:
    """What a key has, as a mapping of that kind."""
    try:
        return read(kind, _mapping(data, key))
    except Unfit as error:
        raise _Damage(str(error.within(f".{key}"))) from None


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    if not isinstance(found, dict):
        raise _Damage(f"`{key}` must be a JSON object, got {'nothing' if found is None else type(found).__name__}")
    return found


def _check_keys(data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """A key that is misspelt would be passed over, and a tolerance not hold."""
    for key in data:
        if key not in known:
            raise _Damage(f"there is no key `{key}`{meant(key, known)}")


def _kept(value: Any) -> Any:
    """The same, numbers as they are kept."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Mapping):
        return {name: _kept(each) for name, each in value.items()}
    return [_kept(each) for each in value] if isinstance(value, (list, tuple)) else value
