"""The scores of `flex_attention`, entry by entry: a product of query and key, changed and masked by functions of the model's own.

A model's `score_mod` and `mask_mod` are written for one entry, (row, head, query, key). Here they are evaluated on those entries
that are read, and on no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pytest_induction.models.attention import NOTHING, PAIR_ENTRIES, LogSumExpReader, rows_of_scores
from pytest_induction.models.changing import enter_mode
from pytest_induction.undoing import Changes

Mod = Callable[..., Tensor]
ADDED = 1e-3  # how far from one a score may move that is moved by one, and to which something is added


class Mods(NamedTuple):
    """What changes scores and what leaves entries out, and where the positions of the rows of token ids lie.

    `rows` is the row that the functions are told for each row of token ids, `starts` the position there of its first token: rows
    that are packed one behind the other are one row to them.
    """

    score_mod: Mod
    mask_mod: Mod
    rows: Tensor  # (batch,)
    starts: Tensor  # (batch,)

    def scores(self, scores: Tensor, queries: Tensor, keys: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores (rows, heads, queries, keys) after the functions, -inf where masked.

        `queries` (rows or 1, queries) and `keys` (rows or 1, queries or 1, keys) are their positions; `rows` says which rows
        these are where they are not all.
        """
        allowed = self.allowed(scores.shape, queries, keys, rows)
        changed = _each(self.score_mod, (scores, *self._places(scores.shape, queries, keys, rows)))
        return torch.where(allowed, changed, torch.full((), -torch.inf, dtype=changed.dtype, device=changed.device))

    def allowed(self, shape: Sequence[int], queries: Tensor, keys: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which entries of this shape are not left out by the mask."""
        return _each(self.mask_mod, self._places(shape, queries, keys, rows))

    def _places(self, shape: Sequence[int], queries: Tensor, keys: Tensor, rows: Tensor | None) -> tuple[Tensor, ...]:
        """Row, head, query and key of each entry, as the functions are told them."""
        told, starts = (self.rows, self.starts) if rows is None else (self.rows[rows], self.starts[rows])
        heads = torch.arange(shape[1], device=told.device)
        queries = (queries + starts[:, None]).expand(shape[0], shape[2])
        keys = (keys + starts[:, None, None]).expand(shape[0], *shape[2:])
        return told, heads, queries, keys


def _each(mod: Mod, given: tuple[Tensor, ...]) -> Tensor:
    """What a function of one entry gives for all; keys innermost, so that a table it looks up is cut down row by row."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex  # what lets it look up a table

    score = (0,) * (len(given) - 4)
    for row, head, query, key in ((None, None, None, 0), (None, None, 0, 0), (None, 0, None, None), (0, None, 0, 0)):
        mod = torch.vmap(mod, in_dims=(*score, row, head, query, key))
    with Changes() as changes:
        enter_mode(changes, TransformGetItemToIndex())
        return mod(*given)


@dataclass
class FlexReader(LogSumExpReader):
    """Reads the pattern from what went into `flex_attention`, and its log-sum-exp; `mask` is None, and `causal` False."""

    mods: Mods

    def __post_init__(self) -> None:
        self.log_sum_exp = self.log_sum_exp.masked_fill(~(self.log_sum_exp > NOTHING), torch.inf)  # of rows without any key

    @property
    def keeps_products(self) -> bool:
        positions = self._all
        scores = rows_of_scores(self.query, self.key, self.scale, None, False, range(len(positions)))  # noqa: FBT003 - as below
        before, after = (self.mods.scores(each, positions[None], positions[None, None]) for each in (scores, scores + 1))
        moved = (after - before)[before.isfinite()]
        return bool(((moved - 1).abs() < ADDED).all())

    def write_scores(self, offsets: Sequence[int], out: Tensor, *, first: bool) -> float:
        scores = out.mul_(super().write_scores(offsets, out, first=first)).transpose(2, 3)
        queries = self._all
        lines = [queries - offset for offset in offsets] + ([torch.zeros_like(queries)] if first else [])
        keys = torch.stack(lines, dim=-1)
        changed = self.mods.scores(scores.masked_fill(keys < 0, 0.0), queries[None], keys.clamp_min(0)[None])
        scores.copy_(changed.masked_fill_(keys < 0, -torch.inf))
        return 1.0

    def columns(self, keys: Tensor) -> Tensor:
        rows = torch.arange(len(keys), device=self.key.device)
        chosen = self._key[rows, :, 0, keys]  # batch, key heads, d_head
        scores = torch.einsum("bkgqd,bkd->bkgq", self._query, chosen).flatten(1, 2) * self.scale
        scores = self.mods.scores(scores[..., None], self._all[None], keys[:, None, None])[..., 0]
        return scores.sub_(self.log_sum_exp.to(scores.dtype)).exp_()

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        _, heads, positions, width = self.query.shape
        if not len(rows):
            return self.log_sum_exp.new_zeros(0, heads)
        at_once = max(1, PAIR_ENTRIES // (heads * max(width, positions)))
        parts = zip(rows.split(at_once), queries.split(at_once), keys.split(at_once), strict=True)
        return torch.cat([self._some_pairs(*part) for part in parts])

    def _some_pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        query, key = self._query[rows, :, :, queries], self._key[rows, :, :, keys]
        scores = torch.linalg.vecdot(query, key).flatten(1).mul_(self.scale)  # pairs, heads
        present, row = rows.unique(return_inverse=True)  # the pairs of a row side by side: tables are then cut down row by row
        order = row.argsort(stable=True)
        counts = row.bincount()
        place = torch.empty_like(row)
        place[order] = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
        shape = len(present), int(counts.max())
        placed = scores.new_zeros(shape[0], scores.shape[1], shape[1], 1)
        placed[row, :, place, 0] = scores
        of_queries, of_keys = (rows.new_zeros(shape).index_put((row, place), each) for each in (queries, keys))
        changed = self.mods.scores(placed, of_queries, of_keys[..., None], present)[row, :, place, 0]
        return changed.sub_(self.log_sum_exp[rows, :, queries].to(changed.dtype)).exp_()

    def pattern_of(self, queries: range) -> Tensor:
        chosen = self._all[queries.start : queries.stop]
        scores = rows_of_scores(self.query, self.key, self.scale, None, False, queries)  # noqa: FBT003 - neither mask nor causal
        scores = self.mods.scores(scores, chosen[None], self._all[None, None])
        return scores.sub_(self.log_sum_exp[:, :, queries.start : queries.stop, None].to(scores.dtype)).exp_()

    @cached_property
    def _all(self) -> Tensor:
        return torch.arange(self.query.shape[2], device=self.query.device)
