"""Which tests are slow, by a junit report of all, and which of their cases repeat in another case what is tested in one.

Slow is a test of over a fifth of a second, on average over its cases. Where the cases of a slow test take over four seconds in
all, a third of them, evenly spread over their list, is run before every change; the rest are repeats, which
`make test-exhaustive` runs.
Writes tests/slow.txt, and with `--repeats` tests/repeats.txt, a case a line.
"""

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

SECONDS = 0.2
SECONDS_OF_ALL = 4.0
ONE_OF = 3
EACH_COUNTS = (  # each case is of another assertion, page or measurement, and none repeats what another tests
    "tests/core/test_messages.py",
    "tests/measuring/test_prices.py",
    "tests/plugin/test_documentation.py",
    "tests/plugin/test_gate_files.py",
    "tests/plugin/test_examples.py",
    "tests/display/test_display.py",
    "tests/contract/test_backends.py",
)
ROOT = Path(__file__).parents[1]


def node_of(case: ET.Element) -> str:
    """The test function as pytest names it: its file, classes, name; "" for what is no test, as a file that failed."""
    parts = case.attrib["classname"].split(".")
    files = (at for at in range(len(parts), 0, -1) if ROOT.joinpath(*parts[:at]).with_suffix(".py").is_file())
    split = next(files, 0)
    return "::".join(["/".join(parts[:split]) + ".py", *parts[split:], case.attrib["name"].partition("[")[0]]) if split else ""


def slow(report: Path) -> list[str]:
    """The slow test functions, in order."""
    times: dict[str, list[float]] = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        times[node_of(case)].append(float(case.attrib["time"]))
    return sorted(node for node, seconds in times.items() if node and sum(seconds) > SECONDS * len(seconds))


def repeats(report: Path) -> list[str]:
    """The cases of slow tests that are no part of the third that stands for all, in order."""
    cases: dict[str, dict[str, float]] = defaultdict(dict)
    for case in ET.parse(report).iter("testcase"):
        node = node_of(case)
        cases[node][node + case.attrib["name"][len(node.rpartition("::")[2]) :]] = float(case.attrib["time"])
    found = []
    for node in slow(report):
        times = cases[node]
        if sum(times.values()) > SECONDS_OF_ALL and not node.startswith(EACH_COUNTS):
            found += left_out(list(times))
    return sorted(found)


def left_out(cases: list[str]) -> list[str]:
    """All but a third of them, the first and the last among it; of three and fewer none is left out."""
    if len(cases) <= ONE_OF:
        return []
    kept = -(-len(cases) // ONE_OF)
    at = {round(number * (len(cases) - 1) / (kept - 1)) for number in range(kept)}
    return [case for number, case in enumerate(cases) if number not in at]


if __name__ == "__main__":
    print("\n".join((repeats if "--repeats" in sys.argv else slow)(Path(sys.argv[1]))))
