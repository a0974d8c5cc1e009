"""Two ways to do something, timed in turns.

Seconds depend on the machine and on what else it does. The ratio of two sides that alternate in one process does not: each
pair is taken within moments, the side that goes first changes from pair to pair, and the median ignores the odd slow run.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from pytest_induction.records import Estimate
from pytest_induction.statistics import median_interval
from pytest_induction.undoing import Changes

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
