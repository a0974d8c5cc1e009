"""How often phase changes are found and missed, and whether their intervals hold: `make study-phase-change` prints the tables.

Real trainings are recorded densely (60 snapshots for ten times as many steps), once; they stay in `.benchmarks/phase-change`.

| trainings | seeds | expected |
|---|---|---|
| two layers, two learning rates | 60 | abrupt |
| one layer with smeared keys, two learning rates; two layers with smeared keys | 60 | abrupt |
| one layer; untrained; independent tokens; diverged; learning rate dropped; data switched, one layer and two | 84 | none |
| gradual: learning rate falling as one over the step; constant and very low | 18 | not abrupt |

Each record is judged as it is, and thinned to 40, 30 and 15 snapshots (evenly over the logarithm of the steps, at random places),
with no more noise than it has and with normal noise of 0.02 and 0.05 on every head's score (8 and 3 times that, in nats, on
the advantage and the in-context learning score). Wrong is SHOWN where none or only a gradual change is expected, and REFUTED
where an abrupt one is. The reference for a midpoint is that of the dense record. A training of the first two rows whose best
head ends below 0.4 did not form an induction head in its steps, and is left out.

Then simulated curves with known midpoints, the time and memory of the largest run, and other rules on the same dense records; and
simulated changes on the grids of snapshots of public suites (`grids.py`), which `--grids` alone judges; and simulated trainings
in which something lasts or is lost, or forms in an order (`lasting.py`), which `--lasting` alone judges. Exits with 1 where a
threshold is missed. `--quick` takes a tenth of the seeds.
"""

import argparse
import resource
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

import grids  # noqa: E402
import lasting  # noqa: E402
from corpora import Independent, Repetitive  # noqa: E402
from pytest_induction.records import Change, Verdict  # noqa: E402
from pytest_induction.runs.phase_change.finding import PhaseChange, find_phase_changes  # noqa: E402
from pytest_induction.runs.phase_change.transition import find_transition  # noqa: E402
from pytest_induction.runs.places import Place  # noqa: E402
from pytest_induction.runs.record import Snapshot, TrainingRun  # noqa: E402
from pytest_induction.runs.store import read_run  # noqa: E402
from trainings import Training, diverging, falling, record, warmed_up  # noqa: E402

CACHE = ROOT / ".benchmarks" / "phase-change"
ABRUPT, NONE, GRADUAL = "abrupt", "none", "gradual"
FORMED_AT_THE_END = 0.4  # prefix matching of the best head, in a training that is expected to form one
DENSITIES, NOISES = (40, 30, 15), (0.0, 0.02, 0.05)
THRESHOLDS = {"found": 0.98, "false alarms": 0.01, "within one snapshot": 0.98, "coverage": (0.90, 0.99)}
MOST = {"seconds": 2.0, "MB": 500.0}


@dataclass(frozen=True)
class Row:
    """One kind of training, how many seeds of it, and what is expected of them."""

    name: str
    training: Training
    seeds: int
    expected: str


def dropping(step: int) -> float:
    """A learning rate that falls to a tenth at step 200."""
    return warmed_up(1e-2)(step) * (0.1 if step >= 200 else 1.0)


