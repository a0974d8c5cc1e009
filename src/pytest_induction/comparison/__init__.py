"""One model held against another: preserved heads, and continuity over families."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
