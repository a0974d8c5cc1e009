"""How a head finds its place: what is left of its prefix matching when earlier heads are kept out of its keys, or of its queries.

Keys (or queries) of one layer are taken from a pass in which some earlier heads are ablated, and given to one head in a pass in
which nothing else is changed. What it then attends to no longer knows what those heads found, by whatever way that came to the
keys; its queries, its values and all other heads are as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pytest_induction.batching import in_batches
from pytest_induction.interventions.chosen import table_of
from pytest_induction.interventions.passes import HeadSet, mean_found
from pytest_induction.metrics.attention import PeriodicScores
from pytest_induction.models.acting import Give, Record, Replace, Step, Steps
from pytest_induction.models.intervening import Intervening, acting
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import Array, observe
from pytest_induction.probes.sequences import Probe
from pytest_induction.records import HeadId


@dataclass(frozen=True)
class PathEffects:
    """Prefix matching of one head on each row, `clean` (rows,), and with sets of earlier heads kept out of its keys or queries.

    `keys` and `queries` are (sets, rows).
    """

    clean: Array
    keys: Array
    queries: Array

    @classmethod
    def join(cls, parts: Sequence[PathEffects]) -> PathEffects:
        """The same sets on more rows."""
        return cls(
            np.concatenate([part.clean for part in parts]),
            np.concatenate([part.keys for part in parts], axis=1),
            np.concatenate([part.queries for part in parts], axis=1),
        )


def path_effects(subject: ModelUnderTest, probe: Probe, head: HeadId, sets: Sequence[HeadSet]) -> PathEffects:
    """What a head attends to on the rows of a probe when sets of earlier heads give their mean instead of what they find.

    Raises `UnsupportedModel` where queries and keys are not seen, as in a model that computes its patterns itself.
    """
    rows = torch.from_numpy(probe.tokens).to(subject.device)
    scores = PeriodicScores(probe.period, probe.start, probe.n_positions)
    means = mean_found(subject, rows)
    table = table_of(subject, sets)
    chosen = torch.tensor([number == head.head for number in range(subject.reading.heads[head.layer])])

    def matching(batch: Tensor, steps: Steps) -> Array:
        with Intervening(subject, lambda tokens, run: steps).installed():
            return observe(subject, batch, scores)[0][:, 0, head.layer, head.head]

    def measured(batch: Tensor, part: slice) -> PathEffects:
        keys, queries = np.empty((len(sets), len(batch))), np.empty((len(sets), len(batch)))
        for number in range(len(sets)):
            record = _without(subject, batch, head.layer, table[number], means)
            keys[number] = matching(batch, {head.layer: [Give(key=record.get("key"), heads=chosen)]})
            queries[number] = matching(batch, {head.layer: [Give(query=record.get("query"), heads=chosen)]})
        return PathEffects(matching(batch, {}), keys, queries)

    return PathEffects.join(in_batches(subject, rows, measured, logits=False))


def _without(subject: ModelUnderTest, rows: Tensor, layer: int, heads: Tensor, means: Mapping[int, Tensor]) -> Record:
    """Queries and keys of a layer in a pass in which some heads, (n_layers, n_heads), give their mean."""
    record = Record(inputs=True)
    steps: dict[int, list[Step]] = {
        number: [Replace(heads[None, number, : subject.reading.heads[number]], means[number])]
        for number in heads.any(1).nonzero().flatten().tolist()
    }
    steps.setdefault(layer, []).append(record)
    with acting(subject, rows, steps):
        subject.logits(rows, positions=torch.tensor([rows.shape[1] - 1]))
    return record
