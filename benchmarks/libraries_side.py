"""One way of finding induction heads, or several, in a process of its own: `compare_libraries.py` starts it and reads the JSON.

    python benchmarks/libraries_side.py WAY[,WAY] CALLS DIRECTORY...

The first call after loading counts by itself: it pays for what is looked up once. CALLS more are timed, and memory is how far the
process rises above the loaded model while one of them runs, or the first where there are no others.
"""

import contextlib
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from bare import processor_seconds
from libraries_models import rows_of
from libraries_ways import PLACE
from pytest_induction.plugin.benchmarks.timing import peak_megabytes


def way_of(name: str) -> Any:
    """The module of a way: it has `load`, which takes a directory, and `heads`, which takes what that gave and rows of ids."""
    found = importlib.util.spec_from_file_location(f"way_{name}", PLACE / f"{name}.py")
    if found is None or found.loader is None:
        raise SystemExit(f"there is no way {name!r}: they are {', '.join(sorted(each.stem for each in PLACE.glob('*.py')))}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def measured(way: Any, directory: Path, calls: int) -> dict[str, Any]:
    """Seconds of the processor, the peak, the heads that are named, and the score of every head where the way has scores."""
    rows, cpu = rows_of(directory), torch.device("cpu")
    load_seconds, model = processor_seconds(lambda: way.load(str(directory)))
    found: list[Any] = []

    def run() -> None:
        found[:] = way.heads(model, rows)

    calls_made = [processor_seconds(lambda: peak_megabytes(run, cpu)) for _ in range(1 + calls)]
    seconds, peaks = [each for each, _ in calls_made], [peak for _, peak in calls_made]
    heads, scores = found
    plain = None if scores is None else [[float(score) for score in layer] for layer in scores]
    later = {"again": seconds[1:], "peaks": peaks[1:] or peaks}
    return {"load": load_seconds, "first": seconds[0], **later, "heads": heads, "scores": plain}


def main() -> None:
    _, names, calls, *directories = sys.argv
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # libraries say what they load
        found = {name: [measured(way_of(name), Path(each), int(calls)) for each in directories] for name in names.split(",")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
