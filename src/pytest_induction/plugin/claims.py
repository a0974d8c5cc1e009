"""The claims of one pytest session: those of a conftest.py and of other distributions are known for as long as it lasts."""

from __future__ import annotations

import pytest

from pytest_induction.claims import register_installed, restore, snapshot
from pytest_induction.errors import ArgumentError
from pytest_induction.plugin.session import usage_error


class SessionClaims:
    """A plugin of its own, there before any conftest.py is loaded: a later session in this process knows none of them."""

    def __init__(self) -> None:
        self._known = snapshot()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self) -> None:
        """Register what other distributions bring; one that brings nothing usable is named in a usage error."""
        try:
            register_installed()
        except ArgumentError as error:
            raise usage_error(str(error)) from None

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Forget them."""
        restore(self._known)
