"""Way in 1: calls of `torch.nn.functional.scaled_dot_product_attention`, in any PyTorch model, with no adapter code.

A trial pass sees the calls under whatever name the function was imported, and sees attention that is computed in any other
way. The passes after it only replace the function's attribute, which costs nothing, unless an alias was used.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_induction.models.attention import LogSumExpReader, PatternReader, Reader
from pytest_induction.models.calling import Caller, full_precision
from pytest_induction.models.census import Running
from pytest_induction.models.kernels import Call, attend, exact
from pytest_induction.models.protocol import ListeningWay, Refused, Show

SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
_one_at_a_time = threading.RLock()


class SdpaWay(ListeningWay):
    """Sees every causal self-attention call; refuses a model that computes attention anywhere else too."""

    name = "sdpa"
    makes_patterns = False

    def __init__(self, caller: Caller, tokens: Tensor, expected: int | None) -> None:
        self.caller = caller
        tap, watch = try_out(caller, tokens)
        if not tap.show.heads or watch.foreign:
            elsewhere = f", {watch.foreign} softmax calls over (positions x positions) outside of it" if watch.foreign else ""
            raise Refused(f"{len(tap.show.heads)} calls of scaled_dot_product_attention seen{elsewhere}{watch.unreadable()}")
        self.settle(tap.show, expected, excused=cross_attention(caller, tokens, watch))
        self.folded = tap.folded
        self._by_patch = not watch.aliased
        self.base_serves = self._sees_all_in_base(tokens)

    def _sees_all_in_base(self, tokens: Tensor) -> bool:
        """Whether the base model alone, without the logits, makes the same attention calls."""
        if self.caller.base is None:
            return False
        show = Show()
        with self.listening(tokens, show), suppress(Exception):  # a base may need what only the whole gives it
            self.caller(tokens, logits=False)
        return len(show.heads) == len(self.layers)

    @contextmanager
    def listening(self, tokens: Tensor, show: Show) -> Iterator[None]:
        tap = Tap(tokens, show)
        with patched(tap) if self._by_patch else watching(tap):
            yield


class Tap:
    """Stands in for the attention functions: computes what they would, and shows each causal self-attention call."""

    def __init__(self, tokens: Tensor, show: Show) -> None:
        self.attention = F.scaled_dot_product_attention
        self.multi_head = F.multi_head_attention_forward
        self.batch, self.positions = tokens.shape
        self.show = show
        self.inside = False
        self.folded = False  # whether heads and rows shared an axis
        self.others: list[tuple[str, int]] = []  # calls that are not self-attention: where, and over how many keys
        self._thread = threading.get_ident()

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        call = Call(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        mine = threading.get_ident() == self._thread and not self.inside
        if not mine or not self._is_self_attention(query, key):
            if mine:
                self._note_other(key)
            return call.run(self.attention)
        self.inside = True  # what the attention function calls itself is not another call
        try:
            output, reader = self._attend(call.autocast())
            self.show(reader)
        finally:
            self.inside = False
        return output

    def _note_other(self, key: Tensor) -> None:
        self.others.append((self.here, key.shape[-2]))

    @property
    def here(self) -> str:
        """The module that runs now, where that is followed."""
        return "" if self.show.running is None else self.show.running.here

    def _attend(self, call: Call) -> tuple[Tensor, Reader]:
        with full_precision(call.query.device.type):
            if call.query.ndim == 4:
                output, log_sum_exp = attend(self.attention, call)
            else:
                output, call = call.run(self.attention), self._unfolded(call)
                log_sum_exp = exact(call)
        return output, LogSumExpReader(call.query, call.key, log_sum_exp, call.scale, call.mask, call.causal)

    def _is_self_attention(self, query: Tensor, key: Tensor) -> bool:
        if query.shape[-2:-1] != key.shape[-2:-1] or query.shape[-2:-1] != (self.positions,) or query.ndim != key.ndim:
            return False
        rows = (query.shape[0], key.shape[0])
        if query.ndim == 3:
            return rows[0] == rows[1] and rows[0] % self.batch == 0
        return query.ndim in (4, 5) and rows == (self.batch, self.batch)

    def _unfolded(self, call: Call) -> Call:
        """The call with axes (batch, heads, positions, d_head)."""
        self.folded = call.query.ndim == 3
        mask = call.mask
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(*call.query.shape[:-2], *mask.shape[-2:])
            mask = _heads_apart(mask, self.batch)
        query, key = (_heads_apart(part, self.batch) for part in (call.query, call.key))
        return Call(query, key, call.value, mask, call.dropout, call.causal, call.scale, call.grouped)

    def through_module(self, *args: Any, **options: Any) -> Any:
        """`multi_head_attention_forward`: asked for weights it computes the pattern itself, and is read from that."""
        query, key = args[:2]
        if self.inside or threading.get_ident() != self._thread or not options.get("need_weights", True):
            return self.multi_head(*args, **options)
        self.inside = True
        try:
            if query.ndim != 3 or not tuple(query.shape[:2]) == tuple(key.shape[:2]) == (self.positions, self.batch):
                self._note_other(key.transpose(0, 1))
                return self.multi_head(*args, **options)
            result: Any = self.multi_head(*args, **{**options, "average_attn_weights": False})
            output, weights = result
            self.show(PatternReader(weights))
        finally:
            self.inside = False
        return output, weights.mean(dim=1) if options.get("average_attn_weights", True) else weights


def _heads_apart(part: Tensor, batch: int) -> Tensor:
    """(batch x heads, ...) or (batch, key heads, group, ...) as (batch, heads, ...)."""
    return part.unflatten(0, (batch, -1)) if part.ndim == 3 else part.flatten(1, 2)


class Watch(TorchFunctionMode):
    """Sees the attention function under whatever name it was imported, and softmax over (positions x positions)."""

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.tap = tap
        self._square = (tap.positions, tap.positions)
        self.aliased = 0
        self.foreign = 0
        self.oblong: list[tuple[str, int]] = []  # softmax calls over more than the positions: where, and over how many keys

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.tap.attention and not self.tap.inside:
            self.aliased += 1
            return self.tap(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if not self.tap.inside:
            self.after(func, args, kwargs or {}, output)
        return output

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Look at what a torch function returned."""
        self.foreign += self.is_square_softmax(func, output)
        self.note_oblong(func, output)

    def is_square_softmax(self, func: Any, output: Any) -> bool:
        """Whether this was a softmax over (positions x positions)."""
        return _is_softmax(func, output) and self._is_square(output)

    def _is_square(self, output: Any) -> bool:
        return isinstance(output, Tensor) and tuple(output.shape[-2:]) == self._square

    def note_oblong(self, func: Any, output: Any) -> None:
        """Note a softmax over more than the positions."""
        if (
            _is_softmax(func, output)
            and min(output.shape[-2:]) >= self.tap.positions
            and not self.is_square_softmax(func, output)
        ):
            self.oblong.append((self.tap.here, output.shape[-1]))

    def unreadable(self) -> str:
        """What was seen that may be attention, and that no way in reads."""
        positions, running = self.tap.positions, self.tap.show.running
        found = [f"`{where}` attends to {keys} keys from {positions} positions" for where, keys in self.tap.others[:1]]
        found += [f"`{where}` takes a softmax over {keys} entries at {positions} positions" for where, keys in self.oblong[:1]]
        sealed = [] if running is None else running.sealed()
        found += [f"`{name}` is a compiled program, which nothing can watch" for name in sealed[:1]]
        return "".join(f"; {each}" for each in found).replace("``", "the model itself")


