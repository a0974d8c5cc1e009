"""What failed in one search is tried first in the next one, on another model: by hypothesis's own example databases."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Generic, TypeVar

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

E = TypeVar("E")
SECONDARY = b".secondary"  # behind a key: what hypothesis tries first and, unlike what lies under the key itself, shrinks further


class Replays(Generic[E]):
    """Examples that failed in any of several searches, with the choices that hypothesis made for them.

    With `keep` those that the hypothesis profile has in its database under the key, from an earlier session, are among them, and
    what is found is left there for the next.
    """

    def __init__(self, key: bytes, *, keep: bool) -> None:
        self.key = key
        self.begin: E | None = None  # the example that the next search is to shrink from
        self._kept: ExampleDatabase | None = settings().database if keep else None
        self._before = () if self._kept is None else tuple(sorted(self._kept.fetch(key)))
        self._choices: dict[E, bytes] = {}
        self._found: set[bytes] = set()

    def earlier(self, batches: SearchStrategy[tuple[E, ...]]) -> list[E]:
        """The examples that an earlier session left; no model is asked."""
        for choices in self._before:
            drawn = _drawn(batches, choices)
            if drawn:
                self._choices.setdefault(drawn[0], choices)
        return list(self._choices)

    def database(self) -> ExampleDatabase:
        """For one search: where it is to begin with an example, it tries that one first and shrinks it."""
        made = InMemoryExampleDatabase()
        if self.begin is not None and self.begin in self._choices:
            made.save(self.key + SECONDARY, self._choices[self.begin])
        return made

    def take(self, found: E | None, searched: ExampleDatabase, batches: SearchStrategy[tuple[E, ...]]) -> E | None:
        """Keep what a search ended with, and return it; also where it was ended before a failure was shrunk all the way."""
        for choices in sorted(searched.fetch(self.key)):
            if found is None:
                found = next(iter(_drawn(batches, choices)), None)
            if found is not None:
                self._choices[found] = choices
            self._found.add(choices)
            if self._kept is not None:
                self._kept.save(self.key, choices)
        return found

    def tidy(self) -> None:
        """After the last search: let go of what an earlier session left and this one did not end with."""
        if self._kept is not None:
            for choices in self._before:
                if choices not in self._found:
                    self._kept.delete(self.key, choices)


def _drawn(batches: SearchStrategy[tuple[E, ...]], choices: bytes) -> tuple[E, ...]:
    """What a strategy makes of choices that were kept; nothing where it is another strategy by now."""
    database, key = InMemoryExampleDatabase(), b"kept"
    database.save(key, choices)
    seen: list[tuple[E, ...]] = []

    def note(batch: tuple[E, ...]) -> bool:
        seen.append(batch)
        return False

    only = settings(
        max_examples=1,
        database=database,
        derandomize=False,
        deadline=None,
        phases=[Phase.reuse],
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample):
        find(batches, note, settings=only, database_key=key)
    return seen[0] if seen else ()


class KeptApart(ExampleDatabase):
    """A part of another database, of one of the models that a test runs on: what does not fail there is forgotten there alone."""

    def __init__(self, whole: ExampleDatabase, about: bytes) -> None:
        super().__init__()
        self._whole, self._about = whole, about

    def save(self, key: bytes, value: bytes) -> None:
        self._whole.save(self._of(key), value)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return self._whole.fetch(self._of(key))

    def delete(self, key: bytes, value: bytes) -> None:
        self._whole.delete(self._of(key), value)

    def _of(self, key: bytes) -> bytes:
        return self._about + b" " + key
