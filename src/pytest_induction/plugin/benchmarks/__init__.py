"""How long the analysis of a user's model takes: timings in pairs, peak memory, and the items of `--induction-benchmark`."""
