"""How far apart two results are, and from where on they are different ones."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
CLOSE_OTHERWISE = 1e-2


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the size of the logits."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-3)) if one.numel() else 0.0


def close_to(logits: Tensor) -> float:
    """The largest difference from these logits that is none."""
    return CLOSE.get(logits.dtype, CLOSE_OTHERWISE)
