"""How a head finds its place: what is left of what it does when paths from earlier heads are closed, or its pattern is ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.edits import Edit, Edits, Give, Record, Replace, Substitute
from pytest_induction.attention.scores import PeriodicScores
from pytest_induction.interventions.active import ActiveEdits, apply_edits
from pytest_induction.interventions.arguments import table_of
from pytest_induction.interventions.edits import given, ideal_pattern
from pytest_induction.interventions.passes import HeadSet, losses_at, mean_found
from pytest_induction.measuring.observing import Array, numbers, observe
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
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

    def matching(batch: Tensor, edits: Edits) -> Array:
        with ActiveEdits(subject, lambda tokens, run: edits).installed():
            return observe(subject, batch, scores)[0]["prefix_matching"][:, head.layer, head.head]

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
    edits: dict[int, list[Edit]] = {
        number: [Replace(heads[None, number, : subject.reading.heads[number]], means[number])]
        for number in heads.any(1).nonzero().flatten().tolist()
    }
    edits.setdefault(layer, []).append(record)
    with apply_edits(subject, rows, edits):
        subject.logits(rows, positions=torch.tensor([rows.shape[1] - 1]))
    return record


def losses_by_order(subject: ModelUnderTest, probe: Probe) -> Array:
    """The loss of each row's last copy with paths through at most 0, 1, ... n_layers heads, (rows, n_layers + 1), in nats.

    All patterns stay those of a clean pass. First no head gives anything: what is left is the direct path. Then each head gives
    what it found in the pass before, so that one more head may lie on a path each time; the last is the loss of the model as it
    is. (Elhage et al. 2021, importance of terms by their order; virtual heads begin at the second.)
    """
    layers = range(subject.n_layers)

    def measured(rows: Tensor, part: slice) -> Array:
        clean = {layer: Record(inputs=True) for layer in layers}
        with apply_edits(subject, rows, {layer: [record] for layer, record in clean.items()}):
            subject.logits(rows, positions=_last(probe))
        found: dict[int, Tensor | None] = dict.fromkeys(layers)
        losses = []
        for _ in range(subject.n_layers + 1):
            seen = {layer: Record(outputs=True) for layer in layers}
            edits: dict[int, list[Edit]] = {}
            for layer in layers:
                every = torch.ones(1, subject.reading.heads[layer], dtype=torch.bool)
                edits[layer] = [given(clean[layer]), seen[layer], Replace(every, found[layer])]
            losses.append(_loss(subject, rows, probe, edits))
            found = {layer: record.get("output") for layer, record in seen.items()}
        return np.stack(losses, axis=1)

    return np.concatenate(in_batches(subject, _rows(subject, probe), measured, logits=True))


def losses_with_pattern(subject: ModelUnderTest, probe: Probe, heads: Sequence[HeadId], pattern: str) -> Array:
    """The loss of each row's last copy as the model is, with the heads ablated (zero), and with an ideal pattern: (rows, 3).

    (ablated - ideal) / (ablated - as it is) is what the pattern gives back of what the heads do: 1 where the pattern is all that
    there is to them. Above 1, it does better than their own.
    """
    flags = {
        layer: torch.tensor([HeadId(layer, head) in set(heads) for head in range(subject.reading.heads[layer])])
        for layer in {head.layer for head in heads}
    }

    def measured(rows: Tensor, part: slice) -> Array:
        ideal = ideal_pattern(pattern, rows)[:, None]
        changes: list[Edits] = [
            {},
            {layer: [Replace(chosen[None])] for layer, chosen in flags.items()},
            {layer: [Substitute(chosen, ideal)] for layer, chosen in flags.items()},
        ]
        return np.stack([_loss(subject, rows, probe, edits) for edits in changes], axis=1)

    return np.concatenate(in_batches(subject, _rows(subject, probe), measured, logits=True))


def _loss(subject: ModelUnderTest, rows: Tensor, probe: Probe, edits: Edits) -> Array:
    """The mean loss of each row's last copy without its first token, (rows,)."""
    with apply_edits(subject, rows, edits):
        logits = subject.logits(rows, positions=_last(probe))
    return numbers(losses_at(logits, rows, _last(probe)).mean(1))


def _last(probe: Probe) -> Tensor:
    """The queries whose next token is of the last copy, but for its first token."""
    return torch.arange(probe.n_positions - probe.period, probe.n_positions - 1)


def _rows(subject: ModelUnderTest, probe: Probe) -> Tensor:
    return torch.from_numpy(probe.tokens).to(subject.device)
