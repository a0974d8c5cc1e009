"""Directories below a directory, as far as they are worth a look."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.places import Place

MOST_DIRECTORIES = 500  # that are listed: somebody may name a whole disk
MOST_NAMES = 2_000  # of a directory, that are looked at


def directories(place: Place, depth: int, faults: Faults | None = None) -> Iterator[tuple[str, Place, list[str]]]:
    """A directory and those below, the nearest first: path from the one that is named, place, and what it holds.

    Hidden ones are passed over, and links that lead out of the first. A fault says so, and that there were more than are listed.
    """
    waiting = deque([("", place, 0)])
    listed = 0
    while waiting:
        where, directory, level = waiting.popleft()
        if listed == MOST_DIRECTORIES:
            if faults is not None:
                faults.note(f"only the first {MOST_DIRECTORIES} directories were looked at")
            return
        names = directory.names()
        listed += 1
        yield where, directory, names
        for name in names[:MOST_NAMES] if level < depth else ():
            if name.startswith(".") or not (directory / name).is_dir():
                continue
            if not (directory / name).leads_out():
                waiting.append((f"{where}/{name}".lstrip("/"), directory / name, level + 1))
            elif faults is not None:
                faults.add("links that lead out of the directory", f"{directory / name}")
