"""From a measurement to an exhibit, also where it fails: a picture less is no reason to lose the others.

It imports no torch, so that what is drawn of a run needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_induction.errors import InductionError, first_line
from pytest_induction.exhibits.plain import plain
from pytest_induction.records import Exhibit, Provenance

LONGEST = 200  # letters of what is said of an error


def exhibit_with(kind: str, about: Provenance, measure: Callable[[], dict[str, Any]]) -> Exhibit:
    """The exhibit with what is measured, or with why it could not be; whatever was foreseen or not, but for an interruption."""
    try:
        return Exhibit(kind, about.model, about.fingerprint, plain(measure()), place=about.place)
    except Exception as error:  # noqa: BLE001 - as it says
        return Exhibit(kind, about.model, about.fingerprint, missing=why(error), place=about.place)


def why(error: Exception) -> str:
    """What went wrong, in a line."""
    said, name = first_line(error, LONGEST), type(error).__name__
    return said if isinstance(error, InductionError) or said == name else f"{name}: {said}"
