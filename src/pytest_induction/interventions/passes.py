"""The losses of a model while sets of heads are ablated: as many sets as fit in a pass, each pass begun where its first head is.

What one forward pass for each set would give is what comes out, several times as fast: layers before the first ablated head are
not run again, rows with different sets share a pass, and logits are made only where a loss is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_induction.batching import batch_size, in_batches
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.interventions.chosen import table_of
from pytest_induction.interventions.edits import HOW, Replacement, given
from pytest_induction.metrics.loss import ROWS_AT_ONCE, at_least_float32
from pytest_induction.models.acting import Record, Replace, Step
from pytest_induction.models.calling import is_out_of_memory
from pytest_induction.models.intervening import acting
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.resuming import Blocks, blocks_of
from pytest_induction.observing import Array, numbers
from pytest_induction.progress import advance
from pytest_induction.records import HeadId

POSITIONS_AT_ONCE = {"cpu": 1024}  # in a pass: what a layer makes of more does not stay in the cache of a processor
POSITIONS_ELSEWHERE = 65_536
T = TypeVar("T")
HeadSet = Sequence[HeadId] | frozenset[HeadId]


@dataclass(frozen=True)
class Ablating:
    """What is done to the heads of a set: what they give instead, and whether all patterns stay those of the clean pass."""

    how: Replacement = "zero"
    pattern_preserving: bool = False

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise ArgumentError(f"`how` must be one of {', '.join(HOW)}, got {self.how!r}")


@dataclass
class Kept:
    """What is kept of a clean pass over some rows: what each block gave, queries and keys, and what heads found."""

    gave: list[Any]
    frozen: dict[int, Step]
    values: dict[int, Tensor]


@dataclass
class SetLosses:
    """Losses (rows, positions) of the model as it is, and (sets, rows, positions) with each set of heads ablated."""

    clean: Array
    ablated: Array


@dataclass
class Passes:
    """Passes over token ids `rows` (rows, positions) whose losses at `queries`, ascending positions, are asked for.

    The loss at a query is that of the token after it, in nats. `other` are the rows, as many, from which heads are resampled.
    """

    subject: ModelUnderTest
    rows: Tensor
    queries: Tensor
    ablating: Ablating = field(default_factory=Ablating)
    other: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ablating.how == "resample" and (self.other is None or self.other.shape != self.rows.shape):
            raise ArgumentError("resampling needs other rows, as many and as long")
        self._blocks: Blocks = blocks_of(self.subject)
        self._means = mean_found(self.subject, self.rows) if self.ablating.how == "mean" else {}

    def losses(self, sets: Sequence[HeadSet]) -> SetLosses:
        """The losses with each set ablated; raises `ModelError` where they are not finite."""
        table = table_of(self.subject, sets)
        order = np.argsort([_first_layer(heads, self.subject.n_layers) for heads in sets], kind="stable")

        def measured(rows: Tensor, part: slice) -> tuple[Array, Array]:
            kept, logits = self.clean(rows, part)
            clean = numbers(losses_at(logits, rows, self.queries))
            del logits
            found = np.empty((len(sets), *clean.shape))
            for chunk in self._chunks(sets, order, rows):
                found[chunk] = self._fitting(rows, kept, table[chunk])
            return clean, found

        at_once = self._most(self.rows.shape[1])
        parts = in_batches(self.subject, self.rows, measured, logits=True, most=1 if self.subject.mixes_rows else at_once)
        result = SetLosses(np.concatenate([clean for clean, _ in parts]), np.concatenate([each for _, each in parts], axis=1))
        if not (np.isfinite(result.clean).all() and np.isfinite(result.ablated).all()):
            raise ModelError(f"the loss of {self.subject.name} is not finite with heads ablated {self.ablating.how!r}")
        return result

    def compared(
        self, heads: Sequence[HeadId], compare: Callable[[Tensor, Tensor, slice], T], *, same_steps: bool = False
    ) -> list[list[T]]:
        """What `compare` gives of the logits (rows, queries, d_vocab) of the model as it is and with one head ablated.

        For each batch of rows one of each head, in the order of the heads; it is also told which rows these are. A pass for each
        head, begun at its layer, after a whole one; logits of two are held at a time. With `same_steps` both passes take steps in
        the same layer, so that what does not depend on the head is equal bit by bit on every model; that takes a pass more for
        each layer with any of the heads.
        """

        def measured(rows: Tensor, part: slice) -> list[T]:
            (kept, clean), found, stepped = self.clean(rows, part), {}, None
            for number in sorted(range(len(heads)), key=lambda number: heads[number].layer):
                layer = heads[number].layer
                if same_steps and stepped != layer:
                    stepped = layer
                    _, clean = self._logits(rows, kept, table_of(self.subject, [()]), [layer])
                _, ablated = self._logits(rows, kept, table_of(self.subject, [heads[number : number + 1]]), [layer])
                found[number] = compare(clean, ablated, part)
            return [found[number] for number in range(len(heads))]

        most = 1 if self.subject.mixes_rows else self._most(self.rows.shape[1])
        return in_batches(self.subject, self.rows, measured, logits=True, most=most)

    def _most(self, positions: int) -> int:
        """Rows of so many positions in a pass: no more than memory allows, however many sets share it."""
        most = POSITIONS_AT_ONCE.get(self.subject.device.type, POSITIONS_ELSEWHERE) // positions
        return batch_size(self.subject, positions, logits=True, wanted=max(1, most))

    def _chunks(self, sets: Sequence[HeadSet], order: Any, rows: Tensor) -> list[list[int]]:
        """The numbers of the sets that share a pass: neighbours in the order of their first layers."""
        size = 1 if self.subject.mixes_rows else max(1, self._most(rows.shape[1]) // len(rows))
        first = [_first_layer(sets[number], self.subject.n_layers) if self._blocks.any else 0 for number in order]
        borders = [0, *(np.flatnonzero(np.diff(first)) + 1).tolist(), len(sets)]
        groups = [order[start:stop] for start, stop in pairwise(borders) if stop > start]
        return [part.tolist() for group in groups for part in np.array_split(group, -(-len(group) // size))]

    def clean(self, rows: Tensor, part: slice) -> tuple[Kept, Tensor]:
        """A clean pass over some rows: what the passes after it need, and its logits at the queries."""
        layers = range(self.subject.n_layers if self.ablating.pattern_preserving else 0)
        records = {layer: [Record(inputs=True)] for layer in layers}
        with self._blocks.kept() as gave, acting(self.subject, rows, records):  # by the way that ablated passes take
            logits = self.subject.logits(rows, positions=self.queries)
        values = self._means
        if self.other is not None and self.ablating.how == "resample":
            values = _found(self.subject, self.other[part])
        return Kept(gave, {layer: given(steps[0]) for layer, steps in records.items()}, values), logits

    def _fitting(self, rows: Tensor, kept: Kept, table: Tensor) -> Array:
        """The same in as many passes as memory asks for; where one set is too much for it, fewer rows may do."""
        try:
            return self._ablated(rows, kept, table)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(table) == 1:
                raise
        return np.concatenate([self._fitting(rows, kept, part) for part in table.tensor_split(2)])

    def _ablated(self, rows: Tensor, kept: Kept, table: Tensor) -> Array:
        """Losses (sets, rows, queries) with each of some sets, (sets, n_layers, n_heads), ablated in the same pass."""
        tokens, logits = self._logits(rows, kept, table, table.any(2).any(0).nonzero().flatten().tolist())
        return numbers(losses_at(logits, tokens, self.queries)).reshape(len(table), len(rows), -1)

    def _logits(self, rows: Tensor, kept: Kept, table: Tensor, used: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids, and logits at the queries, (sets x rows, ...), of a pass in which the layers that are `used` take steps."""
        count = len(table)
        of_row = torch.arange(len(rows)).repeat(count)
        chosen = table.repeat_interleave(len(rows), 0)
        first = (used[0] if used else self.subject.n_layers - 1) if self._blocks.any else 0
        steps: dict[int, list[Step]] = {}
        for layer in used:
            values = kept.values.get(layer)
            values = values if values is None or len(values) == 1 else values[of_row.to(values.device)]
            heads = self.subject.reading.heads[layer]
            steps[layer] = [Replace(chosen[:, layer, :heads], values)]
        for layer, step in kept.frozen.items():
            if layer >= first:
                steps.setdefault(layer, []).append(repeated(step, count))
        tokens = rows.repeat(count, 1)
        begun, needed = self._blocks.begun_at(first, kept.gave, of_row), self._blocks.needed_at(self.queries)
        with begun, needed, acting(self.subject, tokens, steps, first=first):
            logits = self.subject.logits(tokens, positions=self.queries)
        advance(len(tokens))
        return tokens, logits


