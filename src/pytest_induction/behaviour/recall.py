"""Associative recall: does the model know which value followed a key, among several pairs and over a distance?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.behaviour.choices import Choices, choices
from pytest_induction.behaviour.judging import FURTHEST
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, checked_sampling, priced_claim, until_clear
from pytest_induction.display import Picture, Plotted, View, view_of
from pytest_induction.errors import ArgumentError, ProbeError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.recall import RecallRows, RecallShape, recall_rows
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, Evidence, Provenance, Verdict
from pytest_induction.spending import Price, priced, spend_at_most
from pytest_induction.statistics import FIRST_LOOK, bounded_intervals, mean_of_shares, more_rows

PAIRS = 8
ABOVE_CHANCE = 0.1  # of a share: how much more than guessing among the values counts as recall, where nothing else is said
CURVE_PAIRS = (2, 4, 8, 16, 32)
CURVE_ROWS = 24
Given = Mapping[str, Any]


@dataclass(frozen=True)
class RecallPoint:
    """Recall of `pairs` pairs over a mean `distance` in tokens, each with its interval; `chance` is that of a guess.

    `recall_accuracy` is the share of queries at which the right value is likelier than every other value of the row, in [0, 1],
    `top1_accuracy` that at which it is the likeliest of all tokens; `log_prob` its log-probability, in nats.
    """

    pairs: int
    distance: int
    chance: float
    recall_accuracy: Estimate
    top1_accuracy: Estimate
    log_prob: Estimate


def _drawn(x: str, curves: Mapping[str, Sequence[RecallPoint]]) -> Picture:
    """The picture of recall over one of `pairs` and `distance`, and the chance of it."""
    series = []
    for name, points in curves.items():
        found = [each.recall_accuracy for each in points]
        ends = {"low": [each.low for each in found], "high": [each.high for each in found]}
        series.append({"name": name, "x": [getattr(each, x) for each in points], "y": [each.value for each in found], **ends})
    if len(curves) == 1:
        points = next(iter(curves.values()))
        series.append({"name": "chance", "x": [getattr(each, x) for each in points], "y": [each.chance for each in points]})
    return "curves", {"x": x, "y": "recall", "series": series}


@dataclass(frozen=True, repr=False)
class RecallCurve(Plotted):
    """How much a model recalls, by the number of pairs and the distance. `str()` gives a table."""

    points: tuple[RecallPoint, ...]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, pictures=self._pictures)

    def _pictures(self) -> list[Picture]:
        """Recall by distance, a curve for each number of pairs; by the number of pairs where each has one distance."""
        by = {pairs: [each for each in self.points if each.pairs == pairs] for pairs in {each.pairs for each in self.points}}
        if all(len(points) == 1 for points in by.values()):
            return [_drawn("pairs", {"recall": sorted(self.points, key=lambda point: point.pairs)})]
        return [_drawn("distance", {f"{pairs} pairs": points for pairs, points in sorted(by.items())})]

    def __str__(self) -> str:
        head = f"{'pairs':>5} {'distance':>8} {'recalled':>8}  {'interval':^14} {'chance':>6} {'top-1':>6} {'log p':>7}"
        return "\n".join([head, *map(_line, self.points)])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {"schema": SCHEMA_VERSION, **asdict(self), "provenance": self.provenance.to_dict()}


def _line(point: RecallPoint) -> str:
    found = point.recall_accuracy
    interval = f"{found.low:.3f}..{found.high:.3f}"
    return (
        f"{point.pairs:>5} {point.distance:>8} {found.value:>8.3f}  {interval:^14} {point.chance:>6.3f} "
        f"{point.top1_accuracy.value:>6.3f} {point.log_prob.value:>7.2f}"
    )


def price_of_recall(subject: ModelUnderTest, given: Given) -> Price:
    """Of the assertion: rows of one shape, from the first look to all."""
    length = _positions(subject, RecallShape.of(subject.space, given["pairs"], given["distance"], given["key_length"]))
    return Price(FIRST_LOOK * length, given["max_sequences"] * length)


def price_of_curve(subject: ModelUnderTest, given: Given) -> Price:
    """Of the curve: as many rows of every shape."""
    shapes = _shapes(subject, given["pairs"], given["distances"], given["key_length"])
    tokens = given["n_sequences"] * sum(_positions(subject, shape) for shape in shapes)
    return Price(tokens, tokens)


def _positions(subject: ModelUnderTest, shape: RecallShape) -> int:
    return shape.length + int(subject.space.bos_id is not None)


@user_facing
@priced(price_of_curve)
def measure_recall(
    model: ModelLike,
    *,
    pairs: int | Iterable[int] | None = None,
    distances: int | Iterable[int] | None = None,
    key_length: int = 1,
    n_sequences: int = CURVE_ROWS,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> RecallCurve:
    """Measure how much the model recalls of key-value pairs, for each number of `pairs` and each of the `distances`.

    In each row so many pairs of random tokens stand once, and then each key again, in random order, `distances` tokens after its
    pair on average. Without `distances` keys are asked right behind the pairs. Of the default numbers of pairs, 2 to 32, those
    are measured that fit the model; so are only those distances that all pairs of a number fit in. A key has `key_length`
    tokens, all of which must match.

    Logits alone are read: any architecture. Intervals are of each point by itself, over rows. Raises `ProbeError` where nothing
    that was asked for fits the model. After the multi-query associative recall of Arora et al. 2023; unlike there, a
    right value must be likelier than the other values of the row, not than the whole vocabulary, which pretrained
    models are too unsure about random tokens for.

    >>> from pytest_induction.planted import induction_head
    >>> measure_recall(induction_head(), pairs=4).points[0].recall_accuracy.value
    1.0
    """
    check_share("error_rate", error_rate)
    subject = load_model(model)
    count = whole_number("n_sequences", n_sequences, least=2)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    shapes = _shapes(subject, pairs, distances, key_length)
    with progress("recall", count * len(shapes)):
        points = tuple(_point(subject, shape, count, seed, error_rate) for shape in shapes)
    return RecallCurve(points, provenance(subject, seed=seed, n_sequences=count, probe="key-value pairs of random tokens"))


def _shapes(subject: ModelUnderTest, pairs: Any, distances: Any, key_length: int) -> list[RecallShape]:
    """What was asked for; of the default numbers of pairs those that fit, of several distances those that they fit in."""
    counts = [whole_number("pairs", each, least=2) for each in _several("pairs", CURVE_PAIRS if pairs is None else pairs)]
    unit = whole_number("key_length", key_length, least=1) + 1
    asked: list[tuple[int, int | None]] = [(count, None) for count in counts]
    if distances is not None:
        far = [whole_number("distances", each, least=1) for each in _several("distances", distances)]
        asked = [(count, each) for count in counts for each in far if each >= count * unit]
        if not asked:
            raise ArgumentError(
                f"`distances` must be at least the {min(counts) * unit} tokens that {min(counts)} pairs take, got {far}"
            )
    if pairs is not None:
        return [RecallShape.of(subject.space, *each, key_length) for each in asked]
    found = list(filter(None, (_fitting(subject, *each, key_length) for each in asked)))
    return found or [RecallShape.of(subject.space, *asked[0], key_length)]  # which raises


def _fitting(subject: ModelUnderTest, pairs: int, distance: int | None, key_length: int) -> RecallShape | None:
    """Such rows, where they fit the model."""
    try:
        return RecallShape.of(subject.space, pairs, distance, key_length)
    except ProbeError:
        return None


def _several(name: str, given: Any) -> Sequence[Any]:
    """One number, or several. Raises `ArgumentError` for none."""
    found = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not found:
        raise ArgumentError(f"`{name}` must be a number or several, got none")
    return found


def _point(subject: ModelUnderTest, shape: RecallShape, count: int, seed: int, error_rate: float) -> RecallPoint:
    found = _estimates([_measured(subject, shape, seed, count, 0)], error_rate)
    return RecallPoint(shape.pairs, shape.distance, 1 / shape.pairs, **found)


def _estimates(rounds: Sequence[Choices], error_rate: float) -> dict[str, Estimate]:
    """What is said of rows, by its name in `RecallPoint`."""
    best, likeliest, log_prob = (
        np.concatenate([getattr(each, name).mean(1) for each in rounds]) for name in ("is_best", "is_likeliest", "log_prob")
    )
    return {
        "recall_accuracy": mean_of_shares(best, error_rate),
        "top1_accuracy": mean_of_shares(likeliest, error_rate),
        "log_prob": _log_prob_interval(log_prob, error_rate),
    }


def _log_prob_interval(values: Array, error_rate: float) -> Estimate:
    """Of the mean over rows (n,), in nats, where a row counts as -40 at least."""
    half = error_rate / 2
    return bounded_intervals(values[:, None].clip(-FURTHEST, 0), half, half, lowest=-FURTHEST, highest=0.0, unit="nats")[0]


def _measured(subject: ModelUnderTest, shape: RecallShape, seed: int, count: int, number: int) -> Choices:
    def measure() -> Choices:
        rng = np.random.default_rng([seed, 11, number, shape.pairs, shape.distance, shape.key_length])
        rows = recall_rows(subject.space, shape, rng=rng, n_sequences=count)
        return _choices(subject, rows)

    return subject.remember(("recall", shape, seed, count, number), measure)


def _choices(subject: ModelUnderTest, rows: RecallRows) -> Choices:
    candidates = np.broadcast_to(rows.values[:, None, :], (rows.n_sequences, rows.n_pairs, rows.n_pairs))
    return choices(subject, rows.tokens, rows.queries, rows.values, np.ascontiguousarray(candidates))


@user_facing
@priced_claim(price_of_recall)
def assert_recalls(
    model: ModelLike,
    *,
    pairs: int = PAIRS,
    distance: int | None = None,
    key_length: int = 1,
    min_accuracy: float | None = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model recalls which value followed a key, of `pairs` pairs and over a mean `distance` in tokens.

    The rows are those of `measure_recall`. At each key that is asked the right value must be likelier than every other value of
    the row, for a share of the queries above `min_accuracy`; by default 0.1 above a guess, 1 / `pairs`. What uses only the places
    or the order of the tokens guesses: keys are asked in random order, and no value is given away. Logits alone are read, so
    that attention, state-space and hybrid models are held to the same.

    `budget` is as for `assert_has_induction_head`. Returns the evidence, with `recall_accuracy`, `top1_accuracy` and the right
    value's `log_prob` in nats; raises as that does, `ArgumentError` for a distance that the pairs do not fit in, and
    `ProbeError` where the model's context or vocabulary is too small. Source: Arora et al. 2023 (Zoology).

    >>> from pytest_induction.planted import induction_head
    >>> assert_recalls(induction_head(), pairs=4).reason
    'recalls'
    """
    spend_at_most(budget)
    subject = load_model(model)
    shape = RecallShape.of(subject.space, pairs, distance, key_length)
    threshold = 1 / shape.pairs + ABOVE_CHANCE if min_accuracy is None else min_accuracy
    check_share("min_accuracy", threshold)
    sampling = checked_sampling(subject, (max_sequences, error_rate, seed))

    def draw(count: int, number: int) -> Choices:
        with progress("recalls", count):
            return _measured(subject, shape, sampling.seed, count, number)

    judge = partial(_judged, shape, threshold)
    rounds, found, settle = until_clear(draw, judge, sampling.max_sequences, error_rate)
    count = sum(len(each.is_best) for each in rounds)
    described = f"{shape.pairs} key-value pairs, {shape.distance} tokens back on average"
    evidence = Evidence(
        claim="recalls",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(subject, seed=sampling.seed, n_sequences=count, probe=described),
        estimates=found.estimates or {},
        thresholds={"min_accuracy": threshold},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


def _judged(shape: RecallShape, threshold: float, rounds: Sequence[Choices], error_rate: float) -> Judgement:
    estimates = _estimates(rounds, error_rate)
    recall, count = estimates["recall_accuracy"], sum(len(each.is_best) for each in rounds)
    seen = (
        f"{recall.value:.3f} of the values of {shape.pairs} pairs, {shape.distance} tokens back on average, where guessing gives "
        f"{1 / shape.pairs:.3f}"
    )
    if recall.is_above(threshold):
        return Judgement(Verdict.SHOWN, "recalls", f"the model recalls {seen}", estimates=estimates)
    if recall.is_below(threshold):
        return Judgement(Verdict.REFUTED, "does_not_recall", f"the model recalls only {seen}", estimates=estimates)
    more = more_rows(recall, threshold, count)
    summary = f"the model recalls {seen}, too close to {threshold:.3f}"
    return Judgement(Verdict.UNDETERMINED, "recall_unclear", summary, estimates=estimates, more_sequences=more)
