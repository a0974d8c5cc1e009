"""What a trainer has written beside a checkpoint: the loss and the tokens at its step."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_induction.errors import RunError
from pytest_induction.files import parse_json
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.logs.formats.json_document import LARGEST_DOCUMENT, STATE
from pytest_induction.runs.logs.read import read_log
from pytest_induction.runs.places import Place

SEEN = "num_input_tokens_seen"


def logged_at(checkpoint: Checkpoint) -> dict[str, Any]:
    """`loss` and `tokens` of a checkpoint's step, as far as its trainer state tells them.

    The loss is the last of the training that was logged until then, unless more steps have passed since than between two of them.
    """
    if checkpoint.kind != "directory":
        return {}
    state = Place(checkpoint.place) / STATE
    found: dict[str, Any] = {}
    try:
        if not state.is_file():
            return {}
        tokens = _tokens(state, checkpoint.step)
        if tokens is not None:
            found["tokens"] = tokens
        run = read_log(state)
    except RunError:  # it says nothing of either: the checkpoint is measured all the same
        return found
    losses = run.column("loss")
    steps = run.steps[np.isfinite(losses) & (run.steps <= checkpoint.step)]
    if len(steps) and not run.about.get("evaluation"):
        apart = int(steps[-1] - steps[-2]) if len(steps) > 1 else int(steps[-1])
        if checkpoint.step - steps[-1] < max(apart, 1):
            found["loss"] = float(losses[np.searchsorted(run.steps, steps[-1])])
    at = np.flatnonzero(run.steps == checkpoint.step)
    if "tokens" not in found and len(at) and np.isfinite(run.tokens[at[0]]):
        found["tokens"] = int(run.tokens[at[0]])
    return found


def _tokens(state: Place, step: int) -> int | None:
    """How many tokens the trainer had seen, where it counted them and the state is of that step."""
    with state.open() as stream:
        content = stream.read(LARGEST_DOCUMENT)
    try:
        written = parse_json(content)
    except ValueError:
        return None
    seen = written.get(SEEN) if isinstance(written, dict) and written.get("global_step") == step else None
    return seen if isinstance(seen, int) and not isinstance(seen, bool) and seen > 0 else None
