"""The paper's Model Analysis Table of the zoo: `make paper` draws docs/paper-table.svg and fills in the numbers of docs/paper.md.

All from what is committed in `fixtures/zoo`; nothing is trained. `--check` writes nothing, and exits with 1 where the picture or
the numbers are not what the measurements give.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pages import filled
from paper_drawing import drawn
from paper_runs import INDUCES, INDUCTION, OTHER, PREVIOUS, PREVIOUS_TOKEN, ROOT, Kind, Measured, Zoo, kinds_of_the_zoo, read_zoo
from pytest_induction.records import Verdict

ZOO = ROOT / "fixtures" / "zoo"
PICTURE, PAGE = ROOT / "docs" / "paper-table.svg", ROOT / "docs" / "paper.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NONE = "n/a"

SHOWN = (
    "model",
    "parameters",
    "phase change",
    "onset, k tokens",
    "end, k tokens",
    "score at the window's start",
    "score at its end",
    "score at the end of training",
    "share formed in the window",
    "prefix matching of the best head",
    "its layer, from 0",
    "final loss",
    "fall of the heading, degrees",
    "turn",
)
WORTH = (
    "model",
    "heads",
    "cost, patterns kept",
    "cost, patterns computed anew",
    "before and after",
    "QK eigenvalues, induction heads",
    "QK eigenvalues, others",
)
ABOUT_FORMED = (
    "Means over the seeds (lowest..highest). Onset and end are those of the change of prefix matching. The score is the in-"
    "context learning score. It and losses are in nats. Scores at the start and the end of the window are of the snapshots "
    "next to it. Where nothing changed, the window is the mean window of the models of the same kind with more layers. The "
    "share is of the score at the end of training."
)
ABOUT_WORTH = (
    "What heads are worth at the end of training. Each is ablated alone; the columns are sums over induction heads / previous-"
    f"token heads / others. Induction heads have a prefix matching of {INDUCTION} or more. Previous-token heads are other heads "
    f"with a previous-token score of {PREVIOUS_TOKEN} or more. Cost: how many nats the in-context learning score rises. Before "
    "and after: how far losses move in the direction in which they moved in the window, in nats times the root of the number of "
    "tokens; negative if that change is undone. QK eigenvalues are between -1 and 1, for heads after the first layer: the mean "
    "of the induction heads, and the largest of the others."
)


def amount(values: Sequence[float | None], digits: int = 2) -> str:
    """The mean over the seeds with the lowest and the highest; of those that have a number."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return NONE
    mean, low, high = (_shown(value, digits) for value in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low}..{high})"


def _shown(value: float, digits: int) -> str:
    return f"{round(value, digits) or 0.0:.{digits}f}"  # no -0.00


