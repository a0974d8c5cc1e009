r"""What came from a file or a name, as it may be shown. Standard library only.

A name may hold a line break, an escape sequence of a terminal, a letter that turns the direction of text, or what a CI takes for
a command. Shown as it is, it could forge a line of a report, so it is shown escaped, as Python writes it: `\n`, `\x1b`, `\u202e`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
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
