"""What an attention call returns, with the log-sum-exp of every row that the kernel behind it computes anyway.

Each backend's kernel is private to torch and may change, so the first call of every kind is checked: the same output as the
public function gives, and the log-sum-exp of its first and last rows computed by the book. Sequences of another order of
length are another kind, as kernels divide them in other ways. A kernel that disagrees or fails is not used for that kind
again. Wherever no kernel serves, the log-sum-exp is computed in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, math_sdp_enabled, mem_efficient_sdp_enabled

from pytest_induction.attention.pattern import NOTHING, row_log_sum_exp, rows_of_scores
from pytest_induction.forward.calling import is_out_of_memory

FLASH, EFFICIENT, CUDNN = 1, 2, 3  # torch's numbers of its fused kernels
CHECKED_ROWS = 32  # exact rows at either end that a kernel is compared with at its first use
ALIGNED = 16  # positions of which kernels want multiples, and pad what is none
FAILURES = (AttributeError, RuntimeError, TypeError, ValueError)  # of what is gone, or takes other arguments
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}  # per unit of log-sum-exp; half precision uses a fast exponential
CLOSE_HALF = 1e-2
MOST_LOOKS = 1024
BUILTIN = torch._C._nn.scaled_dot_product_attention  # noqa: SLF001 - where the public name points
Kernel = Callable[["AttentionCall"], "Attended"]
_trusted: dict[Hashable, bool] = {}
_known: dict[Hashable, tuple[Kernel | None]] = {}


class AttentionCall(NamedTuple):
    """The arguments of one call of scaled_dot_product_attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    given_scale: float | None = None
    grouped: bool = False

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5 if self.given_scale is None else self.given_scale

    def run(self, function: Callable[..., Tensor]) -> Tensor:
        """What this attention function returns for the call."""
        extra = {"enable_gqa": True} if self.grouped else {}
        return function(self.query, self.key, self.value, self.mask, self.dropout, self.causal, scale=self.given_scale, **extra)

    def to_itself(self, shift: int = 0) -> AttentionCall:
        """The call in which every position attends to itself only, so that nothing moves between positions.

        The first query is as many positions behind the first key as `shift` says.
        """
        queries, keys = self.query.shape[-2], self.key.shape[-2]
        places = torch.arange(max(queries, keys), device=self.query.device)
        itself = places[:queries, None] + shift == places[:keys]
        return self._replace(mask=itself, dropout=0.0, causal=False)

    def plain(self) -> AttentionCall:
        """The call with torch's own name for a causal mask, which holds no numbers, put as what it means where it is square."""
        if self.mask is None or type(self.mask).__name__ != "CausalBias" or self.query.shape[-2] != self.key.shape[-2]:
            return self
        return self._replace(mask=None, causal=True)

    def autocast(self) -> AttentionCall:
        """The call as the attention function makes it under autocast: everything in the lower precision."""
        kind = self.query.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        query, key, value, mask = (_lowered(part, dtype) for part in (self.query, self.key, self.value, self.mask))
        return AttentionCall(query, key, value, mask, self.dropout, self.causal, self.given_scale, self.grouped)  # type: ignore[arg-type]


