"""Properties of a model over generated sequences: ready ones, and the hunt for a sequence on which one fails."""
