"""Training runs: recorded live, swept from checkpoints or read from a log, and what happened in them."""
