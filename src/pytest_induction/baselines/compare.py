"""Compare numbers with those that are kept, field by field, and say what is not as it was. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_induction.baselines.fields import rounded
from pytest_induction.baselines.store import Field
from pytest_induction.errors import ArgumentError
from pytest_induction.printable import as_line

RELATIVE, ABSOLUTE = 1e-3, 1e-6
MOST_CHANGED, MOST_NAMED = 10, 6


@dataclass(frozen=True)
class Changed:
    """A field that is further from what it was than it may be."""

    name: str
    was: float
    now: float
    tolerance: float

    @property
    def excess(self) -> float:
        """How many times its tolerance it has changed by."""
        return abs(self.now - self.was) / self.tolerance if self.tolerance else math.inf


@dataclass(frozen=True)
class Comparison:
    """What came of comparing fields: those that `changed`, by most tolerances first, those not measured, those not in the file.

    `differs` says whether any number is another at all, be it within its tolerance.
    """

    changed: tuple[Changed, ...]
    missing: tuple[str, ...]
    new: Mapping[str, float]
    n_fields: int
    differs: bool

    @property
    def same(self) -> bool:
        return not (self.changed or self.missing or self.new)


def default_tolerance(value: float) -> float:
    """What holds where no tolerance is kept: a thousandth of the value and a millionth.

    It is there for the order in which numbers are added up, not for noise of a measurement, which is calibrated.
    """
    return RELATIVE * abs(value) + ABSOLUTE


def compare(
    kept: Mapping[str, Field], measured: Mapping[str, float], tolerances: Mapping[str, float] | None = None
) -> Comparison:
    """Compare field by field; of `tolerances` each goes before the one that is kept. NaN is never within any."""
    changed = []
    for name in kept:
        if name in measured:
            was, now = kept[name].value, measured[name]
            tolerance = _tolerance(name, kept[name], tolerances or {})
            difference = abs(now - was)
            if not (difference <= tolerance or math.isclose(difference, tolerance, rel_tol=1e-9)):
                changed.append(Changed(name, was, now, tolerance))
    return Comparison(
        changed=tuple(sorted(changed, key=lambda each: (-each.excess, -abs(each.now - each.was)))),
        missing=tuple(name for name in kept if name not in measured),
        new={name: value for name, value in measured.items() if name not in kept},
        n_fields=len(kept),
        differs=any(measured[name] != kept[name].value for name in kept if name in measured),
    )


def tolerances_for(given: Any, names: Mapping[str, float]) -> dict[str, float]:
    """What the argument `tolerance` says of each field: a number holds for all, a mapping for fields or what they begin with.

    In a mapping "prefix_matching" holds for "prefix_matching.L1H0" too, unless that has one of its own. Raises `ArgumentError`
    for what is no tolerance, and for a name that nothing has.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, _checked(given))
    found: dict[str, float] = {}
    for start in sorted(given, key=lambda name: len(str(name))):  # the longest comes last and wins
        under = [name for name in names if name == start or name.startswith(f"{start}.")]
        if not under:
            raise ArgumentError(f"`tolerance` is given for {start!r}, and no field is named so or begins with {f'{start}.'!r}")
        found |= dict.fromkeys(under, _checked(given[start]))
    return found


def difference_text(entry: str, found: Comparison, *, elsewhere: str, path: str, again: str) -> str:
    """The message of a failed comparison: verdict, facts, context, next step; 25 lines at the most."""
    counts = [(len(found.changed), "changed"), (len(found.missing), "missing"), (len(found.new), "new")]
    said = ", ".join(f"{count} {word}" for count, word in counts if count)
    lines = [f"baseline {entry!r} differs: {said}, of {found.n_fields} field{'s' if found.n_fields != 1 else ''}"]
    lines += [f"  changed: {_line(each)}" for each in found.changed[:MOST_CHANGED]]
    if len(found.changed) > MOST_CHANGED:
        lines.append(f"  and {len(found.changed) - MOST_CHANGED} more")
    if found.missing:
        lines.append(f"  missing: {listed(found.missing)} (in the file, not measured)")
    if found.new:
        lines.append(f"  new: {listed(f'{name} = {value:.6g}' for name, value in found.new.items())} (measured, not in the file)")
    if elsewhere:
        lines.append(f"  measured elsewhere: {elsewhere}")
    return "\n".join(map(as_line, [*lines, f"  file: {path}", f"  next: if this is as it should be: {again}"]))


def _line(each: Changed) -> str:
    return f"{each.name} was {each.was:.6g}, is {each.now:.6g}: {each.now - each.was:+.3g}, tolerance {each.tolerance:.3g}"


def listed(names: Iterable[str]) -> str:
    """Names in a line, not all where they are many."""
    each = list(names)
    return ", ".join(each[:MOST_NAMED]) + (f" and {len(each) - MOST_NAMED} more" if len(each) > MOST_NAMED else "")


def _tolerance(name: str, kept: Field, given: Mapping[str, float]) -> float:
    if name in given:
        return given[name]
    return default_tolerance(kept.value) if kept.tolerance is None else kept.tolerance


def _checked(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise ArgumentError(f"`tolerance` must be a number from 0 up, or a mapping of fields to such numbers, got {value!r}")
    return rounded(value)