def losses_at(logits: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
    """Losses (rows, queries), at least float32, of the tokens after some positions, from the logits there."""
    targets = tokens[:, queries.to(tokens.device) + 1].to(logits.device).flatten()
    parts = zip(logits.flatten(0, 1).split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    losses = [F.cross_entropy(at_least_float32(part), target, reduction="none") for part, target in parts]
    return torch.cat(losses).view(len(tokens), -1)


def repeated(step: Step, count: int) -> Step:
    """A step that gives what was recorded, for rows that stand `count` times one after the other."""
    named = {name: value.repeat(count, 1, 1, 1) for name, value in vars(step).items() if isinstance(value, Tensor)}
    return type(step)(**named)


def mean_found(subject: ModelUnderTest, rows: Tensor) -> dict[int, Tensor]:
    """What the heads of each layer find in clean passes, its mean over all rows and positions, (1, heads, 1, d_head)."""

    def summed(batch: Tensor, part: slice) -> dict[int, Tensor]:
        found = _found(subject, batch)
        return {layer: each.double().mean((0, 2), keepdim=True) * len(batch) for layer, each in found.items()}

    parts = in_batches(subject, rows, summed, logits=True, most=1 if subject.mixes_rows else None)
    return {layer: torch.stack([part[layer] for part in parts]).sum(0) / len(rows) for layer in parts[0]}


def _found(subject: ModelUnderTest, rows: Tensor) -> dict[int, Tensor]:
    """What the heads of every layer find on some rows, (rows, heads, positions, d_head)."""
    records = {layer: [Record(outputs=True)] for layer in range(subject.n_layers)}
    rows = rows.to(subject.device)
    with acting(subject, rows, records):
        subject.logits(rows, positions=torch.tensor([rows.shape[1] - 1]))
    found = {layer: steps[0].get("output") for layer, steps in records.items()}
    if any(each is None for each in found.values()):
        raise ModelError(f"what the heads of {subject.name} find is not seen: they can be ablated with how='zero' only")
    return {layer: each for layer, each in found.items() if each is not None}


def _first_layer(heads: HeadSet, n_layers: int) -> int:
    return min((head.layer for head in heads), default=n_layers)
