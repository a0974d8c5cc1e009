"""Make heads of a model act otherwise, and measure what that does to it."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
