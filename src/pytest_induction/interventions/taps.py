"""Convolution taps: what of a position so many tokens back goes into a causal convolution or a token shift, and cutting it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_induction.errors import ArgumentError, UnsupportedModel, whole_number
from pytest_induction.forward.changing import add_hooks
from pytest_induction.interventions.edits import Clean, Intervention, Layers
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import Changes

LONGEST = 16  # positions: a longer kernel is a long convolution, whose single taps say nothing


@dataclass(frozen=True, eq=False)
class Tap:
    """The part of a short causal convolution, or of a token shift, that reads `lag` positions back; `path` is its module's."""

    path: str
    lag: int
    module: nn.Module


def taps_of(module: nn.Module) -> tuple[Tap, ...]:
    """Every tap of a model, by module and lag.

    Those of each `nn.Conv1d` with 2 to 16 taps and a stride of 1, whatever calls it: its weight is what counts. They are taken
    to be causal, the last tap at lag 0. And the one of each `nn.ZeroPad2d((0, 0, n, -n))`, by which RWKV shifts tokens by n.
    """
    return tuple(Tap(path, lag, part) for path, part in module.named_modules() for lag in _lags(part))


def _lags(part: nn.Module) -> Sequence[int]:
    if isinstance(part, nn.Conv1d) and 1 < part.kernel_size[0] <= LONGEST and part.stride[0] == 1:
        return [part.dilation[0] * back for back in range(part.kernel_size[0])]
    shift = _shift(part)
    return [shift] if shift else []


def _shift(part: nn.Module) -> int:
    """By how many positions a module shifts what it is given; 0 where it does not."""
    if not isinstance(part, nn.ZeroPad2d):
        return 0
    left, right, top, bottom = part.padding
    return top if left == right == 0 < top == -bottom else 0


def reach_of(part: nn.Module) -> int:
    """How many positions back a module's own taps reach."""
    return max(_lags(part), default=0)


def cut(changes: Changes, taps: Iterable[Tap]) -> None:
    """Have these taps of a model give nothing until the changes are undone.

    A convolution has a copy of its weight meanwhile, zero at those taps; the weight itself is never written to. Raises
    `UnsupportedModel` where a convolution's weight is computed from other parameters.
    """
    for tap in taps:
        if isinstance(tap.module, nn.Conv1d):
            _cut_kernel(changes, tap, tap.module)
        else:
            add_hooks(changes, [tap.module], lambda part, inputs, output: torch.zeros_like(output))


def _cut_kernel(changes: Changes, tap: Tap, part: nn.Conv1d) -> None:
    held: dict[str, Any] = part._parameters  # noqa: SLF001 - an attribute is set in more places than one
    own = held.get("weight")
    if own is None:
        raise UnsupportedModel(f"the weight of `{tap.path}` is computed from others: its taps cannot be cut; merge it first")
    weight = own.detach().clone()
    weight[..., part.kernel_size[0] - 1 - tap.lag // part.dilation[0]] = 0
    changes.undone_by(partial(held.__setitem__, "weight", own))
    held["weight"] = nn.Parameter(weight, requires_grad=False)


@dataclass(frozen=True)
class CutTaps(Intervention):
    """See `cut_taps`."""

    lag: int
    modules: tuple[str, ...] | None

    def edits(self, clean: Clean) -> Layers:
        return {}

    def change(self, subject: ModelUnderTest, changes: Changes) -> None:
        every = taps_of(subject.module)
        known = sorted({tap.path for tap in every})
        for path in self.modules or ():
            if path not in known:
                raise ArgumentError(f"`modules` must name convolutions of the model, {_some(known)}, got {path!r}")
        chosen = [tap for tap in every if tap.lag == self.lag and (self.modules is None or tap.path in self.modules)]
        if not chosen:
            lags = ", ".join(map(str, sorted({tap.lag for tap in every}))) or "none"
            raise ArgumentError(f"`lag` must be one of the model's convolution taps ({lags}), got {self.lag}")
        cut(changes, chosen)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "") if paths else "which has none"


def cut_taps(lag: int, modules: str | Iterable[str] | None = None) -> Intervention:
    """Short causal convolutions read nothing from `lag` positions back, all of them or those of these `modules`, by path.

    Lag 0 is the position itself. A token shift of RWKV has one tap, at lag 1. For any model, whether its attention is read or
    not; the weights themselves are never written to. No gradient reaches the weight of a convolution that is cut.

    >>> with intervene(model, cut_taps(1)):                                  # doctest: +SKIP
    ...     measure_recall(model)
    """
    given = None if modules is None else (modules,) if isinstance(modules, str) else tuple(modules)
    return CutTaps(whole_number("lag", lag, least=0), given)
