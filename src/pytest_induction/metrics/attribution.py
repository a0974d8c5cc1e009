"""What ablating a head does to what was learnt: to in-context learning, and along the way that losses went in a training.

Both are differences of losses, in nats, of the same tokens with and without the ablation. Source: Olsson et al. 2022, argument 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import ArgumentError

Floats = NDArray[np.float64]


def late_minus_early(losses: Floats, late: NDArray[np.bool_]) -> Floats:
    """The in-context learning score of each row, (..., rows): the mean loss of late tokens minus that of early ones, in nats.

    `losses` is (..., rows, tokens), `late` (tokens,) says which of the tokens are late; all others are early. Negative where a
    model learns in context. Raises `ArgumentError` where one of the two has no tokens.
    """
    if losses.shape[-1:] != late.shape or late.all() or not late.any():
        raise ArgumentError(f"`late` must name some of the {losses.shape[-1]} tokens and not all, got {late.shape}")
    return np.asarray(losses[..., late].mean(axis=-1) - losses[..., ~late].mean(axis=-1), dtype=np.float64)


def in_context_attribution(clean: Floats, ablated: Floats, late: NDArray[np.bool_]) -> Floats:
    """By how many nats the in-context learning score of each row rises with heads ablated, (..., rows).

    `clean` is (rows, tokens), `ablated` (..., rows, tokens). Positive where the heads contribute to in-context learning, also
    above all of it; 0 where they do nothing, or as much to early tokens as to late ones. Of single heads it is what each is worth
    beside all others: of two equal ones either may have next to nothing.

    >>> clean, late = np.array([[4.0, 4.0, 1.0, 1.0]]), np.array([False, False, True, True])
    >>> in_context_attribution(clean, np.array([[4.5, 4.5, 4.0, 4.0]]), late)
    array([2.5])
    """
    return np.asarray(late_minus_early(ablated, late) - late_minus_early(clean, late), dtype=np.float64)


def before_and_after(start: Any, end: Any, clean: Any, ablated: Any) -> Floats:
    """How far ablations move losses along the way that they went in a training, (...,): v . (ablated - clean).

    v = (end - start) / ||end - start||, of length 1. `start`, `end` and `clean` are losses (tokens,) of the same tokens at two
    snapshots and of the model in question, `ablated` (..., tokens) its losses with each of some ablations. Negative where an
    ablation undoes the change, as it does for induction heads over a phase change: losses that fell rise again. In nats times the
    root of the number of tokens: an ablation that undoes all of it gets -||end - start||, one that does nothing or moves losses
    at a right angle 0.

    Raises `ArgumentError` for losses of different tokens, that are not finite, or that are the same at both snapshots.

    >>> before_and_after([4.0, 4.0], [4.0, 1.0], [4.0, 1.0], [[4.0, 4.0], [5.0, 1.0]])
    array([-3.,  0.])
    """
    first, last, whole, without = (np.asarray(losses, dtype=np.float64) for losses in (start, end, clean, ablated))
    shapes = {losses.shape[-1:] for losses in (first, last, whole, without)}
    if len(shapes) > 1 or any(losses.ndim != 1 for losses in (first, last, whole)):
        seen = ", ".join(str(losses.shape) for losses in (first, last, whole, without))
        raise ArgumentError(f"losses must be of the same tokens, (tokens,) three times and (..., tokens), got {seen}")
    if not all(np.isfinite(losses).all() for losses in (first, last, whole, without)):
        raise ArgumentError("losses must be finite")
    length = float(np.linalg.norm(last - first))
    if not length > 0:
        raise ArgumentError("the losses are the same at both snapshots: there is no way that they went")
    return np.asarray((without - whole) @ ((last - first) / length), dtype=np.float64)
