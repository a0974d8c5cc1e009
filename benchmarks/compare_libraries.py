"""The same work by TransformerLens, nnsight, a notebook and pytest-induction: `make compare-libraries` writes docs/why.md.

The work: prefix matching of every head on 12 rows of a first token and two copies of 50 random tokens, and which heads are
induction heads. Each way of doing it is a file of `benchmarks/libraries`, which is run, counted and shown as it stands. It is run
in a process of its own, on six models of two layers, most of which have a known answer, and on a real one: SmolLM2-135M-Instruct,
which is fetched once as `study_pretrained.py` does, unless `--model` names a directory. Processes take turns, so that what slows
the machine down slows all of them. What was interrupted goes on where it was.

Needs nnsight beside what development installs, as the target of `make` has it; `--check` and `--render` need neither library.
What was measured stands in `fixtures/libraries.json`. `--only` measures one part anew: `known` or `real`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from libraries_page import rendered
from libraries_ways import KNOWN, LISTS, PACKAGES, PLACE, SAME_SCORE, TIMED, WAYS
from machine import processor
from pages import drawn
from pretrained_fetch import SOURCES, cache_directory, plain_directory
from study_pretrained import Unfinished

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "fixtures" / "libraries.json", ROOT / "docs" / "why.md"
SIDE = Path(__file__).with_name("libraries_side.py")
TURNS, CALLS = 2, 1  # processes of each way on the real model, and calls after the first in each
RETURNED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory, which would hide in the next peak
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **RETURNED_AT_ONCE}
PARTS = ("known", "real")
Json = dict[str, Any]


def side(calls: int, directories: Sequence[Path], *ways: str) -> dict[str, list[Json]]:
    """What one process has measured, of each way on each directory."""
    command = [sys.executable, str(SIDE), ",".join(ways), str(calls), *map(str, directories)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **SURROUNDINGS})
    if done.returncode:
        raise SystemExit(f"{', '.join(ways)} failed: {done.stderr.strip()[-2000:]}")
    print(f"{', '.join(ways)}: done", flush=True)
    return json.loads(done.stdout)


def known() -> Json:
    """By way and model: the heads that are named, and the largest score of any head. Nothing is timed, so one process does."""
    from libraries_models import written

    with tempfile.TemporaryDirectory() as place:
        directories = [written(name, Path(place)) for name in KNOWN]
        found = side(0, directories, *WAYS)
    return {way: dict(zip(KNOWN, map(_heads, of), strict=True)) for way, of in found.items()}


def _heads(found: Json) -> Json:
    scores = found["scores"]
    return {"heads": found["heads"], "largest": None if scores is None else round(max(map(max, scores)), 3)}


def real(directory: Path) -> Json:
    """By way: seconds of the processor, least of all turns, megabytes, and the heads that are named on the real model."""
    files = [SIDE, SIDE.with_name("libraries_models.py"), *sorted(PLACE.glob("*.py"))]
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    kept = Unfinished(cache_directory() / "records" / "libraries.json", {"ways": digest, "model": str(directory)})
    runs: dict[str, list[Json]] = {way: [] for way in TIMED}
    for turn in range(TURNS):
        for way in TIMED:
            if turn == 0 or way not in LISTS:
                calls = 0 if way in LISTS else CALLS
                runs[way] += kept.once(f"{way}, turn {turn}", partial(_one, calls, directory, way))
    kept.forget()
    reference = runs["notebook"][0]["scores"]
    return {way: _least(of, reference if way in SAME_SCORE else None) for way, of in runs.items()}


def _one(calls: int, directory: Path, way: str) -> list[Json]:
    return side(calls, [directory], way)[way]


def _least(runs: Sequence[Json], reference: list[list[float]] | None) -> Json:
    """Of all processes: the least time and memory; and by how much the scores of the first one differ from the notebook's."""
    again = [seconds for run in runs for seconds in run["again"]]
    found = {"load": min(run["load"] for run in runs), "first": min(run["first"] for run in runs)}
    found |= {"again": min(again, default=None), "peak": min(peak for run in runs for peak in run["peaks"])}
    found = {name: None if value is None else round(value, 3) for name, value in found.items()}
    found |= {"processes": len(runs), "heads": runs[0]["heads"]}
    if reference is not None:
        pairs = zip(chain(*runs[0]["scores"]), chain(*reference), strict=True)
        found["differs"] = float(f"{max(abs(one - other) for one, other in pairs):.1g}")
    return found


def about() -> Json:
    return {"processor": processor(), "python": sys.version.split()[0], "versions": {name: version(name) for name in PACKAGES}}


def measure(only: str | None, directory: Path | None) -> None:
    """Measure one part or both, and keep what the other one has."""
    parts = {"known": known, "real": lambda: real(directory or plain_directory(SOURCES["smollm2"], cache_directory()))}
    for part in PARTS:
        if only in (None, part):
            found = {part: parts[part](), "about": about()}
            record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
            RECORD.write_text(json.dumps(record | found, indent=1) + "\n", encoding="utf-8")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a directory with the real model")
    parser.add_argument("--only", choices=PARTS, help="measure one part anew")
    parser.add_argument("--render", action="store_true", help="draw the page from the record; nothing is measured")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the page is not what record and files give")
    arguments = parser.parse_args(given)
    if not (arguments.check or arguments.render):
        measure(arguments.only, arguments.model)
    wanted = rendered(PAGE.read_text(encoding="utf-8"), json.loads(RECORD.read_text(encoding="utf-8")))
    return drawn(PAGE, wanted, check=arguments.check, source="the record gives")


if __name__ == "__main__":
    sys.exit(main())
