"""Public names that are loaded when they are first used; a stub beside each package says where they live."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any


@functools.cache
def homes(package: str) -> dict[str, str]:
    """The public names of a package, each with the module that has it, as its stub lists them."""
    import pkgutil  # a millisecond, which a run of other tests does not pay

    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    return {
        name.asname or name.name: node.module
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for name in node.names
    }


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package whose names are those of its stub."""

    def get(name: str) -> Any:
        if name == "__all__":
            return sorted(homes(package))
        if name not in homes(package):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes(package)[name]), name)

    return get, lambda: sorted(homes(package))
