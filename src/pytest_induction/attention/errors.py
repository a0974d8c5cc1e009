"""Why an attention backend does not go on with a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Refused(Exception):
    """A way in cannot read this model; the message says what it saw."""


class NotInUse(Refused):
    """A way in has nothing to do with this model, which is worth saying only if no other way serves."""


class Enough(BaseException):
    """Ends a forward pass after the last attention layer; no `except Exception` of a model's own may swallow it."""
