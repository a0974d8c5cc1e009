"""Do heads match by meaning? What decides, and the assertion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, more_needed, priced_claim, until_clear
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.forward.calling import first_line
from pytest_induction.heads.criteria import min_excess
from pytest_induction.heads.prices import price_of_generalizing
from pytest_induction.heads.semantic import (
    COPIES,
    circuits_or_none,
    described,
    families_of,
    literal_scores,
    named_heads,
    scores_of,
)
from pytest_induction.interventions.arguments import HeadsLike
from pytest_induction.measuring.observing import (
    Array,
    ModelLike,
    provenance,
)
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.semantic import FAMILIES, Family
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Verdict
from pytest_induction.spending import spend_at_most, within_budget
from pytest_induction.statistics import mean_interval

MIN_EXCESS = min_excess()  # what a head that matches literally must have beyond its chance
NEAREST = 3  # heads of each family that are in the evidence
Ranked = list[tuple[HeadId, Estimate]]


def judge_generality(excess: Mapping[str, Array], heads: Sequence[HeadId], *, min_excess: float, error_rate: float) -> Judgement:
    """The heads are judged as a set: in each family some one of them must be above the threshold.

    `excess` has for each family the mass on the right places without the head's chance, (n_sequences, n_heads), a column for each
    of `heads`. Intervals hold for all heads and families together, at `error_rate`: SHOWN where in every family that of some
    head lies above `min_excess`, REFUTED where in some family those of all lie below.
    """
    ranked = _ranked(excess, heads, error_rate)
    best = {name: found[0] for name, found in ranked.items()}
    formed = {name: next((each for each in found if each[1].is_above(min_excess)), None) for name, found in ranked.items()}
    missing = [name for name, found in ranked.items() if all(estimate.is_below(min_excess) for _, estimate in found)]
    open_ones = [name for name in ranked if formed[name] is None and name not in missing]
    estimates = {f"{name} {head}": estimate for name, found in ranked.items() for head, estimate in found[:NEAREST]}
    if missing:
        held = [name for name, found in formed.items() if found is not None]
        also = f"; they do on {' and '.join(held)}" if held else ""
        summary = f"none of the heads matches by meaning on {_in_words(best, missing)}, below {min_excess:.3f}{also}"
        return Judgement(Verdict.REFUTED, "does_not_generalize", summary, estimates=estimates)
    if open_ones:
        near = {name: next(each for each in ranked[name] if not each[1].is_below(min_excess)) for name in open_ones}
        count = len(next(iter(excess.values())))
        more = max(more_needed(estimate, min_excess, count) for _, estimate in near.values())
        summary = f"whether a head matches by meaning on {_in_words(near, open_ones)} is too close to {min_excess:.3f} to tell"
        return Judgement(Verdict.UNDETERMINED, "generality_unclear", summary, estimates=estimates, more_sequences=more)
    clear = {name: found for name, found in formed.items() if found is not None}
    return Judgement(Verdict.SHOWN, "formed", f"heads match by meaning on {_in_words(clear, list(clear))}", estimates=estimates)


def _ranked(excess: Mapping[str, Array], heads: Sequence[HeadId], error_rate: float) -> dict[str, Ranked]:
    """The heads of each family with the interval of their excess, highest first."""
    found = mean_interval(np.concatenate(list(excess.values()), axis=1), error_rate, "excess")
    named = {}
    for number, name in enumerate(excess):
        part = found[number * len(heads) : (number + 1) * len(heads)]
        named[name] = sorted(zip(heads, part, strict=True), key=lambda each: -each[1].value)
    return named


def _in_words(best: Mapping[str, tuple[HeadId, Estimate]], names: Sequence[str]) -> str:
    *others, last = [f"{name} ({best[name][0]} has excess {_interval(best[name][1])})" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"


@user_facing
@priced_claim(price_of_generalizing)
def assert_heads_generalize(
    model: ModelLike,
    heads: HeadsLike,
    probes: str | Iterable[str] = FAMILIES,
    *,
    min_excess: float = MIN_EXCESS,
    classes: Any = None,
    pairs: Any = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the heads match by meaning too: by class, to the translation and by pattern, where nothing repeats literally.

    `heads`, `probes`, `classes` and `pairs` are those of `measure_generality`. The heads are judged as a set: in each family that
    is asked for some one of them must do it, and the evidence names which. It does where its attention mass on the places of the
    right meaning, without the higher one of what it has there when meaning is shuffled and on as many other places, lies with
    its whole interval above `min_excess`. REFUTED where in some family all of them lie below. What they copy is reported, and
    does not count: the paper's translation head has a copying score of 0.2.

    Sequences are drawn in rounds until every family is clear, at most `max_sequences` of each; then the verdict is UNDETERMINED,
    which fails too and says what would settle it. `budget` is as for `assert_has_induction_head`; what is reported beside the
    verdict is left out where it has no room for that. `error_rate` is for all heads, families and rounds together. One that is
    clear in the first round or the second costs about four forward passes of 12 rows of 101 tokens.

    Returns the evidence: `.estimates` has under "classes L1H0" and the like the excess of the strongest three heads in each
    family, under "classes L1H0 literal copy" and "... semantic copy" what the best one adds to the logit of the token that it
    should attend to and to that of what the token means, in nats, where weights are known, and under "literal L1H0" its prefix
    matching on repeated random tokens. Raises `ExpectationFailed`, which carries it, `ProbeError` where there are too few words
    or positions, or `ModelError` for a model whose attention cannot be read. Source: Olsson et al. 2022, argument 4.

    >>> from pytest_induction.planted import class_induction_head
    >>> assert_heads_generalize(class_induction_head(), "L1H0", "classes").reason
    'formed'
    """
    spend_at_most(budget)
    check_share("min_excess", min_excess)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = named_heads(subject, heads)
    families, notes = families_of(subject, probes, classes, pairs)
    judge = partial(_judged, asked, min_excess)
    circuits, unknown = circuits_or_none(subject)
    sequences = _Sequences(subject, families, seed, max(head.layer for head in asked) + 1, circuits, unknown)
    rounds, found, settle = until_clear(sequences.round, judge, whole_number("max_sequences", max_sequences, least=1), error_rate)
    best = {name: _best(found, name, asked) for name in families}
    about = provenance(subject, seed=seed, n_sequences=_count(rounds), probe=described(families))
    literal = within_budget(lambda: _literal(subject, best, seed, error_rate), dict[str, Estimate]())
    evidence = Evidence(
        claim="heads_generalize",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=replace(about, notes=about.notes + notes + sequences.unknown),
        estimates={**(found.estimates or {}), **_copies(rounds[0], best, error_rate), **literal},
        thresholds={"min_excess": min_excess},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


Drawn = Mapping[str, Mapping[str, Array]]  # of each family the excess and copies, (n_sequences, n_layers, n_heads), by name


@dataclass
class _Sequences:
    """Rounds of sequences of each family: masses of heads in the first `depth` layers, in the first round copies too.

    `unknown` says why copies are not known, where they are not: nothing that was measured is lost.
    """

    subject: ModelUnderTest
    families: Mapping[str, Family]
    seed: int
    depth: int
    circuits: Circuits | None
    unknown: tuple[str, ...]

    def round(self, n_sequences: int, number: int) -> Drawn:
        """One round of each family; the same for the same seed and number, whatever other families are asked for."""
        with progress("heads_generalize", 2 * len(self.families) * n_sequences):
            return {name: self._scores(name, n_sequences, number) for name in self.families}

    def _scores(self, name: str, n_sequences: int, number: int) -> Mapping[str, Array]:
        family, circuits = self.families[name], self.circuits if number == 0 else None
        key = ("generality", family, n_sequences, self.seed, number, self.depth, circuits is None)
        drawn = partial(family.probes, self.subject.space, n_sequences)
        rng = partial(np.random.default_rng, [self.seed, 6, FAMILIES.index(name), number])
        try:
            return self.subject.remember(key, lambda: scores_of(self.subject, drawn(rng()), circuits, depth=self.depth))
        except ModelError as error:
            if circuits is None:
                raise
            self.circuits, self.unknown = None, (f"what heads copy is not known: {first_line(error)}",)
            return self._scores(name, n_sequences, number)


def _judged(heads: Sequence[HeadId], min_excess: float, rounds: Sequence[Drawn], error_rate: float) -> Judgement:
    places = [head.layer for head in heads], [head.head for head in heads]
    excess = {name: np.concatenate([drawn[name]["excess"] for drawn in rounds])[:, places[0], places[1]] for name in rounds[0]}
    return judge_generality(excess, heads, min_excess=min_excess, error_rate=error_rate)


def _count(rounds: Sequence[Drawn]) -> int:
    return sum(len(next(iter(drawn.values()))["excess"]) for drawn in rounds)


def _best(found: Judgement, family: str, heads: Sequence[HeadId]) -> HeadId:
    """The head with the highest excess in a family."""
    estimates = found.estimates or {}
    named = [head for head in heads if f"{family} {head}" in estimates]
    return max(named, key=lambda head: estimates[f"{family} {head}"].value)


def _copies(first: Drawn, best: Mapping[str, HeadId], error_rate: float) -> dict[str, Estimate]:
    """What each family's best head copies, in nats, as far as that is known; patterns have no semantic copies."""
    found: dict[str, Estimate] = {}
    for name, head in best.items():
        for kind in (kind for kind in COPIES if kind in first[name]):
            of_head = first[name][kind][:, head.layer, head.head][:, None]
            found[f"{name} {head} {kind.replace('_', ' ')}"] = mean_interval(of_head, error_rate, "nats")[0]
    return found


def _literal(subject: ModelUnderTest, best: Mapping[str, HeadId], seed: int, error_rate: float) -> dict[str, Estimate]:
    """The prefix matching of the best heads on repeated random tokens."""
    heads = sorted(set(best.values()), key=lambda head: (head.layer, head.head))
    values = literal_scores(subject, seed, depth=heads[-1].layer + 1)
    return {f"literal {head}": mean_interval(values[:, head.layer, head.head][:, None], error_rate)[0] for head in heads}
