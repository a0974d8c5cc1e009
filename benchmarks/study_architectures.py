"""Every causal architecture of transformers, measured and compared with its own eager patterns: `make study-architectures`.

Each type of the installed transformers is built from a tiny config with random weights, measured, and compared with a computation
from the patterns that its eager twin returns: two batches without padding, one with, and once more with the twin itself measured.
Types run in worker processes, two at a time, so that one that hangs or dies is a line in the table. Writes docs/architectures.md.

Exits with 1 if a type is measured wrongly: another number of layers than eager attention returns patterns, a score that differs
by more than the threshold, or a measurement that nothing can be compared with. `--only TYPE ...` runs some types and writes
nothing.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "architectures.md"
WORKERS = 2
SECONDS = 120  # for one type
FLAT = 0.1  # patterns nearer than that to uniform ones would test nothing
MARK = "@@"  # begins a record in a worker's output; models may print too
UNBUILT = {  # what the exception says in many words
    "gemma3n": "its vision part needs timm and PIL; its text model is `gemma3n_text`",
    "gemma4_assistant": "its own code rejects its config; it needs the embeddings, keys and values of another model",
    "gemma4_unified_assistant": "the same as `gemma4_assistant`",
}
Record = dict[str, Any]


def examine(kind: str) -> Record:
    """Build a type, run it, measure it and compare. Whatever is raised on the way ends in the record."""
    from tests.attention.architectures import declared_layers, padded, probes, tiny
    from tests.attention.eager import compare, run

    stage = "not built"
    try:
        model, twin = tiny(kind), tiny(kind, "eager")
        twin.load_state_dict(model.state_dict())
        stage = "not run"
        run(model, probes()[0])
        run(twin, probes()[0])
        stage = "broken"
        record = {**asdict(compare(model, twin, probes())), "declared": declared_layers(model)}
    except Exception as error:  # noqa: BLE001 - any type may raise anything
        return {"status": stage, "reason": told(error)}
    if record["status"] == "measured":
        record["padded"] = guarded(lambda: asdict(compare(model, twin, [padded()])))
        record["eager"] = guarded(lambda: asdict(compare(twin, twin, [*probes(), padded()])))
    return record


def guarded(compare: Callable[[], Record]) -> Record:
    try:
        return compare()
    except Exception as error:  # noqa: BLE001 - as above
        return {"status": "broken", "reason": told(error), "way": ""}


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def work() -> None:
    """Examine the types whose names come in, a line each; a record goes out for each."""
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        print(MARK + json.dumps(examine(line.strip())), flush=True)


class Worker:
    """A process that examines types, started again after one that it did not survive."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, kind: str) -> Record:
        started = time.perf_counter()
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        try:
            process.stdin.write(f"{kind}\n")
            process.stdin.flush()
        except BrokenPipeError:  # it died at the start, which its silence tells as well
            pass
        record = self._answer(process)
        if record is None:
            self.stop()
            died = time.perf_counter() - started < SECONDS
            record = {"status": "broken", "reason": "the process died" if died else f"took longer than {SECONDS} s"}
        return {"type": kind, "seconds": time.perf_counter() - started, **record}

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        return subprocess.Popen([sys.executable, __file__, "--worker"], env=settings, **pipes)

    def _answer(self, process: subprocess.Popen[str]) -> Record | None:
        """The next record, or None where the process dies or the time is over."""
        end = time.perf_counter() + SECONDS
        while select.select([process.stdout], [], [], max(0.0, end - time.perf_counter()))[0]:
            line = process.stdout.readline()
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            if not line:
                return None
        return None


def examine_all(kinds: list[str]) -> list[Record]:
    """A record of every type, told as they come."""
    mine = threading.local()
    workers: list[Worker] = []

    def one(kind: str) -> Record:
        if not hasattr(mine, "worker"):
            mine.worker = Worker()
            workers.append(mine.worker)
        record = mine.worker(kind)
        tail = f"{record['worst']:.1e}" if record["status"] == "measured" else record["reason"][:90]
        print(f"{kind:<28} {record['status']:<10} {record['seconds']:5.1f} s  {tail}", flush=True)
        return record

    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(one, kinds))
    finally:
        for worker in workers:
            worker.stop()


