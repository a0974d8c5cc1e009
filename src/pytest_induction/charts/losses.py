"""The loss along repeated tokens, copy by copy, and along a text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.behaviour.judging import judge_in_context_learning
from pytest_induction.behaviour.text import losses_at, rows_of, strides_of, windows_of
from pytest_induction.charts.making import curve, ends
from pytest_induction.deciding import ERROR_RATE, MAX_IN_CONTEXT_LEARNING, MAX_TEXT_ROWS
from pytest_induction.errors import ModelError
from pytest_induction.measuring.losses import token_losses
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Probe, fitting_shape, repeated_sequences, usable_ids
from pytest_induction.progress import progress
from pytest_induction.statistics import mean_interval

N_SEQUENCES = 24
LONGEST = 32  # tokens of a copy
TOGETHER = f"intervals hold together at {1 - ERROR_RATE}"


def repeats_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The chart "repeats". Raises `ModelError` where a loss is not finite, `ProbeError` where no probe fits."""
    probe = _probe(subject)
    with progress("losses on repeats", probe.n_sequences):
        parts = in_batches(subject, torch.from_numpy(probe.tokens), lambda rows, _: _losses(subject, rows), logits=True)
    losses = np.concatenate(parts)
    if not np.isfinite(losses).all():
        raise ModelError(f"the loss of {subject.name} is not finite (NaN or infinity) on repeated tokens")
    known = mean_interval(losses, ERROR_RATE, "nats")
    drawn = {name: [math.nan] * (1 - probe.start) + values for name, values in curve(known).items()}
    copies = [slice(copy * probe.period, (copy + 1) * probe.period) for copy in range(probe.repeats)]
    return {
        "period": probe.period,
        "unit": "nats",
        "copies": [
            {"name": f"copy {number}", "place": list(range(1, probe.period + 1))}
            | {name: values[copy] for name, values in drawn.items()}
            for number, copy in enumerate(copies, start=1)
        ],
        "uniform": math.log(len(usable_ids(subject.space))),
        "about": f"{probe.n_sequences} sequences, period {probe.period}, {probe.repeats} copies, seed {subject.seed}; {TOGETHER}",
    }


def _probe(subject: ModelUnderTest) -> Probe:
    """Rows of one period, the longest that there is room for."""
    space = subject.space
    _, copies = fitting_shape(space)
    room = math.inf if space.n_ctx is None else (space.n_ctx - (space.bos_id is not None)) // copies
    period = int(min(LONGEST, room, len(usable_ids(space))))
    rng = np.random.default_rng([subject.seed, 13])
    return repeated_sequences(space, period=period, rng=rng, n_sequences=N_SEQUENCES, repeats=copies)


def _losses(subject: ModelUnderTest, rows: Tensor) -> Array:
    logits = subject.logits(rows)
    return numbers(token_losses(logits, rows.to(logits.device)))


def text_data(subject: ModelUnderTest, text: Any) -> dict[str, Any]:
    """The chart "text", on the rows of the first look of `assert_learns_in_context`. Raises as that does."""
    every = rows_of(subject, text, MAX_TEXT_ROWS)
    first_token, windows = windows_of(subject, every)
    strides = strides_of(every)
    losses = losses_at(subject, every, strides[0])
    judgement = judge_in_context_learning(
        losses,
        windows,
        first_token=first_token,
        max_score=MAX_IN_CONTEXT_LEARNING,
        error_rate=ERROR_RATE / len(strides),
        seed=subject.seed,
    )
    score = (judgement.estimates or {})["icl_score"]
    rows, count = losses.shape
    return {
        "tokens": list(range(first_token, first_token + count)),
        **curve(mean_interval(losses, ERROR_RATE, "nats")),
        "unit": "nats",
        "windows": {"early": list(windows.early), "late": list(windows.late)},
        "score": ends(score),
        "about": f"{rows} rows of {first_token + count - 1} tokens of text, seed {subject.seed}; {TOGETHER}",
    }
