"""What can go wrong, as small classes with one-line messages. Standard library only."""

from __future__ import annotations

import difflib
import functools
import operator
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pytest_induction.formatting import as_lines, as_message
from pytest_induction.undoing import puts_back

if TYPE_CHECKING:
    from pytest_induction.records import Evidence

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound="InductionError")
PACKAGE = __name__.partition(".")[0]
BETWEEN = (PACKAGE, "importlib", "contextlib", "torch")  # whose frames may lie between ours and the user's first


class InductionError(Exception):
    """Base of every error of this package that is not a failed expectation. What it quotes adds no line to its message.

    `raised_by_user` is what code of the user's raised, where that is why, with its traceback from their first line on.
    `is_missing` says that a model, run or text is not there at all, as where a job has not fetched it.
    """

    raised_by_user: BaseException | None = None
    is_missing = False

    def __init__(self, *args: object) -> None:
        super().__init__(*(as_message(each) if isinstance(each, str) else each for each in args))


class ArgumentError(InductionError, ValueError):
    """An argument or option has a value that cannot be used; the message says which, and what it must be."""


class ModelError(InductionError):
    """The model cannot be found, loaded or run; the message says what was expected, what was seen, what to do."""


class UnsupportedModel(ModelError):
    """The model runs, but its attention cannot be read by any backend; `tried` says what each one saw.

    The message is its first line, and `details` are those below.
    """

    def __init__(self, message: str, tried: tuple[str, ...] = (), details: str = "") -> None:
        super().__init__(message)
        self.tried, self.details = tried, as_lines(details)

    def __str__(self) -> str:
        return "\n".join(filter(None, (super().__str__(), self.details)))


class ProbeError(InductionError):
    """No probe fits the model: its context or its usable vocabulary is too small."""


class TextError(InductionError):
    """The text cannot be used: it is missing, empty, too short, or cannot be turned into token ids."""


class RunError(InductionError):
    """A run, a checkpoint or a log cannot be read or written; the message says which one, what was seen, what to do."""


class RunBusyError(RunError):
    """Another process is writing to the run: choose another place, or wait for it."""


class ReportError(InductionError):
    """A report cannot be written, or its records cannot be read; the message says which file, what is wrong, what to do."""


class BaselineError(InductionError):
    """A baseline cannot be read, written or compared with; the message says which file and entry, what is wrong, what to do."""


class ExpectationFailed(AssertionError):
    """An assertion about a model does not hold; `evidence` carries the whole measurement and the verdict."""

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(as_lines(message))
        self.evidence = evidence


class BaselineFailed(AssertionError):
    """What was measured is not what the baseline has, or it has nothing; `comparison` is None then, else what differs."""

    def __init__(self, message: str, comparison: Any = None) -> None:
        super().__init__(as_lines(message))
        self.comparison = comparison


class PropertyFailed(AssertionError):
    """A property of a model does not hold on a probe sequence; `probe` is that sequence, or the tuple of them."""

    def __init__(self, message: str, probe: object) -> None:
        super().__init__(as_lines(message))
        self.probe = probe


def whole_number(name: str, value: object, *, least: int) -> int:
    """The argument as a whole number. Raises `ArgumentError` for anything else, and below `least`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ArgumentError(f"`{name}` must be a whole number from {least} up, got {value!r}")
    return number


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is nearest to it, or all of them."""
    every = tuple(known)
    near = difflib.get_close_matches(name, every, n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; known are {', '.join(every)}" if every else "; there are none"


OURS = (InductionError, ExpectationFailed, PropertyFailed, BaselineFailed)
"""All that this package raises on purpose."""


def reason(error: Exception) -> str:
    """Why something could not be done: what the system says, or the error's own words."""
    return getattr(error, "strerror", None) or str(error)


def first_line(error: BaseException, longest: int | None = None) -> str:
    """What an error says, in one line, of at most so many letters; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:longest]


def missing(error: E) -> E:
    """The same error, as one of what is not there at all."""
    error.is_missing = True
    return error


def because_of(error: E, raised: BaseException, *, by_factory: bool = True) -> E:
    """The same error, which keeps what the user's own code raised; what a library raised by itself is not kept.

    A factory is the user's wherever it is installed; of what a model raises only that counts which ran through a file of theirs.
    """
    first = raised.__traceback__
    while first is not None and not (_is_not_ours(first) if by_factory else _is_users(first)):
        first = first.tb_next
    if first is not None or isinstance(raised, SyntaxError):  # which says where in its own words
        error.raised_by_user = raised.with_traceback(first)
    return error


def of_user(first: TracebackType | None) -> TracebackType | None:
    """The traceback without the lines of installed packages; the same one where there are no others."""
    entries, kept = [], None
    entry = first
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    for entry in filter(_is_users, reversed(entries)):
        kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept or first


def _is_not_ours(entry: TracebackType) -> bool:
    return str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0] not in BETWEEN


def _is_users(entry: TracebackType) -> bool:
    file = entry.tb_frame.f_code.co_filename
    return _is_not_ours(entry) and not file.startswith(("<frozen", *_installed()))


@functools.cache
def _installed() -> tuple[str, ...]:
    """Where code lies that is no user's own."""
    import sysconfig  # a fifth of what the plugin may cost at start-up

    return tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def user_facing(function: Callable[P, R]) -> Callable[P, R]:
    """Let errors of ours leave `function` as if the user's own line had raised them, and nothing changed, see `puts_back`."""
    measured = puts_back(function)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        __tracebackhide__ = True
        try:
            return measured(*args, **kwargs)
        except OURS as error:
            raise error.with_traceback(None) from getattr(error, "raised_by_user", None)

    return called
