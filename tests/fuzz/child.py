"""The process in which inputs are read, one a line: what came of it, how long it took, and how much memory more than before.

A reader that hangs or takes too much is ended from outside, or by the limit on addresses, and costs nothing else.
"""

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

MOST_MEMORY = 2**30  # bytes that one input may take
ROOM = 2 * MOST_MEMORY  # of addresses, which a process has more of than it takes
MOST_SECONDS = 10.0  # of the processor; others may have it meanwhile
LARGEST_SEED = 2**22  # bytes of a file that is mutated


def main(seeds):
    """Read what is named on the standard input, until it ends."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", WANDB_MODE="offline")
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what libraries print is no answer
    from .readers import READERS

    limited = False
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["reader"]
        if not (seeds / name).is_dir():
            READERS[name].write(seeds / name)
        said = _tried(name, seeds, asked.get("seed"), asked.get("number", 0))
        if not limited and asked.get("limit"):
            _limit()
            limited = True
        print(json.dumps({**asked, **said}), file=answers, flush=True)


def _limit():
    """No more addresses than now and some."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))


def _tried(name, seeds, seed, number):
    """What came of one input; of every file as it is where there is no seed."""
    from .mutating import numbered
    from .readers import READERS

    reader, kinds = READERS[name], sorted(each for each in (seeds / name).iterdir())
    results = []
    for kind in kinds if seed is None else [numbered(seed, name, number).choice(kinds)]:
        rng = random.Random(0) if seed is None else numbered(seed, name, number)
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as scratch:
            place = Path(scratch) / kind.name
            shutil.copytree(kind, place, symlinks=True)
            changed = _mutate(place, rng) if seed is not None and reader.is_mutated else ""
            results.append({"kind": kind.name, "file": changed, **_read(reader, place, rng)})
    worst = max(results, key=lambda each: (each["outcome"] == "raised", each["seconds"]))
    return (
        worst
        if seed is not None or worst["outcome"] == "raised"
        else {**worst, "kinds": [each["kind"] for each in results], "outcomes": [each["outcome"] for each in results]}
    )


def _mutate(place, rng):
    """One file of a directory, mutated. Returns its name."""
    from .mutating import mutated

    rng.random()
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and 0 < path.stat().st_size <= LARGEST_SEED]
    path = rng.choice(files)
    path.write_bytes(mutated(path.name, path.read_bytes(), rng))
    return str(path.relative_to(place))


def _read(reader, place, rng):
    from pytest_induction.errors import InductionError

    before, begun = _peak(), time.process_time()
    outcome, said = "read", ""
    try:
        reader.read(place, rng)
    except InductionError as error:
        outcome, said = "refused", f"{type(error).__name__}: {str(error)[:300]}"
        if "\n" in str(error).strip():
            outcome, said = "raised", f"a message of several lines\n{error}"
    except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
        outcome, said = "raised", traceback.format_exc()[-4000:]
    return {"outcome": outcome, "said": said, "seconds": round(time.process_time() - begun, 3), "grown": _peak() - before}


def _peak():
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
