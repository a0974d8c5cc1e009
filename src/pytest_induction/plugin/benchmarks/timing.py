"""One analysis of one model timed: in turns with another, with its peak memory, and beside seconds what they do not tell."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pytest_induction.forward.calling import as_found
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.plugin.benchmarks.analyses import Analysis, bare, batches_of, fresh
from pytest_induction.records import Estimate
from pytest_induction.statistics import median_interval
from pytest_induction.undoing import Changes, puts_back

if TYPE_CHECKING:
    from pytest_induction.fixture import Induction

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


Run = Callable[[], Any]
FEWEST_JUDGED = 15  # pairs, where a ratio is held against a bound
MOST_PAIRS = 200
LONG = 5.0  # seconds of a pair after which one is warm-up enough
ERROR_RATE = 1e-3  # with which the interval of a ratio misses its median


@dataclass(frozen=True)
class Paired:
    """What was measured of both sides, pair by pair, in seconds."""

    ours: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the ratios of each pair."""
        return median(ours / base for ours, base in zip(self.ours, self.base, strict=True))

    @property
    def difference(self) -> float:
        """The median of what each pair's first side takes longer, in seconds."""
        return median(ours - base for ours, base in zip(self.ours, self.base, strict=True))

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds of each side."""
        return median(self.ours), median(self.base)

    def interval(self) -> Estimate | None:
        """The interval of the median ratio, between two order statistics; None for too few pairs to have one."""
        ratios = np.divide(self.ours, self.base)
        return median_interval(ratios, ERROR_RATE, "ratio") if len(ratios) >= FEWEST_JUDGED else None


class Turns:
    """Times `ours` through pytest-benchmark and `base` between its rounds, both by the same clock."""

    def __init__(self, ours: Run, base: Run, device: torch.device) -> None:
        self._ours, self._base, self._device = ours, base, device

    def take(self, benchmark: Any, *, fewest: int, seconds: float) -> Paired | None:
        """At least `fewest` pairs, and more while `seconds` last. None where benchmarks are disabled: then `ours` runs once.

        `benchmark` is the fixture of pytest-benchmark; its statistics are those of `ours`.
        """
        if benchmark.disabled:
            benchmark.pedantic(self._ours)
            return None
        pairs = max(fewest, min(MOST_PAIRS, math.ceil(seconds / self._warm_up())))
        ours: list[float] = []
        base: list[float] = []

        def before_round() -> None:
            """Base goes first in even pairs; in odd ones it follows, which is before the next round."""
            first = len(ours) % 2 == 0
            self._fill(base, len(ours) + first)

        benchmark.pedantic(lambda: ours.append(timed(self._ours, self._device)), setup=before_round, rounds=pairs)
        self._fill(base, len(ours))
        return Paired(tuple(ours), tuple(base))

    def _warm_up(self) -> float:
        """Run both sides twice, once if that takes long; the seconds of the last pair."""
        for _ in range(2):
            taken = timed(self._ours, self._device) + timed(self._base, self._device)
            if taken > LONG:
                break
        return taken

    def _fill(self, base: list[float], count: int) -> None:
        while len(base) < count:
            base.append(timed(self._base, self._device))


def timed(run: Run, device: torch.device) -> float:
    """Seconds that one run takes, until its device has done the work."""
    with _undisturbed():
        settle(device)
        started = time.perf_counter()
        run()
        settle(device)
        return time.perf_counter() - started


def settle(device: torch.device) -> None:
    """Wait until everything queued on the device is done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection and no coverage tracer inside: pytest-benchmark may pause them for one side only."""
    with Changes() as changes:
        changes.undone_by(partial(sys.settrace, sys.gettrace()))
        changes.undone_by(gc.enable if gc.isenabled() else gc.disable)
        sys.settrace(None)
        gc.disable()
        yield


BASE = "bare forward pass over the same tokens, without logits where the model has a base model that gives none"


class Timing:
    """One analysis of the session's model, made ready; `take` times it."""

    @puts_back
    def __init__(self, analysis: Analysis, induction: Induction) -> None:
        self._analysis = analysis
        self._subject = induction.model
        with as_found(self._subject.module):
            self._measure = analysis.prepare(induction)
            self._batches = batches_of(self._measure, self._subject)

    @puts_back
    def take(self, benchmark: Any, *, fewest: int, seconds: float) -> Paired | None:
        """Time the analysis and note what is known of it in `benchmark.extra_info`. None where benchmarks are disabled.

        `benchmark` is the fixture of pytest-benchmark, `fewest` and `seconds` what its options ask for.
        """
        device = self._subject.device
        benchmark.group = self._analysis.group
        with as_found(self._subject.module):
            turns = Turns(self._ours, self._base, device)
            paired = turns.take(benchmark, fewest=max(fewest, FEWEST_JUDGED if self._analysis.judged else 1), seconds=seconds)
            if paired is None:
                return None
            peaks = [peak_megabytes(side, device) for side in (self._ours, self._base)]
        parts = (_about(self._subject), _of_tokens(self._batches, paired), _of_pairs(paired), _of_memory(peaks, device))
        for part in parts:
            benchmark.extra_info.update(part)
        return paired

    def _ours(self) -> None:
        self._measure(fresh(self._subject))

    def _base(self) -> None:
        for tokens in self._batches:
            bare(self._subject, tokens)


