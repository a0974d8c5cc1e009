"""Print the peak memory in MB of one side of one row. `bench_memory.py` starts it: `python benchmarks/peak.py ROW ours|other`."""

import sys

import torch

from pytest_induction.benchmarks.memory import peak_megabytes
from rows import ROWS
from sides import other, ours

if __name__ == "__main__":
    torch.set_num_threads(1)
    row = ROWS[sys.argv[1]]
    run = {"ours": ours, "other": other}[sys.argv[2]](row)
    peak = peak_megabytes(run, torch.device("cpu"))  # its first run: what an earlier one had freed would hide
    if peak is None:
        sys.exit("peak memory is measured on Linux only")
    print(peak)
