"""Training runs: recorded live, swept from checkpoints or read from a log, and what happened in them."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
