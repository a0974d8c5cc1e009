"""What was taken for what in a log, in words that stand beside every verdict on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_induction.runs.logs.faults import shown
from pytest_induction.runs.logs.json_document import STATE
from pytest_induction.runs.record import TrainingRun

SHOWN = ("step", "tokens", "loss")  # always, also where there is none
LONGEST = 80  # characters of a column's name


def taken(run: TrainingRun) -> Iterator[str]:
    """The notes on a run from a log, or on a sweep of checkpoints that brought their losses; none on another."""
    about = run.about
    columns = about.get("columns")
    if run.source == "sweep" and run.has("loss"):
        yield f"losses are those of the training, as the {STATE} of each checkpoint tells them"
    if not isinstance(columns, Mapping) or "format" not in about:
        return
    words = {name: f"{name} is `{_short(theirs)}`" for name, theirs in columns.items()}
    words.setdefault("step", "step is that of each event")
    words.setdefault("tokens", "no column of tokens")
    words.setdefault("loss", "no loss")
    if about.get("evaluation"):
        words["loss"] += " (of an evaluation, as the log has none of the training)"
    order = [*SHOWN, *(name for name in words if name not in SHOWN)]
    where = " and ".join(f"{_short(column)} is {shown(value)}" for column, value in about.get("where", {}).items())
    rows = f", rows where {where}" if where else ""
    yield f"read as {about['format']}{rows}: {', '.join(words[name] for name in order)}"


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