def _lowered(part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if part is None or not part.is_floating_point() or part.dtype == torch.float64:
        return part
    return part.to(dtype)


class Attended(NamedTuple):
    """Output (batch, heads, positions, d_value) and log-sum-exp (batch, heads, positions) of a call."""

    output: Tensor
    log_sum_exp: Tensor


def attend(original: Callable[..., Tensor], call: AttentionCall) -> Attended:
    """What the attention function returns for this call, and the log-sum-exp of every row; autocast already applied."""
    kernel = _serving(original, call) if original is BUILTIN and not call.dropout else None
    return Attended(call.run(original), exact(call)) if kernel is None else kernel(call)


def _serving(original: Callable[..., Tensor], call: AttentionCall) -> Kernel | None:
    """The kernel that torch would choose for this call, if it is one that tells the log-sum-exp, and the truth."""
    look = _look(call)
    known = _known.get(look)
    if known is not None:
        return known[0]
    if len(_known) >= MOST_LOOKS:
        _known.clear()
    kernel = KERNELS.get((call.query.device.type, _choice(call)))
    if kernel is not None:
        kind = _kind(kernel, call)
        if kind not in _trusted:
            _trusted[kind] = _agrees(kernel, original, call)
        kernel = kernel if _trusted[kind] else None
    _known[look] = (kernel,)
    return kernel


def is_softmax_attention(call: AttentionCall, output: Tensor) -> bool:
    """Whether an output (batch, heads, positions, d_value) is what the call gives by the book, in its last rows.

    For attention functions that are not torch's own, which may do anything between scores and values.
    """
    positions = call.query.shape[2]
    rows = range(max(0, positions - CHECKED_ROWS), positions)
    scores = rows_of_scores(call.query, call.key, call.scale, call.mask, call.causal, rows)
    open_rows = scores.amax(-1) > NOTHING
    given, weighed = _given_and_weighed(scores.softmax(-1), call.value, output)
    return given.shape == weighed.shape and is_close(given[open_rows], weighed[open_rows], call.value)


def is_weighted_sum(pattern: Tensor, value: Tensor, output: Tensor) -> bool:
    """Whether an output (batch, heads, positions, d_value) is the values weighed by a pattern, in its last rows.

    But for a factor of each row, which gates what a head says and not where it looks.
    """
    rows = pattern[:, :, max(0, pattern.shape[2] - CHECKED_ROWS) :]
    given, weighed = _given_and_weighed(rows.to(torch.promote_types(rows.dtype, torch.float32)), value, output)
    if given.shape != weighed.shape:
        return False
    factor = (given * weighed).sum(-1, keepdim=True) / (weighed * weighed).sum(-1, keepdim=True).clamp_min(1e-30)
    return is_close(given, factor * weighed, value)


def _given_and_weighed(pattern: Tensor, value: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The last rows of an output, and the values weighed by those rows of a pattern; a kernel may have padded the values."""
    weighed = pattern @ value.to(pattern.dtype).repeat_interleave(pattern.shape[1] // value.shape[1], 1)
    return output[:, :, -pattern.shape[2] :].to(pattern.dtype), weighed[..., : output.shape[-1]]


def is_close(given: Tensor, expected: Tensor, value: Tensor) -> bool:
    tolerance = CLOSE.get(value.dtype, CLOSE_HALF) * 10
    return bool(torch.allclose(given, expected, atol=tolerance * float(value.abs().max()), rtol=tolerance))


def exact(call: AttentionCall) -> Tensor:
    """The log-sum-exp of every row of the call, computed by the book."""
    return row_log_sum_exp(call.query, call.key, call.scale, call.mask, call.causal)


def pattern_of(call: AttentionCall) -> Tensor:
    """The pattern (batch, heads, queries, keys) of a call, which may have other numbers of queries than of keys."""
    query, key = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (call.query, call.key))
    scores = (query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].mT).flatten(1, 2).mul_(call.scale)
    if call.causal:
        scores.masked_fill_(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    if call.mask is not None:
        added = call.mask
        if added.dtype == torch.bool:
            added = torch.zeros_like(added, dtype=scores.dtype).masked_fill_(~added, -torch.inf)
        scores += added.to(scores.dtype)
    lowest = scores.amax(-1, keepdim=True)
    nothing = ~(lowest > max(NOTHING, torch.finfo(call.query.dtype).min / 2))
    return scores.softmax(-1).masked_fill(nothing, 0)


def _kind(kernel: Kernel, call: AttentionCall) -> Hashable:
    """What a kernel's behaviour may depend on, but for the values."""
    mask = None if call.mask is None else call.mask.dtype
    _, heads, positions, width = call.query.shape
    shape = (positions.bit_length(), positions % ALIGNED == 0, width, call.value.shape[-1], call.key.shape[1] == heads)
    return kernel, call.query.device.type, call.query.dtype, shape, mask, call.causal


def _look(call: AttentionCall) -> Hashable:
    """All that torch's choice depends on: asking it again in every layer costs as much as reading a short one."""
    tensors = tuple((part.shape, part.stride(), part.dtype) for part in call[:4] if isinstance(part, Tensor))
    allowed = (flash_sdp_enabled(), mem_efficient_sdp_enabled(), math_sdp_enabled(), cudnn_sdp_enabled())
    return tensors, call.causal, call.given_scale, call.grouped, call.query.device, allowed


def _choice(call: AttentionCall) -> int | None:
    """Torch's number of the kernel that it would take."""
    choose = torch._fused_sdp_choice  # noqa: SLF001 - torch itself asks here which kernel it will use
    options = {"scale": call.given_scale, "enable_gqa": call.grouped}
    try:
        return int(choose(call.query, call.key, call.value, call.mask, call.dropout, call.causal, **options))  # type: ignore[arg-type]
    except FAILURES:
        return None


def _agrees(kernel: Kernel, original: Callable[..., Tensor], call: AttentionCall) -> bool:
    """Whether the kernel gives this call's output, and the true log-sum-exp of its first rows."""
    dtype = call.query.dtype
    tolerance = CLOSE.get(dtype, CLOSE_HALF)
    try:
        output, log_sum_exp = kernel(call)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise  # fewer rows may fit
        return False
    expected = call.run(original)
    if output.shape != expected.shape or log_sum_exp.shape != call.query.shape[:-1]:
        return False
    rows_agree = all(_rows_agree(call, log_sum_exp, rows, tolerance) for rows in _rows_to_check(call.query.shape[2]))
    return rows_agree and bool(torch.allclose(output, expected, atol=tolerance, rtol=tolerance, equal_nan=True))


def _rows_to_check(positions: int) -> tuple[range, ...]:
    """The first rows, whose sums are short, and the last, which a kernel puts together from several blocks of keys."""
    first = range(min(CHECKED_ROWS, positions))
    return first, range(max(len(first), positions - CHECKED_ROWS), positions)


def _rows_agree(call: AttentionCall, log_sum_exp: Tensor, rows: range, tolerance: float) -> bool:
    if not rows:
        return True
    true = row_log_sum_exp(call.query, call.key, call.scale, call.mask, call.causal, rows=rows)
    open_rows = true > NOTHING  # a row in which everything is masked has no log-sum-exp
    found = log_sum_exp[..., rows.start : rows.stop].to(true.dtype)
    wrong = (found - true)[open_rows].abs() - tolerance * (1 + true[open_rows].abs())
    return bool((wrong <= 0).all())


def _flash_cpu(call: AttentionCall) -> Attended:
    mask = call.mask
    if mask is not None and mask.dtype == torch.bool:  # as the attention function does before it calls the kernel
        mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill_(~mask, -torch.inf)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001 - it alone tells the log-sum-exp
    return Attended(*kernel(call.query, call.key, call.value, call.dropout, call.causal, attn_mask=mask, scale=call.given_scale))


def _flash_cuda(call: AttentionCall) -> Attended:
    width = call.value.shape[-1]
    query, key, value = (F.pad(part, (0, -part.shape[-1] % 8)) for part in (call.query, call.key, call.value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention.default  # noqa: SLF001 - as above
    output, log_sum_exp, *_ = kernel(query, key, value, is_causal=call.causal, scale=call.scale)
    return Attended(output[..., :width], log_sum_exp[..., : query.shape[2]])


def _efficient_cuda(call: AttentionCall) -> Attended:
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention.default  # noqa: SLF001 - as above
    tensors, options = (call.query, call.key, call.value, _aligned(call)), {"compute_log_sumexp": True}
    output, log_sum_exp, *_ = kernel(*tensors, **options, is_causal=call.causal, scale=call.given_scale)
    return Attended(output, log_sum_exp[..., : call.query.shape[2]])  # its rows are padded


def _cudnn(call: AttentionCall) -> Attended:
    kernel = torch.ops.aten._scaled_dot_product_cudnn_attention.default  # noqa: SLF001 - as above
    tensors, options = (call.query, call.key, call.value, _added(call)), {"compute_log_sumexp": True}
    output, log_sum_exp, *_ = kernel(*tensors, **options, is_causal=call.causal, scale=call.given_scale)
    return Attended(output, log_sum_exp.reshape(call.query.shape[:-1]))


def _added(call: AttentionCall) -> Tensor | None:
    """The mask as numbers to add, over all rows and heads."""
    mask = call.mask
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill_(~mask, -torch.inf)
    return mask.expand(*call.query.shape[:2], call.query.shape[2], call.key.shape[2])


def _aligned(call: AttentionCall) -> Tensor | None:
    """The added mask in memory whose rows begin where this kernel wants them."""
    mask = _added(call)
    if mask is None or mask.shape[-1] % 16 == 0:
        return mask
    return F.pad(mask, (0, -mask.shape[-1] % 16))[..., : mask.shape[-1]]


KERNELS: dict[Any, Kernel] = {
    ("cpu", FLASH): _flash_cpu,
    ("cuda", FLASH): _flash_cuda,
    ("cuda", EFFICIENT): _efficient_cuda,
    ("cuda", CUDNN): _cudnn,
}
