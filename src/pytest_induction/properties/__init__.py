"""Properties of a model over generated sequences: ready ones, and the hunt for a sequence on which one fails."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
