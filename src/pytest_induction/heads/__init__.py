"""What kinds of heads a model has: the criteria, and a module for each kind with its scores, verdict and assertion."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
