"""`run.json`: what is known of a run as a whole, read with care, for anybody may have written it."""

from __future__ import annotations

from collections.abc import Callable
from reprlib import repr as short
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.runs.lines import is_count, is_number, parsed
from pytest_induction.runs.places import Place

SCHEMA = 1
HEADER = "run.json"
SOURCES = ("recorder", "sweep", "log")
LONGEST_HEADER = 2**20  # bytes


def read_header(place: Place) -> dict[str, Any]:
    """What `run.json` in a directory says. Raises `RunError` where it is missing or is not what it must be."""
    where = place / HEADER
    text = header_text(place)
    if len(text) > LONGEST_HEADER:
        raise RunError(f"{where} is longer than {LONGEST_HEADER} bytes: it is no header of a run")
    try:
        header = parsed(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not JSON: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        seen = header.get("schema") if isinstance(header, dict) else type(header).__name__
        raise RunError(f"{where} must be an object with schema {SCHEMA}, got {short(seen)}; was it written by another version?")
    if header.get("source") not in SOURCES:
        raise RunError(f'{where} must have a source "recorder", "sweep" or "log", got {short(header.get("source"))}')
    for name, (fits, what) in _FIELDS.items():
        if header.get(name) is not None and not fits(header[name]):
            raise RunError(f"`{name}` in {where} must be {what}, got {short(header[name])}")
    return header


def header_text(place: Place) -> bytes:
    """What is written there, as far as it is worth reading: a byte more than it may have, where it has more."""
    with (place / HEADER).open() as stream:
        return stream.read(LONGEST_HEADER + 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_windows(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_window, value))


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value)) and 1 <= value[0] <= value[1]


def _is_schedule(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(change, dict) and is_count(change.get("step")) and isinstance(change.get("what"), str) for change in value
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a text"),
    "tokens_per_step": (_is_positive, "a number above 0"),
    "icl_windows": (_is_windows, "two windows [first, last] of token numbers from one"),
    "first_token": (lambda value: is_count(value) and value >= 1, "a token number from one"),
    "schedule": (_is_schedule, "a list of objects with a step and what changes there"),
    "about": (_is_object, "an object"),
    "cost": (_is_object, "an object"),
    "stopped": (_is_text, "a text"),
    "is_open": (lambda value: isinstance(value, bool), "true or false"),
    "notes": (_is_texts, "a list of texts"),
}
