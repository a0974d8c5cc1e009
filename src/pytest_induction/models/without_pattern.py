"""Modules that a user declares to mix positions and have no attention pattern, by path or class."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from pytest_induction.errors import ArgumentError
from pytest_induction.specs import IfThere

MOST_NAMED = 8


def paths_or_classes(given: nn.Module, measured: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The same names, paths as they are in the module that is `measured`, which lies in the one that was `given`.

    A path may be written as it is in either. Raises `ArgumentError` for a name that is neither a path nor a class there.
    """
    classes = {type(part).__name__ for part in given.modules()}
    first = {id(part): path for path, part in measured.named_modules()}  # of a part that has several paths
    found = []
    for name in names:
        part = _at(name, measured) or _at(name, given)
        if part is None and name not in classes:
            if isinstance(name, IfThere):
                continue
            seen = f"{name!r} is none in this model{_near(name, given)}"
            raise ArgumentError(f"`without_pattern` must name modules by path or class, and {seen}")
        found.append(name if part is None or name in classes else first.get(id(part), name))
    return tuple(found)


def _at(path: str, module: nn.Module) -> nn.Module | None:
    """The part of that path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _near(name: str, module: nn.Module) -> str:
    """What may have been meant: the nearest name, or the classes that are not of torch."""
    classes = dict.fromkeys(type(part).__name__ for part in module.modules() if not type(part).__module__.startswith("torch."))
    near = difflib.get_close_matches(name, [*classes, *(path for path, _ in module.named_modules())], n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    some = [*classes][1 : MOST_NAMED + 1]  # the first one is the model's
    return f"; its classes are {', '.join(some)}{' and more' if len(classes) > len(some) + 1 else ''}" if some else ""
