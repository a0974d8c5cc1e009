"""How often intervals are wrong, and how many rows they take: `make compare-intervals` prints the tables of docs/decisions.md.

Rows of one head are drawn in rounds of 21, three of each of seven periods, up to 231. After each round an interval is looked at:
does it lie above the threshold, or below? Each end may be wrong at 2.5e-4 over all looks, a quarter of the 0.001 of a verdict; a
verdict divides that further among the heads. Intervals that hold for one look only share it evenly among the eleven.

The first table has the share of trials in which the wrong side is claimed at any look, the second the median number of rows until
the right side is, "more" where 224 are too few. Real heads are those of `fixtures/pretrained/rows.json`. The last lines are of
the rule for the advantage, which has no interval for all distributions: how often rows whose mean is below its threshold are
called above it, at the looks that a verdict takes; the second one is beyond what is claimed. Seeds are fixed,
so the numbers are the same each time; `--quick` takes a twentieth of the trials. Exits with 1 where betting, or that rule, is
wrong too often to be chance.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from pretrained_rows import HeadRows, stored
from pytest_induction.behaviour.judging import AGREEING, FURTHEST, advantage_interval
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.heads.criteria import MAX_PREFIX_MATCHING, MIN_ADVANTAGE, MIN_PREFIX_MATCHING
from pytest_induction.heads.search import COPY_ROWS, OF_BEHAVIOUR
from pytest_induction.measuring.observing import Array
from pytest_induction.statistics import SMALLEST_SPREAD, is_above, student_quantile
from skewed import Draw, normal, resampled, some

ROUND, LOOKS = 21, 11
RATE = 2.5e-4  # of each end, over all looks
TRIALS, AT_ONCE = 20_000, 2_000
PERIODS = (13, 15, 17, 19, 21, 23, 25)  # of both pretrained models
Claims = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # of each trial: is it claimed to be above, to be below
Rule = Callable[[Array, float], Claims]  # from rows (n, trials) so far, and a threshold


def student(rows: Array, threshold: float) -> Claims:
    half = student_quantile(RATE / LOOKS, len(rows) - 1) * np.maximum(rows.std(axis=0, ddof=1), SMALLEST_SPREAD)
    return apart(rows, half / math.sqrt(len(rows)), threshold)


def agreeing(rows: Array, threshold: float) -> Claims:
    """Student's, but for the first look: that counts only where all rows lie on one side of the threshold."""
    above, below = student(rows, threshold)
    if len(rows) > ROUND:
        return above, below
    return above & (rows > threshold).all(axis=0), below & (rows < threshold).all(axis=0)


def hoeffding(rows: Array, threshold: float) -> Claims:
    return apart(rows, math.sqrt(math.log(LOOKS / RATE) / (2 * len(rows))), threshold)


def bernstein(rows: Array, threshold: float) -> Claims:
    """With the spread of the rows themselves (Maurer and Pontil 2009)."""
    count, log = len(rows), math.log(2 * LOOKS / RATE)
    return apart(rows, np.sqrt(2 * rows.var(axis=0, ddof=1) * log / count) + 7 * log / (3 * (count - 1)), threshold)


def apart(rows: Array, half: Array | float, threshold: float) -> Claims:
    means = rows.mean(axis=0)
    return means - half > threshold, means + half < threshold


def betting(rows: Array, threshold: float) -> Claims:
    """The package's own."""
    return is_above(rows, threshold, RATE), is_above(1 - rows, 1 - threshold, RATE)


RULES: dict[str, Rule] = {
    "Student": student,
    "agreement first": agreeing,
    "Hoeffding": hoeffding,
    "empirical Bernstein": bernstein,
    "betting": betting,
}


@dataclass(frozen=True)
class Case:
    """Rows to draw, the threshold, and which claims about their mean are wrong; those of several heads count together.

    A clear case is one of which it is told how many rows it takes.
    """

    name: str
    draws: Sequence[Draw]
    threshold: float
    above: bool
    below: bool
    is_clear: bool = False


def of_real_heads(mean: float) -> list[Draw]:
    return [resampled(head, mean) for head in heads()]


