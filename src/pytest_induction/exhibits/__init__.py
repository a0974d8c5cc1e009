"""What is drawn of a model or a run beside the verdicts, measured on its own: plain data, one exhibit of each kind."""