def counted(values: Sequence[object]) -> str:
    """Which values there are and of how many seeds: `SHOWN 3/3`."""
    counts = sorted(Counter(map(str, values)).items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{value} {count}/{len(values)}" for value, count in counts)


def between(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}..{max(values)}"


def moment(one: Measured, which: str) -> float | None:
    """`onset` or `end` of the change of prefix matching, in thousands of tokens."""
    change = one.found.prefix_matching
    if change is None or change.verdict is not Verdict.SHOWN:
        return None
    return getattr(change, which).tokens.value / 1e3


def scores(one: Measured) -> tuple[float | None, float | None, float]:
    """The in-context learning score at the last snapshot before the window, at the first after it, and at the end of the run."""
    column = one.run.column("icl_score")
    if one.window is None:
        return None, None, float(column[-1])
    first = max(int(np.searchsorted(one.x, one.window[0] + 1e-9)) - 1, 0)
    last = min(int(np.searchsorted(one.x, one.window[1] - 1e-9)), len(column) - 1)
    return float(column[first]), float(column[last]), float(column[-1])


def share_inside(one: Measured) -> float | None:
    """How much of the in-context learning at the end comes about within the window."""
    before, after, final = scores(one)
    return None if before is None or after is None else (before - after) / -final


def fall(one: Measured) -> float | None:
    """How far the heading falls where it falls most, in degrees."""
    change = one.found.turn and one.found.turn.change
    return None if change is None else change.value


def summed(runs: Sequence[Measured], name: str, which: int) -> list[float]:
    """A cause at the end of each run, summed over its heads of one type; nothing where no seed has such a head."""
    known = [(one, values) for one in runs if (values := one.values(name)) is not None]
    if not any((one.types == which).any() for one, _ in known):
        return []
    return [float(values[-1][one.types == which].sum()) for one, values in known]


def eigenvalues(one: Measured, *, of_induction: bool) -> float | None:
    """M12, normalised: the mean of the induction heads behind the first layer, or the largest of the other heads there."""
    values = one.values("qk_eigenvalue")
    if values is None:
        return None
    chosen = values[-1][((one.types == INDUCES) == of_induction) & np.isfinite(values[-1])]
    return None if not chosen.size else float(chosen.mean() if of_induction else chosen.max())


def formed(kind: Kind, runs: Sequence[Measured]) -> Iterator[str]:
    """A line of the first table: when, how far, where."""
    yield f"{kind.parameters:,}"
    yield counted([one.found.verdict for one in runs])
    for which in ("onset", "end"):
        yield amount([moment(one, which) for one in runs], 0)
    for values in zip(*map(scores, runs), strict=True):
        yield amount(values)
    yield amount([share_inside(one) for one in runs])
    best = [one.run.best_of_heads("prefix_matching") for one in runs]
    yield amount([float(values[-1]) for values, _ in best])
    yield between([int(heads[-1, 0]) for _, heads in best])
    yield amount([float(one.run.column("loss")[-1]) for one in runs])
    yield amount([fall(one) for one in runs], 0)
    yield counted([one.found.turn.verdict if one.found.turn else NONE for one in runs])


def worth(_: Kind, runs: Sequence[Measured]) -> Iterator[str]:
    """A line of the second table: what the heads are worth at the end, by what they are."""
    types = (INDUCES, PREVIOUS, OTHER)
    yield " / ".join(between([int((one.types == which).sum()) for one in runs]) for which in types)
    for name, digits in (("in_context", 2), ("in_context_full", 2), ("before_and_after", 1)):
        each = [amount(summed(runs, name, which), digits) for which in types]
        yield NONE if set(each) == {NONE} else " / ".join(each)
    for of_induction in (True, False):
        yield amount([eigenvalues(one, of_induction=of_induction) for one in runs])


def numbers(zoo: Zoo) -> str:
    """What stands between the markers of the page."""
    parts: list[str] = []
    for about, headings, line in ((ABOUT_FORMED, SHOWN, formed), (ABOUT_WORTH, WORTH, worth)):
        rows = ([str(kind), *line(kind, runs)] for kind, runs in zoo.items())
        parts += ["", about, "", *_table(headings, rows)]
    return "\n".join([*parts[1:], ""])


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|---" * len(headings) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def written(page: Path) -> str:
    """What stands on a page; nothing on one that is missing."""
    return page.read_text(encoding="utf-8") if page.is_file() else ""


def stale(picture: str, text: str) -> str:
    """What is not as the measurements give it, or ""."""
    page = filled(written(PAGE), BEGIN, END, f"{text}\n")
    names = [each.name for each, wanted in ((PICTURE, picture), (PAGE, page)) if written(each) != wanted]
    return f"not what the measurements of the zoo give: {' and '.join(names)}; run `make paper`" if names else ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something is out of date")
    is_check = parser.parse_args(arguments).check
    zoo = read_zoo(ZOO, *kinds_of_the_zoo())
    picture, text = drawn(zoo), numbers(zoo)
    if is_check:
        found = stale(picture, text)
        print(found or "picture and numbers are what the measurements give")
        return int(bool(found))
    print(text)
    PICTURE.write_text(picture, encoding="utf-8")
    PAGE.write_text(filled(written(PAGE), BEGIN, END, f"{text}\n"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
