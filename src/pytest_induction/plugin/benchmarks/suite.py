"""The items of `--induction-benchmark`: one timed analysis of the named model each, and their table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.errors import InductionError
from pytest_induction.formatting import NARROW
from pytest_induction.plugin.benchmarks.analyses import Analysis, TooLong, analyses
from pytest_induction.plugin.benchmarks.timing import Timing, objection

if TYPE_CHECKING:
    from pytest_induction.fixture import Induction

PREFIX = "induction.benchmark."  # of the properties that a timed item leaves in its report
COLUMNS = ("analysis", "tokens", "tokens/s", "x forward", "interval", "pairs", "peak MB", "forward's")


def timings(reports: Iterable[tuple[str, Iterable[tuple[str, Any]]]], *, width: int = NARROW) -> Iterator[str]:
    """The section's lines, from the node id and the properties of each report; nothing where nothing was timed.

    In a terminal that is narrow, and too narrow for the table, a row has its cells in words.
    """
    rows: dict[str, list[tuple[str, ...]]] = {}
    for nodeid, properties in reports:
        found = {name.removeprefix(PREFIX): value for name, value in properties if name.startswith(PREFIX)}
        if found:
            rows.setdefault(_title(found), []).append(_row(nodeid.rpartition("::")[2], found))
    for title, cells in rows.items():
        yield title
        widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *cells, strict=True)]
        if width < min(NARROW, 2 + sum(widths) + 2 * (len(widths) - 1)):
            yield from (f"  {name}: {', '.join(map(' '.join, zip(COLUMNS[1:], rest, strict=True)))}" for name, *rest in cells)
            continue
        for row in (COLUMNS, *cells):
            name, *numbers = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(("  " + row[0].ljust(len(name)), *numbers))


def _title(found: Mapping[str, Any]) -> str:
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    backend = "attention not read" if found["backend"] == "none" else f"by {found['backend']}"
    return f"{found['model']}: {backend}, {found['dtype']} on {found['device']}, {threads}, torch {found['torch']}"


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    interval = f"{found['ratio_low']:.3f}..{found['ratio_high']:.3f}" if "ratio_low" in found else "-"
    peaks = (f"{found[key]:.1f}" if key in found else "-" for key in ("peak_memory_mb", "base_peak_memory_mb"))
    return (
        name,
        str(found["tokens"]),
        f"{found['tokens_per_second']:.0f}",
        f"{found['ratio_to_base']:.3f}",
        interval,
        str(found["pairs"]),
        *peaks,
    )


DISABLED = (
    "benchmarks are disabled (--benchmark-disable, or workers of xdist), so --induction-max-overhead cannot be checked: "
    "run without it, or in one process"
)


class BenchmarkSuite(pytest.Collector):
    """Everything that is timed of one model. The model is loaded when the first item runs."""

    def __init__(self, *, bind: Callable[[], Induction], with_text: bool, max_overhead: float | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._bind = bind
        self._with_text = with_text
        self._max_overhead = max_overhead

    def collect(self) -> Iterator[pytest.Item]:
        for analysis in analyses(with_text=self._with_text):
            bound = self._max_overhead if analysis.judged else None
            yield BenchmarkItem.from_parent(self, name=analysis.name, case=Case(analysis, self._bind, bound))


class Case:
    """What an item does: `prepare` outside the clock, `test` with the fixture of pytest-benchmark."""

    def __init__(self, analysis: Analysis, bind: Callable[[], Induction], max_overhead: float | None) -> None:
        self._analysis = analysis
        self._bind = bind
        self._max_overhead = max_overhead
        self._timing: Timing | None = None

    def prepare(self) -> None:
        self._timing = Timing(self._analysis, self._bind())

    def test(self, request: pytest.FixtureRequest, benchmark: Any, record_property: Callable[[str, object], None]) -> None:
        """A test function like any other that asks for `benchmark`, so that all options of pytest-benchmark work."""
        if self._timing is None:
            return
        options = request.config.option
        fewest, seconds = int(options.benchmark_min_rounds), float(options.benchmark_max_time)
        paired = self._timing.take(benchmark, fewest=fewest, seconds=seconds)
        for name, value in benchmark.extra_info.items():
            record_property(f"{PREFIX}{name}", value)
        if self._max_overhead is None:
            return
        complaint = DISABLED if paired is None else objection(self._analysis.name, paired, self._max_overhead)
        if complaint:
            pytest.fail(complaint, pytrace=False)


class BenchmarkItem(pytest.Function):
    """One timed analysis; it is a test function, so that fixtures serve it as they serve any."""

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(callobj=case.test, **kwargs)
        self._case = case

    def setup(self) -> None:
        """Load and verify before any fixture is made: what cannot be timed is told in one line."""
        wrong, unfit = "", ""
        try:
            self._case.prepare()
        except TooLong as error:
            unfit = str(error)
        except InductionError as error:
            wrong = str(error)
        if unfit:
            pytest.skip(unfit)
        if wrong:
            pytest.fail(wrong, pytrace=False)
        super().setup()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *arguments: Any, **options: Any) -> Any:
        """The message alone for what we raise."""
        if isinstance(excinfo.value, InductionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *arguments, **options)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name  # pytest wants a line for what a marker skips
