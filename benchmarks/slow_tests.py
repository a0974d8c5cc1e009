"""Which tests are slow, by a junit report of all: those of over a fifth of a second, on average over their parameters."""

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

SECONDS = 0.2
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


if __name__ == "__main__":
    print("\n".join(slow(Path(sys.argv[1]))))
