"""The formats of logs, a module each. `FORMATS` is the one list; the first that fits is the one."""

from __future__ import annotations

from pytest_induction.runs.logs.format import LogFormat
from pytest_induction.runs.logs.formats.delimited import DelimitedTable
from pytest_induction.runs.logs.formats.json_document import JsonDocument
from pytest_induction.runs.logs.formats.json_lines import JsonLines
from pytest_induction.runs.logs.formats.mlflow import MlflowStore
from pytest_induction.runs.logs.formats.plain_text import PlainText
from pytest_induction.runs.logs.formats.tensorboard import EventFiles
from pytest_induction.runs.logs.formats.wandb_files import WandbFiles

FORMATS: tuple[LogFormat, ...] = (
    JsonDocument(),
    EventFiles(),
    WandbFiles(),
    MlflowStore(),
    JsonLines(),
    DelimitedTable(),
    PlainText(),  # whatever else is text
)
"""In the order in which they are tried; the first that fits is it."""


def expected() -> str:
    """What can be read, for messages."""
    return ", ".join(each.what for each in FORMATS)


def endings() -> tuple[str, ...]:
    """Of files that are taken for the log of the directory that holds one."""
    return tuple(ending for each in FORMATS for ending in each.endings)
