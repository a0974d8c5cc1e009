"""The terminal section of `--induction-benchmark`: what the table of pytest-benchmark has no columns for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_induction.wording import NARROW

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
    way = "attention not read" if found["way_in"] == "none" else f"by {found['way_in']}"
    return f"{found['model']}: {way}, {found['dtype']} on {found['device']}, {threads}, torch {found['torch']}"


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
