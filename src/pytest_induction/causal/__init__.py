"""What heads do for a model: in-context learning without them, and the circuit behind them."""
