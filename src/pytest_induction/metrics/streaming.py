"""The scores of one forward pass, taken layer by layer while it runs.

What a layer needs right away is done right away; the steps after it, which are the same for every layer, are put off until
several layers are there: cold code, not arithmetic, is what they cost. Little is held meanwhile, whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from pytest_induction.metrics.attention import AttentionReader, PeriodicScores, ScoresReader

Scores = Callable[[AttentionReader], Tensor]
"""One layer's scores of a reader: (scores, batch, heads)."""
HELD_ENTRIES = 2_000_000  # scores before softmax that wait for the rest of their layers; 8 MB


class Streamed:
    """Is handed each layer's attention in order, and gives the scores of all of them."""

    def __init__(self, scores: Scores, n_layers: int) -> None:
        self._scores = scores
        self._to_come = n_layers
        self._buffer = torch.empty(0)
        self._waiting: list[tuple[float, Tensor]] = []  # the factor and the log-sum-exp of each layer in the buffer
        self._done: list[Tensor] = []

    def add(self, layer: int, attention: AttentionReader) -> None:
        """Take what this layer's scores need."""
        self._to_come -= 1
        if not isinstance(self._scores, PeriodicScores) or not _has_scores(attention):
            self._finish()
            self._done.append(self._scores(attention)[None])
            return
        out = self._room(self._scores, attention)
        factor = attention.write_scores(self._scores.offsets, out, first=True)
        self._waiting.append((factor, attention.log_sum_exp))

    def chunks(self) -> list[Tensor]:
        """The scores of all layers in order, those of some at a time: each (layers, scores, batch, heads)."""
        self._finish()
        return self._done

    def _room(self, scores: PeriodicScores, attention: ScoresReader) -> Tensor:
        """Where the next layer's scores go: -inf everywhere, (batch, heads, lines, queries)."""
        batch, heads, positions = attention.log_sum_exp.shape
        shape = (batch, heads, len(scores.offsets) + 1, positions)
        dtype = torch.promote_types(attention.dtype, torch.float32)
        buffer = self._buffer
        if len(self._waiting) == len(buffer) or (shape, dtype, attention.device) != (
            buffer.shape[1:],
            buffer.dtype,
            buffer.device,
        ):
            self._finish()
            layers = max(1, min(self._to_come + 1, HELD_ENTRIES // (batch * heads * shape[2] * positions)))
            self._buffer = _filled((layers, *shape), dtype, attention.device)
        return self._buffer[len(self._waiting)]

    def _finish(self) -> None:
        """Turn the scores before softmax that wait into scores of heads."""
        if not self._waiting or not isinstance(self._scores, PeriodicScores):
            return
        held = self._buffer[: len(self._waiting)]
        factors = {factor for factor, _ in self._waiting}
        factor = factors.pop() if len(factors) == 1 else held.new_tensor([each for each, _ in self._waiting]).view(-1, 1, 1, 1, 1)
        log_sum_exps = torch.stack([each for _, each in self._waiting])[:, :, :, None]
        with torch.autocast(held.device.type, enabled=False):  # this may be called where the user has it on
            mass = held.mul_(factor).sub_(log_sum_exps.to(held.dtype)).exp_()
            found = self._scores.reduced(mass.flatten(3))
        self._done.append(found.movedim(-1, 1))
        self._buffer, self._waiting = torch.empty(0), []


def _filled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of -inf that may be written to after the pass, even where a model turns inference mode on for its own forward."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(mode=False):
            return torch.full(shape, -torch.inf, dtype=dtype, device=device)
    return torch.full(shape, -torch.inf, dtype=dtype, device=device)


def _has_scores(attention: AttentionReader) -> TypeGuard[ScoresReader]:
    return hasattr(attention, "write_scores")
