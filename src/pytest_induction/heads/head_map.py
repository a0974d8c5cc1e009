"""The head map of a verdict: one number for every head, as it is drawn. Needs no torch, as runs are judged without."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.statistics import known_mean


def head_map(scores: NDArray[np.floating[Any]]) -> tuple[tuple[float | None, ...], ...]:
    """A score of every head as it is drawn, from its values (n_sequences, n_layers, n_heads)."""
    return tuple(tuple(None if np.isnan(each) else round(float(each), 4) for each in row) for row in known_mean(scores))
