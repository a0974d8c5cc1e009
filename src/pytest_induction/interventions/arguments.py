"""What an intervention is given, in the form that it needs, and which heads are meant: every failure is one line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_induction.errors import ArgumentError
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import HeadEvidence, HeadId


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


WRITTEN = re.compile(r"L(\d+)H(\d+)")
HeadLike = HeadId | HeadEvidence | str | tuple[int, int]
HeadsLike = HeadLike | Iterable[HeadLike]
"""One head or several: `"L1H3"`, `(1, 3)`, a `HeadId`, or a head of an evidence's `.heads`."""


def heads_of(subject: ModelUnderTest, heads: HeadsLike) -> tuple[HeadId, ...]:
    """The heads meant, in order and each once. Raises `ArgumentError` for what is no head, or none of this model."""
    if not _is_one(heads) and not isinstance(heads, Iterable):
        raise ArgumentError(f"heads are written 'L1H3', (1, 3), or several of these in a list, got {heads!r}")
    written = [heads] if _is_one(heads) else list(heads)  # type: ignore[arg-type]
    return tuple(sorted({_head(subject, one) for one in written}, key=lambda head: (head.layer, head.head)))


def all_heads(subject: ModelUnderTest) -> tuple[HeadId, ...]:
    """Every head of a model."""
    return tuple(HeadId(layer, head) for layer, count in enumerate(subject.reading.heads) for head in range(count))


def table_of(subject: ModelUnderTest, sets: Sequence[Iterable[HeadId]]) -> Tensor:
    """Which heads are in which set, boolean (sets, n_layers, n_heads)."""
    table = torch.zeros(len(sets), subject.n_layers, subject.n_heads, dtype=torch.bool)
    for number, heads in enumerate(sets):
        for head in heads:
            table[number, head.layer, head.head] = True
    return table


def _is_one(heads: Any) -> bool:
    is_pair = isinstance(heads, tuple) and len(heads) == 2 and all(isinstance(part, int) for part in heads)
    return is_pair or isinstance(heads, (str, HeadId, HeadEvidence))


def _head(subject: ModelUnderTest, written: Any) -> HeadId:
    if isinstance(written, (HeadId, HeadEvidence)):
        head = HeadId(written.layer, written.head)
    elif isinstance(written, str) and (found := WRITTEN.fullmatch(written)):
        head = HeadId(int(found[1]), int(found[2]))
    elif _is_one(written) and isinstance(written, tuple):
        head = HeadId(*written)
    else:
        raise ArgumentError(f"a head is written 'L1H3' or (1, 3), got {written!r}")
    counts = subject.reading.heads
    if not (0 <= head.layer < len(counts) and 0 <= head.head < counts[head.layer]):
        raise ArgumentError(f"{subject.name} has no head {head}: it has {len(counts)} layers of {_span(counts)} heads")
    return head


def _span(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
