"""Peak memory of one run: what the device's allocator counts, or on a Linux CPU what the kernel counts."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pytest_induction.benchmarks.pairs import settle

MEGABYTE = 2**20
RESIDENT = "resident memory of the process above what it held before (Linux, VmHWM)"
ALLOCATED = "device memory allocated by torch above what it held before (torch.cuda.max_memory_allocated)"


def measured_by(device: torch.device) -> str | None:
    """What a peak on this device is a peak of; None where nothing tells."""
    if device.type == "cuda":
        return ALLOCATED
    return RESIDENT if device.type == "cpu" and _reset_resident_peak() else None


def peak_megabytes(run: Callable[[], Any], device: torch.device) -> float | None:
    """How far memory rises above where it stood while `run` runs once; None where nothing tells."""
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        settle(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE
    if device.type != "cpu" or not _reset_resident_peak():
        return None
    _return_freed_memory()
    _reset_resident_peak()
    before = _resident_peak()
    run()
    return (_resident_peak() - before) / MEGABYTE


def _reset_resident_peak() -> bool:
    """Let the kernel's peak of resident memory start again from what is resident now; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int:
    """The peak in bytes since it was last reset."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can: what stays resident would hide in the next peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
