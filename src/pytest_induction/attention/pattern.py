"""One layer's attention pattern, entry by entry, of whole passes, chunks of queries and stacked rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Some = TypeVar("Some", Tensor, Array)


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
        rows = _upcast(chunk.rows())
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
            rows, places = _upcast(chunk.rows()), keys - chunk.keys.start
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
            found[inside] = _upcast(chunk.rows())[places].to(found.dtype)
        return found

    def pattern_of(self, queries: range) -> Tensor:
        parts = [self._pattern_of(chunk, queries) for chunk in self.chunks]
        return torch.cat([part for part in parts if part is not None], dim=2)

    def _pattern_of(self, chunk: QueryChunk, queries: range) -> Tensor | None:
        start, stop = max(queries.start, chunk.queries.start), min(queries.stop, chunk.queries.stop)
        if start >= stop:
            return None
        rows = _upcast(chunk.rows())[:, :, start - chunk.queries.start : stop - chunk.queries.start]
        whole = rows.new_zeros(*rows.shape[:3], self._positions)
        whole[..., chunk.keys.start : chunk.keys.stop] = rows
        return whole


@dataclass
class CutReader:
    """Reads the first `positions` of a layer whose rows were filled up behind."""

    whole: Reader
    positions: int

    @property
    def n_heads(self) -> int:
        return self.whole.n_heads

    @property
    def device(self) -> torch.device:
        return self.whole.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.whole.dtype

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return self.whole.diagonals(offsets, first=first)[..., : self.positions]

    def columns(self, keys: Tensor) -> Tensor:
        return self.whole.columns(keys)[..., : self.positions]

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        return self.whole.pairs(rows, queries, keys)

    def pattern_of(self, queries: range) -> Tensor:
        return self.whole.pattern_of(queries)[..., : self.positions]


class OfParts:
    """What is read part by part lies where its first part does, and is computed in the same type."""

    parts: Sequence[Reader]

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.parts[0].dtype


@dataclass
class StackedReader(OfParts):
    """Reads a layer whose rows went through the model in several passes, one part after the other."""

    parts: Sequence[Reader]
    counts: Sequence[int]  # of rows in each part

    @property
    def n_heads(self) -> int:
        return self.parts[0].n_heads

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return torch.cat([part.diagonals(offsets, first=first) for part in self.parts])

    def columns(self, keys: Tensor) -> Tensor:
        return torch.cat([part.columns(some) for part, some in zip(self.parts, keys.split(list(self.counts)), strict=True)])

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        found: Tensor | None = None
        start = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            here = (rows >= start) & (rows < start + count)
            some = part.pairs(rows[here] - start, queries[here], keys[here])
            found = some.new_zeros(len(rows), some.shape[1]) if found is None else found
            found[here] = some
            start += count
        return torch.zeros(0) if found is None else found

    def pattern_of(self, queries: range) -> Tensor:
        return torch.cat([part.pattern_of(queries) for part in self.parts])


def kept(reader: Any) -> Any:
    """A reader that outlives its pass: of copies of all tensors."""
    return replace(reader, **{each.name: _copied(getattr(reader, each.name)) for each in fields(reader) if each.init})


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copied, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    return kept(value) if is_dataclass(value) and hasattr(value, "diagonals") else value


BLOCK_ENTRIES = 4_000_000  # scores held at a time where the log-sum-exp is computed in blocks of rows
SMALL_ENTRIES = 65_536  # up to so many products of queries and keys, all of them at once cost no more than line by line
POSITIONS_A_LINE = 8  # up to so many for each line that is read, several threads or a GPU are faster at all at once, up to
HELD_PRODUCTS = 2**22  # so many: 16 MB
IN_CACHE = 2**17  # numbers of queries that are read at a time, with their keys, by each thread: a second-level cache
FEW_THREADS = 4  # up to so many of torch, one of numpy is faster at lines
PAIR_ENTRIES = 4_000_000  # numbers gathered at a time for scattered entries

EXACT = (torch.float32, torch.float64)
LOG2_E = math.log2(math.e)
NOTHING = -1e30  # below it a log-sum-exp is that of a row in which everything is masked


@dataclass
class LogSumExpReader:
    """Reads the pattern from what went into the attention call; no (positions x positions) tensor is made.

    `query` is (batch, heads, positions, d_head), `key` may have fewer heads (grouped queries), `log_sum_exp` is (batch,
    heads, positions), `mask` broadcasts to (batch, heads, positions, positions): boolean (True attends) or added.
    """

    query: Tensor
    key: Tensor
    log_sum_exp: Tensor
    scale: float
    mask: Tensor | None
    causal: bool

    def __post_init__(self) -> None:
        if self.scale <= 0:  # no factor for scores that are -inf where masked
            self.query, self.scale = self.query * self.scale, 1.0
        if self.mask is not None:  # a query that may attend to nothing has no mass anywhere, whatever its kernel says
            nothing = max(NOTHING, torch.finfo(self.query.dtype).min / 2)  # half precision has no number as low
            self.log_sum_exp = self.log_sum_exp.masked_fill(~(self.log_sum_exp > nothing), torch.inf)

    @property
    def n_heads(self) -> int:
        return self.query.shape[1]

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.query.dtype

    @property
    def keeps_products(self) -> bool:
        """Whether scores are products of queries and keys by one factor, but for what is added to them."""
        return True

    @cached_property
    def _query(self) -> Tensor:  # batch, key heads, group, positions, d_head; at least float32, or half a digit is left
        return _upcast(self.query).unflatten(1, (self.key.shape[1], -1))

    @cached_property
    def _key(self) -> Tensor:  # batch, key heads, 1, positions, d_head
        return _upcast(self.key)[:, :, None]

    @cached_property
    def _mask(self) -> Tensor | None:
        """The mask over all queries and keys, with all four axes."""
        mask = self.mask
        if mask is None:
            return None
        while mask.ndim < 4:
            mask = mask[None]
        positions = self.query.shape[2]
        return mask.expand(*mask.shape[:2], positions, positions)

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        batch, heads, positions = self.log_sum_exp.shape
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        scores = self.query.new_full((batch, heads, len(offsets) + first, positions), -torch.inf, dtype=dtype)
        left = self.write_scores(offsets, scores, first=first)
        return masses(scores.mul_(left), self.log_sum_exp[:, :, None])

    def write_scores(self, offsets: Sequence[int], out: Tensor, *, first: bool) -> float:
        """The scores before softmax into `out` (batch, heads, lines, positions), but for a factor, which is returned.

        What a line has no key for stays as it is. This runs in every layer, where each torch function costs as much as the
        arithmetic of a short sequence: hence the sparing ones.
        """
        batch, heads, positions = self.log_sum_exp.shape
        if batch * heads * positions**2 <= _most_products(self.device, positions, len(offsets)):
            query, key = (self.query, self.key) if self.key.shape[1] == heads else (self._query, self._key)
            products = (_upcast(query) @ _upcast(key).transpose(-1, -2)).view(batch, heads, -1)
            places, outside = _places(tuple(offsets), first, positions, products.device)
            out.copy_(products.gather(-1, places.expand(batch, heads, -1)).view(out.shape)).masked_fill_(outside, -torch.inf)
        else:
            self._write_lines(offsets, out, first)
        if self._mask is None:
            return self.scale
        out.mul_(self.scale)
        for index, offset in enumerate(offsets):
            out[:, :, index, offset:] += _as_added(self._mask.diagonal(-offset, -2, -1), out.dtype)
        if first:
            out[:, :, -1] += _as_added(self._mask[..., 0], out.dtype)
        return 1.0

    def _write_lines(self, offsets: Sequence[int], out: Tensor, first: bool) -> None:
        query, key, key_heads = self.query, _upcast(self.key), self.key.shape[1]
        if key_heads < out.shape[1]:
            query, key, out = query.unflatten(1, (key_heads, -1)), key[:, :, None], out.unflatten(1, (key_heads, -1))
        if len(key) < len(query):
            key = key.expand(len(query), *key.shape[1:])
        taken, dot = _kind_and_dot(query)
        keys, lines = taken(key), taken(out)
        for rows, queries in _blocks(query):
            some = taken(_upcast(query[rows, ..., queries.start : queries.stop, :]))
            _write(some, keys[rows], offsets, lines[rows], queries, first, dot)

    def columns(self, keys: Tensor) -> Tensor:
        rows = torch.arange(len(keys), device=self.key.device)
        chosen = _upcast(self.key[rows, :, keys])  # batch, key heads, d_head
        scores = torch.einsum("bkgqd,bkd->bkgq", self._query, chosen).flatten(1, 2) * self.scale
        positions = scores.shape[-1]
        if self._mask is not None:
            mask = self._mask.expand(len(keys), -1, positions, positions)
            scores += _as_added(mask[rows, :, :, keys], scores.dtype)
        if self.causal:
            scores.masked_fill_((torch.arange(positions, device=keys.device) < keys[:, None])[:, None], -torch.inf)
        return masses(scores, self.log_sum_exp)

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        at_once = max(1, PAIR_ENTRIES // (self.query.shape[1] * self.query.shape[3]))
        parts = zip(rows.split(at_once), queries.split(at_once), keys.split(at_once), strict=True)
        return torch.cat([self._some_pairs(*part) for part in parts])

    def _some_pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        query = self._query[rows, :, :, queries]  # pairs, key heads, group, d_head
        key = _upcast(self.key[rows, :, keys])[:, :, None]
        scores = torch.linalg.vecdot(query, key).flatten(1).mul_(self.scale)
        if self._mask is not None:
            batch, _, positions = self.log_sum_exp.shape
            mask = self._mask.expand(batch, -1, positions, positions)[rows, :, queries, keys]
            scores += _as_added(mask, scores.dtype)
        if self.causal:
            scores.masked_fill_((keys > queries)[:, None], -torch.inf)
        return masses(scores, self.log_sum_exp[rows, :, queries])

    def pattern_of(self, queries: range) -> Tensor:
        scores = rows_of_scores(self.query, self.key, self.scale, self.mask, self.causal, queries)
        return masses(scores, self.log_sum_exp[:, :, queries.start : queries.stop, None])


def _most_products(device: torch.device, positions: int, lines: int) -> int:
    """How many products of queries and keys are made all at once, in place of those of the lines that are read."""
    shared = device.type != "cpu" or torch.get_num_threads() > 1
    return HELD_PRODUCTS if shared and positions <= POSITIONS_A_LINE * lines else SMALL_ENTRIES


def _kind_and_dot(query: Tensor) -> tuple[Callable[[Tensor], Any], Callable[[Any, Any, Any], None]]:
    """What lines are read as, arrays or tensors, and what makes their products.

    One thread of numpy, which holds no products, is faster than a few threads of torch, which does.
    """
    few = query.device.type == "cpu" and torch.get_num_threads() <= FEW_THREADS
    return (_array, _dot_of_arrays) if few else (_itself, _dot_of_tensors)


def _array(values: Tensor) -> Array:
    return (values.detach() if values.requires_grad else values).numpy()


def _itself(values: Tensor) -> Tensor:
    return values


def _blocks(query: Tensor) -> Iterator[tuple[slice, range]]:
    """Some rows and some positions of queries (batch, ..., positions, d_head) at a time, as many as a cache holds on a CPU."""
    (batch, positions), numbers = (query.shape[0], query.shape[-2]), query[0].numel()
    most = IN_CACHE * torch.get_num_threads() if query.device.type == "cpu" else batch * numbers
    rows, width = max(1, most // numbers), max(1, most * positions // numbers)
    for row in range(0, batch, rows):
        for start in range(0, positions, width):
            yield slice(row, row + rows), range(start, min(positions, start + width))


def _write(
    query: Some,
    key: Some,
    offsets: Sequence[int],
    out: Some,
    queries: range,
    first: bool,
    dot: Callable[[Some, Some, Some], None],
) -> None:
    """Products of some queries and all keys (..., positions, d_head) into `out` (..., lines, positions)."""
    end = queries.stop
    for line, offset in enumerate(offsets):
        start = max(offset, queries.start)
        if start < end:
            keys = key[..., start - offset : end - offset, :]
            dot(query[..., start - queries.start :, :], keys, out[..., line, start:end])
    if first:
        dot(query, key[..., :1, :], out[..., -1, queries.start : end])


def _dot_of_tensors(query: Tensor, key: Tensor, out: Tensor) -> None:
    out.copy_(torch.linalg.vecdot(query, key))


def _dot_of_arrays(query: Array, key: Array, out: Array) -> None:
    if hasattr(np, "vecdot"):
        np.vecdot(query, key, out=out)
    else:  # numpy 1
        np.einsum("...d,...d->...", query, key, out=out)


class Scored(NamedTuple):
    """What is said to have made a pattern, as in `LogSumExpReader`; scores have a soft cap at `cap` if there is one."""

    query: Tensor
    key: Tensor
    scale: float
    cap: float | None


@dataclass
class PatternReader:
    """Reads a pattern that the model itself has computed, (batch, heads, positions, positions).

    `scored` is what went in beside it, where that is known: nothing has checked that it makes the pattern.
    """

    pattern: Tensor
    scored: Scored | None = None

    @property
    def n_heads(self) -> int:
        return self.pattern.shape[1]

    @property
    def device(self) -> torch.device:
        return self.pattern.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what the model computes in."""
        return self.pattern.dtype

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        batch, heads, positions, _ = self.pattern.shape
        lines = len(offsets) + first
        mass = torch.zeros(batch, heads, lines, positions, device=self.pattern.device, dtype=self._exact_dtype)
        for index, offset in enumerate(offsets):
            if offset < positions:
                mass[:, :, index, offset:] = self.pattern.diagonal(-offset, -2, -1)
        if first:
            mass[:, :, -1] = self.pattern[..., 0]
        return mass

    def columns(self, keys: Tensor) -> Tensor:
        return self.pattern[torch.arange(len(keys), device=self.pattern.device), :, :, keys].to(self._exact_dtype)

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        return self.pattern[rows, :, queries, keys].to(self._exact_dtype)

    def pattern_of(self, queries: range) -> Tensor:
        return self.pattern[:, :, queries.start : queries.stop].to(self._exact_dtype)

    @property
    def _exact_dtype(self) -> torch.dtype:
        return torch.promote_types(self.pattern.dtype, torch.float32)


