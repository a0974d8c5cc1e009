"""The object behind the fixture `induction_baseline`: what tests measure, against what a file has. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_induction.baselines.compare import calibrated, compare, difference_text, environment, listed, moved, tolerances_for
from pytest_induction.baselines.store import Entry, Field, Heads, Numbers, fields_of, provenance_in, read_baseline
from pytest_induction.errors import ArgumentError, BaselineError, BaselineFailed, ExpectationFailed, ModelError
from pytest_induction.files import is_there
from pytest_induction.formatting import as_line
from pytest_induction.observers import collecting
from pytest_induction.records import Evidence

Line = tuple[str, dict[str, bool]]
"""A line of text and how pytest's terminal writer is to mark it."""

STATUSES = ("same", "changed", "new")


@dataclass(frozen=True)
class ChecksOfTest:
    """One test: whether it came to its end, and what came of each of its checks, as `Asked.to_dict` has it."""

    completed: bool
    asked: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Gathered:
    """All tests by node id."""

    tests: Mapping[str, ChecksOfTest]

    @property
    def entries(self) -> list[str]:
        """Every entry that was asked for, once."""
        return list(dict.fromkeys(each["entry"] for _, each in self._asked()))

    @property
    def writes(self) -> dict[str, Mapping[str, Any]]:
        """Entries to be written: those of tests that nothing else failed, and that no two tests have different."""
        wanted = {each["entry"]: each["write"] for test, each in self._asked() if each["write"] is not None and test.completed}
        conflicts = self.conflicts
        return {entry: data for entry, data in wanted.items() if entry not in conflicts}

    @property
    def conflicts(self) -> dict[str, list[str]]:
        """Entries that several tests would write differently, with these tests."""
        seen: dict[str, list[tuple[str, Any]]] = {}
        for nodeid, test in self.tests.items():
            for each in test.asked:
                if test.completed:
                    seen.setdefault(each["entry"], []).append((nodeid, each["write"]))
        return {
            entry: sorted({nodeid for nodeid, _ in found})
            for entry, found in seen.items()
            if any(data is not None and data != found[0][1] for _, data in found) or _half(found)
        }

    @property
    def left(self) -> list[str]:
        """Entries that would have been written, had their tests not failed otherwise."""
        return sorted({each["entry"] for test, each in self._asked() if each["write"] is not None and not test.completed})

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

    def _asked(self) -> Iterator[tuple[ChecksOfTest, Mapping[str, Any]]]:
        for test in self.tests.values():
            for each in test.asked:
                yield test, each


def lines(gathered: Gathered, file: str, *, unused: Sequence[str], failure: str, review: bool, verbose: bool) -> Iterator[Line]:
    """What is said at the end: nothing where all is as it was, unless `verbose`. `failure` is why nothing was written."""
    details = [*_details(gathered, failure=failure, review=review)]
    if unused:
        details.append((f"  unused: {listed(unused)}; no test of this session asked for them", {"yellow": True}))
    counts = [f"{gathered.count(status)} {status}" for status in STATUSES if gathered.count(status)]
    if details or (counts and (verbose or counts[0] != counts[-1] or "same" not in counts[0])):
        yield f"{file}: {', '.join(counts) or 'no entry was asked for'}", {}
    yield from details


def _details(gathered: Gathered, *, failure: str, review: bool) -> Iterator[Line]:
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


Mode = Literal["compare", "update", "accept"]
Status = Literal["same", "changed", "new"]


@dataclass
class Book:
    """The baseline of a session: read at its first use, once, and its failure remembered like its success."""

    path: Path
    shown: str
    mode: Mode = "compare"
    _read: dict[str, Entry] | BaselineError | None = None

    def entries(self) -> Mapping[str, Entry]:
        """What the file has; nothing where there is none. Raises `BaselineError` if it is damaged."""
        if self._read is None:
            try:
                self._read = read_baseline(self.path)
            except BaselineError as error:
                self._read = error
        if isinstance(self._read, BaselineError):
            raise self._read.with_traceback(None)
        return self._read


