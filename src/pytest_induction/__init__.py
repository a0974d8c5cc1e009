"""A mechanistic test harness for transformer language models, as a pytest plugin.

Importing this package loads neither torch nor numpy: every name below is loaded when it is first used.
"""

from typing import Any

from pytest_induction._lazy import attach

_get, __dir__ = attach(__name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-induction")
    return _get(name)
