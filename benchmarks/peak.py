"""Print the peak memory in MB of one side of one row. `bench_memory.py` starts it: `python benchmarks/peak.py ROW ours|other`."""

import gc
import sys
from dataclasses import replace

import torch

from pytest_induction.plugin.benchmarks.timing import peak_megabytes
from rows import ROWS
from sides import other, ours

SHORT = 13  # positions of a first run, so that neither side pays for what torch sets up once

if __name__ == "__main__":
    torch.set_num_threads(1)
    row = ROWS[sys.argv[1]]
    side = {"ours": ours, "other": other}[sys.argv[2]]
    side(replace(row, positions=SHORT))()
    run = side(row)
    gc.collect()
    peak = peak_megabytes(run, torch.device("cpu"))
    if peak is None:
        sys.exit("peak memory is measured on Linux only")
    print(peak)
