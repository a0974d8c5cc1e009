"""How a message is laid out: lines of a length that can be read, and not too many of them. Standard library only."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

MOST_LINES, WIDEST = 25, 300  # of a message; a word, such as a path, stays whole where it alone is longer
MOST_OF_EACH = 4  # lines of the first sentence, of where it was measured and of what to do


def fitted(first: str, facts: Sequence[str], *last: str) -> str:
    """Lines as a message: long ones go on in the next, indented; where there are too many, the last facts are only counted."""
    begins, *ends = (_broken(text, MOST_OF_EACH) for text in (first, *last))
    lines = [line for fact in facts for line in _broken(fact, MOST_LINES)]
    room = MOST_LINES - len(begins) - sum(map(len, ends))
    if len(lines) > room:
        left_out = len(lines) - room + 1
        lines = [*lines[: room - 1], f"  and {left_out} lines more"]
    return "\n".join([*begins, *lines, *(line for end in ends for line in end)])


def _broken(text: str, most: int) -> list[str]:
    """Its lines, those that are too long in several; of too many those in the middle are left out."""
    indent = " " * (2 + len(text) - len(text.lstrip()))
    found = []
    for line in text.splitlines():
        parts = [line]
        if len(line) > WIDEST:
            parts = textwrap.wrap(line, WIDEST, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        found += parts
    return found if len(found) <= most else [*found[: most - 2], f"{indent}...", found[-1]]
