"""How a message is laid out: lines of a length that can be read, and not too many of them. Standard library only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pytest_induction.printable import as_line

MOST_LINES, WIDEST = 25, 300  # of a message; a word, such as a path, stays whole where it alone is longer
MOST_OF_EACH = 4  # lines of the first sentence, of where it was measured and of what to do
NARROW = 80  # columns, below which a line for a terminal is broken
LEAST = 12  # columns that a line has in any case


def fitted(first: str, facts: Sequence[str], *last: str) -> str:
    """Lines as a message: long ones go on in the next, indented; where there are too many, the last facts are only counted.

    Each argument is one line, whatever letters are in it.
    """
    begins, *ends = (_broken(text, MOST_OF_EACH) for text in (first, *last))
    lines = [line for fact in facts for line in _broken(fact, MOST_LINES)]
    room = MOST_LINES - len(begins) - sum(map(len, ends))
    if len(lines) > room:
        left_out = len(lines) - room + 1
        lines = [*lines[: room - 1], f"  and {left_out} lines more"]
    return "\n".join([*begins, *lines, *(line for end in ends for line in end)])


def _broken(text: str, most: int) -> list[str]:
    """The line, in several where it is too long; of too many those in the middle are left out."""
    line = as_line(text)
    indent = " " * (2 + len(line) - len(line.lstrip()))
    found = [line]
    if len(line) > WIDEST:
        found = textwrap.wrap(line, WIDEST, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    found = list(map(as_line, found))
    return found if len(found) <= most else [*found[: most - 2], f"{indent}...", found[-1]]


def for_terminal(line: str, width: int) -> list[str]:
    """A line as a terminal of that many columns gets it: printable, and where the terminal is narrow in several lines."""
    line = as_line(line)
    if width >= NARROW or len(line) <= width:
        return [line]
    width = max(width, LEAST)
    indent = " " * min(2 + len(line) - len(line.lstrip()), width // 2)
    return list(map(as_line, textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]))
