"""How options are spelt where somebody reads a message: in Python, on the command line of the sweep, or on that of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Spelling = Literal["python", "command", "pytest"]

_FORMS: dict[Spelling, str] = {"python": "{}=", "command": "--{}", "pytest": "--induction-{}"}
_spelling: ContextVar[Spelling] = ContextVar("induction_spelling", default="python")


def spelling() -> Spelling:
    """How options are spelt now."""
    return _spelling.get()


@contextmanager
def spelt(how: Spelling) -> Iterator[None]:
    """Inside the block messages name options like that."""
    token = _spelling.set(how)
    try:
        yield
    finally:
        _spelling.reset(token)


def option(name: str, value: str, *, in_python: str | None = None) -> str:
    """An option of ours with what it may be given; `in_python` is that value where it is no string in Python."""
    form = _FORMS[spelling()]
    if spelling() == "python":
        return form.format(name) + (f'"{value}"' if in_python is None else in_python)
    return f"{form.format(name.replace('_', '-'))} {value}"
