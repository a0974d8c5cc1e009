"""From arrays to what an exhibit holds: plain lists and numbers, none of them without end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pytest_induction.records import Estimate

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
