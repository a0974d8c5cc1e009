"""Way in 1: calls of `torch.nn.functional.scaled_dot_product_attention`, in any PyTorch model, with no adapter code.

The CPU kernel behind that function computes the log-sum-exp of every row anyway; calling it directly gives the same output,
to the bit, and the log-sum-exp with it. Where another kernel serves, the log-sum-exp is computed in blocks of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_induction.models.attention import LogSumExpReader, row_log_sum_exp
from pytest_induction.models.calling import Caller, logits_of
from pytest_induction.models.protocol import Observer, Refused, WayIn, all_seen

FLASH = 1  # torch's number of the fused kernel, which on CPU gives the log-sum-exp
_one_at_a_time = threading.RLock()


class SdpaWay(WayIn):
    """Sees every causal self-attention call; refuses a model that computes attention anywhere else too."""

    name = "sdpa"

    def __init__(self, caller: Caller, tokens: Tensor, expected: int | None) -> None:
        self._caller = caller
        with _modules_running(caller.module) as running:
            watched = _Tap(tokens, running)
            with _watching(watched) as mode:
                caller(tokens)
        patched = _Tap(tokens)
        with _patched(patched):
            caller(tokens)
        self._by_patch = len(patched.heads) >= len(watched.heads)
        self.layers = tuple(watched.layers) if len(watched.layers) >= len(patched.heads) else _numbered(patched.heads)
        heads = patched.heads if self._by_patch else watched.heads
        self._check(heads, mode.foreign, watched.other + patched.other, expected)
        self.n_heads = heads[0]
        self._base_serves = self._sees_all_in_base(tokens)

    def _check(self, heads: list[int], foreign: int, other: int, expected: int | None) -> None:
        elsewhere = f", {foreign} softmax calls over (positions x positions) outside of it" if foreign else ""
        elsewhere += ", and calls of other shapes" if other else ""
        if not heads or foreign or (expected is not None and len(heads) != expected):
            layers = "" if expected is None else f" for {expected} layers"
            raise Refused(f"{len(heads)} calls of scaled_dot_product_attention seen{layers}{elsewhere}")
        if len(set(heads)) > 1:
            raise Refused(f"layers have different numbers of heads: {heads}")

    def _sees_all_in_base(self, tokens: Tensor) -> bool:
        """Whether the base model alone, without the logits, makes the same attention calls."""
        if self._caller.base is None:
            return False
        tap = _Tap(tokens)
        with self._tapping(tap):
            self._caller(tokens, logits=False)
        return len(tap.heads) == len(self.layers)

    def run(self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool) -> Tensor | None:
        tap = _Tap(tokens, observer=observer)
        with self._tapping(tap):
            output = self._caller(tokens, attention_mask, logits=logits or not self._base_serves)
        all_seen(self, len(tap.heads))
        return logits_of(output, tokens) if logits else None

    @contextmanager
    def _tapping(self, tap: _Tap) -> Iterator[None]:
        with _patched(tap) if self._by_patch else _watching(tap):
            yield


class _Tap:
    """Stands in for the attention function: computes what it would, and shows each causal self-attention call."""

    def __init__(self, tokens: Tensor, running: list[str] | None = None, observer: Observer | None = None) -> None:
        self._original = F.scaled_dot_product_attention
        self._batch, self.positions = tokens.shape
        self._running = running
        self._observer = observer
        self._thread = threading.get_ident()
        self.heads: list[int] = []
        self.layers: list[str] = []
        self.other = 0

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
        arguments = {
            "attn_mask": attn_mask,
            "dropout_p": dropout_p,
            "is_causal": is_causal,
            "scale": scale,
            "enable_gqa": enable_gqa,
        }
        if threading.get_ident() != self._thread or not self._is_self_attention(query, key):
            self.other += threading.get_ident() == self._thread
            return self._original(query, key, value, **arguments)  # type: ignore[arg-type]
        self.heads.append(query.shape[1])
        if self._running is not None:
            self.layers.append(self._running[-1] if self._running else f"call {len(self.heads) - 1}")
        if self._observer is None:
            return self._original(query, key, value, **arguments)  # type: ignore[arg-type]
        output, log_sum_exp = attend(self._original, query, key, value, **arguments)
        number = query.shape[-1] ** -0.5 if scale is None else scale
        self._observer(len(self.heads) - 1, LogSumExpReader(query, key, log_sum_exp, number, attn_mask, is_causal))
        return output

    def _is_self_attention(self, query: Tensor, key: Tensor) -> bool:
        wanted = (self._batch, self.positions)
        return query.ndim == 4 and all((part.shape[0], part.shape[2]) == wanted for part in (query, key))


def attend(original: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    """What the attention function returns for these arguments, and the log-sum-exp of every row (batch, heads, positions)."""
    if _fused_kernel_serves(query, key, value, **arguments):
        return _fused(query, key, value, **arguments)
    output = original(query, key, value, **arguments)
    scale, mask, causal = (arguments[name] for name in ("scale", "attn_mask", "is_causal"))
    return output, row_log_sum_exp(query, key, query.shape[-1] ** -0.5 if scale is None else scale, mask, causal)


def _fused_kernel_serves(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> bool:
    if query.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not _fused_kernel_tells():
        return False
    mask, dropout, causal = (arguments[name] for name in ("attn_mask", "dropout_p", "is_causal"))
    extra = {"scale": arguments["scale"], "enable_gqa": arguments["enable_gqa"]}
    choose = torch._fused_sdp_choice  # noqa: SLF001 - torch itself asks here which kernel it will use
    return choose(query, key, value, mask, dropout, causal, **extra) == FLASH


def _fused(query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
    mask = arguments["attn_mask"]
    if mask is not None and mask.dtype == torch.bool:  # as the attention function does before it calls the kernel
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - it alone tells the log-sum-exp
    output, log_sum_exp = kernel(
        query, key, value, arguments["dropout_p"], arguments["is_causal"], attn_mask=mask, scale=arguments["scale"]
    )
    return output, log_sum_exp


@cache
def _fused_kernel_tells() -> bool:
    """Whether the kernel of this torch exists and tells the true log-sum-exp: it is private, and may change."""
    arguments = {"attn_mask": None, "dropout_p": 0.0, "is_causal": True, "scale": None, "enable_gqa": False}
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(2))
    try:
        output, told = _fused(query, key, key, **arguments)
        torch._fused_sdp_choice(query, key, key)  # noqa: SLF001 - see above
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    exact = row_log_sum_exp(query, key, 8**-0.5, None, causal=True)
    return told.shape == exact.shape and torch.allclose(told, exact, atol=1e-5) and output.shape == query.shape


class _Watch(TorchFunctionMode):
    """Sees the attention function under whatever name it was imported, and softmax over (positions x positions)."""

    def __init__(self, tap: _Tap, positions: int) -> None:
        super().__init__()
        self._tap = tap
        self._original = F.scaled_dot_product_attention
        self._square = (positions, positions)
        self.foreign = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._original:
            return self._tap(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("softmax", "_softmax") and isinstance(output, Tensor):
            self.foreign += output.ndim >= 3 and tuple(output.shape[-2:]) == self._square
        return output


@contextmanager
def _watching(tap: _Tap) -> Iterator[_Watch]:
    with _one_at_a_time, _Watch(tap, tap.positions) as mode:
        yield mode


@contextmanager
def _patched(tap: _Tap) -> Iterator[None]:
    with _one_at_a_time:
        original = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = tap
        try:
            yield
        finally:
            F.scaled_dot_product_attention = original


@contextmanager
def _modules_running(module: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules whose forward is running now, innermost last."""
    names = {id(part): name for name, part in module.named_modules()}
    running: list[str] = []

    def _leaving(part: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    enter = nn.modules.module.register_module_forward_pre_hook(lambda part, inputs: running.append(names.get(id(part), "?")))
    leave = nn.modules.module.register_module_forward_hook(_leaving)
    try:
        yield running
    finally:
        enter.remove()
        leave.remove()


def _numbered(heads: list[int]) -> tuple[str, ...]:
    return tuple(f"call {index}" for index in range(len(heads)))
