"""Data from a file as the types that describe it: dataclasses, TypedDicts, numbers with their ranges. Standard library only.

`parsed` reads JSON text with care, `read` checks what it holds against a type, once, and gives what the type says. Any type may
carry checks, `Annotated[float, Range(0, 1)]`: whatever is called with the value, and says what is wrong with it or "". A float
that JSON had no word for is null there, and NaN here. Nothing is converted that is not the same thing in JSON:
no text becomes a number, no number a truth value.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from reprlib import Repr
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    NotRequired,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pytest_induction.files import parse_json
from pytest_induction.ranges import HUGE, LARGEST_COUNT

MOST_DIGITS = 308  # of a whole number that a float can hold
DEEPEST = 64  # objects and lists within each other: records of ours have a dozen
VERSION = "SCHEMA"  # what a dataclass calls the version of its layout, which its JSON has under `schema`
Reader = Callable[[Any], Any]
_short = Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2


class Unfit(ValueError):
    """A value is not what its type says. `path` is where it stands, `problem` what it must be and what it is."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem, path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"`{self.path.lstrip('.')}` {self.problem}" if self.path else f"it {self.problem}"

    def within(self, part: str) -> Unfit:
        """The same, seen from what it lies in."""
        return Unfit(self.problem, f"{part}{self.path}")


def shown(value: Any) -> str:
    """A value as a message has it: in one line, and short."""
    return _short.repr(value) if not isinstance(value, (dict, list)) else f"{_KINDS[type(value)]} of {len(value)}"


_KINDS: Mapping[type, str] = {dict: "an object", list: "a list"}


