"""What a user says of a log: which column holds what, which rows count, in what its tokens are counted. And how to say it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_induction.errors import ArgumentError
from pytest_induction.runs.logs.columns import SYNONYMS
from pytest_induction.runs.logs.faults import shown

TOKENS_UNIT = "tokens_unit"
UNITS = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "g": 1e9, "billion": 1e9, "t": 1e12, "trillion": 1e12}
COLUMN_OPTION, WHERE_OPTION = "--induction-column", "--induction-where"


@dataclass(frozen=True)
class Choice:
    """Names of ours -> columns of the log; columns -> what stands in the rows that count; how many tokens one of the log's is."""

    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    tokens_unit: float | None = None


def checked(columns: Mapping[str, object] | None, where: Mapping[str, object] | None = None) -> Choice:
    """The choice as it was made. Raises `ArgumentError` for names that are not ours, and values that name no column."""
    names = dict(columns or {})
    unit = names.pop(TOKENS_UNIT, None)
    for ours, theirs in names.items():
        if ours not in SYNONYMS:
            known = ", ".join((*SYNONYMS, TOKENS_UNIT))
            raise ArgumentError(f"`columns` must map names among {known} to names of the log, got {shown(ours)}")
        if not isinstance(theirs, str):
            raise ArgumentError(f"`columns[{ours!r}]` must be the name of a column of the log, got {shown(theirs)}")
    for column, value in (where or {}).items():
        if not isinstance(column, str) or isinstance(value, (bool, dict, list)) or value is None:
            raise ArgumentError(f"`where` must map columns of the log to a text or number, got {shown(column)}: {shown(value)}")
    return Choice(
        {ours: str(theirs) for ours, theirs in names.items()},
        {column: str(value) for column, value in (where or {}).items()},
        None if unit is None else _unit(unit),
    )


def _unit(given: object) -> float:
    text = str(given).strip().lower()
    try:
        size = UNITS[text] if text in UNITS else float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ArgumentError(f"`{TOKENS_UNIT}` must be how many tokens one of the log's is, as 1e9, k, M or B, got {shown(given)}")
    return size


def pairs(option: str, given: list[str]) -> dict[str, str]:
    """What was given as NAME=VALUE, again and again. Raises `ArgumentError` for something else, and a name given twice."""
    found: dict[str, str] = {}
    form = "NAME=COLUMN" if option.endswith("column") else "COLUMN=VALUE"
    for each in given:
        name, equals, value = each.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ArgumentError(f"{option} must be {form}, got {each!r}")
        if name.strip() in found:
            raise ArgumentError(f"{option} names {name.strip()!r} twice")
        found[name.strip()] = value.strip()
    return found


def say_column(ours: str, theirs: str) -> str:
    """How to choose a column: on the command line, and in Python. An ini or gate file has `induction_column` and `column`."""
    return f"{COLUMN_OPTION} {_quoted(f'{ours}={theirs}')} (in Python columns={{{ours!r}: {theirs!r}}})"


def say_where(column: str, value: str) -> str:
    """How to choose rows."""
    return f"{WHERE_OPTION} {_quoted(f'{column}={value}')} (in Python where={{{column!r}: {value!r}}})"


def _quoted(text: str) -> str:
    return shlex.quote(text.replace("\n", " ")[:300])