@dataclass(frozen=True)
class Asked:
    """What came of one check.

    `write` is the entry as it is to be written, None for nothing. `elsewhere` is what may have changed numbers that are within
    their tolerance, and not what they were; `still` that repeats with other seeds gave the same numbers.
    """

    entry: str
    status: Status
    write: Mapping[str, Any] | None = None
    elsewhere: str = ""
    still: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class OfHeads:
    """How heads are kept and compared: handed in, as what measures lies above this module.

    `profile(model, options)` makes of a model what is kept of it, as plain data; `preserved(kept, where, model, options)` asserts
    that a model has that still.
    """

    profile: Callable[..., dict[str, Any]]
    preserved: Callable[..., Evidence]


@dataclass(repr=False)
class InductionBaseline:
    """Holds what a test measures against the baseline of the session.

    `name` is what an entry is called that is given no name, `again` the command that writes it. `model` gives the model that is
    meant where none is named, `where` its device and dtype, "" for what is not known.
    """

    book: Book
    name: str
    again: str
    model: Callable[[], Any]
    where: Callable[[], tuple[str, str]]
    of_heads: Callable[[], OfHeads]
    first_seed: int = 0
    ended: bool = False
    asked: list[Asked] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)
    _repeats: list[dict[str, dict[str, float]]] = field(default_factory=list)
    _repeating: bool = False

    @property
    def seed(self) -> int:
        """The seed to measure with; another one in each repeat of a calibration."""
        return self.first_seed + (len(self._repeats) - 1 if self._repeating else 0)

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Inside the block the test runs to see how noisy it is: what it measures is kept, and compared with nothing."""
        asked = len(self.asked)
        self._repeats.append({})
        self._repeating = True
        try:
            yield
        finally:
            self._repeating = False
            self._named.clear()
            del self.asked[asked:]

    def check(self, measured: Any, *, name: str | None = None, tolerance: float | Mapping[str, float] | None = None) -> None:
        """Assert that numbers are those that the baseline has, each within its tolerance.

        `measured` is a mapping of names to numbers, an `Evidence`, a `HeadList`, or scores of heads;
        docs/baselines.md has the fields of each.
        The entry is called as the test is unless `name` is given, which a second check of a test needs. `tolerance` is how far
        every field may be from what it was, or a mapping of fields, or of what their names begin with, to that; it goes before
        what the file has. Without one that is the tolerance that was calibrated or written into the file by hand, or else a
        thousandth of the value and a millionth.

        Raises `BaselineFailed` where a field has changed, is missing or new, and where the file has no such entry;
        `ArgumentError` for what is no finite number; `BaselineError` for a damaged file. With --induction-update-baseline the
        entry is written when the session ends instead, and the test fails at its end; with --induction-accept-baseline it passes.
        """
        __tracebackhide__ = True
        entry, fields = self._entry(name), fields_of(measured)
        given = tolerances_for(tolerance, fields)
        if self._repeating:
            self._repeats[-1][entry] = fields
            return
        kept = self._kept(entry, Numbers)
        noise = calibrated(entry, fields, [repeat.get(entry, {}) for repeat in self._repeats]) if self._repeats else {}
        about = provenance_in(measured)
        now = environment(*(self.where() if about is None else (about.device, about.dtype)))
        if kept is None:
            self._new(entry, _numbers(fields, noise, {}, now), still=self._is_still(entry))
            return
        found = compare(kept.fields, fields, given)
        elsewhere = moved(kept.environment, now)
        if found.same and all(kept.fields[each].tolerance == noise[each] for each in noise):
            arithmetic = moved(kept.environment, now, arithmetic=True) if found.differs else ""
            self.asked.append(Asked(entry, "same", elsewhere=arithmetic, still=self._is_still(entry)))
        elif self.book.mode != "compare":
            written = _numbers(fields, noise, kept.fields, now)
            self.asked.append(Asked(entry, "changed", written.to_dict(), still=self._is_still(entry)))
        else:
            self.asked.append(Asked(entry, "changed"))
            text = difference_text(entry, found, elsewhere=elsewhere, path=self.book.shown, again=self.again)
            raise BaselineFailed(text, found)

    def assert_heads_preserved(self, model: Any = None, *, name: str | None = None, **options: Any) -> Evidence:
        """Assert that a model still has the heads and the behaviour that the baseline has; see `assert_heads_preserved`.

        `model` is the session's unless one is given, `options` are those of that function, and, where the entry is written, those
        of `profile_of`. Raises `ExpectationFailed`, which carries the evidence, and `BaselineFailed` where the file has no such
        entry. With --induction-update-baseline and --induction-accept-baseline what is not shown to be preserved is written anew.
        """
        __tracebackhide__ = True
        entry = self._entry(name)
        kept = self._kept(entry, Heads)
        subject = self.model() if model is None else model
        if kept is None:
            if self.book.mode == "compare":
                self._new(entry, None)
            return self._take(entry, "new", subject, options)
        try:
            found = self.of_heads().preserved(dict(kept.profile), f"entry {entry!r} of {self.book.shown}", subject, options)
        except ExpectationFailed as error:
            if self.book.mode == "compare":
                self.asked.append(Asked(entry, "changed"))
                raise
            failed = error
        except (BaselineError, ModelError):  # what is kept is damaged, of another text, or of ids that this model lacks
            if self.book.mode == "compare":
                raise
            return self._take(entry, "changed", subject, options)
        else:
            self.asked.append(Asked(entry, "same"))
            return found
        self._take(entry, "changed", subject, options)
        return failed.evidence

    def _take(self, entry: str, status: Status, subject: Any, options: Mapping[str, Any]) -> Evidence:
        """Keep a model's heads anew, if a later model can be held against them, as this one is: what comes of that."""
        __tracebackhide__ = True
        profile = self.of_heads().profile(subject, options)
        with collecting():  # that a model is as it is itself is no finding
            found = self.of_heads().preserved(profile, f"entry {entry!r}", subject, options)
        written = Heads(profile, environment(found.provenance.device, found.provenance.dtype))
        self.asked.append(Asked(entry, status, written.to_dict()))
        return found

    def _entry(self, name: str | None) -> str:
        """What the entry is called. Raises `ArgumentError` for what is no name, and for one that the test has used."""
        if name is not None and not (isinstance(name, str) and name.strip() and name.isprintable()):
            raise ArgumentError(f"`name` must be a printable text that is not blank, got {name!r}")
        entry = self.name if name is None else name
        if self.ended:
            raise BaselineError(f"the test has ended: ask for the entry {entry!r} before, or what it has is not judged")
        if entry in self._named:
            raise ArgumentError(f"this test has asked for the entry {entry!r} before: give each check a `name` of its own")
        self._named.add(entry)
        return entry

    def _kept(self, entry: str, kind: type[Any]) -> Any:
        """What the file has of that name, None for nothing. Raises `BaselineError` where it is of the other kind."""
        kept = self.book.entries().get(entry)
        if kept is not None and not isinstance(kept, kind):
            which = (
                "heads, which `assert_heads_preserved` compares" if isinstance(kept, Heads) else "numbers, which `check` compares"
            )
            raise BaselineError(f"entry {entry!r} of {self.book.shown} has {which}: give another `name`")
        return kept

    def _new(self, entry: str, written: Numbers | None, *, still: bool = False) -> None:
        __tracebackhide__ = True
        if self.book.mode != "compare" and written is not None:
            self.asked.append(Asked(entry, "new", written.to_dict(), still=still))
            return
        self.asked.append(Asked(entry, "new"))
        lacks = "has no such entry" if is_there(self.book.path) else "does not exist"
        message = f"baseline {entry!r} is new: {self.book.shown} {lacks}", f"  next: to write it: {self.again}"
        raise BaselineFailed("\n".join(map(as_line, message)))

    def _is_still(self, entry: str) -> bool:
        """Whether there were repeats, and none gave another number than the first."""
        return bool(self._repeats) and all(repeat[entry] == self._repeats[0][entry] for repeat in self._repeats)


def _numbers(
    fields: Mapping[str, float], noise: Mapping[str, float], kept: Mapping[str, Field], now: Mapping[str, str]
) -> Numbers:
    """As they are to be written: a tolerance is the one that was measured now, or else the one that the file has."""
    return Numbers(
        {name: Field(value, noise.get(name, kept[name].tolerance if name in kept else None)) for name, value in fields.items()},
        now,
    )
