"""Why an attention backend does not go on with a model."""

from __future__ import annotations


class BackendUnavailable(Exception):
    """A backend cannot read this model; the message says what it saw."""


class BackendNotApplicable(BackendUnavailable):
    """A backend has nothing to do with this model, which is worth saying only if no other backend serves."""


class StopForward(BaseException):
    """Ends a forward pass after the last attention layer; no `except Exception` of a model's own may swallow it."""
