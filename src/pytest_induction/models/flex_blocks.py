"""The blocks of a block mask, as the kernel of `flex_attention` looks them up where it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ENDLESS = 1 << 30  # positions of a block that holds all


def one_block(block_mask: tuple[Any, ...], mask_mod: Callable[..., Tensor]) -> tuple[Any, ...]:
    """The mask of another function, in one block."""
    first = _first_list(block_mask)
    count = torch.ones(1, 1, 1, dtype=torch.int32, device=block_mask[first].device)
    lists = count, torch.zeros_like(count)[..., None], None, None
    return *block_mask[:first], *lists, *block_mask[first + 4 : -3], ENDLESS, ENDLESS, mask_mod


def listed(block_mask: tuple[Any, ...], queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries lie in a block that is open as a whole, and which in one whose entries the mask's function decides on.

    Both broadcast to (rows, heads, queries, keys). Of each list there are its length for every row of blocks, and its numbers.
    """
    count, numbers, full_count, full_numbers, *_, height, width, _ = block_mask[_first_list(block_mask) :]
    at = (queries // height)[:, None], (keys // width)[None]
    partly = _in_a_list(count, numbers, *at)
    full = torch.zeros_like(partly) if full_count is None else _in_a_list(full_count, full_numbers, *at)
    return full, partly


def _first_list(block_mask: tuple[Any, ...]) -> int:
    """Where the lists of blocks begin: newer versions of torch put the lengths of the sequence before them."""
    return next(place for place, part in enumerate(block_mask) if isinstance(part, Tensor))


def _in_a_list(count: Tensor, numbers: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Which of these blocks, by the numbers of their rows and columns, are among the first `count` numbers of their row."""
    there = torch.arange(numbers.shape[-1], device=numbers.device) < count[..., None]
    most = max(int(numbers.max()), int(column.max())) + 1
    table = torch.zeros(*numbers.shape[:-1], most + 1, dtype=torch.bool, device=numbers.device)
    table.scatter_(-1, torch.where(there, numbers, most).long(), value=True)
    return table[:, :, row, column]
