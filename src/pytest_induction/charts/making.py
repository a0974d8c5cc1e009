"""From a measurement to plain data, also where it fails: a picture less is no reason to lose the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pytest_induction.errors import InductionError, first_line
from pytest_induction.records import ChartData, Estimate, Provenance

DIGITS = 5
ENDS = ("value", "low", "high")


def plain(value: Any) -> Any:
    """The same in plain Python, numbers to five digits; None in place of NaN and infinities."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def ends(estimate: Estimate) -> dict[str, float]:
    """An estimate without its unit."""
    return {name: getattr(estimate, name) for name in ENDS}


def curve(estimates: Sequence[Estimate]) -> dict[str, list[float]]:
    """A mean loss at each place, with the ends of its interval."""
    return {name: [getattr(each, end) for each in estimates] for name, end in zip(("loss", "low", "high"), ENDS, strict=True)}


LONGEST = 200  # letters of what is said of an error


def chart_with(kind: str, about: Provenance, measure: Callable[[], dict[str, Any]]) -> ChartData:
    """The chart with what is measured, or with why it could not be; whatever was foreseen or not, but for an interruption."""
    try:
        return ChartData(kind, about.model, about.fingerprint, plain(measure()), place=about.place)
    except Exception as error:  # noqa: BLE001 - as it says
        return ChartData(kind, about.model, about.fingerprint, missing=why(error), place=about.place)


def why(error: Exception) -> str:
    """What went wrong, in a line."""
    message, name = first_line(error, LONGEST), type(error).__name__
    return message if isinstance(error, InductionError) or message == name else f"{name}: {message}"
