"""Softmaxes that a model computes itself: which may be attention's, and which give the patterns that are shown elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_induction.attention.interceptor import InterceptingMode, Interceptor

SOFTMAX = ("softmax", "_softmax", "_safe_softmax")


def is_softmax(func: Any, output: Any) -> bool:
    """Whether a torch function was a softmax that may be attention's."""
    return getattr(func, "__name__", "") in SOFTMAX and isinstance(output, Tensor) and output.ndim >= 2


def each_itself(pattern: Tensor) -> Tensor:
    """A pattern of this shape and kind in which every position attends to itself only."""
    return torch.eye(*pattern.shape[-2:], dtype=pattern.dtype, device=pattern.device).expand_as(pattern).clone()


class SquareSoftmaxes(InterceptingMode):
    """Keeps the softmaxes over the positions of a verification pass, to tell which of them are the patterns that are returned."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__(interceptor)
        self.found: dict[int, Tensor] = {}

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if not is_softmax(func, output):
            return output
        number, capture, positions = self.interceptor.capture.n_events, self.interceptor.capture, self.interceptor.positions
        fits = output.shape[-2] == positions <= output.shape[-1]  # a sink may come after the positions
        if capture.record_call(*output.shape[-2:], fits=fits):
            if capture.self_only:
                return each_itself(output)
            self.found[number] = output[..., :positions].detach().clone()
        return output

    def that_give(self, patterns: Sequence[Tensor]) -> dict[int, int]:
        """Of the softmaxes whose results are among the patterns, in any layout, by their numbers, which patterns these are.

        Layers may have patterns alike: where as many softmaxes are like them, each layer has its own, in the order of both.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, pattern in enumerate(patterns):
            values = pattern.float().flatten().sort().values
            numbers = (
                number
                for number, found in self.found.items()
                if found.numel() == len(values) and torch.allclose(found.float().flatten().sort().values, values, atol=1e-5)
            )
            alike.setdefault(tuple(numbers), []).append(index)
        given: dict[int, int] = {}
        for same, indexes in alike.items():
            given |= zip(same, indexes if len(indexes) == len(same) else indexes[-1:] * len(same), strict=True)
        return given
