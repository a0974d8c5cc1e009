"""The checkpoints of a training: found, read by their layouts, and loaded into a model."""
