"""`python -m tests.fuzz`: mutated inputs over every reader. Exits with 1 for a traceback, a hang, or too much memory."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from .fuzzing import Child, Found, plan, what
from .readers import READERS


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="how many, over all readers (default 20000)")
    parser.add_argument("--seed", default="1", help="what they are drawn from (default 1)")
    parser.add_argument("--only", metavar="READER", action="append", choices=READERS, help="leave out the others")
    parser.add_argument("--number", type=int, help="this one input alone, with its traceback; with --only")
    given = parser.parse_args()
    readers = {name: READERS[name] for name in given.only or READERS}
    found, begun = Found(), time.perf_counter()
    sys.stdout.reconfigure(errors="backslashreplace")  # of what is said of a file that has half of a pair
    with tempfile.TemporaryDirectory(prefix="fuzz-seeds-") as place:
        child = Child(Path(place))
        try:
            for name, count in plan(readers, given.inputs).items():
                answer = child.ask(reader=name)
                if set(answer.get("outcomes", ["raised"])) != {"read"} and readers[name].is_mutated:
                    sys.exit(f"{name}: not every file as it should be is read: {answer}")
                for number in range(count) if given.number is None else [given.number]:
                    found.take(child.ask(reader=name, seed=given.seed, number=number))
                print(_line(name, found, time.perf_counter() - begun), flush=True)
        finally:
            child.end()
    _tell(found, time.perf_counter() - begun)
    return int(bool(found.failures))


def _line(name, found, seconds):
    outcomes = {outcome: count for (reader, outcome), count in found.outcomes.items() if reader == name}
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{name}: {sum(outcomes.values())} inputs: {said} ({seconds:.0f} s)"


def _tell(found, seconds):
    for answers in found.failures.values():
        first = answers[0]
        print(f"\n{len(answers)} x {what(first)}")
        print(f"  {first['reader']} --number {first.get('number')}: {first['kind']}/{first['file']}\n{first['said']}")
    slowest, largest = found.slowest, found.largest
    print(
        f"\n{found.total} inputs over {len({reader for reader, _ in found.outcomes})} readers in {seconds:.0f} s: "
        f"{len(found.failures)} kinds of failure, {sum(map(len, found.failures.values()))} inputs; "
        f"the slowest took {slowest.get('seconds', 0):.1f} s ({slowest.get('reader')} {slowest.get('number')}), "
        f"the largest {largest.get('grown', 0) / 1e6:.0f} MB more ({largest.get('reader')} {largest.get('number')})"
    )


if __name__ == "__main__":
    sys.exit(main())