@cache
def heads() -> list[HeadRows]:
    return stored()


def hard_cases() -> Iterator[Case]:
    at, none = MIN_PREFIX_MATCHING, MAX_PREFIX_MATCHING
    yield Case("1 in 35 % of rows, else 0 (mean 0.35)", [some(0.35, 1.0, 0.0)], at, above=False, below=True)
    yield Case("0.33 in 90 %, else 0 (mean 0.297)", [some(0.9, 0.33, 0.0)], at, above=True, below=False)
    yield Case("1 in 11 %, else 0 (mean 0.11)", [some(0.11, 1.0, 0.0)], none, above=False, below=True)
    for mean in (at, none):
        yield Case(f"eight real heads, moved to {mean:g}", of_real_heads(mean), mean, above=True, below=True)


def clear_cases() -> Iterator[Case]:
    for mean in (0.9, 0.42, 0.05):
        side = mean > MIN_PREFIX_MATCHING
        yield Case(f"mean {mean:g}, spread 0.08", [limited(mean)], MIN_PREFIX_MATCHING, above=not side, below=side, is_clear=True)
    for head in heads():
        side = head.mean > MIN_PREFIX_MATCHING
        name = f"{head.name} as it is (mean {head.mean:.2f})"
        yield Case(name, [resampled(head)], MIN_PREFIX_MATCHING, above=not side, below=side, is_clear=True)


def limited(mean: float) -> Draw:
    """Normal, and what lies beyond 0 or 1 there."""
    draw = normal(mean, 0.08)
    return lambda rng, periods: np.clip(draw(rng, periods), 0.0, 1.0)


@dataclass(frozen=True)
class Outcome:
    """Of all trials: how many claimed what is wrong at any look, and how many rows it took to claim what is right."""

    trials: int
    wrong: int
    rows: float

    @property
    def share(self) -> float:
        return self.wrong / self.trials


Found = list[tuple[Case, dict[str, Outcome]]]  # of every rule


def outcomes(case: Case, trials: int) -> dict[str, Outcome]:
    """Of every rule, on the same rows."""
    wrong = dict.fromkeys(RULES, 0)
    needed: dict[str, list[Array]] = {name: [] for name in RULES}
    of_each = trials // len(case.draws)
    for number, draw in enumerate(case.draws):
        rng = np.random.default_rng([2026, number])
        for start in range(0, of_each, AT_ONCE):
            rows = drawn(draw, rng, min(AT_ONCE, of_each - start))
            for name, rule in RULES.items():
                bad, first = followed(case, rule, rows)
                wrong[name] += int(bad.sum())
                needed[name].append(first)
    seen = of_each * len(case.draws)
    return {name: Outcome(seen, wrong[name], float(np.median(np.concatenate(needed[name])))) for name in RULES}


