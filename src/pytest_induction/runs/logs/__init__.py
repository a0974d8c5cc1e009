"""Logs of trainings that others have written, read into runs: from JSON lines, tables, trainer states and event files."""

from pytest_induction.runs.logs.read import read_log

__all__ = ["read_log"]
