"""The claims of one pytest session: those of a conftest.py and of other distributions are known for as long as it lasts.

The registry is loaded, and other distributions are asked for theirs, when something needs it, which most sessions do not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import pytest

from pytest_induction.errors import ArgumentError
from pytest_induction.plugin.session import usage_error

if TYPE_CHECKING:
    from pytest_induction.registry import Claim

NAME = "induction-claims"
REGISTRY = "pytest_induction.claims"  # the module, and the group of entry points


class SessionClaims:
    """A plugin of its own, there before any conftest.py is loaded: a later session in this process knows none of them."""

    def __init__(self) -> None:
        self._known = _snapshot() if REGISTRY in sys.modules else None
        self._has_asked = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Register what other distributions bring where a model or a run is named, whose gates they may be."""
        if config.option.induction_model or config.option.induction_run or REGISTRY in sys.modules:
            self.register()

    def register(self) -> None:
        """Register what other distributions bring, once; one that brings nothing usable is named in a usage error."""
        if self._has_asked:
            return
        self._has_asked = True
        if not entry_points(group=REGISTRY):
            return
        from pytest_induction.claims import register_installed

        try:
            register_installed()
        except ArgumentError as error:
            raise usage_error(str(error)) from None

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Forget them."""
        if REGISTRY in sys.modules:
            from pytest_induction.claims import BUILT_IN, restore

            restore(BUILT_IN if self._known is None else self._known)


def register_claims(config: pytest.Config) -> None:
    """Have the claims of other distributions registered in this session."""
    plugin: SessionClaims | None = config.pluginmanager.get_plugin(NAME)
    if plugin is not None:
        plugin.register()


def _snapshot() -> Mapping[str, Claim]:
    from pytest_induction.claims import snapshot

    return snapshot()
