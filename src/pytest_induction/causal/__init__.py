"""What heads do for a model: in-context learning without them, and the circuit behind them."""

from pytest_induction._lazy import attach

__getattr__, __dir__ = attach(__name__)
