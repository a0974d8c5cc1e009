"""Measurements kept in a file, to compare a later model with. Standard library only."""