def objection(name: str, paired: Paired, max_overhead: float) -> str | None:
    """Why the measured ratio breaks the bound, in a line; None unless the whole interval lies above it.

    So a ratio that equals the bound fails in fewer than one of a thousand runs, whatever the noise of a pair is distributed like.
    """
    interval = paired.interval()
    if interval is None:
        return f"{name}: {len(paired.ours)} pairs show nothing about --induction-max-overhead={max_overhead:g}"
    if interval.low <= max_overhead:
        return None
    return (
        f"{name} takes {paired.ratio:.3f} times the bare forward pass ({100 * (1 - ERROR_RATE):.1f} % interval "
        f"{interval.low:.3f}..{interval.high:.3f}), {len(paired.ours)} pairs: above --induction-max-overhead={max_overhead:g}"
    )


def _about(subject: ModelUnderTest) -> dict[str, Any]:
    """What a figure holds for."""
    return {
        "model": subject.name,
        "weights": subject.fingerprint(),
        "backend": subject.backend.name if subject.backend else "none",
        "dtype": str(subject.dtype).removeprefix("torch."),
        "device": _named(subject.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _named(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _of_tokens(batches: list[torch.Tensor], paired: Paired) -> dict[str, Any]:
    tokens = sum(batch.numel() for batch in batches)
    seconds, _ = paired.medians
    return {
        "sequences": sum(len(batch) for batch in batches),
        "positions": max(batch.shape[1] for batch in batches),
        "tokens": tokens,
        "forward_passes": len(batches),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def _of_pairs(paired: Paired) -> dict[str, Any]:
    """The ratio, and its interval where there are pairs enough to have one."""
    seconds, base_seconds = paired.medians
    found = {
        "seconds": seconds,
        "base": BASE,
        "base_seconds": base_seconds,
        "pairs": len(paired.ours),
        "ratio_to_base": round(paired.ratio, 4),
    }
    interval = paired.interval()
    if interval is not None:
        found |= {"ratio_low": round(interval.low, 4), "ratio_high": round(interval.high, 4), "confidence": 1 - ERROR_RATE}
    return found


def _of_memory(peaks: list[float | None], device: torch.device) -> dict[str, Any]:
    """Peaks of both sides in megabytes (2**20 bytes); absent where nothing tells them."""
    ours, base = peaks
    if ours is None or base is None:
        return {}
    return {"peak_memory_mb": round(ours, 1), "base_peak_memory_mb": round(base, 1), "peak_memory_is": measured_by(device)}
