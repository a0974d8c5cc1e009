"""How a head finds its place: what is left of what it does when paths from earlier heads are closed, or its pattern is ideal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.edits import Edit, Edits, Give, LayerPart, Record, Replace, Substitute
from pytest_induction.attention.kernels import AttentionCall, pattern_of
from pytest_induction.attention.pattern import PatternReader
from pytest_induction.attention.scores import PeriodicScores
from pytest_induction.errors import ModelError
from pytest_induction.interventions.active import ActiveEdits, apply_edits
from pytest_induction.interventions.arguments import table_of
from pytest_induction.interventions.edits import given, ideal_pattern
from pytest_induction.interventions.passes import HeadSet, blocks_of, losses_at
from pytest_induction.measuring.observing import Array, numbers, observe
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Probe
from pytest_induction.records import HeadId

SAME = 1e-3  # of prefix matching, by which two ways of computing it may differ


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


@dataclass
class _OfOneHead(Edit):
    """Keeps the call of one head of a layer, as (rows, 1, positions, d_head); changes nothing."""

    head: int
    call: AttentionCall | None = None

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        number = self.head - (part.heads.start or 0)
        n_heads, n_keys = call.query.shape[1], call.key.shape[1]
        if 0 <= number < n_heads:
            own, shared = slice(number, number + 1), slice(number * n_keys // n_heads, number * n_keys // n_heads + 1)
            mask = call.mask if call.mask is None or call.mask.ndim < 4 or len(call.mask[0]) == 1 else call.mask[:, own]
            query, key = call.query[:, own].detach().clone(), call.key[:, shared].detach().clone()
            self.call = call._replace(query=query, key=key, value=key, mask=mask)
        return call


@dataclass
class _Clean:
    """Of a batch of rows as the model is: what blocks gave, the call of the head, and the sum of what earlier heads found."""

    rows: Tensor
    gave: list[Any]
    call: AttentionCall
    summed: dict[int, Tensor]


@dataclass
class _Paths:
    """Passes that tell what one head attends to: each begins where its first edit is, and ends at the head's own layer."""

    subject: ModelUnderTest
    head: HeadId
    scores: PeriodicScores

    def __post_init__(self) -> None:
        self._blocks = blocks_of(self.subject)

    def clean(self, rows: Tensor, layers: Sequence[int]) -> _Clean:
        """A pass over some rows; what the heads of these layers found is summed over rows and positions."""
        records = {layer: Record(outputs=True) for layer in layers}
        with self._blocks.kept() as gave:
            call = self._call(rows, {layer: [record] for layer, record in records.items()})
        found = {layer: record.get("output") for layer, record in records.items()}
        if any(each is None for each in found.values()):
            raise ModelError(f"what the heads of {self.subject.name} find is not seen: they cannot be kept out of paths")
        summed = {layer: each.double().sum((0, 2), keepdim=True) for layer, each in found.items() if each is not None}
        return _Clean(rows, gave, call, summed)

    def without(self, clean: _Clean, heads: Tensor, means: Mapping[int, Tensor]) -> AttentionCall:
        """The call of the head in a pass in which some heads, (n_layers, n_heads), give their mean."""
        chosen = {layer: heads[None, layer, : self.subject.reading.heads[layer]] for layer in _layers_of(heads)}
        first = min(chosen) if chosen and self._blocks.any else 0
        with self._blocks.begun_at(first, clean.gave):
            return self._call(clean.rows, {layer: [Replace(some, means[layer])] for layer, some in chosen.items()}, first)

    def matching(self, asks: AttentionCall, asked: AttentionCall) -> Array:
        """Prefix matching (rows,) with the queries of one call and the keys of another."""
        found = self.scores(PatternReader(pattern_of(asks._replace(key=asked.key))))
        return numbers(found[self.scores.names.index("prefix_matching"), :, 0])

    def is_known(self, clean: _Clean) -> bool:
        """Whether queries, keys and masks are all that the pattern of the head is made of; a sink or a soft cap is more."""
        depth = self.head.layer + 1 if self.subject.intervening is None else None  # one that is edited shows all its layers
        observed = observe(self.subject, clean.rows[:1], self.scores, depth=depth)[0]["prefix_matching"]
        made = self.matching(clean.call, clean.call)[0]
        return bool(abs(observed[0, self.head.layer, self.head.head] - made) < SAME)

    def _call(self, rows: Tensor, edits: dict[int, list[Edit]], first: int = 0) -> AttentionCall:
        look = _OfOneHead(self.head.head)
        edits.setdefault(self.head.layer, []).append(look)

        def run() -> None:
            with apply_edits(self.subject, rows, edits, first=first):
                self.subject.logits(rows, positions=torch.tensor([rows.shape[1] - 1]))

        self._blocks.run_until(self.head.layer, run)
        if look.call is None:
            raise ModelError(f"the queries and keys of {self.head} were not seen in a pass of {self.subject.name}")
        return look.call


