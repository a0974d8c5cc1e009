"""Edits of what heads of a model do, and measures of what that does to it."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
