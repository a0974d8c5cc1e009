"""What an intervention is given, in the form that it needs: every failure is one line."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError


def token_ids(name: str, given: Any) -> Tensor:
    """The argument as token ids (rows, positions). Raises `ArgumentError` for anything else."""
    ids = tensor(name, given, "token ids (rows, positions)")
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.numel() == 0:
        raise ArgumentError(f"`{name}` must be token ids (rows, positions), got {ids.dtype} {tuple(ids.shape)}")
    return ids.long()


def tensor(name: str, given: Any, form: str) -> Tensor:
    """The argument as a tensor. Raises `ArgumentError` for what is none; `form` says what it must be."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"`{name}` must be {form}, got `{type(given).__name__}`") from None


def number(name: str, given: Any, form: str, least: float, most: float) -> float:
    """The argument as a finite number in this range, which `form` says. Raises `ArgumentError` for anything else."""
    try:
        value = float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        raise ArgumentError(f"`{name}` must {form}, got {given!r}")
    return value
