"""What a model does, by its logits alone: it completes repeats, and it learns in context."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