def parsed(text: str | bytes) -> Any:
    """What a JSON text holds. Raises `ValueError` of one line for anything else.

    Also for what Python takes for JSON and others do not: NaN and Infinity, one name twice in an object, half of a surrogate
    pair; and for objects and lists in each other that are deeper than any of ours.
    """
    try:
        found = parse_json(text, object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    _check_depth(found)
    if re.search(*((rb"(?i)\\u[d][89a-f]", text) if isinstance(text, bytes) else (r"(?i)\\u[d][89a-f]", text))):
        _check_pairs(found)
    return found


def _check_pairs(found: Any) -> None:
    """Raise `ValueError` for half of a surrogate pair, which can be read and not written."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None


_TOO_DEEP = f"its lists and objects lie too deep in each other, expected at most {DEEPEST}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(name)} is there twice")
    return found


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _whole(digits: str) -> int | float:
    """A whole number; one that no float can hold is as infinite as 1e999 is."""
    return int(digits) if len(digits) <= MOST_DIGITS else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEEPEST):
        level = [each for value in level if isinstance(value, (dict, list)) for each in _inside(value)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def read(kind: Any, data: Any, *, more: bool = False) -> Any:
    """`data` as a `kind`. Raises `Unfit`, which says where it is not what the type says.

    With `more` names that a type does not have are passed over: a later version may write them.
    """
    return reader(kind, more=more)(data)


@cache
def reader(kind: Any, *, more: bool = False) -> Reader:
    """What makes a `kind` of data as JSON has it."""
    origin = get_origin(kind)
    if origin is not None:
        return _generic(origin, get_args(kind), more=more)
    if is_dataclass(kind):
        return _record(cast("type", kind), more=more)
    if is_typeddict(kind):
        return _Fields(kind, _needed(kind), more=more)
    return _member(kind) if isinstance(kind, type) and issubclass(kind, Enum) else _PLAIN[kind]


def _generic(origin: Any, inner: tuple[Any, ...], *, more: bool) -> Reader:
    """What makes a kind that is made of others: a list, a pair, one that may be missing."""
    if origin is Literal:
        return _one_of(inner)
    if origin is Annotated:
        return _checked(reader(inner[0], more=more), inner[1:])
    if origin is NotRequired:
        return reader(inner[0], more=more)
    if origin in (Union, types.UnionType):
        return _optional([reader(each, more=more) for each in inner if each is not types.NoneType], len(inner))
    if issubclass(origin, Mapping):
        return _mapping(reader(inner[1], more=more))
    return _several(origin, inner, more=more)


def _checked(inside: Reader, checks: Sequence[Any]) -> Reader:
    def take(data: Any) -> Any:
        value = inside(data)
        for check in checks:
            problem = check(value)
            if problem:
                raise _from_words(problem)
        return value

    return take


def _from_words(problem: str | Unfit) -> Unfit:
    return problem if isinstance(problem, Unfit) else Unfit(problem)


def _optional(readers: list[Reader], count: int) -> Reader:
    """Null, or the first kind that fits; the error is that of the last."""

    def take(data: Any) -> Any:
        if data is None and count > len(readers):
            return None
        for each in readers[:-1]:
            try:
                return each(data)
            except Unfit:
                continue
        return readers[-1](data)

    return take


def _one_of(words: tuple[Any, ...]) -> Reader:
    listed = " or ".join(repr(word) for word in words)

    def take(data: Any) -> Any:
        if not any(type(data) is type(word) and data == word for word in words):
            raise Unfit(f"must be {listed}, got {shown(data)}")
        return data

    return take


def _member(kind: type[Enum]) -> Reader:
    inside = _one_of(tuple(each.value for each in kind))
    return lambda data: kind(inside(data))


def _several(kind: type, inner: tuple[Any, ...], *, more: bool) -> Reader:
    is_fixed = kind is tuple and not (len(inner) == 2 and inner[1] is Ellipsis)
    readers = [reader(each, more=more) for each in inner if each is not Ellipsis]
    made = list if kind is Sequence else kind

    def take(data: Any) -> Any:
        if not isinstance(data, (list, tuple)) or (is_fixed and len(data) != len(readers)):
            what = f"a list of {len(readers)}" if is_fixed else "a list"
            raise Unfit(f"must be {what}, got {shown(data)}")
        found = []
        for place, each in enumerate(data):
            try:
                found.append(readers[place if is_fixed else 0](each))
            except Unfit as error:
                raise error.within(f"[{place}]") from None
        return found if made is list else made(found)

    return take


def _mapping(inside: Reader) -> Reader:
    def take(data: Any) -> dict[str, Any]:
        found = {}
        for name, each in _object(data).items():
            try:
                found[_text(name)] = inside(each)
            except Unfit as error:
                raise error.within(f".{_key(name)}") from None
        return found

    return take


def _object(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise Unfit(f"must be an object, got {shown(data)}")
    return data


class _Fields:
    """Values by name: a TypedDict, or what a dataclass is made of."""

    def __init__(self, kind: Any, required: Iterable[str], *, more: bool) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self._readers = {name: reader(hint, more=more) for name, hint in hints.items() if get_origin(hint) is not ClassVar}
        self._required = tuple(required)
        self._more = more

    def __call__(self, data: Any) -> dict[str, Any]:
        given, found = _object(data), {}
        for name in self._required:
            if name not in given:
                raise Unfit("is missing", f".{name}")
        for name, value in given.items():
            known = self._readers.get(name)
            if known is None and not self._more:
                raise Unfit("is not known", f".{_key(name)}")
            try:
                found[name] = value if known is None else known(value)
            except Unfit as error:
                raise error.within(f".{name}") from None
        return found


def _needed(kind: Any) -> list[str]:
    """The names that a TypedDict must have. It does not know them itself where its annotations are texts."""
    hints = get_type_hints(kind, include_extras=True)
    return [name for name, hint in hints.items() if get_origin(hint) is not NotRequired and kind.__total__]


def _key(name: Any) -> str:
    return shown(name)[1:-1]


def _record(kind: type, *, more: bool) -> Reader:
    """A dataclass, made from what its fields are in JSON."""
    own = {each.name: each for each in fields(kind) if each.init}
    needed = [name for name, each in own.items() if each.default is MISSING and each.default_factory is MISSING]
    inside, version = _Fields(kind, needed, more=more), getattr(kind, VERSION, None)

    def take(data: Any) -> Any:
        given = dict(_object(data))
        if version is not None and (seen := given.pop("schema", None)) != version:
            raise Unfit(f"must have schema {version}, got {shown(seen)}")
        known = {name: value for name, value in inside(given).items() if name in own}
        try:
            return kind(**known)
        except ValueError as error:  # what the class itself asks for
            raise Unfit(f"is wrong: {str(error).partition(chr(10))[0]}") from None

    return take


def _number(data: Any) -> float:
    """A number; infinite is one that this process made, or that is too large for any."""
    if data is None:
        return math.nan
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise Unfit(f"must be a number, got {shown(data)}")
    if isinstance(data, int) and abs(data) > HUGE:
        raise Unfit(f"must be a number, got {shown(data)}, which is too large for any")
    return float(data)


def _count(data: Any) -> int:
    if isinstance(data, bool) or not isinstance(data, int):
        raise Unfit(f"must be a whole number, got {shown(data)}")
    if abs(data) > LARGEST_COUNT:
        raise Unfit(f"must be a whole number of at most 2**63, got {shown(data)}")
    return data


def _truth(data: Any) -> bool:
    if not isinstance(data, bool):
        raise Unfit(f"must be true or false, got {shown(data)}")
    return data


def _text(data: Any) -> str:
    if not isinstance(data, str):
        raise Unfit(f"must be a text, got {shown(data)}")
    try:
        data.encode()
    except UnicodeEncodeError:
        raise Unfit("must be a text, and has half of a surrogate pair") from None
    return data


def _anything(data: Any) -> Any:
    """Whatever JSON holds, and can be written again: half of no pair, and no number without end."""
    if isinstance(data, str):
        return _text(data)
    if isinstance(data, float) and not math.isfinite(data):
        raise Unfit(f"must be a number that JSON has, got {data}")
    if isinstance(data, Mapping):
        return _mapping(_anything)(data)
    return _several(list, (Any,), more=False)(data) if isinstance(data, (list, tuple)) else data


_PLAIN: Mapping[Any, Reader] = {float: _number, int: _count, bool: _truth, str: _text, Any: _anything}