def drawn(draw: Draw, rng: np.random.Generator, trials: int) -> Array:
    """Rows (231, trials), each round with as many of each period."""
    periods = np.tile(np.repeat(PERIODS, ROUND // len(PERIODS)), LOOKS)
    return draw(rng, np.repeat(periods, trials)).reshape(len(periods), trials)


def followed(case: Case, rule: Rule, rows: Array) -> tuple[NDArray[np.bool_], Array]:
    """Look by look: whether a trial ever claims what is wrong, and at how many rows it first claims what is not."""
    bad, first = np.zeros(rows.shape[1], bool), np.full(rows.shape[1], np.inf)
    for look in range(1, LOOKS + 1):
        above, below = rule(rows[: look * ROUND], case.threshold)
        bad |= (above & case.above) | (below & case.below)
        right = (above & ~np.bool_(case.above)) | (below & ~np.bool_(case.below))
        first[right & np.isinf(first)] = look * ROUND
    return bad, first


def called_above(share: float, most: float, least: float, trials: int) -> int:
    """How often the mean advantage is called above 0.5 nats, `most` being that of a share of the rows, `least` of the others.

    Looks are those of a verdict: after a round and the first rows on what heads write, then after each more of these.
    """
    rng, more, last = np.random.default_rng(2026), COPY_ROWS * len(PERIODS), 2 * ROUND * LOOKS
    rate, found = ERROR_RATE * OF_BEHAVIOUR, 0
    for start in range(0, trials, AT_ONCE):
        rows = np.where(rng.random((last, min(AT_ONCE, trials - start))) < share, most, least)
        for count in range(ROUND + more, last + 1, more):
            agree = (rows[:count] > MIN_ADVANTAGE).all(axis=0) & (count >= AGREEING)
            by_betting = is_above(as_shares(rows[:count]), as_shares(MIN_ADVANTAGE), rate / 2)
            called = by_betting & ~agree
            for column in np.flatnonzero(agree):
                called[column] = advantage_interval(rows[:count, column], MIN_ADVANTAGE, rate).is_above(MIN_ADVANTAGE)
            found += int(called.sum())
            rows = rows[:, ~called]
    return found


def as_shares(nats: Array | float) -> Any:
    """From 0 to 1, as far as nats count."""
    return (np.clip(nats, -FURTHEST, FURTHEST) + FURTHEST) / (2 * FURTHEST)


def bounds(wrong: int, trials: int) -> tuple[float, float]:
    """Of a rate, each at 95 %, after Clopper and Pearson."""
    low = 0.0 if wrong == 0 else float(beta.ppf(0.05, wrong, trials - wrong + 1))
    return low, 1.0 if wrong == trials else float(beta.ppf(0.95, wrong + 1, trials - wrong))


def percent(share: float) -> str:
    return "0" if share == 0 else f"{100 * share:.2g} %"


def table(title: str, rows: Iterable[Sequence[str]]) -> str:
    head, *lines = (f"| {' | '.join(line)} |" for line in ([title, *RULES], *rows))
    return "\n".join([head, "|---" * (1 + len(RULES)) + "|", *lines]) + "\n"


def wrong_claims(found: Found) -> str:
    """The first table: hard cases one by one, clear ones together."""
    rows = [(case.name, *(percent(of[name].share) for name in RULES)) for case, of in found if not case.is_clear]
    clear = [of for case, of in found if case.is_clear]
    together = (percent(sum(of[name].share for of in clear) / len(clear)) for name in RULES)
    return table("wrong at any look", [*rows, ("clear cases, all of the next table", *together)])


def rows_needed(found: Found) -> str:
    """The second table, of clear cases."""
    numbers = {case.name: [of[name].rows for name in RULES] for case, of in found if case.is_clear}
    told = {name: ["more" if math.isinf(rows) else f"{rows:.0f}" for rows in needed] for name, needed in numbers.items()}
    return table("rows until clear, median", ((name, *cells) for name, cells in told.items()))


def missed(found: Found) -> list[str]:
    """Where betting is wrong more often than its rate, and that is no chance."""
    return [
        f"betting is wrong in {of['betting'].wrong} of {of['betting'].trials}: {case.name}"
        for case, of in found
        if bounds(of["betting"].wrong, of["betting"].trials)[0] > RATE * (case.above + case.below)
    ]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the trials")
    trials = TRIALS // (20 if parser.parse_args(given).quick else 1)
    found: Found = [(case, outcomes(case, trials)) for case in (*hard_cases(), *clear_cases())]
    print(wrong_claims(found), rows_needed(found), sep="\n")
    draws, too_often = 2 * trials, missed(found)
    for share, most, is_claimed in ((0.85, 6.0, True), (0.95, 1.0, False)):
        wrong = called_above(share, most, -FURTHEST, draws)
        low, high = bounds(wrong, draws)
        told = f"in {wrong} of {draws} draws, at most {percent(high)} (95 %)"
        print(f"An advantage of {most:+g} in {share:.0%} of rows, else {-FURTHEST:g}, is called above {MIN_ADVANTAGE} {told}.")
        if is_claimed and low > ERROR_RATE:
            too_often.append(f"an advantage below {MIN_ADVANTAGE} is called above it {told}")
    print(*too_often, sep="\n", end="\n" if too_often else "", file=sys.stderr)
    return int(bool(too_often))


if __name__ == "__main__":
    sys.exit(main())
