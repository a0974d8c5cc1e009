"""Text as it may be shown: printable, wherever it came from, and in lines that can be read. Standard library only."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from html import escape
from typing import Any, TypeVar, cast

T = TypeVar("T")
LONGEST = 400  # letters of a word in an error message; of a longer one its two ends are shown
END = 150
NOT_ASCII = re.compile(r"[^ -~]")
BEGINS = re.compile(r"\A(\s*):(?=:)")  # as workflow commands of GitHub do, which trims the line
WITHIN = re.compile(r"##(?=\w*\[)")  # commands of other CI systems, anywhere in a line
LONG = re.compile(rf"\S{{{LONGEST + 1},}}")


class Lines(str):
    """A word of a command whose line breaks are meant: they separate what has none itself."""

    __slots__ = ()


class Command(str):
    """A whole line that a CI is to take for a command; what it quotes is escaped already."""

    __slots__ = ()


def printable(text: str, keep: str = "") -> str:
    """The text with an escape in place of each letter that is not printable, but for those to `keep`."""
    return NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() or found[0] in keep else _escape(found[0]), text)


def as_line(text: str, keep: str = "") -> str:
    """The same for a whole line of a terminal or a log: no CI takes it for a command of its own."""
    return WITHIN.sub("#\\\\x23", BEGINS.sub("\\1\\\\x3a", printable(text, keep)))


def as_node(name: str) -> str:
    """The same for what tests are named after, in whose ids `::` has a meaning."""
    return as_line(name).replace("::", "\\x3a:")


def as_lines(text: str) -> str:
    """The same for a text of several lines, which stay."""
    return "\n".join(map(as_line, text.split("\n")))


def as_message(text: str) -> str:
    """The same for an error message, of one line; words that are far too long lose their middle."""
    return LONG.sub(lambda found: _ends(found[0]), as_line(text))


def in_markup(text: object) -> str:
    """The text as it may stand in HTML, in XML and in attributes of both; XML takes no control characters, however written."""
    return escape(printable(str(text)))


def in_json(text: str) -> str:
    r"""The JSON of the same data, in which whatever is not printable is an escape of JSON; its line ends stay.

    Half of a surrogate pair, as which Python has a byte of a name that is no UTF-8, is in no JSON that others read: it stays as
    the words that show it, `\udcff`.
    """
    return NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() or found[0] == "\n" else _in_json(found[0]), text)


def everywhere(value: T) -> T:
    """The same plain data with each of its texts `printable`; dataclasses stay what they are."""
    return cast("T", _everywhere(value))


def command_line(words: Iterable[str]) -> str:
    """The words as a shell reads them; where one is not printable, in the quotes of bash and zsh that take escapes."""
    return " ".join(map(_quoted, words))


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _in_json(letter: str) -> str:
    return json.dumps(_escape(letter) if "\ud800" <= letter <= "\udfff" else letter)[1:-1]


def _ends(word: str) -> str:
    return f"{word[:END]}...({len(word) - 2 * END} letters)...{word[-END:]}"


def _everywhere(value: Any) -> Any:
    if type(value) is str:
        return printable(value)
    if type(value) in (tuple, list):
        return type(value)(map(_everywhere, value))
    if isinstance(value, Mapping):
        return {_everywhere(name): _everywhere(each) for name, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _everywhere(getattr(value, each.name)) for each in fields(value) if each.init})
    return value


def _quoted(word: str) -> str:
    if all(as_line(line) == line for line in (word.split("\n") if isinstance(word, Lines) else [word])):
        return shlex.quote(word)
    return f"$'{''.join(map(_in_quotes, word))}'"


def _in_quotes(letter: str) -> str:
    """A letter between `$'` and `'`; half of a surrogate pair is a byte that was no UTF-8."""
    if letter in "\n\r\t":
        return _escape(letter)
    if letter == "#":  # two of them begin a command of some CI systems
        return "\\x23"
    if letter.isprintable():
        return f"\\{letter}" if letter in "\\'" else letter
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> list[str]:
    """Names and rows as lines with columns; those that are not in `left`, of numbers, stand at the right."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    sides = ["<" if place in left else ">" for place in range(len(names))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True)).rstrip()
        for cells in (names, *rows)
    ]


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