def _layers_of(heads: Tensor) -> list[int]:
    return [int(layer) for layer in heads.any(-1).nonzero().flatten()]


def path_effects(subject: ModelUnderTest, probe: Probe, head: HeadId, sets: Sequence[HeadSet]) -> PathEffects:
    """What a head attends to on the rows of a probe when sets of earlier heads give their mean instead of what they find.

    The mean is over the rows and positions of the probe. It takes a pass up to the head's layer, and for each set one from the
    first layer of the set to there.

    Raises `UnsupportedModel` where queries and keys are not seen, as in a model that computes its patterns itself.
    """
    rows, table = torch.from_numpy(probe.tokens).to(subject.device), table_of(subject, sets)
    paths = _Paths(subject, head, PeriodicScores(probe.period, probe.start, probe.n_positions))
    layers = _layers_of(table.any(0))
    most = 1 if subject.mixes_rows else None
    clean = in_batches(subject, rows, lambda batch, part: paths.clean(batch, layers), logits=False, most=most)
    count = rows.numel()
    means = {layer: torch.stack([part.summed[layer] for part in clean]).sum(0) / count for layer in layers}
    if not paths.is_known(clean[0]):
        return PathEffects.join([_observed(paths, part, table, means) for part in clean])
    return PathEffects.join([_computed(paths, part, table, means) for part in clean])


def _computed(paths: _Paths, clean: _Clean, table: Tensor, means: Mapping[int, Tensor]) -> PathEffects:
    """The effects of sets (sets, n_layers, n_heads) by the queries and keys of the head with and without them."""
    calls = [paths.without(clean, heads, means) for heads in table]
    return PathEffects(
        paths.matching(clean.call, clean.call),
        np.stack([paths.matching(clean.call, call) for call in calls]),
        np.stack([paths.matching(call, clean.call) for call in calls]),
    )


def _observed(paths: _Paths, clean: _Clean, table: Tensor, means: Mapping[int, Tensor]) -> PathEffects:
    """The same by passes in which the head is given other queries or keys, where its pattern is made of more than these."""
    subject, head = paths.subject, paths.head
    chosen = torch.tensor([number == head.head for number in range(subject.reading.heads[head.layer])])

    def matching(query: Tensor | None = None, key: Tensor | None = None) -> Array:
        edits = {head.layer: [Give(query, key, chosen)]}
        with ActiveEdits(subject, lambda tokens, run: edits).installed():
            return observe(subject, clean.rows, paths.scores)[0]["prefix_matching"][:, head.layer, head.head]

    calls = [paths.without(clean, heads, means) for heads in table]
    keys = np.stack([matching(key=call.key) for call in calls])
    return PathEffects(matching(), keys, np.stack([matching(query=call.query) for call in calls]))


def losses_by_order(subject: ModelUnderTest, probe: Probe, most: int | None = None) -> Array:
    """The loss of each row's last copy with paths through at most 0, 1, ... `most` heads, and as the model is: (rows, most + 2).

    In nats. All patterns stay those of a clean pass. First no head gives anything: what is left is the direct path. Then each
    head gives what it found in the pass before, so that one more head may lie on a path each time; a pass each. With as many as
    there are layers, which is `most` by default, nothing is missing. (Elhage et al. 2021, importance of terms by their order;
    virtual heads begin at the second.)
    """
    layers = range(subject.n_layers)
    orders = 1 + (subject.n_layers if most is None else most)

    def measured(rows: Tensor, part: slice) -> Array:
        clean = {layer: Record(inputs=True) for layer in layers}
        whole = _loss(subject, rows, probe, {layer: [record] for layer, record in clean.items()})
        found: dict[int, Tensor | None] = dict.fromkeys(layers)
        losses = []
        for _ in range(orders):
            seen = {layer: Record(outputs=True) for layer in layers}
            edits: dict[int, list[Edit]] = {}
            for layer in layers:
                every = torch.ones(1, subject.reading.heads[layer], dtype=torch.bool)
                edits[layer] = [given(clean[layer]), seen[layer], Replace(every, found[layer])]
            losses.append(_loss(subject, rows, probe, edits))
            found = {layer: record.get("output") for layer, record in seen.items()}
        return np.stack([*losses, whole], axis=1)

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
