"""What every head attends to and whether it copies, and which heads the other exhibits are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from pytest_induction.assertions.heads import ERROR_RATE
from pytest_induction.copying import copy_effects
from pytest_induction.criteria import MATCHES, MIN_PERIODS, MIN_PREFIX_MATCHING, SUPPRESSES, suppresses
from pytest_induction.exhibits.making import why
from pytest_induction.exhibits.plain import ENDS
from pytest_induction.measure import Array, Round, probe_round
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, HeadEvidence
from pytest_induction.statistics import FIRST_LOOK, SHARE, look_sizes, mean_interval
from pytest_induction.verdicts.heads import chance_of, head_evidence

N_SEQUENCES = 2 * FIRST_LOOK  # the first two rounds of every verdict, which may be there already
COPY_EFFECT = ("copy_effect", "copy effect", "nats")


@dataclass(frozen=True)
class Seen:
    """Every head as it was measured: `heads` strongest first, `effects` their copy effects where these are known.

    `why_not` says why they are not.
    """

    found: Round
    heads: tuple[HeadEvidence, ...]
    effects: Array | None
    why_not: str

    @property
    def matching(self) -> tuple[HeadEvidence, ...]:
        """The heads that match prefixes by more than chance and position, and do not suppress what they match."""
        return tuple(head for head in self.heads if head.kind == MATCHES and head.periods_passed >= MIN_PERIODS)

    def about(self, seed: int) -> str:
        """What all of it was measured on."""
        return f"{len(self.found.periods)} sequences, {self.found.described}, seed {seed}"


def heads_seen(subject: ModelUnderTest) -> Seen:
    """The heads of a model, measured or remembered. Raises `UnsupportedModel` where its attention cannot be read."""
    _ = subject.reading
    return subject.remember(("heads for exhibits", subject.seed), lambda: _seen(subject))


def _seen(subject: ModelUnderTest) -> Seen:
    with progress("scores of heads", 3 * N_SEQUENCES):  # repeated rows, their controls, and rows for what heads copy
        sizes = enumerate(pairwise([0, *look_sizes(N_SEQUENCES)]))
        found = Round.join([probe_round(subject, size - drawn, subject.seed, number) for number, (drawn, size) in sizes])
        effects, why_not = _effects(subject)
    heads = head_evidence(found, ERROR_RATE, MIN_PREFIX_MATCHING)
    if effects is not None:
        named = mean_interval(effects[:, found.exists], ERROR_RATE, "nats")
        of_head = dict(zip(map(tuple, np.argwhere(found.exists).tolist()), named, strict=True))
        heads = [_with_effect(head, of_head[head.layer, head.head]) for head in heads]
    return Seen(found, tuple(heads), effects, why_not)


def _effects(subject: ModelUnderTest) -> tuple[Array | None, str]:
    try:
        return copy_effects(subject, N_SEQUENCES, subject.seed), ""
    except Exception as error:  # noqa: BLE001 - whatever it is: what heads attend to is drawn all the same
        return None, why(error)


def _with_effect(head: HeadEvidence, effect: Estimate) -> HeadEvidence:
    return replace(head, copy_effect=effect, kind=SUPPRESSES if head.kind == MATCHES and suppresses(effect) else head.kind)


def heads_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The exhibit "heads"."""
    seen = heads_seen(subject)
    found = seen.found
    measures = [
        (("prefix_matching", "prefix matching", SHARE), found.heads[:, 0], SHARE),
        (("excess", "prefix matching without chance", SHARE), found.heads[:, 0] - chance_of(found), "excess"),
        (("previous_token", "previous token", SHARE), found.heads[:, 1], SHARE),
        (("duplicate_token", "duplicate token", SHARE), found.heads[:, 2], SHARE),
        (("first_token", "first token", SHARE), found.heads[:, 3], SHARE),
    ]
    if seen.effects is not None:
        measures.append((COPY_EFFECT, seen.effects, "nats"))
    kinds: list[list[str | None]] = [[None] * subject.n_heads for _ in range(subject.n_layers)]
    for head in seen.heads:
        kinds[head.layer][head.head] = head.kind
    about = seen.about(subject.seed) + (f"; what heads copy is not known: {seen.why_not}" if seen.why_not else "")
    return {
        "layers": list(subject.reading.layers),
        "scores": [_score(names, values, unit, found) for names, values, unit in measures],
        "bar": MIN_PREFIX_MATCHING,
        "kinds": kinds,
        "confidence": 1 - ERROR_RATE,
        "about": about,
    }


def _score(names: tuple[str, str, str], values: Array, unit: str, found: Round) -> dict[str, Any]:
    """One score of every head with its interval; that of the excess may end below 0."""
    estimates = mean_interval(values[:, found.exists], ERROR_RATE, unit)
    score: dict[str, Any] = dict(zip(("name", "words", "unit"), names, strict=True))
    return score | {end: _matrix([getattr(each, end) for each in estimates], found) for end in ENDS}


def _matrix(numbers: Sequence[float], found: Round) -> Array:
    """Numbers of the heads that there are, in order, as (n_layers, n_heads)."""
    matrix = np.full(found.exists.shape, np.nan)
    matrix[found.exists] = numbers
    return matrix
