"""Time of measuring against that of the other side, in turns within one process, on one thread."""

import pytest
import torch

from pytest_induction.plugin.benchmarks.timing import Turns
from rows import SPEED, Row
from sides import check_agreement, sides


@pytest.mark.parametrize("row", SPEED, ids=lambda row: row.name)
def bench(row: Row, benchmark, pairs: int | None, judge) -> None:
    if row.positions <= 512:
        check_agreement(row)
    paired = Turns(*sides(row), torch.device("cpu")).take(benchmark, fewest=pairs or row.repeats, seconds=0)
    if paired is None:
        return
    figure = {"ratio": paired.ratio, "faster": row.scale / paired.ratio}[row.figure]
    interval = paired.interval()
    bounds = () if interval is None else (interval.low, interval.high)
    if row.figure == "faster":
        bounds = tuple(row.scale / bound for bound in reversed(bounds))
    judge(row, figure, *paired.medians, len(paired.ours), bounds)
