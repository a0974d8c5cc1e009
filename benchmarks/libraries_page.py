"""The part of docs/why.md that `compare_libraries.py` writes: tables from the record, and the files that were run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libraries_ways import BARE, KNOWN, SHOWN, TIMED, WAYS, lines_of, source_of
from pages import filled

BEGIN, END = "<!-- begin: written by `make compare-libraries` -->", "<!-- end -->"
NOT_RUN = "<!-- not run: `make compare-libraries` runs it -->"
NAMED = 3  # heads of a list that are named in the table of known models
Json = dict[str, Any]


def rendered(page: str, record: Json) -> str:
    """The page with tables and code between its markers."""
    return filled(page, BEGIN, END, "\n".join(content(record)) + "\n")


def content(record: Json) -> Iterator[str]:
    about = record["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield f"1 thread of {about['processor']}, Python {about['python']}, {versions}."
    yield ""
    if "known" in record:
        yield from _section("Which heads are named, where the answer is known", _known(record["known"]))
    if "real" in record:
        yield from _section("SmolLM2-135M-Instruct: what it costs", _cost(record["real"]))
        yield from _section("SmolLM2-135M-Instruct: which heads are named", _named(record["real"]))
    yield "### The code that was run"
    yield ""
    for way in SHOWN:
        yield from (
            f"{WAYS[way]}, `benchmarks/libraries/{way}.py`:",
            "",
            NOT_RUN,
            "",
            "```python",
            source_of(way).rstrip(),
            "```",
            "",
        )


def _section(title: str, table: Sequence[Sequence[str]]) -> Iterator[str]:
    headings, *rows = table
    yield from (f"### {title}", "", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|")
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _known(found: Mapping[str, Mapping[str, Json]]) -> list[list[str]]:
    """Way by model: the heads that it names, in bold where they are not those that were set."""
    answers = ["the answer", *("" if subject.answer is None else _list(subject.answer) for subject in KNOWN.values())]
    table = [["", *(subject.title for subject in KNOWN.values())], answers]
    for way, title in WAYS.items():
        cells = []
        for name, subject in KNOWN.items():
            heads = found[way][name]["heads"]
            wrong = subject.answer is not None and tuple(heads) != subject.answer
            cells.append(f"**{_list(heads)}**" if wrong else _list(heads))
        table.append([title, *cells])
    return table


def _list(heads: Sequence[str]) -> str:
    return (
        "none" if not heads else ", ".join(heads) if len(heads) <= NAMED else f"{', '.join(heads[:1])} and {len(heads) - 1} more"
    )


def _cost(found: Mapping[str, Json]) -> list[list[str]]:
    """Lines, processor time of loading, of the first call and of later ones, and memory."""
    table = [["", "lines of code", "load", "first call", "later calls", "in bare passes", "memory", "scores differ by"]]
    for way in TIMED:
        each, title = found[way], WAYS.get(way, "a bare pass with logits")
        counted = each["again"] or each["first"]
        seconds = [f"{each[name]:.1f} s" if each[name] else "n/a" for name in ("load", "first", "again")]
        passes, memory = f"{counted / found[BARE]['again']:.2f}", f"{each['peak']:.0f} MB"
        differs = f"{each['differs']:.0g}" if "differs" in each else ""
        table.append([title, str(len(lines_of(way))), *seconds, passes, memory, differs])
    return table


def _named(found: Mapping[str, Json]) -> list[list[str]]:
    lists: dict[tuple[str, ...], list[str]] = {}
    for way in TIMED[1:]:
        lists.setdefault(tuple(sorted(found[way]["heads"], key=_place)), []).append(WAYS[way])
    return [["named by", "heads", ""], *(["; ".join(ways), str(len(heads)), ", ".join(heads)] for heads, ways in lists.items())]


def _place(head: str) -> tuple[int, int]:
    layer, _, number = head.removeprefix("L").partition("H")
    return int(layer), int(number)
