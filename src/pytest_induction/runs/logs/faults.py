"""What of a log could not be used: counted by kind, with the first of each, so that a log full of faults makes a few notes."""

from __future__ import annotations

from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 40


class Faults:
    """Kinds of faults in the order in which they were first met."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}
        self._notes: list[str] = []

    def add(self, kind: str, example: str) -> None:
        """One more that is left out. There are few kinds, as "lines that are no JSON objects", and may be many faults."""
        count, first = self._seen.get(kind, (0, example))
        self._seen[kind] = (count + 1, first)

    def note(self, text: str) -> None:
        """What a reader must know, as it stands."""
        self._notes.append(text)

    @property
    def notes(self) -> tuple[str, ...]:
        """A note for each kind, then the others."""
        counted = [f"left out: {count} x {kind} (the first: {first})" for kind, (count, first) in self._seen.items()]
        return (*counted, *self._notes)


def shown(value: object) -> str:
    """A value from a log, short enough for a message of one line."""
    return _short.repr(value)
