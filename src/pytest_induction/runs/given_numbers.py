"""Numbers that a training hands to its recorder, checked: a loss, tokens, how often each id stands in the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.errors import ArgumentError

Counts = NDArray[np.int64]


def one_number(name: str, value: Any) -> float | None:
    """A number, or a tensor of one, as a number; None for none. Raises `ArgumentError` for anything else."""
    try:
        return None if value is None else float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        shape = f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ArgumentError(f"`{name}` must be a number or a tensor of one, got `{type(value).__name__}`{shape}") from None


def checked_tokens_per_step(value: Any) -> float | None:
    """`tokens_per_step` as a number, None for none. Raises `ArgumentError` where it is not above 0."""
    if value is None:
        return None
    number = one_number("tokens_per_step", value)
    if number is None or not math.isfinite(number) or number <= 0:
        raise ArgumentError(f"`tokens_per_step` must be a number above 0, got {value!r}")
    return number


def checked_counts(counts: Any) -> Counts | None:
    """`token_counts` as an array (ids,), None for none. Raises `ArgumentError` for what is no list of counts."""
    if counts is None:
        return None
    try:
        given = counts.detach().cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"`token_counts` must be numbers, one for each token id: {error}") from None
    if given.ndim != 1 or given.dtype.kind not in "iu" or given.size == 0 or given.min() < 0:
        raise ArgumentError(
            f"`token_counts` must be whole numbers from 0 up, one for each token id, got {given.dtype} {given.shape}"
        )
    return given.astype(np.int64)
