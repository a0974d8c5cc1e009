"""How many sequences share a forward pass: as many as a memory budget allows, and fewer where it was still too many.

The split changes no result: every sequence is measured by itself, and the parts are put together in order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import devices_of, is_out_of_memory
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import advance

T = TypeVar("T")
SHARE_OF_FREE = 0.5  # of the memory that is free, taken where no budget is given
POSITIONS_AT_ONCE = {"cpu": 4096}  # beyond this a pass gets no faster
POSITIONS_ELSEWHERE = 65_536
LOGITS_AT_ONCE = 2**27  # numbers, 512 MB, beyond which a pass on a CPU waits for memory longer than it computes
SMALL = 64 * 2**20  # bytes that are taken without a look at how many are free
UNKNOWN_FREE = 2 * 2**30  # bytes taken to be free where the system does not tell
LAYER_WIDTHS = 16  # activations of one position, in widths of the widest weight, float32


def in_batches(
    subject: ModelUnderTest, rows: Tensor, measure: Callable[[Tensor, slice], T], *, logits: bool, most: int | None = None
) -> list[T]:
    """What `measure` gives for each batch of the rows, of at most `most` rows, in order; it gets the batch and which rows it is.

    Out of memory, a batch is halved and tried again. Raises `ModelError` where one row alone does not fit.
    """
    parts: list[T] = []
    wanted = len(rows) if most is None else min(most, len(rows))
    size, start = batch_size(subject, rows.shape[1], logits=logits, wanted=wanted), 0
    while start < len(rows):
        part = slice(start, min(start + size, len(rows)))
        done = _try(subject, rows, part, measure)
        if done is None:
            size = max(1, (part.stop - part.start) // 2)
            continue
        parts += done
        advance(part.stop - part.start)
        start = part.stop
    return parts


def _try(subject: ModelUnderTest, rows: Tensor, part: slice, measure: Callable[[Tensor, slice], T]) -> list[T] | None:
    """One batch's measurement in a list, or None where memory did not last and fewer rows may do."""
    try:
        return [measure(rows[part], part)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if subject.device.type == "cuda":
        torch.cuda.empty_cache()
    if part.stop - part.start > 1:
        return None
    raise ModelError(f"{subject.name} runs out of memory on one sequence of {rows.shape[1]} positions on {subject.device}")


def batch_size(subject: ModelUnderTest, positions: int, *, logits: bool, wanted: int | None = None) -> int:
    """Sequences of so many positions that are measured in one pass, of at most as many as are wanted."""
    most = max(1, POSITIONS_AT_ONCE.get(subject.device.type, POSITIONS_ELSEWHERE) // positions)
    if logits and subject.device.type == "cpu":
        most = max(1, min(most, LOGITS_AT_ONCE // (positions * subject.space.d_vocab)))
    most = min(each for each in (most, wanted, subject.caller.convention.most_rows) if each is not None)
    each = bytes_per_sequence(subject, positions, logits=logits)
    if subject.memory is None and most * each <= SMALL:
        return most
    return max(1, min(most, _budget(subject) // each))


def _budget(subject: ModelUnderTest) -> int:
    """Bytes that a pass may take: as many as were given, or a share of what is free where least is."""
    if subject.memory is not None:
        return subject.memory
    return int(SHARE_OF_FREE * min(map(free_memory, devices_of(subject.module))))


def bytes_per_sequence(subject: ModelUnderTest, positions: int, *, logits: bool) -> int:
    """A guess on the safe side: activations of a layer, logits with their logarithms, patterns where the backend has them."""
    d_vocab = subject.space.d_vocab
    weights = subject.module.parameters()
    shapes = (getattr(weight, "ds_shape", weight.shape) for weight in weights)  # ZeRO-3 empties weights between passes
    widths = (size for shape in shapes for size in shape[-2:] if 0 < size < d_vocab)
    numbers = LAYER_WIDTHS * max(widths, default=1024) + (3 * d_vocab if logits else 0)
    if subject.backend is not None and subject.backend.makes_patterns:
        numbers += 4 * subject.n_heads * positions
    return 4 * positions * numbers


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(_available(), _left_in_group())


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, OSError, ValueError):
        return UNKNOWN_FREE


def _left_in_group() -> int:
    """What the control group of this process still allows; no limit where there is none."""
    place = Path("/sys/fs/cgroup")
    try:
        limit, used = ((place / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return sys.maxsize if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return sys.maxsize
