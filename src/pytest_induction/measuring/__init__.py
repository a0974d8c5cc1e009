"""A model probed: the scores of its heads and its losses, in the same forward passes."""
