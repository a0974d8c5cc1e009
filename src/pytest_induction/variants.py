"""The base of classes that stand in one list: each states what the base asks for, or is not made. Standard library only."""

from __future__ import annotations

import inspect
from abc import ABC
from typing import Any


class Variant(ABC):  # noqa: B024 - what derives from it has abstract methods
    """A base of classes that do one thing in several ways, such as reading logs of several formats.

    Every class attribute that a base annotates as `ClassVar`, and gives no value, is one that a variant must state. One that does
    not is refused when its class is made; a class that only others derive from is made with `abstract=True`.
    """

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = [] if abstract else unstated(cls)
        if missing:
            raise TypeError(f"the class `{cls.__name__}` must state {' and '.join(f'`{name}`' for name in missing)}")


def unstated(kind: type) -> list[str]:
    """The class attributes that a class must have and has not."""
    asked = {name for base in kind.__mro__ for name, text in inspect.get_annotations(base).items() if "ClassVar" in str(text)}
    return sorted(name for name in asked if not hasattr(kind, name))
