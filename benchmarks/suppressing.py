"""What is known of heads that suppress what is predicted, for `study_verdicts.py`: planted ones, random models, and made rows.

A planted head has the effect of its formula: it lowers what the induction head before it predicts by its strength, less the mean
over the vocabulary. Rows without a model are of a head whose mean effect is the threshold: a few predictions are lowered much.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction import Evidence, ExpectationFailed, Verdict, assert_copy_suppression, load_model, planted
from pytest_induction.deciding import ERROR_RATE, Judgement, until_clear
from pytest_induction.errors import InductionError
from pytest_induction.heads.suppression import MIN_SUPPRESSION, N_QUERIES, judge_suppression
from pytest_induction.measuring.observing import Array, joined
from pytest_induction.records import HeadId

Known = tuple[Evidence | Judgement, Verdict | None]
NEAR = 0.02  # nats from the threshold: a planted head so near to it has no known answer
HEAD = HeadId(0, 0)
MOST_ROWS = 48
SHAPES = {"1 of 10 predictions": 0.1, "1 of 3 predictions": 1 / 3}  # how many are lowered, so that the mean is the threshold


def evidence_of(model: object, rows: NDArray[np.int64], **options: Any) -> Evidence:
    """Whichever way it goes."""
    try:
        return assert_copy_suppression(model, rows, **options)
    except ExpectationFailed as failure:
        return failure.evidence


def planted_suppressors(rows_of: Any, count: int, seed: int) -> Iterator[Known]:
    """Heads of varied strength, sharpness and size, each named; or a head beside one, which does nothing."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        d_vocab, strength = int(rng.choice([30, 40])), float(rng.choice([0.0, 0.05, 0.2, 1.0, 8.0]))
        model = planted.prediction_suppression_head(
            strength=strength, sharpness=float(rng.uniform(24, 64)), n_heads=int(rng.integers(2, 5)), d_vocab=d_vocab, n_ctx=64
        )
        is_beside = index % 4 == 0
        effect = 0.0 if is_beside else strength / d_vocab - strength
        wanted = Verdict.SHOWN if effect < -MIN_SUPPRESSION else Verdict.REFUTED
        heads = "L2H1" if is_beside else "L2H0"
        near = abs(effect + MIN_SUPPRESSION) < NEAR
        yield evidence_of(model, rows_of(60, d_vocab, 64, index), heads=heads, seed=index), None if near else wanted


def random_suppressors(rows_of: Any, models: Iterable[object]) -> Iterator[Known]:
    """Random models, none of which may be SHOWN; those whose weights are refused are left out."""
    for index, model in enumerate(models):
        subject = load_model(model)
        rows = rows_of(60, min(40, subject.space.d_vocab), min(64, subject.space.n_ctx or 64), index)
        try:
            yield evidence_of(subject, rows, seed=index), Verdict.REFUTED
        except InductionError:
            continue


def rows_at_the_threshold(shape: str, count: int) -> Iterator[Known]:
    """So many seeds of one shape: whatever is said of its effect, either way, is wrong."""
    for seed in range(count):
        rng = np.random.default_rng([seed, 8])
        yield (
            until_clear(lambda size, _, rng=rng: _rows(SHAPES[shape], size, rng), _judged, MOST_ROWS, ERROR_RATE)[1],
            Verdict.UNDETERMINED,
        )


def _rows(chance: float, size: int, rng: np.random.Generator) -> Mapping[str, Array]:
    """Sums of rows that differ in how much is predicted, and in how often that is lowered."""
    counts = 1 + rng.binomial(N_QUERIES - 1, rng.beta(4, 4, size))
    lowered = rng.binomial(counts, rng.beta(4, 4 * (1 - chance) / chance, size))
    effects = -(MIN_SUPPRESSION / chance) * rng.gamma(np.maximum(2.0 * lowered, 1e-9)) / 2
    nothing, masses = np.zeros((size, 1, 1)), counts.astype(float)[:, None, None]
    sums = {"effect": effects[:, None, None], "other_effect": nothing, "mass": masses, "other_mass": nothing}
    return sums | {"predictions": counts.astype(float)[:, None]}


def _judged(rounds: list[Mapping[str, Array]], rate: float) -> Judgement:
    return judge_suppression(joined(rounds), [HEAD], N_QUERIES, is_named=True, least=MIN_SUPPRESSION, error_rate=rate)