def _is_softmax(func: Any, output: Any) -> bool:
    return getattr(func, "__name__", "") in SOFTMAX and isinstance(output, Tensor) and output.ndim >= 3


def try_out(caller: Caller, tokens: Tensor, mode: Callable[[Tap], Watch] = Watch) -> tuple[Tap, Watch]:
    """A forward pass in which every attention call is seen, and the module that makes it."""
    running = Running(caller.module)
    tap = Tap(tokens, Show(running=running))
    with running.following(), watching(tap, mode) as watch:
        caller(tokens)
    return tap, watch


def cross_attention(caller: Caller, tokens: Tensor, watch: Watch) -> list[str]:
    """The modules that attend to something else than the sequence, which has its own length whatever the sequence's is.

    Raises `Refused` where the number of keys follows that of positions: self-attention over more than the positions.
    """
    if not watch.tap.others and not watch.oblong:
        return []
    _, shorter = try_out(caller, tokens[:, :-1])
    before, after = (Counter([*each.tap.others, *each.oblong]) for each in (watch, shorter))
    if before != after:
        where, keys = next(iter(before - after))
        raise Refused(f"`{where}` attends from {tokens.shape[1]} positions to {keys} keys, which follow the number of positions")
    return [where for where, _ in watch.tap.others]


@contextmanager
def watching(tap: Tap, mode: Callable[[Tap], Watch] = Watch) -> Iterator[Watch]:
    """Every torch function that is called inside the block is looked at."""
    with patched(tap), mode(tap) as watch:
        yield watch


@contextmanager
def patched(tap: Tap) -> Iterator[None]:
    """The attention functions are replaced inside the block; what has no way around them is kept from being taken."""
    with _one_at_a_time:
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(value=False)  # one C++ call that computes a whole encoder layer
        F.scaled_dot_product_attention, F.multi_head_attention_forward = tap, tap.through_module
        try:
            yield
        finally:
            F.scaled_dot_product_attention, F.multi_head_attention_forward = tap.attention, tap.multi_head
            torch.backends.mha.set_fastpath_enabled(value=fast)
