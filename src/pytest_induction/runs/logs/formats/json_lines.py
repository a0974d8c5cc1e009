"""JSON lines: one object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from pytest_induction.runs.logs.columns import Choice, guess
from pytest_induction.runs.logs.faults import Faults
from pytest_induction.runs.logs.format import Row, TextFormat, as_text, text_lines
from pytest_induction.runs.places import Place, Reading

BRACE = re.compile(r'\{\s*(["}]|$)')  # that of an object of JSON; what Python prints has other quotes


class JsonLines(TextFormat):
    """A file of objects, one a line, as fairseq, lingua, LLaMA-Factory and exports of W&B have them."""

    name = "JSON lines"
    what = "JSON lines (.jsonl, .ndjson)"
    endings = (".jsonl", ".ndjson")

    def fits(self, file: Place, head: bytes) -> bool:
        text = as_text(head)
        return BRACE.match(text) is not None and is_rows(text)

    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        for line, text in text_lines(reading, faults):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                if line.ended:
                    faults.add("lines that are no JSON", f"line {line.number}")
                else:
                    faults.note(f"its last line, {line.number}, is cut off and left out")
                continue
            if isinstance(row, dict):
                yield row
            else:
                faults.add("lines that are no JSON object", f"line {line.number}")


def is_rows(text: str) -> bool:
    """Whether text that begins with a brace has one object a line: it is no object over many lines, nor one that holds others."""
    first, *others = text.split("\n")
    if any(line.startswith("{") for line in others):
        return True
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return not others and '"log_history"' not in first  # one line, longer than what was looked at
    plain = {name: value for name, value in row.items() if not isinstance(value, (list, dict))}
    return plain == row or any((guessed := guess(name)) is not None and guessed[0] == "step" for name in plain)
