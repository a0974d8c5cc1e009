"""From what a gate file can express to what assertions take. Standard library only: nothing named here is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_induction._lazy import homes
from pytest_induction.errors import ArgumentError, ModelError, meant, missing
from pytest_induction.files import expanded, is_file, is_there
from pytest_induction.model.specs import check_spec, check_text
from pytest_induction.plugin.gates.signatures import Parameter

HEADS = re.compile(r"L\d+H\d+|induction")
HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
TEXT = "text"
TEXT_KINDS = ("Text",)
PROPERTIES = tuple(homes("pytest_induction.properties"))


@dataclass(frozen=True)
class ModelNamed:
    """A model that is to be loaded, or, for what a model is compared with, a file of measurements."""

    spec: str


@dataclass(frozen=True)
class RunNamed:
    """A training run that is to be opened."""

    spec: str


class OfAnotherKindError(Exception):
    """The value is not what this reader reads."""


def read_argument(name: str, value: Any, parameter: Parameter, place: Path) -> Any:
    """The value as the assertion takes it; paths are relative to `place`. Raises `ArgumentError` or `ModelError`, one line."""
    kinds = [kind for kind in kinds_of(name, parameter) if kind in READERS]
    if not kinds:
        raise ArgumentError(f"`{name}` cannot be written in a gate file: assert it in a test")
    for kind in kinds:
        try:
            return READERS[kind][1](value, place)
        except OfAnotherKindError:
            continue
    raise ArgumentError(f"`{name}` must be {' or '.join(READERS[kind][0] for kind in kinds)}, got {value!r}")


def kinds_of(name: str, parameter: Parameter) -> tuple[str, ...]:
    """The kinds of value that an argument may have: names of readers, as far as there is one."""
    return TEXT_KINDS if name == TEXT else parameter.kinds


def text_at(value: Any, place: Path) -> Path:
    """A text file that has something in it."""
    path = place / expanded(string(value, place))
    try:
        check_text(path)
    except ArgumentError as error:
        failed = ArgumentError(f"the text {error}")
        failed.is_missing = error.is_missing
        raise failed from None
    return path


def model_at(value: Any, place: Path) -> ModelNamed:
    """A model that can be seen to be there, or on a hub, or in a module."""
    given = string(value, place)
    spec = _beside(given, place)
    try:
        check_spec(spec)
    except ModelError as error:
        hub = f"; to download it from the hub write hf:{given}" if HUB.fullmatch(given) and not is_there(spec) else ""
        failed = ModelError(f"{error}{hub}")
        failed.is_missing = error.is_missing
        raise failed from None
    return ModelNamed(spec)


def run_at(value: Any, place: Path) -> RunNamed:
    """A training run that can be seen to be there, or elsewhere than on this machine."""
    given = string(value, place)
    if "://" in given:
        return RunNamed(given)
    path = place / expanded(given)
    if not given.strip() or not is_there(path):
        error = ArgumentError(f"there is no run at {str(path)!r}: expected a run, a log or a directory of checkpoints")
        raise missing(error) if given.strip() else error
    return RunNamed(str(path))


def factory_at(value: Any, place: Path) -> str:
    """A function that makes the model of checkpoints."""
    spec = _beside(string(value, place), place)
    if not _is_function(spec):
        raise ArgumentError(f"a factory is named module.path:function or path/file.py:function, got {value!r}")
    check_spec(spec)
    return spec


def property_at(value: Any, place: Path) -> str:
    """A property: a ready one, or a function in a file or module."""
    spec = _beside(string(value, place), place) if ":" in string(value, place) else value
    if _is_function(spec):
        check_spec(spec)
    elif spec not in PROPERTIES:
        raise ArgumentError(f"there is no property `{value}`{meant(value, PROPERTIES)}; one of your own is path/file.py:function")
    return str(spec)


def _beside(spec: str, place: Path) -> str:
    """The name of a model, its path relative to `place` if it has one."""
    if spec.startswith("hf:") or not spec.strip():
        return spec
    if _is_function(spec):
        file, _, function = spec.rpartition(":")
        return f"{place / expanded(file)}:{function}" if file.endswith(".py") else spec
    return str(place / expanded(spec))


def _is_function(spec: str) -> bool:
    place, colon, name = spec.rpartition(":")
    return bool(place and colon and name.isidentifier())


def _model_or_file(value: Any, place: Path) -> ModelNamed:
    path = place / expanded(string(value, place))
    return ModelNamed(str(path)) if is_file(path) else model_at(value, place)


def string(value: Any, place: Path) -> str:
    return str(_only(isinstance(value, str), value))


def truth(value: Any, place: Path) -> bool:
    return bool(_only(isinstance(value, bool), value))


def whole(value: Any, place: Path) -> int:
    return int(_only(isinstance(value, int) and not isinstance(value, bool), value))


def _number(value: Any, place: Path) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return float(_only(is_number, value))


def _numbers(value: Any, place: Path) -> dict[str, float]:
    return {name: _number(each, place) for name, each in _only(isinstance(value, dict), value).items()}


def _numbers_or_none(value: Any, place: Path) -> dict[str, float | None]:
    return {name: None if each is False else _number(each, place) for name, each in _only(isinstance(value, dict), value).items()}


def strings(value: Any, place: Path) -> list[str]:
    return [string(each, place) for each in _only(isinstance(value, list), value)]


def _wholes(value: Any, place: Path) -> list[int]:
    return [whole(each, place) for each in _only(isinstance(value, list), value)]


def _runs(value: Any, place: Path) -> list[RunNamed]:
    return [run_at(each, place) for each in _only(isinstance(value, list), value)]


def _table(value: Any, place: Path) -> dict[str, Any]:
    return dict(_only(isinstance(value, dict), value))


def _heads(value: Any, place: Path) -> list[str] | str:
    written = [value] if isinstance(value, str) else strings(value, place)
    _only(bool(written) and all(map(HEADS.fullmatch, written)), value)
    return value


def _anything(value: Any, place: Path) -> Any:
    return value


def _only(fits: bool, value: Any) -> Any:
    if not fits:
        raise OfAnotherKindError
    return value


READERS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "bool": ("true or false", truth),
    "int": ("a whole number", whole),
    "float": ("a number", _number),
    "str": ("a string", string),
    **dict.fromkeys(("Iterable[str]", "Sequence[str]", "list[str]"), ("a list of strings", strings)),
    "Sequence[int]": ("a list of whole numbers", _wholes),
    **dict.fromkeys(("Mapping[str, float]", "dict[str, float]"), ("a table of numbers", _numbers)),
    "Mapping[str, float | None]": ("a table of numbers, or of false where there is to be none", _numbers_or_none),
    "Mapping[str, Any]": ("a table of arguments", _table),
    "PropertyName": ("the name of a property", property_at),
    "HeadsLike": ('heads such as "L1H0", in a list if several', _heads),
    "ModelLike": ("a model, or a file of measurements", _model_or_file),
    "RunLike": ("a training run", run_at),
    "Sequence[RunLike]": ("a list of training runs", _runs),
    TEXT_KINDS[0]: ("the path of a text", text_at),
    "Any": ("anything", _anything),
}
"""Part of an annotation -> what it means in words, and what reads it."""
