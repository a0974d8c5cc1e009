"""Calls of `flex_attention`, as torch makes them: one higher-order op, with its block masks and functions of scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_induction.attention.capture import Capture, measuring
from pytest_induction.attention.edits import MASKED, EditingCapture
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.kernels import CHECKED_ROWS, AttentionCall, is_close
from pytest_induction.attention.pattern import NOTHING, PAIR_ENTRIES, LogSumExpReader, masses, rows_of_scores
from pytest_induction.forward.calling import FLEX, full_precision
from pytest_induction.forward.changing import beneath, enter_mode, take_over
from pytest_induction.undoing import Changes

ENDLESS = 1 << 30  # positions of a block that holds all


def one_block(block_mask: tuple[Any, ...], mask_mod: Callable[..., Tensor]) -> tuple[Any, ...]:
    """The mask of another function, in one block."""
    first = _first_list(block_mask)
    count = torch.ones(1, 1, 1, dtype=torch.int32, device=block_mask[first].device)
    lists = count, torch.zeros_like(count)[..., None], None, None
    return *block_mask[:first], *lists, *block_mask[first + 4 : -3], ENDLESS, ENDLESS, mask_mod


def listed(block_mask: tuple[Any, ...], queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries lie in a block that is open as a whole, and which in one whose entries the mask's function decides on.

    Both broadcast to (rows, heads, queries, keys). Of each list there are its length for every row of blocks, and its numbers.
    """
    count, numbers, full_count, full_numbers, *_, height, width, _ = block_mask[_first_list(block_mask) :]
    at = (queries // height)[:, None], (keys // width)[None]
    partly = _in_a_list(count, numbers, *at)
    full = torch.zeros_like(partly) if full_count is None else _in_a_list(full_count, full_numbers, *at)
    return full, partly


def _first_list(block_mask: tuple[Any, ...]) -> int:
    """Where the lists of blocks begin: newer versions of torch put the lengths of the sequence before them."""
    return next(place for place, part in enumerate(block_mask) if isinstance(part, Tensor))


def _in_a_list(count: Tensor, numbers: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which of these blocks, by the numbers of their rows and columns, are among the first `count` numbers of their row."""
    there = torch.arange(numbers.shape[-1], device=numbers.device) < count[..., None]
    most = max(int(numbers.max()), int(column.max())) + 1
    table = torch.zeros(*numbers.shape[:-1], most + 1, dtype=torch.bool, device=numbers.device)
    table.scatter_(-1, torch.where(there, numbers, most).long(), value=True)
    return table[:, :, row, column]


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
        rows_there, starts = (self.rows, self.starts) if rows is None else (self.rows[rows], self.starts[rows])
        heads = torch.arange(shape[1], device=rows_there.device)
        queries = (queries + starts[:, None]).expand(shape[0], shape[2])
        keys = (keys + starts[:, None, None]).expand(shape[0], *shape[2:])
        return rows_there, heads, queries, keys


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
        return masses(scores, self.log_sum_exp)

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
        return masses(changed, self.log_sum_exp[rows, :, queries])

    def pattern_of(self, queries: range) -> Tensor:
        chosen = self._all[queries.start : queries.stop]
        scores = rows_of_scores(self.query, self.key, self.scale, None, False, queries)  # noqa: FBT003 - neither mask nor causal
        scores = self.mods.scores(scores, chosen[None], self._all[None, None])
        return masses(scores, self.log_sum_exp[:, :, queries.start : queries.stop, None])

    @cached_property
    def _all(self) -> Tensor:
        return torch.arange(self.query.shape[2], device=self.query.device)


CHECK = "_validate_device"  # what of torch's refuses a gradient on a CPU
HOP = "torch._higher_order_ops.flex_attention"
Given = tuple[Tensor, ...]
"""What the op gives: output (rows, heads, positions, d_value), then numbers per query in powers of two: log-sum-exp, maximum."""


def is_flex(function: Any) -> bool:
    """Whether a torch function is the op that `flex_attention` calls."""
    return function is getattr(sys.modules.get(HOP), "flex_attention", sys)


class FlexCall(NamedTuple):
    """The arguments of the op, by its names for them."""

    query: Tensor
    key: Tensor
    value: Tensor
    score_mod: Callable[..., Tensor]
    block_mask: tuple[Any, ...]
    scale: float
    kernel_options: dict[str, Any]
    score_mod_other_buffers: tuple[Any, ...] = ()
    mask_mod_other_buffers: tuple[Any, ...] = ()

    @property
    def asks_more(self) -> bool:
        """Whether the model wants more than the output. While gradients are kept this cannot be told everywhere."""
        return bool(self.kernel_options.get("OUTPUT_LOGSUMEXP", True) or self.kernel_options.get("OUTPUT_MAX", False))

    def run(self, op: Callable[..., Given]) -> Given:
        """What the op gives, with a gradient also where it has none: on a CPU, and of what its functions look up."""
        if not torch.is_grad_enabled() or not any(part.requires_grad for part in self[:3]):
            return op(*self)
        with torch.no_grad():
            results = op(*self)
        with measuring(), full_precision(self.query.device.type):
            made = self.autocast().by_the_book()
        return tuple(_laid_out_like(found, part) for found, part in zip(made, results, strict=False))

    def autocast(self) -> FlexCall:
        """The call as the op makes it under autocast."""
        kind = self.query.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = (part if part.dtype == torch.float64 else part.to(dtype) for part in self[:3])
        return self._replace(query=query, key=key, value=value)

    def by_the_book(self) -> Given:
        """What the op gives."""
        query, key = self.query, self.key.expand(len(self.query), -1, -1, -1)
        positions, keys = (torch.arange(part.shape[2], device=part.device) for part in (query, key))
        exact = torch.promote_types(query.dtype, torch.float32)
        group = query.shape[1] // key.shape[1]
        scores = query.to(exact) @ key.repeat_interleave(group, 1).to(exact).transpose(-2, -1) * self.scale
        scores = self.mods(len(query)).scores(scores, positions[None], keys[None, None])
        nothing = (scores == -torch.inf).all(-1, keepdim=True)
        pattern = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0).to(query.dtype)
        output = pattern @ self.value.repeat_interleave(group, 1).to(query.dtype)
        log_sum_exps = scores.masked_fill(nothing, 0).logsumexp(-1).masked_fill(nothing[..., 0], -torch.inf), scores.amax(-1)
        return output, *(each / math.log(2) for each in log_sum_exps)

    def mods(self, batch: int, starts: Tensor | None = None) -> Mods:
        """What changes its scores. With `starts` rows are packed one behind the other."""
        rows = torch.arange(batch, device=self.query.device)
        if starts is not None:
            rows = torch.zeros_like(rows)
        score_mod, mask_mod = self.score_mod, self.block_mask[-1]
        return Mods(
            lambda *entry: score_mod(*entry, *self.score_mod_other_buffers),
            lambda *entry: mask_mod(*entry, *self.mask_mod_other_buffers),
            rows,
            torch.zeros_like(rows) if starts is None else starts,
        )

    def masked_by(self, mask_mod: Callable[..., Tensor]) -> FlexCall:
        """The call with another mask."""
        return self._replace(block_mask=one_block(self.block_mask, mask_mod), mask_mod_other_buffers=())

    def to_itself(self) -> FlexCall:
        """The call in which every position attends to itself only."""

        def itself(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query == key

        def unchanged(score: Tensor, *entry: Tensor) -> Tensor:
            return score

        return self.masked_by(itself)._replace(score_mod=unchanged, score_mod_other_buffers=())


class FlexInterceptor:
    """Stands in for the op in a pass over token ids (batch, positions), and shows those that are layers.

    Rows may also be packed one behind the other, (1, heads, batch x positions, d_head), as training code does.
    """

    def __init__(self, capture: Capture, batch: int, positions: int) -> None:
        self.calls = 0
        self.asked = False  # whether a model asked for more than the output
        self.disturbs = False  # whether what a model asked for beside the output is to be another thing than it is
        self._show, self._batch, self._positions = capture, batch, positions

    def __call__(self, op: Callable[..., Given], *args: Any, **options: Any) -> Given:
        call, capture = FlexCall(*args, **options), self._show
        self.calls += 1
        self.asked = self.asked or call.asks_more
        if not capture.record_call(call.query.shape[2], call.key.shape[2], fits=self._fits(call), values=call.value):
            return call.run(op)
        if capture.self_only:
            return call.to_itself().run(op)
        if isinstance(capture, EditingCapture):
            return self._edited_call(op, call, capture)
        output, *others = call.run(op)
        with measuring(), full_precision(call.query.device.type):
            self._check_blocks(call)
            reader = self._reader(call.autocast(), others[0])
            self._check(call, reader, output)
        capture(reader)
        number = capture.n_events if self.disturbs else 0
        return output, *(each + number for each in others)

    def _fits(self, call: FlexCall) -> bool:
        rows, _, positions, _ = call.query.shape
        if self._is_packed(call):
            return call.key.shape[::2] == call.query.shape[::2]
        if rows != self._batch or positions != self._positions or len(call.key) not in (1, rows):
            return False
        return call.key.shape[2] == positions or (call.key.shape[2] > positions and not bool(self._left_over(call).any()))

    def _left_over(self, call: FlexCall) -> Tensor:
        """Which keys after those of the positions may be attended to: none, where they are the empty end of a cache."""
        positions = torch.arange(self._positions, device=call.query.device)
        others = torch.arange(self._positions, call.key.shape[2], device=call.query.device)
        shape = (*call.query.shape[:3], len(others))
        with measuring():
            return call.mods(self._batch).allowed(shape, positions[None], others[None, None])

    def _is_packed(self, call: FlexCall) -> bool:
        return self._batch > 1 and (len(call.query), call.query.shape[2]) == (1, self._batch * self._positions)

    def _reader(self, call: FlexCall, log_sum_exp: Tensor) -> FlexReader:
        query, key = (self._apart(call, part) for part in call[:2])
        log_sum_exp = self._apart(call, log_sum_exp[..., None] * math.log(2))[..., 0]
        starts = torch.arange(self._batch, device=query.device) * self._positions if self._is_packed(call) else None
        return FlexReader(query, key, log_sum_exp, call.scale, mask=None, causal=False, mods=call.mods(self._batch, starts))

    def _check_blocks(self, call: FlexCall) -> None:
        """Raise `BackendUnavailable` where blocks leave out what their function does not, or the other way round."""
        positions, keys = (torch.arange(part.shape[2], device=part.device) for part in call[:2])
        shape = (*call.query.shape[:3], len(keys))
        allowed = call.mods(shape[0]).allowed(shape, positions[None], keys[None, None])
        full, partly = listed(call.block_mask, positions, keys)
        if bool(((full | (partly & allowed)) != allowed).any()):
            raise BackendUnavailable(
                "the blocks of a block mask and its `mask_mod` say different things, so that flex_attention attends to other "
                "keys when it is compiled: make the mask by `create_block_mask`"
            )

    def _check(self, call: FlexCall, reader: FlexReader, output: Tensor) -> None:
        """Raise `BackendUnavailable` unless the last rows of the output are the values weighed by what is read."""
        rows = reader.pattern_of(range(max(0, self._positions - CHECKED_ROWS), self._positions))
        value = self._apart(call, call.value).to(output.dtype).to(rows.dtype)
        weighed = rows @ value.repeat_interleave(rows.shape[1] // value.shape[1], 1)
        found = self._apart(call, output)[:, :, -rows.shape[2] :].to(rows.dtype)
        if not is_close(found, weighed, output):
            raise BackendUnavailable("flex_attention gives something else than its queries, keys, values and functions say")

    def _apart(self, call: FlexCall, part: Tensor) -> Tensor:
        """(rows, heads, positions, ...) of queries, keys, values or an output."""
        if not self._is_packed(call):
            return part[:, :, : self._positions].expand(self._batch, *(-1,) * (part.ndim - 1))
        return part[0].unflatten(1, (self._batch, self._positions)).transpose(0, 1)

    def _together(self, call: FlexCall, part: Tensor, own: Tensor) -> Tensor:
        """The same as the op takes it, in place of its `own`."""
        if self._is_packed(call):
            return part.transpose(0, 1).flatten(1, 2)[None]
        rest = own[:, :, self._positions :].expand(len(part), *(-1,) * (own.ndim - 1))
        return torch.cat([part, rest], dim=2) if rest.shape[2] else part

    def _edited_call(self, op: Callable[..., Given], call: FlexCall, capture: EditingCapture) -> Given:
        """What the layer gives when it is edited."""
        mask = self._mask(call) if capture.edits_call else None
        query, key, value = (self._apart(call, part) for part in call[:3])
        apart = AttentionCall(query, key, value, mask, given_scale=call.scale, grouped=query.shape[1] != key.shape[1])
        given: list[Tensor] = []

        def run(edited: AttentionCall | None) -> Tensor:
            given[:] = (call if edited is None else self._edited(call, apart, edited)).run(op)
            return self._apart(call, given[0])

        found = capture.apply(apart, run)
        output = self._together(call, found, given[0])
        return _laid_out_like(output, given[0]), *given[1:]

    def _mask(self, call: FlexCall) -> Tensor:
        """Which keys a query may attend to, (rows, heads, queries, keys); functions of scores may say so by very low ones."""
        with torch.no_grad(), measuring(), full_precision(call.query.device.type):
            reader = self._reader(call, call.query.new_zeros(call.query.shape[:3]))
            positions = torch.arange(self._positions, device=call.query.device)
            scores = rows_of_scores(reader.query, reader.key, reader.scale, None, False, range(self._positions))  # noqa: FBT003
            changed = reader.mods.scores(scores, positions[None], positions[None, None])
            return (changed > MASKED) | ((scores <= MASKED) & (changed > -torch.inf))

    def _edited(self, call: FlexCall, before: AttentionCall, edited: AttentionCall) -> FlexCall:
        """The call to make in place of the model's: with other tensors, and entries left out."""
        query, key, value = (self._together(call, part, own) for part, own in zip(edited[:3], call[:3], strict=True))
        other = call._replace(query=query, key=key, value=value)
        if edited.mask is before.mask:
            return other
        if edited.mask is None or edited.mask.dtype != torch.bool or edited.causal:
            raise BackendUnavailable(
                "a call of flex_attention can be made to leave entries out, and to do nothing else to its scores"
            )
        table = edited.mask.expand(self._batch, query.shape[1], self._positions, self._positions)
        if self._is_packed(call):
            return other.masked_by(_packed(table, self._positions))
        return other.masked_by(_looked_up(F.pad(table, (0, key.shape[2] - self._positions))))


def _looked_up(table: Tensor) -> Callable[..., Tensor]:
    """A mask that stands in a table, (rows, heads, queries, keys)."""

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return table[row, head, query, key]

    return mask_mod


def _packed(table: Tensor, positions: int) -> Callable[..., Tensor]:
    """The same for rows that are packed one behind the other."""

    def mask_mod(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = query // positions == key // positions
        return same & table[query // positions, head, query % positions, key % positions]

    return mask_mod


def _laid_out_like(found: Tensor, given: Tensor) -> Tensor:
    """The numbers in the layout in memory of what the op gave, on which a model's views may rely."""
    if found.stride() == given.stride() and found.dtype == given.dtype:
        return found
    empty = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device=given.device)
    return empty.copy_(found)


@contextmanager
def gradients_allowed(capture: Capture) -> Iterator[None]:
    """Where layers are edited calls of this thread may be made of what wants a gradient, which torch has none for on a CPU."""
    module: Any = sys.modules.get(FLEX)
    if not hasattr(module, CHECK) or not isinstance(capture, EditingCapture):
        yield
        return
    check = beneath(module, CHECK)

    def allow(*tensors: Tensor) -> None:
        check(*(each.detach() for each in tensors))

    with Changes() as changes:
        take_over(changes, (module, CHECK, allow))
        yield
