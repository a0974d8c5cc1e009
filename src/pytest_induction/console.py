"""The two streams of the command line: what is shown there, and what is done where nobody takes it."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from pytest_induction.errors import reason
from pytest_induction.printable import as_message
from pytest_induction.progress import complain, let_go
from pytest_induction.wording import for_terminal

CLOSED = 141  # how shells tell that a program wrote into a pipe that nobody reads: 128 and the number of SIGPIPE
UNKNOWN = 1000  # columns, where neither COLUMNS nor a terminal says how many there are


class OutputFailed(Exception):
    """Standard output takes no more; `why` is what the system said."""

    def __init__(self, why: OSError) -> None:
        super().__init__(str(why))
        self.why = why


class Parser(argparse.ArgumentParser):
    """One that quotes what it was given printable, and whose help may be cut off by its reader."""

    def _print_message(self, message: str, file: Any = None) -> None:
        lines = message.removesuffix("\n").split("\n")
        if file is sys.stdout:
            say(*lines)
        else:
            tell(*lines)

    def error(self, message: str) -> NoReturn:
        super().error(as_message(message))


def say(*lines: str) -> None:
    """Write lines to standard output, none wider than a narrow terminal. Raises `OutputFailed`."""
    write("".join(f"{each}\n" for line in lines for each in for_terminal(line, columns())))


def tell(*lines: str) -> None:
    """Write lines to standard error; where nobody takes them, they are lost."""
    for line in lines:
        for each in for_terminal(line, columns()):
            complain(each)


def fail(message: str) -> None:
    """Write an error to standard error."""
    tell(*f"error: {message}".split("\n"))


def columns() -> int:
    """How wide what is shown may be: what COLUMNS says, or the terminal."""
    return shutil.get_terminal_size((UNKNOWN, 24)).columns


def write(text: str) -> None:
    """Write to standard output at once. Raises `OutputFailed`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from None


def ended(command: Callable[[], int]) -> int:
    """The exit status of a command, also where standard output is closed, or its disk is full."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # a name may have letters that the encoding lacks
    try:
        return command()
    except OutputFailed as failed:
        let_go(sys.stdout)
        if isinstance(failed.why, BrokenPipeError):
            return CLOSED
        fail(f"standard output cannot be written: {reason(failed.why)}")
        return 2
