"""What is drawn of a model or a run beside the verdicts, measured on its own: plain data, one chart of each kind."""
