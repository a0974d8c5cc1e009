"""Peak memory above the loaded model, of a fresh process for each side and each time."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from rows import MEMORY, Row

PEAK = Path(__file__).with_name("peak.py")
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # or holes in glibc's heap add a hundred megabytes by chance


@pytest.mark.parametrize("row", MEMORY, ids=lambda row: row.name)
def bench(row: Row, benchmark, pairs: int | None, judge) -> None:
    peaks: dict[str, list[float]] = {"ours": [], "other": []}

    def both() -> None:
        for side, found in peaks.items():
            found.append(_peak(row.name, side))

    benchmark.pedantic(both, rounds=pairs or row.repeats)  # its seconds mean nothing: they are those of starting processes
    mine, theirs = (median(found) for found in peaks.values())
    figure = mine - theirs if row.figure == "extra_mb" else theirs / mine
    judge(row, figure, mine, theirs, len(peaks["ours"]), ())


def _peak(name: str, side: str) -> float:
    command = [sys.executable, str(PEAK), name, side]
    environment = {**os.environ, **RETURNED_AT_ONCE}
    return float(subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True).stdout)
