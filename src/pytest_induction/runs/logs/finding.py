"""Where a log lies, and which format it has."""

from __future__ import annotations

import re

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import listed
from pytest_induction.runs.logs.format import LogFormat
from pytest_induction.runs.logs.formats import FORMATS, endings, expected
from pytest_induction.runs.logs.formats.json_document import STATE
from pytest_induction.runs.places import Place

CHECKPOINT = re.compile(r"checkpoint-(\d{1,15})")
HEAD = 2**16  # bytes from which it is told what kind of log a file is
WITH_MANY_USES = (".log",)  # an ending of files that may hold anything
_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_DATABASE = b"SQLite format 3"


def find_log(place: Place) -> tuple[LogFormat, Place]:
    """The format of a log, and where it lies: the place itself, or a file in it. Raises `RunError` for a place without a log."""
    if place.is_file():
        return format_of(place), place
    if not place.is_dir():
        raise RunError(f"{place} {place.seen()}: expected a log ({expected()})")
    names = place.names()
    if STATE in names:
        return format_of(place / STATE), place / STATE
    for each in FORMATS:
        if any(each.names(place / name) for name in names):
            return each, place
    file = _only(place, names, tuple(ending for ending in endings() if ending not in WITH_MANY_USES))
    if file is not None:
        return format_of(file), file
    for each in FORMATS:
        if each.lies_in(place):
            return each, place
    file = _only(place, names, WITH_MANY_USES) or _state_of_the_last(place, names)
    if file is not None:
        return format_of(file), file
    raise RunError(f"{place} holds no log: expected {expected()}; there are {listed(names)}")


def holds_log(place: Place) -> bool:
    """Whether a directory holds something that can be told to be a log, or several."""
    try:
        find_log(place)
    except RunError as error:
        return "several logs" in str(error)
    return True


def format_of(file: Place) -> LogFormat:
    """What kind of log a file is, by its first bytes. Raises `RunError` for what is none."""
    named = next((each for each in FORMATS if each.names(file)), None)
    if named is not None:
        return named
    with file.open() as stream:
        head = stream.read(HEAD)
    if not head.strip():
        raise RunError(f"{file}: it is empty: expected {expected()}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RunError(f"{file}: it is in UTF-16: save it as UTF-8")
    if head.startswith(_PACKED):
        raise RunError(f"{file}: it is compressed: unpack it first")
    if head.startswith(_DATABASE):
        raise RunError(f"{file}: it is a database: export the run as CSV or JSON, as `mlflow` and `aim` do")
    found = next((each for each in FORMATS if each.fits(file, head)), None)
    if found is None:
        raise RunError(f"{file}: it is no text: expected {expected()}")
    return found


def _only(place: Place, names: list[str], wanted: tuple[str, ...]) -> Place | None:
    """The only file that ends so. Raises `RunError` where there are several."""
    files = [name for name in names if name.endswith(wanted)]
    if len(files) > 1:
        raise RunError(f"{place} holds several logs: {listed(files)}; name one of them")
    return place / files[0] if files else None


def _state_of_the_last(place: Place, names: list[str]) -> Place | None:
    """The trainer state of the last checkpoint that has one."""
    steps = [(int(found[1]), name) for name in names if (found := CHECKPOINT.fullmatch(name))]
    states = (place / name / STATE for _, name in sorted(steps, reverse=True))
    return next((state for state in states if state.is_file()), None)
