"""Where a measurement was made, and which of that can change its last digits. Standard library only."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

from pytest_induction.versions import installed

DISTRIBUTIONS = ("torch", "transformers", "numpy")
ARITHMETIC = ("torch", "device", "dtype", "machine")
"""What may add up the same numbers to others. Threads may too, but two machines always differ in them: only a failure tells."""


def environment(device: str = "", dtype: str = "") -> dict[str, str]:
    """Versions as major.minor, the machine, the number of threads of torch, and where and how the model ran, as far as known."""
    versions = {"python": platform.python_version(), **installed(DISTRIBUTIONS)}
    found = {**{name: _short(full) for name, full in versions.items()}, "machine": platform.machine()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = str(torch.get_num_threads())
    if device:
        found["device"] = device.partition(":")[0]
    if dtype:
        found["dtype"] = dtype
    return found


def moved(there: Mapping[str, str], here: Mapping[str, str], *, arithmetic: bool = False) -> str:
    """What differs and is known of both, as "torch 2.8 there, 2.9 here"; with `arithmetic` only what may change numbers."""
    names = [name for name in there if name in here and (name in ARITHMETIC or not arithmetic)]
    return "; ".join(f"{name} {there[name]} there, {here[name]} here" for name in names if there[name] != here[name])


def _short(full: str) -> str:
    return ".".join(full.partition("+")[0].split(".")[:2])
