"""Measure what the heads of a model do for it: the loss with each one ablated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.interventions.attribution import attributions
from pytest_induction.interventions.chosen import HeadsLike, all_heads, heads_of
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import Ablating, HeadSet, Passes
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import Array, ModelLike, describe, plain, probes_of, provenance
from pytest_induction.probes.sequences import COPIES, Probe
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Provenance

SCREENED = 6  # one of so many heads is measured after a screening
FEWEST_SCREENED = 8


@dataclass(frozen=True)
class AblationScores:
    """By how many nats the loss on the last copy of repeated tokens rises when a head is ablated.

    `effect` (n_layers, n_heads) is the mean over sequences; NaN for one that was not measured. `attribution`, same shape, is by
    how much the right token's logit would fall to first order, in nats, where heads were screened, else None. `of_all` is the
    effect of ablating every head at once: where it is 0, the loss does not depend on attention, and no effect says anything.
    `per_sequence` holds `effect` and `attribution`, (n_sequences, n_layers, n_heads), and `of_all` and the `loss` of the model as
    it is, (n_sequences,).
    """

    effect: Array
    attribution: Array | None
    of_all: float
    loss: float
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            "effect": plain(self.effect),
            "attribution": None if self.attribution is None else plain(self.attribution),
            "of_all": self.of_all,
            "loss": self.loss,
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


@user_facing
def measure_ablations(
    model: ModelLike,
    *,
    heads: HeadsLike | None = None,
    how: Replacement = "zero",
    pattern_preserving: bool = False,
    screen: bool | int = False,
    n_sequences: int = 6,
    seed: int | None = None,
) -> AblationScores:
    """Measure by how much the loss on repeated random tokens rises with each head ablated, all heads or those given.

    `how` is what a head gives instead of what it finds: "zero", "mean" (over all rows and positions) or "resample" (what it finds
    on another row of repeated tokens). Everything after the head is computed anew, unless `pattern_preserving`: then all heads
    attend as without the ablation, so that a head that others find their place by, as a previous-token head is, shows nothing.
    `screen` estimates all heads by one backward pass and measures only those with the largest estimates, a sixth of all or as
    many as are given. The loss is that of the last copy without its first token, in nats.

    Exactly what one forward pass per head gives, where it is the model's own arithmetic that does not depend on the batch.
    Raises `UnsupportedModel` for a model whose heads cannot be made to act otherwise, and as `measure_heads`.

    >>> scores = measure_ablations(model)                            # doctest: +SKIP
    >>> scores.effect.round(1)                                       # doctest: +SKIP
    array([[4.1, 0. ], [0. , 4.1]])
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    ablating = Ablating(how, pattern_preserving)
    subject = load_model(model)
    chosen = all_heads(subject) if heads is None else heads_of(subject, heads)
    if not chosen:
        raise ArgumentError("`heads` names no head")
    count = _screened(screen, len(chosen))
    seed = subject.seed if seed is None else seed
    rng = np.random.default_rng([seed, 0])
    probes = list(probes_of(subject, n_sequences, rng, COPIES, None))
    others = [_another(subject, probe, rng) for probe in probes] if how == "resample" else [None] * len(probes)
    passes = [last_copy(subject, probe, ablating, other) for probe, other in zip(probes, others, strict=True)]
    estimates = None
    if count:
        estimates = np.concatenate([attributions(each) for each in passes])
        strength = np.abs(estimates.mean(0))
        chosen = tuple(sorted(chosen, key=lambda head: -strength[head.layer, head.head])[:count])
    with progress("ablations", n_sequences * (len(chosen) + 1)):
        measured = [rises(each, [*([head] for head in chosen), all_heads(subject)]) for each in passes]
    loss, effects = (np.concatenate([part[which] for part in measured]) for which in (0, 1))
    whole = np.full((n_sequences, subject.n_layers, subject.n_heads), np.nan)
    for number, head in enumerate(chosen):
        whole[:, head.layer, head.head] = effects[:, number]
    per_sequence = {"effect": whole, "of_all": effects[:, -1], "loss": loss}
    per_sequence |= {} if estimates is None else {"attribution": estimates}
    return AblationScores(
        effect=whole.mean(0),
        attribution=None if estimates is None else estimates.mean(0),
        of_all=float(effects[:, -1].mean()),
        loss=float(loss.mean()),
        per_sequence=per_sequence,
        provenance=provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes)),
    )


def screened(count: int) -> int:
    """How many of so many heads are measured after a screening, where that is not said."""
    return min(count, max(FEWEST_SCREENED, -(-count // SCREENED)))


def last_copy(subject: ModelUnderTest, probe: Probe, ablating: Ablating, other: Probe | None = None) -> Passes:
    """Passes over a probe, whose losses are those of the last copy without its first token."""
    start = probe.n_positions - probe.period
    queries = torch.arange(start, probe.n_positions - 1)
    rows, others = torch.from_numpy(probe.tokens), None if other is None else torch.from_numpy(other.tokens)
    return Passes(subject, rows.to(subject.device), queries, ablating, others)


def _another(subject: ModelUnderTest, probe: Probe, rng: np.random.Generator) -> Probe:
    """Another probe of the same shape."""
    return next(iter(probes_of(subject, probe.n_sequences, rng, probe.repeats, probe.period)))


def rises(passes: Passes, sets: Sequence[HeadSet]) -> tuple[Array, Array]:
    """Of each row the mean loss (rows,), and what it rises by (rows, sets) with each set of heads ablated."""
    found = passes.losses(sets)
    clean, ablated = found.clean.mean(-1), found.ablated.mean(-1)
    return clean, (ablated - clean).T


def _screened(screen: bool | int, count: int) -> int:
    """How many heads are measured after a screening; 0 for all of them, without one."""
    if screen is False:
        return 0
    if screen is True:
        return screened(count)
    return min(count, whole_number("screen", screen, least=1))
