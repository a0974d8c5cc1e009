"""Code of the user's own, named by its module or file: factories that make models, and other functions.

Whatever it raises becomes one line, and keeps the traceback of their lines.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pytest_induction.errors import InductionError, ModelError, because_of, meant, reason
from pytest_induction.files import SETTINGS, check_regular
from pytest_induction.forward.calling import first_line
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import Changes


def from_factory(place: str, factory: str, spec: str) -> nn.Module | ModelUnderTest:
    """The model that a factory makes. Raises `ModelError` for what it raises, and for anything else than a model."""
    try:
        made = _factory(place, factory)()
    except InductionError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise because_of(ModelError(f"{spec!r} cannot be made: {_message(error, place)}"), error) from error
    if not isinstance(made, (nn.Module, ModelUnderTest)):
        raise ModelError(f"the factory {spec!r} must return a torch module, it returned `{type(made).__name__}`")
    return made


def function_named(spec: str) -> Callable[..., Any]:
    """The function that `module.path:name` or `path/file.py:name` names. Raises `ModelError` where there is none."""
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise ModelError(f"a function is named module.path:function or path/file.py:function, got {spec!r}")
    try:
        return _factory(place, name)
    except InductionError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise because_of(ModelError(f"{spec!r} cannot be imported: {_message(error, place)}"), error) from error


def import_place(place: str) -> Any:
    """The module that `module.path` or `path/file.py` names. Raises `ModelError`, one line, for whatever importing it raises."""
    try:
        return _import(place)
    except InductionError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise because_of(ModelError(f"{place!r} cannot be imported: {_message(error, place)}"), error) from error


def _message(error: BaseException, place: str) -> str:
    """What went wrong, in one line; of a module that is not on Python's path, which file may be meant."""
    text = f"{type(error).__name__}: {first_line(error)}"
    file = f"{place.replace('.', '/')}.py"
    is_not_found = isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")
    return f"{text}; name the file: {file}" if is_not_found and not place.endswith(".py") and Path(file).is_file() else text


def _factory(place: str, name: str) -> Callable[..., Any]:
    module = _import(place)
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        raise ModelError(f"`{name}` in {place} is a module: name a function that returns it")
    if not callable(found):
        own = (each for each, value in vars(module).items() if callable(value) and not each.startswith("_"))
        defined = [each for each in own if getattr(vars(module)[each], "__module__", None) == module.__name__]
        raise ModelError(f"{place} has no factory `{name}` to call{meant(name, defined)}")
    return found


def _import(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(os.path.realpath(place))
    name = f"_induction_{path.stem}_{abs(hash(str(path)))}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        check_regular(path, most=SETTINGS)
    except OSError as error:
        raise ModelError(f"{place} cannot be read: {reason(error)}") from None
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise ModelError(f"{place} cannot be imported")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    folder = str(path.parent)
    with Changes() as changes:
        changes.undone_by(lambda: sys.path.__setitem__(slice(None), [each for each in sys.path if each is not folder]))
        sys.path.insert(0, folder)  # so that the file finds its neighbours, as it would when run
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module
