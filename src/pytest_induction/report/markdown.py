"""The records of a session as GitHub-flavoured Markdown: verdicts, what failed, each model and run. Standard library only."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_induction.expectations import COMPARED_COLUMNS, ComparedRow
from pytest_induction.formatting import printable
from pytest_induction.records import Evidence
from pytest_induction.report.session_records import SessionRecords, TestRecord, counts, reasons, result, unlisted
from pytest_induction.report.terminal import head_map_lines
from pytest_induction.report.view import CHANGE_COLUMNS, ModelView, by_model, from_cache, tally, views, without_empty

ICONS = {"passed": "✅", "xfailed": "✅", "failed": "❌", "error": "❌", "xpassed": "⚠️", "skipped": "⏭️", "not run": "⏹️"}
RESULTS = {"passed": "✅", "empty": "⏭️"}  # and red where it is neither
COUNTED = {"error": "errors"}  # where the plural has another form
WIDTH = 100  # of a head map, in characters
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
VERDICTS = ("test", "verdict", "claim", "model", "what was found")


@dataclass(frozen=True)
class Part:
    """Lines that belong together; an empty line stands between two parts.

    Where room is short, a table may lose lines from its end, down to the first `least` of them; None for a part that is whole
    or not there.
    """

    lines: tuple[str, ...]
    least: int | None = None

    def __str__(self) -> str:
        return "\n".join(self.lines)


def markdown(records: SessionRecords) -> str:
    """The whole report."""
    return "\n\n".join(map(str, parts(records))) + "\n"


def parts(records: SessionRecords) -> Iterator[Part]:
    """The parts of the report: what matters most comes first."""
    yield from _head(records)
    rows = [row for test in records.tests for row in _rows(test)]
    if rows:
        yield Part(tuple(table(VERDICTS, rows, left=5)), least=2)
    failures = [test for test in records.tests if test.message]
    if failures:
        yield Part(("### What failed",))
        yield from (_failure(test) for test in failures)
    for _, group in sorted(by_model(records.evidence).items()):
        yield from _model(group, records)
    yield Part(tuple(_foot(records)))


def _head(records: SessionRecords) -> Iterator[Part]:
    counted = _ordered(counts(records))
    outcomes = ", ".join(f"{count} {COUNTED.get(name, name) if count > 1 else name}" for name, count in counted) or "no tests"
    outcomes += f", {records.deselected} deselected" if records.deselected else ""
    yield Part((f"## {RESULTS.get(result(records), '❌')} Induction: {outcomes}",))
    why = reasons(records)
    if records.stopped:
        yield Part((f"**Partial:** {text(records.stopped)}; what was measured until then is below.",))
        why = why[1:]
    if why:
        yield Part(tuple(f"- **The session is red:** {text(each)}" for each in why))
    count = sum(1 for _ in records.evidence)
    if count:
        yield Part((f"{count} verdict{'s' if count != 1 else ''}: {tally(records.evidence)}{from_cache(records.evidence)}",))
    if records.others:
        yield Part((text(unlisted(records)),))


def _ordered(outcomes: Mapping[str, int]) -> list[tuple[str, int]]:
    order = ("failed", "error", "not run", "xpassed", "passed", "xfailed", "skipped")
    return sorted(outcomes.items(), key=lambda each: (order.index(each[0]) if each[0] in order else len(order), each[0]))


def _rows(test: TestRecord) -> Iterator[tuple[str, ...]]:
    """A row for each verdict of a test, one for all that are alike; a test without any says why, unless it passed."""
    icon = f"{ICONS.get(test.outcome, '❔')} {test.outcome}"
    verdicts = Counter((each.words, each.claim, each.provenance.model, each.summary) for each in test.evidence)
    for (verdict, claim, model, summary), times in verdicts.items():
        yield icon, verdict, code(claim), code(model), text(summary) + (f" ({times} times)" if times > 1 else "")
    if not test.evidence and test.outcome != "passed":
        where, _, name = test.nodeid.rpartition("::")
        yield icon, "none", code(name), code(where), text(test.message.strip().partition("\n")[0])


def _failure(test: TestRecord) -> Part:
    """The whole message, folded, and the command that repeats the test."""
    first = test.message.strip().partition("\n")[0]
    again = ("", "Again, alone:", "", *_fenced(test.again, "sh")) if test.again else ()
    about = f"<summary><code>{_plain_html(test.nodeid)}</code>: {_plain_html(first)}</summary>"
    return Part(("<details>", about, "", *_fenced(test.message.strip("\n"), "text"), *again, "", "</details>"))


def _model(group: list[Evidence], records: SessionRecords) -> Iterator[Part]:
    """Its heads, the map of all of them, what its series did if it is a run, and where all that was measured."""
    (view,) = views(group)
    about = group[0].provenance
    yield Part((f"### {code(about.model)}",))
    yield from _tables(view)
    head_map = head_map_lines(view.head_map, width=WIDTH, shows=view.mapped)
    if head_map:
        yield Part(tuple(_fenced("\n".join(head_map), "text")))
    undrawn: dict[str, list[str]] = {}  # why -> which kinds
    for chart in records.charts:
        if chart.missing and (chart.model, chart.fingerprint) == (about.model, about.fingerprint):
            undrawn.setdefault(chart.missing, []).append(chart.kind)
    missing = [f"{', '.join(kinds)}: {why}" for why, kinds in undrawn.items()]
    notes = {"note": view.notes, "pair": view.pairs, "near miss": view.near, "not drawn": missing}
    lines = [view.title, *(f"{name}: {line}" for name, lines in notes.items() for line in lines), *view.measured]
    yield Part(tuple(f"- {text(line)}" for line in lines))


def _tables(view: ModelView) -> Iterator[Part]:
    for beside in view.compared:
        yield Part((f"Before: {text(beside.before)}",))
        yield side_by_side(beside.rows)
    if view.changes:
        yield Part(tuple(table(CHANGE_COLUMNS, [tuple(map(text, row.cells)) for row in view.changes], left=3)), least=2)
        yield Part((f"Onset, midpoint and end in {view.places}, with their intervals.",))
    if view.heads:
        names, rows = view.head_table
        cells = [_head_cells(row, found=head.found) for head, row in zip(view.heads, rows, strict=True)]
        yield Part(tuple(table(*without_empty(names, cells), left=1)), least=2)
        more = f"; {view.heads_left_out} more are not shown" if view.heads_left_out else ""
        if more or any(row.found for row in view.heads):
            marked = f"Heads with {text(view.score)}" if view.score else "Induction heads"
            yield Part((f"{marked} are bold{more}.",))


def side_by_side(rows: Sequence[ComparedRow]) -> Part:
    """Two models as a table; what is shown to be worse is bold."""
    cells = [
        (f"**{text(first)}**" if row.is_worse else text(first), *map(text, others))
        for row in rows
        for first, *others in [row.cells]
    ]
    return Part(tuple(table(*without_empty(COMPARED_COLUMNS, cells), left=2)), least=2)


def _head_cells(cells: Sequence[str], *, found: bool) -> tuple[str, ...]:
    name, *numbers, kind = cells
    return f"**{text(name)}**" if found else text(name), *numbers, text(kind)


def _foot(records: SessionRecords) -> Iterator[str]:
    yield "<details>"
    yield "<summary>The session: command and versions</summary>"
    yield ""
    if records.command:
        yield from _fenced(records.command, "sh")
        yield ""
    began = f"; began {text(records.started)}" if records.started else ""
    yield f"- exit status {records.exit_status}; {records.seconds:.1f} s{began}"
    yield from (f"- {text(name)}: {text(value)}" for name, value in records.environment.items())
    yield ""
    yield "</details>"


def table(names: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> Iterator[str]:
    """Cells are Markdown already; numbers, the columns from `left` on, stand at the right."""
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join('---' if index < left else '--:' for index in range(len(names)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def text(words: str) -> str:
    """The words on one line, with nothing left in them that Markdown or HTML would act on; also fit for a cell of a table."""
    return MARKUP.sub(lambda found: f"\\{found[0]}", _plain_html(words))


def code(words: str) -> str:
    """The words on one line as code; also fit for a cell of a table."""
    line = _one_line(words)
    if not line:
        return ""
    if not any(mark in line for mark in "`|\\"):
        return f"`{line}`"
    return f"<code>{text(line)}</code>"


def _plain_html(words: str) -> str:
    return html.escape(_one_line(words), quote=False)


def _one_line(words: str) -> str:
    """With escapes in place of line ends and of whatever cannot be printed."""
    return " ".join(printable(words).split())


def _fenced(words: str, language: str) -> Iterator[str]:
    """A block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}{language}"
    for line in words.split("\n"):
        yield printable(line, keep="\t").rstrip()
    yield fence
