"""Classes that trainers save beside weights and that do nothing but hold values: arrays, paths, spans of time, name spaces.

torch reads a file with `weights_only=True` and is told of these; whatever else a pickle names is refused.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import pathlib
import types
from typing import Any

import numpy as np
from torch.torch_version import TorchVersion


def _of_numpy() -> list[Any]:
    """What an array or a number of numpy is made of, under the names that either of its versions writes."""
    multiarray: Any = np.zeros(0).__reduce__()[0]  # numpy's `_reconstruct`
    scalar: Any = np.float64(0).__reduce__()[0]
    both = [
        (each, f"{module}.multiarray.{each.__name__}")
        for module in ("numpy.core", "numpy._core")
        for each in (multiarray, scalar)
    ]
    codes = "?bBhHiIlLqQefdFDUS"
    return [*both, (np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype"), *{type(np.dtype(code)) for code in codes}]


HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    collections.deque,
    TorchVersion,
    dt.timedelta,
    dt.datetime,
    dt.date,
    *(getattr(pathlib, name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *_of_numpy(),
)
