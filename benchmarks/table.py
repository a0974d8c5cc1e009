"""The table of docs/performance.md from the JSON of pytest-benchmark: `python benchmarks/table.py JSON [--write PAGE]`.

Prints it, names every row that misses its threshold and exits with 1 if there is one. The page is rewritten between its two
markers, only from figures of all rows.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import filled
from rows import MEMORY, ROWS, TOY, Row

BEGIN, END = "<!-- begin: written by `make bench` -->", "<!-- end -->"
HEADINGS = ("what", "positions", "layers", "pairs", "other side", "ours", "figure", "threshold")


def rows_of(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of each row -> what was noted of it, in the order of the table."""
    noted = {each["extra_info"]["row"]: each["extra_info"] for each in data["benchmarks"] if "row" in each["extra_info"]}
    return {name: noted[name] for name in ROWS if name in noted}


def cells(row: Row, noted: dict[str, Any]) -> tuple[str, ...]:
    memory = row in MEMORY
    amounts = (f"{noted[side]:.0f} MB" if memory else _duration(noted[side]) for side in ("other", "ours"))
    bounds = "" if not noted["bounds"] else " ({:.3f}..{:.3f})".format(*noted["bounds"])
    missed = "" if row.met(noted["figure"], noted["bounds"]) else " **missed**"
    repeats = f"{noted['repeats']} process{'es' if noted['repeats'] != 1 else ''}" if memory else str(noted["repeats"])
    other, ours = amounts
    return (
        row.what,
        str(row.positions),
        str(row.layers),
        repeats,
        f"{'bare forward' if row.against == TOY else row.against}, {other}",
        ours,
        f"{row.shown(noted['figure'])}{bounds}",
        row.threshold_shown + missed,
    )


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def page_table(data: dict[str, Any]) -> Iterator[str]:
    """The lines between the markers."""
    found = rows_of(data)
    about = next(iter(found.values()))
    cpu = data["machine_info"].get("cpu", {})
    threads = f"{about['threads']} thread{'s' if about['threads'] != 1 else ''}"
    yield (
        f"{threads} of {cpu.get('brand_raw', 'an unnamed processor')} ({cpu.get('count', '?')} cores, {cpu.get('arch', '?')}), "
        f"Python {data['machine_info']['python_version']}, torch {about['torch']}, transformers {about['transformers']}."
    )
    yield ""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    for name, noted in found.items():
        yield f"| {' | '.join(cells(ROWS[name], noted))} |"


def plain_table(data: dict[str, Any]) -> Iterator[str]:
    """The same for the terminal."""
    lines = [HEADINGS, *(cells(ROWS[name], noted) for name, noted in rows_of(data).items())]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def missed(data: dict[str, Any]) -> list[str]:
    """A line for every row whose figure misses its threshold."""
    return [
        f"{name}: {ROWS[name].shown(noted['figure'])}, the threshold is {ROWS[name].threshold_shown}"
        for name, noted in rows_of(data).items()
        if not ROWS[name].met(noted["figure"], noted["bounds"])
    ]


def rewrite(page: Path, data: dict[str, Any]) -> str:
    """Put the table between the page's markers, and say so; nothing is written of a part of the rows."""
    left_out = [name for name in ROWS if name not in rows_of(data)]
    if left_out:
        return f"{page} is left as it is: {len(left_out)} of {len(ROWS)} rows were not measured ({', '.join(left_out)})"
    table = "\n".join(page_table(data))
    text = filled(page.read_text(encoding="utf-8"), BEGIN, END, f"{table}\n\n")
    page.write_text(text, encoding="utf-8")
    return f"{page} rewritten"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="rewrite the table of this page")
    arguments = parser.parse_args()
    if not arguments.json.exists():
        raise SystemExit(f"{arguments.json} was not written: nothing was measured")
    data = json.loads(arguments.json.read_text(encoding="utf-8"))
    if not rows_of(data):
        raise SystemExit(f"{arguments.json} holds no row of the table")
    print(*plain_table(data), sep="\n")
    if arguments.write:
        print(rewrite(arguments.write, data))
    for line in missed(data):
        print(f"MISSED {line}")
    return int(bool(missed(data)))


if __name__ == "__main__":
    sys.exit(main())