def _switched(n_layers: int, steps: int) -> Training:
    plain = Repetitive(copy=0.0).batches
    text, told = "data without repeats at first", ((steps // 2, "the data change"),)
    return Training(text, n_layers, steps, batches=plain, later=Repetitive().batches, switch=steps // 2, schedule=told)


def rows() -> list[Row]:
    """All kinds of trainings."""
    still = Training("untrained", 2, 400, learning_rate=lambda step: 0.0)
    independent = Training("independent tokens", 2, 400, batches=Independent().batches, held_out=Independent().batches)
    wild = Training("diverged", 2, 300, learning_rate=diverging, clip=None)
    return [
        Row("two layers", Training("", 2, 400), 40, ABRUPT),
        Row("two layers, slower", Training("", 2, 600, learning_rate=warmed_up(6e-3)), 20, ABRUPT),
        Row("one layer, smeared", Training("", 1, 400, smeared=True), 30, ABRUPT),
        Row("one layer, smeared, slower", Training("", 1, 600, smeared=True, learning_rate=warmed_up(3e-3)), 10, ABRUPT),
        Row("two layers, smeared", Training("", 2, 400, smeared=True), 20, ABRUPT),
        Row("one layer", Training("", 1, 400), 20, NONE),
        Row("untrained", still, 8, NONE),
        Row("independent tokens", independent, 12, NONE),
        Row("diverged", wild, 12, NONE),
        Row("learning rate dropped", Training("", 1, 400, learning_rate=dropping), 12, NONE),
        Row("data switched, one layer", _switched(1, 500), 10, NONE),
        Row("data switched, two layers", _switched(2, 700), 10, NONE),
        Row("rate as one over the step", Training("", 1, 3000, smeared=True, learning_rate=falling), 10, GRADUAL),
        Row("very low rate", Training("", 1, 3000, smeared=True, learning_rate=warmed_up(2e-4)), 8, GRADUAL),
    ]


def _make(row: int, seed: int) -> Path:
    """Record one training unless that was done before."""
    import torch

    torch.set_num_threads(1)
    chosen = rows()[row]
    place = CACHE / f"{chosen.name.replace(', ', '-').replace(' ', '-')}-{seed}"
    done = place / "done"
    if not done.exists():
        for old in sorted(place.rglob("*"), reverse=True):
            old.unlink() if old.is_file() else old.rmdir()
        record(chosen.training, place, seed=seed)
        done.touch()
    return place


def recorded(workers: int, share: float) -> Iterator[tuple[Row, TrainingRun]]:
    """Every training, recorded now or before."""
    jobs = [(number, seed) for number, row in enumerate(rows()) for seed in range(max(1, round(row.seeds * share)))]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for (number, _), place in zip(jobs, pool.map(_make, *zip(*jobs, strict=True)), strict=True):
            yield rows()[number], read_run(Place(place))


def thinned(run: TrainingRun, count: int, noise: float, rng: np.random.Generator) -> TrainingRun:
    """So many of a run's snapshots, its last one among them, with noise on what was measured."""
    x = np.log10(np.maximum(run.steps, 0.5))
    wanted = np.linspace(0, x[-1], count) + rng.uniform(-0.5, 0.5, count) * x[-1] / count
    chosen = sorted({int(np.abs(x - place).argmin()) for place in wanted} | {len(x) - 1})
    return replace(run, snapshots=tuple(_noisy(run.snapshots[index], noise, rng) for index in chosen))


def _noisy(snapshot: Snapshot, noise: float, rng: np.random.Generator) -> Snapshot:
    if not noise or snapshot.prefix_matching is None or snapshot.advantage is None or snapshot.icl_score is None:
        return snapshot
    return replace(
        snapshot,
        prefix_matching=(snapshot.prefix_matching + rng.normal(0, noise, snapshot.prefix_matching.shape)).astype(np.float32),
        advantage=snapshot.advantage + rng.normal(0, 8 * noise),
        icl_score=snapshot.icl_score + rng.normal(0, 3 * noise),
        icl_rows=None,
    )


def formed_at_the_end(run: TrainingRun) -> bool:
    """The reference for whether an induction head formed: the best head of the last twelfth of the snapshots."""
    best = run.best_of_heads("prefix_matching")[0]
    return bool(np.median(best[-max(3, len(best) // 12) :]) >= FORMED_AT_THE_END)


class Tally:
    """Verdicts and intervals of one part of the study."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Counter[str]] = defaultdict(Counter)
        self.covered: list[bool] = []
        self.near: list[bool] = []

    def add(self, row: Row, found: PhaseChange, run: TrainingRun, dense: PhaseChange) -> None:
        self.verdicts[row.expected][str(found.verdict)] += 1
        if row.expected != ABRUPT:
            return
        pairs = ((found.prefix_matching, dense.prefix_matching), (found.icl_score, dense.icl_score))
        for seen, known in pairs:
            if seen is None or known is None or seen.midpoint is None or known.midpoint is None:
                continue
            if known.verdict is Verdict.SHOWN:
                self._compare(seen, known, run)

    def _compare(self, seen: Change, known: Change, run: TrainingRun) -> None:
        """Whether the interval holds the reference; of what was found, how many snapshots lie between the two midpoints."""
        step, truth = seen.midpoint.step, known.midpoint.step.value
        self.covered.append(step.low * (1 - 1e-9) <= truth <= step.high * (1 + 1e-9))
        if seen.verdict is Verdict.SHOWN:
            between = np.searchsorted(run.steps, [step.value, truth])
            self.near.append(abs(int(between[1] - between[0])) <= 1)

    def share(self, expected: str, verdict: Verdict) -> float:
        counted = self.verdicts[expected]
        return counted[str(verdict)] / max(1, counted.total())

    def line(self, name: str) -> str:
        cells = [name]
        for expected in (ABRUPT, NONE, GRADUAL):
            counted = self.verdicts[expected]
            cells.append(f"{counted['SHOWN']} / {counted['UNDETERMINED']} / {counted['REFUTED']}")
        cells.append(f"{np.mean(self.near):.3f}" if self.near else "-")
        cells.append(f"{np.mean(self.covered):.3f}" if self.covered else "-")
        return "| " + " | ".join(cells) + " |"


HEAD = (
    "| record | abrupt: SHOWN / UNDETERMINED / REFUTED | none | gradual | midpoint within one snapshot | interval holds |\n"
    "|---|---|---|---|---|---|"
)


def judged(runs: list[tuple[Row, TrainingRun]]) -> tuple[dict[str, Tally], list[str]]:
    """All records, dense and thinned, and what was missed."""
    tallies = {"dense": Tally()} | {f"{count} snapshots, noise {noise}": Tally() for count in DENSITIES for noise in NOISES}
    rng = np.random.default_rng(0)
    for row, run in runs:
        dense = find_phase_changes(run)
        tallies["dense"].add(row, dense, run, dense)
        for count in DENSITIES:
            for noise in NOISES:
                thin = thinned(run, count, noise, rng)
                tallies[f"{count} snapshots, noise {noise}"].add(row, find_phase_changes(thin), thin, dense)
    missed = []
    if tallies["dense"].share(ABRUPT, Verdict.SHOWN) < THRESHOLDS["found"]:
        missed.append("abrupt changes found in dense records")
    every = list(tallies.values())
    alarms = sum(tally.verdicts[kind]["SHOWN"] for tally in every for kind in (NONE, GRADUAL))
    controls = sum(tally.verdicts[kind].total() for tally in every for kind in (NONE, GRADUAL))
    denied = sum(tally.verdicts[ABRUPT]["REFUTED"] for tally in every)
    asked = sum(tally.verdicts[ABRUPT].total() for tally in every)
    near = [value for tally in every for value in tally.near]
    covered = [value for name, tally in tallies.items() if name != "dense" for value in tally.covered]
    print(f"false alarms: {alarms} of {controls}; abrupt changes denied: {denied} of {asked}")
    print(
        f"midpoints within one snapshot: {np.mean(near):.4f} of {len(near)}; "
        f"intervals hold: {np.mean(covered):.4f} of {len(covered)}"
    )
    if alarms > THRESHOLDS["false alarms"] * controls:
        missed.append("false alarms on the controls")
    if np.mean(near) < THRESHOLDS["within one snapshot"]:
        missed.append("midpoints within one snapshot")
    low, high = THRESHOLDS["coverage"]
    if not low <= np.mean(covered) <= high:
        missed.append("coverage of the intervals")
    return tallies, missed


def simulated(count: int = 200) -> float:
    """How many intervals hold the midpoint that a simulated curve was made with."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(count):
        n = int(rng.choice([30, 60, 120]))
        x = np.sort(np.linspace(0, 2.6, n) + rng.uniform(-0.3, 0.3, n) * 2.6 / n)
        middle, width, likeness = rng.uniform(1.2, 1.9), rng.choice([0.08, 0.2, 0.3]), rng.choice([0.0, 0.5])
        sharp = 2 * np.log(9) / width
        shape = 1 / (1 + np.exp(-(x - middle) * sharp)) if rng.random() < 0.5 else np.clip((x - middle) * 0.8 / width + 0.5, 0, 1)
        noise = rng.normal(size=n)
        for index in range(1, n):
            noise[index] = likeness * noise[index - 1] + np.sqrt(1 - likeness**2) * noise[index]
        found = find_transition(x, 0.07 + 0.8 * shape + rng.choice([0.01, 0.05]) * noise)
        low, high = found.interval(1)
        held.append(low <= middle <= high)
    return float(np.mean(held))


def largest() -> tuple[float, float]:
    """Seconds and MB that the changes of a run of 10,000 snapshots of 1,024 heads take, beyond the run itself."""
    rng = np.random.default_rng(0)
    steps = np.arange(10_000)
    level = 0.8 / (1 + np.exp(-(np.log10(steps + 1) - 3) * 20))
    snapshots = [
        Snapshot(
            int(step),
            tokens=int(step) * 2048,
            loss=float(5 - value),
            advantage=float(8 * value),
            icl_score=float(-2 * value),
            prefix_matching=(0.05 * rng.random((32, 32), dtype=np.float32) + np.float32(value)),
        )
        for step, value in zip(steps, level, strict=True)
    ]
    run = TrainingRun("largest", tuple(snapshots))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = find_phase_changes(run)
    seconds = time.perf_counter() - began
    if found.verdict is not Verdict.SHOWN:
        raise SystemExit(f"the largest run is {found.verdict}: {found.summary}")
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def others() -> dict[str, Callable[[np.ndarray, np.ndarray], bool]]:
    """Other rules for whether a series changed abruptly, with the presets of the literature or our own thresholds."""

    def window(x: np.ndarray, y: np.ndarray) -> bool:
        """The largest change in any 0.5 decades is at least 0.2, and half of all that changes."""
        inside = [y[(x >= start) & (x <= start + 0.5)] for start in x]
        most = max(np.ptp(part) for part in inside)
        return bool(most >= 0.2 and most >= 0.5 * np.ptp(y))

    def logistic(x: np.ndarray, y: np.ndarray) -> bool:
        """scipy's least squares of a logistic and a line against a line, by BIC as if points were independent."""
        from scipy.optimize import curve_fit

        def curve(place, level, slope, height, middle, width):
            return level + slope * place + height / (1 + np.exp(-np.clip((place - middle) / width, -50, 50)))

        warnings.simplefilter("ignore")  # where nothing changes the curve is not determined
        try:
            found, _ = curve_fit(curve, x, y, p0=(y[0], 0, y[-1] - y[0], np.median(x), 0.1), maxfev=5000)
        except RuntimeError:
            return False
        line = np.polyval(np.polyfit(x, y, 1), x)
        n = len(x)
        left = [max(float(((y - fitted) ** 2).mean()), 1e-12) for fitted in (line, curve(x, *found))]
        better = n * np.log(left[0] / left[1]) - 3 * np.log(n)
        return bool(better > 10 and found[2] >= 0.2 and abs(found[4]) * 2 * np.log(9) <= 0.5)

    def change_points(x: np.ndarray, y: np.ndarray) -> bool:
        """ruptures: two or more constant levels by PELT, penalty 3 log n, at least 0.2 apart."""
        import ruptures

        values = (y - y.mean()) / max(y.std(), 1e-9)
        ends = ruptures.Pelt(model="l2", min_size=3).fit(values[:, None]).predict(pen=3 * np.log(len(y)))
        levels = [y[a:b].mean() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        return bool(len(levels) > 1 and max(levels) - min(levels) >= 0.2)

    rules = {"largest change in half a decade": window, "logistic by BIC, scipy": logistic}
    try:
        import ruptures  # noqa: F401
    except ImportError:
        print("ruptures is not installed, and not compared")
    else:
        rules["change points, ruptures"] = change_points
    return rules


def compared(runs: list[tuple[Row, TrainingRun]]) -> None:
    """Each rule on the best head's prefix matching and on the in-context learning score of the dense records."""
    print("\n| rule | series | abrupt found | fires on none | fires on gradual |\n|---|---|---|---|---|")
    for name, rule in {**others(), "ours": None}.items():
        for series in ("prefix_matching", "icl_score"):
            fired: dict[str, list[bool]] = defaultdict(list)
            for row, run in runs:
                fired[row.expected].append(_fires(rule, run, series))
            shares = " | ".join(f"{np.mean(fired[kind]):.3f}" for kind in (ABRUPT, NONE, GRADUAL))
            print(f"| {name} | {series.replace('_', ' ')} | {shares} |")


def _fires(rule: Callable[[np.ndarray, np.ndarray], bool] | None, run: TrainingRun, series: str) -> bool:
    if rule is None:
        found = find_phase_changes(run)
        change = found.prefix_matching if series == "prefix_matching" else found.icl_score
        return change is not None and change.verdict is Verdict.SHOWN
    values = run.best_of_heads(series)[0] if series == "prefix_matching" else -run.column(series)
    known = np.isfinite(values)
    return rule(np.log10(np.maximum(run.steps, 0.5))[known], values[known])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the seeds")
    parser.add_argument("--workers", type=int, default=2, help="processes that train")
    parser.add_argument("--grids", action="store_true", help="simulated changes on grids of public suites only")
    parser.add_argument("--lasting", action="store_true", help="simulated drops and orders only")
    arguments = parser.parse_args()
    kept_or_lost, missed_of_them = lasting.judged(12 if arguments.quick else 100)
    print("\n".join(kept_or_lost))
    if arguments.lasting:
        return _said(missed_of_them)
    on_grids, missed_there = grids.judged(12 if arguments.quick else 100)
    print("\n".join(["", *on_grids]))
    if arguments.grids:
        return _said(missed_there)
    began = time.perf_counter()
    every = list(recorded(arguments.workers, 0.1 if arguments.quick else 1.0))
    kept = [(row, run) for row, run in every if row.expected != ABRUPT or formed_at_the_end(run)]
    print(
        f"{len(every)} trainings recorded ({time.perf_counter() - began:.0f} s); {len(every) - len(kept)} without a head left out"
    )
    tallies, missed = judged(kept)
    print("\n" + HEAD)
    for name, tally in tallies.items():
        print(tally.line(name))
    held = simulated(50 if arguments.quick else 300)
    print(f"\nsimulated curves: the interval holds the midpoint of {held:.3f}")
    seconds, megabytes = largest()
    print(f"10,000 snapshots of 1,024 heads: {seconds:.2f} s, {megabytes:.0f} MB")
    if seconds > MOST["seconds"] or megabytes > MOST["MB"]:
        missed.append("the largest run")
    compared(kept)
    return _said([*missed, *missed_there, *missed_of_them])


def _said(missed: list[str]) -> int:
    """Print which thresholds were missed; the exit status."""
    for name in missed:
        print(f"MISSED: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
