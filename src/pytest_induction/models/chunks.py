"""A layer whose queries attend chunk by chunk: its pattern, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class QueryChunk:
    """The pattern of some of a layer's queries over some of its keys, which follow each other.

    `rows` computes it, (batch, heads, queries, keys), whenever it is looked at.
    """

    rows: Callable[[], Tensor]
    queries: range
    keys: range
    device: torch.device
    dtype: torch.dtype


@dataclass
class ChunkedReader:
    """Reads a layer whose queries attend chunk by chunk, each in a call of its own. The chunks make up all positions."""

    chunks: Sequence[QueryChunk]

    @cached_property
    def n_heads(self) -> int:
        return self.chunks[0].rows().shape[1]

    @property
    def device(self) -> torch.device:
        return self.chunks[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.chunks[0].dtype

    @property
    def _positions(self) -> int:
        return self.chunks[-1].queries.stop

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return torch.cat([self._diagonals(chunk, offsets, first) for chunk in self.chunks], dim=-1)

    def _diagonals(self, chunk: QueryChunk, offsets: Sequence[int], first: bool) -> Tensor:
        rows = _exact(chunk.rows())
        mass = rows.new_zeros(*rows.shape[:2], len(offsets) + first, len(chunk.queries))
        for index, offset in enumerate(offsets):
            shift = chunk.queries.start - offset - chunk.keys.start
            if -len(chunk.queries) < shift < len(chunk.keys):
                line = rows.diagonal(shift, -2, -1)
                mass[:, :, index, max(0, -shift) :][..., : line.shape[-1]] = line
        if first and chunk.keys.start == 0:
            mass[:, :, -1] = rows[..., 0]
        return mass

    def columns(self, keys: Tensor) -> Tensor:
        batch = torch.arange(len(keys), device=keys.device)
        found = []
        for chunk in self.chunks:
            rows, places = _exact(chunk.rows()), keys - chunk.keys.start
            inside = (places >= 0) & (places < len(chunk.keys))
            column = rows[batch, :, :, places.clamp(0, len(chunk.keys) - 1)]
            found.append(column.masked_fill(~inside[:, None, None], 0))
        return torch.cat(found, dim=-1)

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        found = torch.zeros(len(rows), self.n_heads, device=rows.device, dtype=torch.promote_types(self.dtype, torch.float32))
        for chunk in self.chunks:
            inside = (queries >= chunk.queries.start) & (queries < chunk.queries.stop)
            inside &= (keys >= chunk.keys.start) & (keys < chunk.keys.stop)
            places = (rows[inside], slice(None), queries[inside] - chunk.queries.start, keys[inside] - chunk.keys.start)
            found[inside] = _exact(chunk.rows())[places].to(found.dtype)
        return found

    def pattern_of(self, queries: range) -> Tensor:
        parts = [self._pattern_of(chunk, queries) for chunk in self.chunks]
        return torch.cat([part for part in parts if part is not None], dim=2)

    def _pattern_of(self, chunk: QueryChunk, queries: range) -> Tensor | None:
        start, stop = max(queries.start, chunk.queries.start), min(queries.stop, chunk.queries.stop)
        if start >= stop:
            return None
        rows = _exact(chunk.rows())[:, :, start - chunk.queries.start : stop - chunk.queries.start]
        whole = rows.new_zeros(*rows.shape[:3], self._positions)
        whole[..., chunk.keys.start : chunk.keys.stop] = rows
        return whole


def _exact(pattern: Tensor) -> Tensor:
    """A pattern in what its entries are summed in."""
    return pattern.to(torch.promote_types(pattern.dtype, torch.float32))