def faults(records: list[Record]) -> list[str]:
    """What must not be: a line for each."""
    found = []
    for record in records:
        for name, part in (("", record), (" with padding", record.get("padded")), (" under eager", record.get("eager"))):
            unchecked = part and part["status"] == "unchecked" and part is not record.get("padded")  # padding may change a twin
            if part and (unchecked or part["status"] in ("wrong", "broken")):
                found.append(f"{record['type']}{name}: {part['status']}, {part['reason']}")
        if record["status"] == "measured" and record["spread"] < FLAT:
            found.append(f"{record['type']}: patterns within {record['spread']:.2g} of uniform ones, which tests nothing")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="examine only these types, and do not write the page")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return 0
    from tests.attention.architectures import types

    unknown = sorted(set(arguments.only or ()) - set(types()))
    if unknown:
        parser.error(f"transformers knows no causal type {', '.join(map(repr, unknown))}")
    records = examine_all(arguments.only or sorted(types()))
    wrong = faults(records)
    print(summary(records), *wrong, sep="\n")
    if not arguments.only:
        PAGE.write_text("\n".join(page(records, wrong)) + "\n", encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 1 if wrong else 0


def summary(records: list[Record]) -> str:
    """The counts in one line."""
    ran = [record for record in records if record["status"] not in ("not built", "not run")]
    with_patterns = [record for record in ran if record.get("patterns")]
    count = {status: sum(record["status"] == status for record in with_patterns) for status in ("measured", "refused")}
    wrong = sum(record["status"] in ("wrong", "unchecked", "broken") for record in ran)
    return (
        f"{len(records)} types, {len(ran)} built and run, {len(with_patterns)} of them with causal patterns of their own: "
        f"{count['measured']} measured, {count['refused']} refused with an error; {wrong} wrong."
    )


def page(records: list[Record], wrong: list[str]) -> Iterator[str]:
    """docs/architectures.md, line by line."""
    import torch
    import transformers

    yield from (
        "# Architectures",
        "",
        "Which causal architectures of transformers can be measured, and are their scores right? Each model type was built",
        "from a tiny config with random weights and measured. The scores were compared with a computation from the patterns",
        "that the same weights return under eager attention. `make study-architectures` writes this page in about two",
        "minutes; do not edit it.",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, float32 on CPU.",
        "",
        f"**{summary(records)}**",
        "",
    )
    yield from (f"- {line}" for line in wrong)
    if wrong:
        yield ""
    groups = {status: [record for record in records if record["status"] == status] for status in ("measured", "refused")}
    left = [record for record in records if record["status"] not in groups]
    yield from measured_table(groups["measured"])
    yield from refused_table("Refused, though they have causal patterns", [r for r in groups["refused"] if r["patterns"]])
    yield from refused_table("Nothing to measure", [r for r in groups["refused"] if not r["patterns"]])
    if left:
        yield from ("", "## Not built, not run or wrong", "", "| type | result | reason |", "|---|---|---|")
        yield from (
            f"| `{record['type']}` | {record['status']} | {short(UNBUILT.get(record['type'], record['reason']))} |"
            for record in left
        )


def measured_table(records: list[Record]) -> Iterator[str]:
    yield from (
        "## Measured",
        "",
        "*Layers* is the number of measured layers, of those that the config declares. The other layers of a hybrid model",
        "have no attention over positions. *Worst error* is the largest difference of any of the four scores, over all heads,",
        "layers and rows. The last two columns have the same with padding on the left, and for a model loaded with eager",
        "attention. *Unchecked* means that the two implementations in transformers give different logits, so that neither can",
        "check the other.",
        "",
        "| type | backend | layers | worst error | with padding | eager, and its backend |",
        "|---|---|---|---|---|---|",
    )
    for record in records:
        declared = "" if record["declared"] is None else f" of {record['declared']}"
        eager = f"{error_of(record['eager'])}, {record['eager']['backend']}"
        cells = (
            f"`{record['type']}`",
            record["way"],
            f"{record['measured']}{declared}",
            error_of(record),
            error_of(record["padded"]),
        )
        yield f"| {' | '.join(cells)} | {eager} |"


def refused_table(title: str, records: list[Record]) -> Iterator[str]:
    if not records:
        return
    yield from ("", f"## {title}", "", "| type | eager attention returns | error message |", "|---|---|---|")
    for record in records:
        patterns = f"{record['patterns']} patterns for {record['declared']} layers" if record["patterns"] else ""
        returned = "; ".join(filter(None, (patterns, *record["others"]))) or "nothing"
        yield f"| `{record['type']}` | {returned} | {short(record['reason'])} |"


def error_of(part: Record) -> str:
    return f"{part['worst']:.0e}" if part["status"] == "measured" else part["status"]


def short(reason: str) -> str:
    """A reason on one line of a table."""
    text = " ".join(reason.split()).replace("|", "\\|")
    return text if len(text) <= 400 else f"{text[:397]}..."


if __name__ == "__main__":
    sys.exit(main())
