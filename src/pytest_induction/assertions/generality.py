"""The assertion that heads generalise: that they match by meaning where nothing repeats literally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.assertions.boundary import check_share, expect
from pytest_induction.assertions.looks import MAX_SEQUENCES, until_clear
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.generality import (
    COPIES,
    MASSES,
    circuits_or_none,
    copies_of,
    described,
    families_of,
    masses_of,
    named_heads,
)
from pytest_induction.interventions.chosen import HeadsLike
from pytest_induction.measure import measure_heads
from pytest_induction.models.calling import first_line
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import Array, ModelLike, provenance
from pytest_induction.probes.fuzzy import FAMILIES, Family
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Verdict
from pytest_induction.statistics import FIRST_LOOK, mean_interval
from pytest_induction.verdicts.generality import MIN_EXCESS, judge_generality
from pytest_induction.verdicts.judgement import Judgement


@user_facing
def assert_heads_generalize(
    model: ModelLike,
    heads: HeadsLike,
    probes: str | Iterable[str] = FAMILIES,
    *,
    min_excess: float = MIN_EXCESS,
    classes: Any = None,
    pairs: Any = None,
    max_sequences: int = MAX_SEQUENCES,
    confidence: float = 0.999,
    seed: int | None = None,
) -> Evidence:
    """Assert that the heads match by meaning too: by class, to the translation and by pattern, where nothing repeats literally.

    `heads`, `probes`, `classes` and `pairs` are those of `measure_generality`. The heads are judged as a set: in each family that
    is asked for some one of them must do it, and the evidence names which. It does where its attention mass on the places of the
    right meaning, without the higher one of what it has there when meaning is shuffled and on as many other places, lies with
    its whole interval above `min_excess`. NOT_FORMED where in some family all of them lie below. What they copy is reported, and
    does not count: the paper's translation head has a copying score of 0.2.

    Sequences are drawn in rounds until every family is clear, at most `max_sequences` of each; then the verdict is UNDETERMINED,
    which fails too and says what would settle it. `confidence` holds over all heads, families and rounds together.

    Returns the evidence: `.estimates` has under "classes L1H0" and the like the excess of the strongest three heads in each
    family, under "classes L1H0 literal copy" and "... semantic copy" what the best one adds to the logit of the token that it
    should attend to and to that of what the token means, in nats, where weights are known, and under "literal L1H0" its prefix
    matching on repeated random tokens. Raises `ExpectationFailed`, which carries it, `ProbeError` where there are too few words
    or positions, or `ModelError` for a model whose attention cannot be read. Source: Olsson et al. 2022, argument 4.

    >>> from pytest_induction.models.planted import class_induction_head
    >>> assert_heads_generalize(class_induction_head(), "L1H0", "classes").reason
    'formed'
    """
    check_share("min_excess", min_excess)
    check_share("confidence", confidence)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = named_heads(subject, heads)
    families, notes = families_of(subject, probes, classes, pairs)
    judge = partial(_judged, asked, min_excess)
    rounds, found, settle = until_clear(
        partial(_drawn, subject, families, seed), judge, whole_number("max_sequences", max_sequences, least=1), 1 - confidence
    )
    best = {name: _best(found, name, asked) for name in families}
    about = provenance(subject, seed=seed, n_sequences=_count(rounds), probe=described(families))
    copies, unknown = _copies(subject, families, best, (seed, 1 - confidence))
    evidence = Evidence(
        claim="heads_generalize",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=replace(about, notes=about.notes + notes + unknown),
        estimates={**(found.estimates or {}), **copies, **_literal(subject, best, (seed, 1 - confidence))},
        bars={"min_excess": min_excess},
        confidence=confidence,
        settle=settle,
    )
    return expect(evidence, Verdict.FORMED)


Drawn = Mapping[str, Array]  # of each family the excess, (n_sequences, n_layers, n_heads)


def _drawn(subject: ModelUnderTest, families: Mapping[str, Family], seed: int, n_sequences: int, number: int) -> Drawn:
    """One round of each family; the same for the same seed and number, whatever other families are asked for."""
    found = {}
    with progress("heads_generalize", 2 * len(families) * n_sequences):
        for name, family in families.items():
            found[name] = subject.remember(
                ("generality", family, n_sequences, seed, number),
                partial(_excess, subject, family, n_sequences, _generator(seed, name, number)),
            )
    return found


def _excess(subject: ModelUnderTest, family: Family, n_sequences: int, rng: np.random.Generator) -> Array:
    return masses_of(subject, family.probes(subject.space, n_sequences, rng))[:, MASSES.index("excess")]


def _generator(seed: int, family: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, 6, FAMILIES.index(family), number])


def _judged(heads: Sequence[HeadId], min_excess: float, rounds: Sequence[Drawn], error_rate: float) -> Judgement:
    places = [head.layer for head in heads], [head.head for head in heads]
    excess = {name: np.concatenate([drawn[name] for drawn in rounds])[:, places[0], places[1]] for name in rounds[0]}
    return judge_generality(excess, heads, min_excess=min_excess, error_rate=error_rate)


def _count(rounds: Sequence[Drawn]) -> int:
    return sum(len(next(iter(drawn.values()))) for drawn in rounds)


def _best(found: Judgement, family: str, heads: Sequence[HeadId]) -> HeadId:
    """The head with the highest excess in a family."""
    estimates = found.estimates or {}
    named = [head for head in heads if f"{family} {head}" in estimates]
    return max(named, key=lambda head: estimates[f"{family} {head}"].value)


def _copies(
    subject: ModelUnderTest, families: Mapping[str, Family], best: Mapping[str, HeadId], drawn: tuple[int, float]
) -> tuple[dict[str, Estimate], tuple[str, ...]]:
    """What each family's best head copies, in nats, and a note where that is not known: what has been measured is not lost."""
    seed, error_rate = drawn
    circuits, unknown = circuits_or_none(subject)
    if circuits is None:
        return {}, unknown
    found: dict[str, Estimate] = {}
    for name, head in best.items():
        probes = families[name].probes(subject.space, FIRST_LOOK, _generator(seed, name, 0))
        try:
            copies = copies_of(subject, circuits, probes)[:, :, head.layer, head.head]
        except ModelError as error:
            return found, (f"what heads copy is not known: {first_line(error)}",)
        for kind, values in zip(COPIES, copies.T, strict=False):  # patterns have no semantic copies
            found[f"{name} {head} {kind.replace('_', ' ')}"] = mean_interval(values[:, None], error_rate, "nats")[0]
    return found, ()


def _literal(subject: ModelUnderTest, best: Mapping[str, HeadId], drawn: tuple[int, float]) -> dict[str, Estimate]:
    """The prefix matching of the best heads on repeated random tokens."""
    seed, error_rate = drawn
    values = measure_heads(subject, n_sequences=FIRST_LOOK, seed=seed).per_sequence["prefix_matching"]
    heads = sorted(set(best.values()), key=lambda head: (head.layer, head.head))
    return {f"literal {head}": mean_interval(values[:, head.layer, head.head][:, None], error_rate)[0] for head in heads}
