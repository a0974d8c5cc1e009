"""What the tests of a session asked of a baseline: what is to be written, and what is said of it. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_induction.baselines.compare import listed

Line = tuple[str, dict[str, bool]]
"""A line of text and how pytest's terminal writer is to mark it."""

STATUSES = ("same", "changed", "new")


@dataclass(frozen=True)
class Told:
    """One test: whether it came to its end, and what came of each of its checks, as `Asked.to_dict` has it."""

    completed: bool
    asked: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Gathered:
    """All tests by node id."""

    tests: Mapping[str, Told]

    @property
    def entries(self) -> list[str]:
        """Every entry that was asked for, once."""
        return list(dict.fromkeys(each["entry"] for _, each in self._asked()))

    @property
    def writes(self) -> dict[str, Mapping[str, Any]]:
        """Entries to be written: those of tests that nothing else failed, and that no two tests have different."""
        wanted = {each["entry"]: each["write"] for told, each in self._asked() if each["write"] is not None and told.completed}
        conflicts = self.conflicts
        return {entry: data for entry, data in wanted.items() if entry not in conflicts}

    @property
    def conflicts(self) -> dict[str, list[str]]:
        """Entries that several tests would write differently, with these tests."""
        seen: dict[str, list[tuple[str, Any]]] = {}
        for nodeid, told in self.tests.items():
            for each in told.asked:
                if told.completed:
                    seen.setdefault(each["entry"], []).append((nodeid, each["write"]))
        return {
            entry: sorted({nodeid for nodeid, _ in found})
            for entry, found in seen.items()
            if any(data is not None and data != found[0][1] for _, data in found) or _half(found)
        }

    @property
    def left(self) -> list[str]:
        """Entries that would have been written, had their tests not failed otherwise."""
        return sorted({each["entry"] for told, each in self._asked() if each["write"] is not None and not told.completed})

    def count(self, status: str) -> int:
        """How many entries there are of which the last check came to that."""
        return list({each["entry"]: each["status"] for _, each in self._asked()}.values()).count(status)

    def named(self, key: str) -> dict[str, list[str]]:
        """The entries of which a check says something under `key`, by what it says."""
        found: dict[str, list[str]] = {}
        for _, each in self._asked():
            if each[key]:
                found.setdefault(str(each[key]), []).append(each["entry"])
        return found

    def _asked(self) -> Iterator[tuple[Told, Mapping[str, Any]]]:
        for told in self.tests.values():
            for each in told.asked:
                yield told, each


def lines(gathered: Gathered, file: str, *, unused: Sequence[str], failure: str, review: bool, verbose: bool) -> Iterator[Line]:
    """What is said at the end: nothing where all is as it was, unless `verbose`. `failure` is why nothing was written."""
    details = [*_details(gathered, file, failure=failure, review=review)]
    if unused:
        details.append((f"  unused: {listed(unused)}; no test of this session asked for them", {"yellow": True}))
    counts = [f"{gathered.count(status)} {status}" for status in STATUSES if gathered.count(status)]
    if details or (counts and (verbose or counts[0] != counts[-1] or "same" not in counts[0])):
        yield f"{file}: {', '.join(counts) or 'no entry was asked for'}", {}
    yield from details


def _details(gathered: Gathered, file: str, *, failure: str, review: bool) -> Iterator[Line]:
    if failure:
        yield f"  not written: {failure}", {"red": True}
    elif gathered.writes:
        yield f"  written: {listed(sorted(gathered.writes))}{'; review and commit it' if review else ''}", {"yellow": review}
    if gathered.left:
        yield f"  not written: {listed(gathered.left)}, whose tests failed otherwise", {"yellow": True}
    for entry, tests in gathered.conflicts.items():
        yield f"  not written: {entry}, of which {listed(tests)} have different numbers; name each check", {"red": True}
    for elsewhere, entries in gathered.named("elsewhere").items():
        yield f"  within tolerance, but not the same: {listed(entries)} ({elsewhere})", {"yellow": True}
    for entries in gathered.named("still").values():
        yield f"  calibrated, but no repeat differs: {listed(entries)}; is the seed of its test fixed?", {"yellow": True}


def _half(found: Sequence[tuple[str, Any]]) -> bool:
    """Whether one test would write what another found to be as it was."""
    return len({data is None for _, data in found}) > 1
