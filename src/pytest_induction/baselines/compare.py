"""Compare numbers with those that are kept, field by field, within what repeats differ by and what the environment may change."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, stdev
from typing import Any

from pytest_induction.baselines.store import Field, rounded
from pytest_induction.display import Displayed, View, rows_table
from pytest_induction.errors import ArgumentError, BaselineError
from pytest_induction.formatting import as_line
from pytest_induction.records import installed

DISTRIBUTIONS = ("torch", "transformers", "numpy")
ARITHMETIC = ("torch", "device", "dtype", "machine")
"""What may add up the same numbers to others. Threads may too, but two machines always differ in them: only a failure tells."""


def environment(device: str = "", dtype: str = "") -> dict[str, str]:
    """Versions as major.minor, the machine, the number of threads of torch, and where and how the model ran, as far as known."""
    versions = {"python": platform.python_version(), **installed(DISTRIBUTIONS)}
    found = {**{name: _short(full) for name, full in versions.items()}, "machine": platform.machine()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = str(torch.get_num_threads())
    if device:
        found["device"] = device.partition(":")[0]
    if dtype:
        found["dtype"] = dtype
    return found


def moved(there: Mapping[str, str], here: Mapping[str, str], *, arithmetic: bool = False) -> str:
    """What differs and is known of both, as "torch 2.8 there, 2.9 here"; with `arithmetic` only what may change numbers."""
    names = [name for name in there if name in here and (name in ARITHMETIC or not arithmetic)]
    return "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in names if there[name] != here[name])


def _short(full: str) -> str:
    return ".".join(full.partition("+")[0].split(".")[:2])


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


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """What came of comparing fields: those that `changed`, by most tolerances first, those not measured, those not in the file.

    `differs` says whether any number is another at all, also within its tolerance.
    """

    changed: tuple[Changed, ...]
    missing: tuple[str, ...]
    new: Mapping[str, float]
    n_fields: int
    differs: bool

    def view(self) -> View:
        """What there is to show."""
        rows = [
            {"field": each.name, "status": "changed", "was": each.was, "now": each.now, "tolerance": each.tolerance}
            for each in self.changed
        ]
        rows += [{"field": name, "status": "missing"} for name in self.missing]
        rows += [{"field": name, "status": "new", "now": value} for name, value in self.new.items()]
        words = "the same, within tolerances" if self.same else f"{len(rows)} of them differ"
        return View(f"comparison of {self.n_fields} fields: {words}", (), (rows_table("fields", rows),))

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
    counted = ", ".join(f"{count} {word}" for count, word in counts if count)
    lines = [f"baseline {entry!r} differs: {counted}, of {found.n_fields} field{'s' if found.n_fields != 1 else ''}"]
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


FEWEST = 5
SPREAD = 2.8  # standard deviations of the difference of two repeats
DIGITS = 3  # of a tolerance


def repeats_wanted(given: str) -> int:
    """How often to measure. Raises `ArgumentError` unless it is a whole number that is large enough."""
    try:
        count = int(given)
    except ValueError:
        count = 0
    if count < FEWEST:
        raise ArgumentError(f"expected a whole number of repeats from {FEWEST} up, got {given!r}")
    return count


def calibrated(entry: str, fields: Mapping[str, float], repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The tolerance of each field. Raises `BaselineError` for one that some repeat did not measure, or that only repeats did."""
    names = dict.fromkeys(name for each in (fields, *repeats) for name in each)
    for name in names:
        count = sum(name in repeat for repeat in repeats)
        if count < len(repeats) or name not in fields:
            raise BaselineError(
                f"entry {entry!r} cannot be calibrated: {name!r} was measured in {count} of {len(repeats)} repeats; check "
                "a measurement that has the same fields whatever the seed, such as `induction.measure_heads()`"
            )
    return {name: tolerance_of([repeat[name] for repeat in repeats]) for name in names}


def tolerance_of(values: Sequence[float]) -> float:
    """2.8 standard deviations of the difference of two repeats, more where few tell what that is; at least the default tolerance.

    The difference of two repeats has sqrt(2) times the standard deviation s of one. `spread` of them are exceeded by that of two
    more repeats as often as 2.8 are where s is known: one time in 196 for normal noise.
    """
    wanted = spread(len(values)) * math.sqrt(2) * stdev(values)
    return _up(max(wanted, default_tolerance(max(map(abs, values)))))


@lru_cache
def spread(count: int) -> float:
    """How many standard deviations stand for 2.8 where they are estimated from `count` values: a quantile of Student's t."""
    within = 2 * NormalDist().cdf(SPREAD) - 1
    low, high = SPREAD, 100.0 * SPREAD
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, count - 1) < within else (low, middle)
    return (low + high) / 2


def _student(bound: float, freedom: int) -> float:
    """The chance that Student's t lies within `bound` either side (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(bound / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    if freedom % 2 == 0:
        return sine * _series(square, [(2 * i - 1) / (2 * i) for i in range(1, freedom // 2)])
    odd = [2 * i / (2 * i + 1) for i in range(1, (freedom - 1) // 2)]
    tail = sine * math.cos(angle) * _series(square, odd) if freedom > 1 else 0.0
    return 2 / math.pi * (angle + tail)


def _series(square: float, factors: Sequence[float]) -> float:
    term = total = 1.0
    for factor in factors:
        term *= factor * square
        total += term
    return total


def _up(value: float) -> float:
    """Rounded up to a few digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return float(f"{math.ceil(value / unit) * unit:.{DIGITS}g}")