@dataclass
class JoinedReader(OfParts):
    """Reads a layer whose heads attend one by one, or some by some, in calls of their own.

    `order` is that of the heads where what they found lies side by side, if it is not that of the calls.
    """

    parts: Sequence[Reader]
    order: Sequence[int] | None = None

    @property
    def n_heads(self) -> int:
        return sum(part.n_heads for part in self.parts)

    def diagonals(self, offsets: Sequence[int], *, first: bool = False) -> Tensor:
        return self._joined([part.diagonals(offsets, first=first) for part in self.parts])

    def columns(self, keys: Tensor) -> Tensor:
        return self._joined([part.columns(keys) for part in self.parts])

    def pairs(self, rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        return self._joined([part.pairs(rows, queries, keys) for part in self.parts])

    def pattern_of(self, queries: range) -> Tensor:
        return self._joined([part.pattern_of(queries) for part in self.parts])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        together = torch.cat([*parts], dim=1)
        return together if self.order is None else together[:, list(self.order)]


Reader = LogSumExpReader | PatternReader | ChunkedReader | JoinedReader | CutReader | StackedReader


@lru_cache(maxsize=32)
def _places(offsets: tuple[int, ...], first: bool, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the lines lie in a flat (positions x positions), and which of their entries do not exist."""
    queries = torch.arange(positions, device=device)
    keys = torch.stack([*(queries - offset for offset in offsets), *([torch.zeros_like(queries)] if first else [])])
    return (queries * positions + keys.clamp_min(0)).flatten(), keys < 0


def row_log_sum_exp(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None, causal: bool, *, rows: range | None = None
) -> Tensor:
    """Log-sum-exp of every query's masked, scaled scores, (batch, heads, positions), in blocks of rows.

    The way that serves every device, dtype and mask, where the kernel does not tell. `rows` limits it to some.
    """
    batch, heads, positions, _ = query.shape
    rows = range(positions) if rows is None else rows
    at_once = max(1, min(len(rows), BLOCK_ENTRIES // (batch * heads * positions)))
    starts = rows[::at_once]
    blocks = (range(start, min(start + at_once, rows.stop)) for start in starts)
    return torch.cat([_log_sum_exp(rows_of_scores(query, key, scale, mask, causal, block)) for block in blocks], dim=-1)


def _log_sum_exp(scores: Tensor) -> Tensor:
    """Over the last axis; -inf where all are. The scores are written to."""
    top = scores.amax(-1)
    top.masked_fill_(top.isinf(), 0)
    return masses(scores, top[..., None]).sum(-1).log_().add_(top)


def masses(scores: Tensor, log_sum_exp: Tensor) -> Tensor:
    """exp(scores - log_sum_exp), in place of the scores; 0 where these are -inf.

    As powers of two: the exponential of torch's library on some processors takes nearly a hundred times as long for every -inf.
    The difference is taken first: of scores in the thousands, a product with anything is off by more than it may be.
    """
    return scores.sub_(log_sum_exp.to(scores.dtype)).mul_(LOG2_E).exp2_()


def rows_of_scores(query: Tensor, key: Tensor, scale: float, mask: Tensor | None, causal: bool, rows: range) -> Tensor:
    """The masked, scaled scores before softmax of some queries, (batch, heads, rows, positions)."""
    positions, block = query.shape[2], slice(rows.start, rows.stop)
    part = _upcast(query[:, :, block]).unflatten(1, (key.shape[1], -1))
    scores = (part @ _upcast(key)[:, :, None].transpose(-1, -2)).flatten(1, 2).mul_(scale)
    if mask is not None:
        scores += _as_added(mask.expand(*mask.shape[:-2], positions, positions)[..., block, :], scores.dtype)
    if causal:
        columns = torch.arange(positions, device=query.device)
        scores.masked_fill_(columns > columns[block, None], -torch.inf)
    return scores


def _as_added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask, or some entries of one, as numbers to add to the scores."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return mask.to(dtype)


def _upcast(values: Tensor) -> Tensor:
    """At least float32; what is converted lies head by head, which is read faster than heads side by side."""
    if values.dtype in EXACT:
        return values
    return values.to(torch.promote_types(values.dtype, torch.float32), memory_format=torch.contiguous_format)
