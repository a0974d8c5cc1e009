"""Stands in for the attention functions while a model runs, so that every call of attention is seen.

A verification pass sees the calls under whatever name a function was imported, and sees attention that is computed in any other
way. Where no alias was used, the passes after it only replace the functions' attributes, which costs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pytest_induction.attention.backend import InterceptingBackend
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import EditingCapture
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.flex_calls import FlexInterceptor, gradients_allowed, is_flex
from pytest_induction.attention.kernels import BUILTIN, AttentionCall, attend, exact, is_softmax_attention, pattern_of
from pytest_induction.attention.pattern import LogSumExpReader, PatternReader, QueryChunk, Reader
from pytest_induction.attention.tracking import ModuleTracker, sealed_in
from pytest_induction.forward.calling import Caller, full_precision
from pytest_induction.forward.changing import beneath, enter_mode, take_over
from pytest_induction.undoing import Changes

ATTENTION, MULTI_HEAD, FAST = "scaled_dot_product_attention", "multi_head_attention_forward", "get_fastpath_enabled"
ARGUMENTS = inspect.signature(F.multi_head_attention_forward)
UNMOVED = 1e-6  # what logits may change by, relative to the largest, where nothing that they are made of does


class Interceptor:
    """Stands in for the attention functions: computes what they would, and shows each causal self-attention call."""

    def __init__(self, tokens: Tensor, capture: Capture) -> None:
        self.attention: Callable[..., Tensor] = F.scaled_dot_product_attention
        self.multi_head: Callable[..., Any] = F.multi_head_attention_forward
        self.batch, self.positions = tokens.shape
        self.capture = capture
        self.inside = False
        self.flex = FlexInterceptor(capture, self.batch, self.positions)

    @property
    def intercepts(self) -> bool:
        """Whether a call is the model's own: what the attention function calls itself is not another one."""
        return not self.inside

    @property
    def beneath(self) -> Callable[..., Any]:
        """The attention function itself, also where others intercept it around this one; a model may know it by another name."""
        return _beneath(self, "attention")

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
        call = AttentionCall(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if not self.intercepts:
            return call.run(self.attention)
        self.inside = True
        try:
            fits, number = self._is_self_attention(query, key), self.capture.n_events
            part, heads = fits or self._is_partial(query, key), query.shape[:-2].numel() // self.batch
            if not self.capture.record_call(query.shape[-2], key.shape[-2], fits=fits, values=value, partial=part, heads=heads):
                self.inside = self.beneath is BUILTIN  # one of the user's own may attend in a way that is seen
                return self._recorded(number, call, call.run(self.attention))
            if self.capture.chunked:
                return self._in_part(call)
            if self.capture.self_only:
                return call.to_itself().run(self.attention)
            if isinstance(self.capture, EditingCapture):
                return self._edited_call(call, self.capture)
            output, reader = self._attend(call.plain().autocast())
            self.capture(reader)
        finally:
            self.inside = False
        return self._recorded(number, call, output)

    def _recorded(self, number: int, call: AttentionCall, output: Tensor) -> Tensor:
        """What a call gave; in a verification pass it is followed from here."""
        outputs = self.capture.outputs
        if outputs is not None and call.query.ndim > 2:
            outputs.asked(number, call.query, call.key)
            outputs.given(number, call[:3])
            outputs.gave(number, output, call.query.shape[:-2].numel() // self.batch)
        return output

    def _in_part(self, call: AttentionCall) -> Tensor:
        """What a call of some queries of a layer gives; it is shown as the part that it is."""
        span = self.capture.span(call.query.shape[-2], call.key.shape[-2])
        if self.capture.self_only:
            return call.to_itself(span.queries.start - span.keys.start).run(self.attention)
        if self.attention is not BUILTIN:
            raise BackendUnavailable(
                "scaled_dot_product_attention was replaced, and is called for some queries of a layer at a time"
            )
        output, apart = call.run(self.attention), call.plain().autocast()
        apart = apart if call.query.ndim == 4 else self._unfolded(apart)
        self.capture(QueryChunk(partial(pattern_of, apart), span.queries, span.keys, output.device, apart.query.dtype))
        return output

    def _is_partial(self, query: Tensor, key: Tensor) -> bool:
        """Whether a call is self-attention but for its number of queries and keys."""
        if query.ndim != key.ndim or query.ndim not in (3, 4) or not query.shape[-2] <= key.shape[-2] <= self.positions:
            return False
        rows = {query.shape[0], key.shape[0]}
        return len(rows) == 1 and (rows == {self.batch} if query.ndim == 4 else query.shape[0] % self.batch == 0)

    def _attend(self, call: AttentionCall) -> tuple[Tensor, Reader]:
        if call.value.shape[-1] == self.positions and bool((call.value == torch.eye(self.positions).to(call.value)).all()):
            raise BackendUnavailable(
                "attention to one-hot values: what comes out is the pattern itself, and what is made of it shows nowhere"
            )
        with full_precision(call.query.device.type):
            if call.query.ndim == 4:
                output, log_sum_exp = attend(self.attention, call)
            else:
                output, call = call.run(self.attention), self._unfolded(call)
                log_sum_exp = exact(call)
            if self.attention is not BUILTIN and not is_softmax_attention(call, output.reshape(*call.query.shape[:3], -1)):
                name = getattr(self.attention, "__qualname__", repr(self.attention))
                raise BackendUnavailable(f"scaled_dot_product_attention was replaced by `{name}`, which computes something else")
        return output, LogSumExpReader(call.query, call.key, log_sum_exp, call.scale, call.mask, call.causal)

    def _edited_call(self, call: AttentionCall, capture: EditingCapture) -> Tensor:
        """What the layer gives when it is edited, in the layout of the call."""
        apart = call.plain() if call.query.ndim == 4 else self._unfolded(call.plain())

        def run(edited: AttentionCall | None) -> Tensor:
            return (edited or call).run(self.attention).reshape(*apart.query.shape[:3], -1)

        return capture.apply(apart, run).reshape(*call.query.shape[:-1], -1)

    def _is_self_attention(self, query: Tensor, key: Tensor) -> bool:
        if query.shape[-2:-1] != key.shape[-2:-1] or query.shape[-2:-1] != (self.positions,) or query.ndim != key.ndim:
            return False
        rows = (query.shape[0], key.shape[0])
        if query.ndim == 3:
            return rows[0] == rows[1] and rows[0] % self.batch == 0
        return query.ndim in (4, 5) and rows == (self.batch, self.batch)

    def _unfolded(self, call: AttentionCall) -> AttentionCall:
        """The call with axes (batch, heads, positions, d_head)."""
        mask = call.mask
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(*call.query.shape[:-2], *mask.shape[-2:])
            mask = _heads_apart(mask, self.batch)
        query, key, value = (_heads_apart(part, self.batch) for part in (call.query, call.key, call.value))
        grouped = call.grouped or key.shape[1] != query.shape[1]  # what the axes of groups said
        return AttentionCall(query, key, value, mask, call.dropout, call.causal, call.scale, grouped)

    def through_module(self, *args: Any, **named: Any) -> Any:
        """`multi_head_attention_forward`: asked for weights it computes the pattern itself, and is read from that."""
        options = ARGUMENTS.bind(*args, **named).arguments  # some name none of their arguments
        query, key = options["query"], options["key"]
        if not self.intercepts or not options.get("need_weights", True):
            return self.multi_head(**options)
        fits = query.ndim == 3 and tuple(query.shape[:2]) == tuple(key.shape[:2]) == (self.positions, self.batch)
        if isinstance(self.capture, EditingCapture):
            if self.capture.edits_next:  # without weights it attends by the function above
                output, _ = self.multi_head(**{**options, "need_weights": False})
                return output, _beneath(self, "multi_head")(**options)[1]
            if self.capture.record_call(query.shape[0], key.shape[0], fits=fits):
                n_heads = options["num_heads"]
                self.capture.next(n_heads, n_heads)
            self.inside = True
            try:
                return self.multi_head(**options)
            finally:
                self.inside = False
        if not self.capture.record_call(query.shape[0], key.shape[0], fits=fits):
            return self.multi_head(**options)
        if self.capture.self_only:
            others = ~torch.eye(self.positions, dtype=torch.bool, device=query.device)
            options |= {"attn_mask": others, "key_padding_mask": None, "is_causal": False}
        self.inside = True
        try:
            output, weights = self.multi_head(**{**options, "average_attn_weights": False})
            if not self.capture.self_only:
                self.capture(PatternReader(weights))
        finally:
            self.inside = False
        return output, weights.mean(dim=1) if options.get("average_attn_weights", True) else weights


def _beneath(interceptor: Interceptor, name: Literal["attention", "multi_head"]) -> Callable[..., Any]:
    """The function that the outermost of the interceptors stands in for, each around the other."""
    function: Callable[..., Any] = getattr(interceptor, name)
    while isinstance(other := getattr(function, "__self__", function), Interceptor):
        function = getattr(other, name)
    return function


def _heads_apart(part: Tensor, batch: int) -> Tensor:
    """(batch x heads, ...) or (batch, key heads, group, ...) as (batch, heads, ...)."""
    return part.unflatten(0, (batch, -1)) if part.ndim == 3 else part.flatten(1, 2)


class InterceptingMode(TorchFunctionMode):
    """Sees the attention function under whatever name it was imported."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.aliased = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self.interceptor.beneath and not self.interceptor.inside:
            self.aliased += 1
            return self.interceptor(*args, **(kwargs or {}))
        if self.interceptor.inside:
            return func(*args, **(kwargs or {}))
        if is_flex(func) and self.interceptor.intercepts:
            return self.interceptor.flex(func, *args, **(kwargs or {}))
        args, kwargs = self.before(func, args, kwargs or {})
        output = self.after(func, args, kwargs, func(*args, **kwargs))
        if self.interceptor.capture.outputs is not None:
            self.interceptor.capture.outputs.after(func, args, kwargs, output)
        return output

    def before(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """What a torch function is called with, in place of what it was."""
        return args, kwargs

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """What is given back for what a torch function returned."""
        return output

    def sealed(self) -> str:
        """Words on what nothing can intercept."""
        running = self.interceptor.capture.running
        return "" if running is None else sealed_in(running.module)


Mode = TypeVar("Mode", bound=InterceptingMode)


def verification_passes(
    caller: Caller, sequences: Sequence[Tensor], mode: Callable[[Interceptor], Mode]
) -> tuple[list[Capture], list[Mode]]:
    """A forward pass over each of some token ids in which every attention call is seen, and the module that makes it."""
    captures: list[Capture] = []
    modes: list[Mode] = []
    for tokens in sequences:
        running = ModuleTracker(caller.module)
        interceptor = Interceptor(tokens, Capture(running=running, positions=tokens.shape[1]))
        with running.following(), intercepted(interceptor, mode) as intercepting:
            caller(tokens)
        captures.append(interceptor.capture)
        modes.append(intercepting)
    return captures, modes


@contextmanager
def intercepted(interceptor: Interceptor, mode: Callable[[Interceptor], Mode]) -> Iterator[Mode]:
    """Every torch function that is called inside the block is looked at."""
    with patched(interceptor), gradients_allowed(interceptor.capture), Changes() as changes:
        intercepting = mode(interceptor)
        enter_mode(changes, intercepting)
        yield intercepting


@contextmanager
def patched(interceptor: Interceptor) -> Iterator[None]:
    """The attention functions are replaced inside the block; what has no way around them is kept from being taken."""
    interceptor.attention, interceptor.multi_head = beneath(F, ATTENTION), beneath(F, MULTI_HEAD)
    with Changes() as changes:
        fast = torch.backends.mha, FAST, _no  # one C++ call that computes a whole encoder layer
        take_over(changes, (F, ATTENTION, interceptor), (F, MULTI_HEAD, interceptor.through_module), fast)
        yield


def check_output_is_all(backend: InterceptingBackend, tokens: Tensor, modes: Sequence[InterceptingMode]) -> None:
    """Raise `BackendUnavailable` where the log-sum-exp weighs what heads found, as sinks do, or joins several calls."""
    if not any(mode.interceptor.flex.asked for mode in modes):
        return
    interceptor = Interceptor(tokens, Capture(layers=backend.calls, groups=backend.groups))
    interceptor.flex.disturbs = True
    with intercepted(interceptor, InterceptingMode):
        disturbed = backend.caller.logits(tokens)
    logits = backend.caller.logits(tokens)
    if not float((disturbed - logits).abs().max()) <= UNMOVED * float(logits.abs().max()):
        raise BackendUnavailable(
            "the log-sum-exp of flex_attention is used after the call (for a sink, or to join calls), so that its pattern "
            "is not what weighs the values: load the model with eager attention, or call `expose_attention` with the pattern"
        )


def is_intercepted() -> bool:
    """Whether something stands in for the attention functions of this thread."""
    return isinstance(beneath(F, ATTENTION), Interceptor)


def _no() -> bool:
    return False
