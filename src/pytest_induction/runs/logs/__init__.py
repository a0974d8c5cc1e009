"""Logs of trainings that others have written, read into runs. `formats.FORMATS` is the list of what can be read."""

from pytest_induction.runs.logs.read import read_log

__all__ = ["read_log"]
