"""What a model makes of few-shot prompts: whether it does a task, what its heads find there, and what that is worth elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.edits import Edit, Replace
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.interventions.active import apply_edits_to_outputs
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import Kept, Passes, blocks_of, losses_at
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import batch_size, in_batches
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.prefix import Prefix, continues
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.few_shot import Prompts, Task
from pytest_induction.records import HeadId

Values = Mapping[int, Tensor]
"""Of each layer what its heads give instead of what they find, (1, heads, 1, d_head)."""
MIN_ACCURACY = 0.5  # of the answers, for a task that a model does
MOST_LEFT = 0.5  # of the probability of the answer, with shuffled labels: more is known of the question alone


@dataclass(frozen=True)
class Answers:
    """Of each prompt the log probability of the answer, in nats, and whether it is the likeliest token, (..., prompts)."""

    log_p: Array
    right: Array

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def probability(self) -> float:
        """The mean probability of the answer."""
        return float(np.exp(self.log_p).mean())


@dataclass(frozen=True)
class Shown:
    """A task as a model does it, on prompts with their own labels and on others whose labels are shuffled.

    `found` is what heads find at the last position with their own labels, `null` the same with shuffled ones, means over prompts;
    `mean` over all positions of prompts with their own labels.
    """

    task: Task
    own: Answers
    shuffled: Answers
    own_rows: Tensor
    rows: Tensor  # with shuffled labels
    found: Values
    null: Values
    mean: Values

    @property
    def is_done(self) -> bool:
        """Whether the model does the task, and does it by the labels."""
        return self.own.accuracy >= MIN_ACCURACY and self.shuffled.probability <= MOST_LEFT * self.own.probability

    def __str__(self) -> str:
        return f"{self.task.name} {self.own.accuracy:.2f}"

    @property
    def why_not(self) -> str:
        """Why the task is not done, in a few words."""
        if self.own.accuracy < MIN_ACCURACY:
            return f"{self.task.name} (accuracy {self.own.accuracy:.2f})"
        left = self.shuffled.probability / self.own.probability
        return f"{self.task.name} (of the probability {left:.2f} is left with shuffled labels)"


def read_answers(logits: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
    """Of logits (rows, 1, d_vocab) at one query the log probability of the token after it and whether it leads, (rows, 2)."""
    targets = tokens[:, queries.to(tokens.device) + 1].to(logits.device)
    return torch.cat([-losses_at(logits, tokens, queries), (logits.argmax(-1) == targets).float()], dim=1)


def passes_over(subject: ModelUnderTest, rows: Tensor) -> Passes:
    """Passes over prompts (rows, positions) that end with their answers; `read_answers` reads them."""
    return Passes(subject, rows.to(subject.device), torch.tensor([rows.shape[1] - 2]), read=read_answers)


def shown(subject: ModelUnderTest, task: Task, own: Prompts, other: Prompts) -> Shown:
    """The task on prompts with their own labels, and on those of `other` with shuffled ones. Raises `ModelError` for NaN."""
    rows, shuffled = torch.from_numpy(own.clean), torch.from_numpy(other.shuffled)
    answers, found, mean = _seen(subject, rows)
    without, null, _ = _seen(subject, shuffled)
    return Shown(task, answers, without, rows, shuffled, found, null, mean)


def _seen(subject: ModelUnderTest, rows: Tensor) -> tuple[Answers, Values, Values]:
    """The answers, what heads find at the last position, and the mean over all positions of that."""
    passes, last = passes_over(subject, rows), rows.shape[1] - 2

    def measured(batch: Tensor, part: slice) -> tuple[Array, dict[int, Tensor], dict[int, Tensor]]:
        kept, logits = passes.clean(batch, part, range(subject.n_layers))
        answers = numbers(read_answers(logits, batch, passes.queries))
        at_last = {layer: found[:, :, last].double().sum(0) for layer, found in kept.found.items()}
        over_all = {layer: found[:, :, : last + 1].double().mean(2).sum(0) for layer, found in kept.found.items()}
        return answers, at_last, over_all

    parts = in_batches(subject, passes.rows, measured, logits=True, most=1 if subject.mixes_rows else None)
    answers, *summed = zip(*parts, strict=True)
    found, mean = (
        {layer: torch.stack([part[layer] for part in each]).sum(0)[None, :, None] / len(rows) for layer in each[0]}
        for each in summed
    )
    return answers_in(subject, np.concatenate(answers)), found, mean


def answers_in(subject: ModelUnderTest, read: Array) -> Answers:
    """What was read of logits, (..., rows, 2). Raises `ModelError` where it is not finite."""
    if not np.isfinite(read).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on few-shot prompts")
    return Answers(read[..., 0], read[..., 1])


class Patches:
    """Prompts in which one head at a time gives something else at the last position, where the answer is asked for.

    Nothing before that position changes. Where the model takes a prefix back, each head costs one token; else a pass over the
    prompt, begun at the head's layer.
    """

    def __init__(self, subject: ModelUnderTest, *, by_prefix: bool | None = None) -> None:
        self.subject = subject
        self.heads = all_heads(subject)
        self.by_prefix = self._circuits is not None if by_prefix is None else by_prefix

    @cached_property
    def _circuits(self) -> Circuits | None:
        """Where what heads found can be changed in a pass over one token; None where it cannot."""
        if not continues(self.subject):
            return None
        try:
            circuits = circuits_of(self.subject)
        except UnsupportedModel:
            return None
        return circuits if all(layer.writes is not None for layer in circuits.layers) else None

    def log_p(self, rows: Tensor, values: Sequence[Values]) -> Array:
        """Log probabilities of the answers, (values, rows, heads), with each head giving each of these values.

        `rows` (rows, positions) end with their answers. Raises `ModelError` where they are not finite.
        """
        rows = rows.to(self.subject.device)
        found = self._by_prefix(rows, values) if self.by_prefix else self._by_passes(rows, values)
        if not np.isfinite(found).all():
            raise ModelError(f"the logits of {self.subject.name} are not finite (NaN or infinity) with a head patched")
        return found

    def _by_prefix(self, rows: Tensor, values: Sequence[Values]) -> Array:
        subject, circuits = self.subject, self._circuits
        if circuits is None:
            raise UnsupportedModel(f"passes of {subject.name} cannot begin after a prefix")
        prefix, blocks = Prefix(subject, rows[:, :-2]), blocks_of(subject)
        with blocks.kept() as gave:
            prefix.logits(torch.arange(len(rows)), rows[:, -2:-1])
        found = np.empty((len(values), len(self.heads), len(rows)))
        pairs = [(head, row) for head in range(len(self.heads)) for row in range(len(rows))]
        size = batch_size(subject, rows.shape[1], logits=False)
        for number, value in enumerate(values):
            for start in range(0, len(pairs), size):
                heads, of_row = (list(each) for each in zip(*pairs[start : start + size], strict=True))
                chosen, places = [self.heads[head] for head in heads], torch.tensor(of_row)
                tokens = rows[places.to(rows.device)][:, -2:]
                edits = _edits(chosen, circuits, value)
                first = min(edits) if blocks.any else 0
                begun = blocks.begun_at(first, gave, places)
                with begun, apply_edits_to_outputs(subject, circuits, tokens[:, :1], edits):
                    logits = prefix.logits(places, tokens[:, :1], first=first)
                found[number, heads, of_row] = numbers(-losses_at(logits, tokens, torch.tensor([0]))[:, 0])
        return found.transpose(0, 2, 1)

    def _by_passes(self, rows: Tensor, values: Sequence[Values]) -> Array:
        passes, last = replace(passes_over(self.subject, rows), read=losses_at), rows.shape[1] - 2

        def measured(batch: Tensor, part: slice) -> Array:
            kept, _ = passes.clean(batch, part, range(self.subject.n_layers))
            sets = [[head] for head in self.heads]
            return np.stack([-passes.ablated(batch, _at_last(kept, value, last), sets)[..., 0] for value in values])

        most = 1 if self.subject.mixes_rows else None
        parts = in_batches(self.subject, rows, measured, logits=True, most=most)  # values, heads, rows
        return np.concatenate(parts, axis=2).transpose(0, 2, 1)


def _edits(heads: Sequence[HeadId], circuits: Circuits, value: Values) -> dict[int, list[Edit]]:
    """What is done in a pass in which each row has one head that gives another value."""
    layers = sorted({head.layer for head in heads})
    return {layer: [Replace(_flags(heads, layer, circuits.layers[layer].n_heads), value[layer])] for layer in layers}


def _flags(heads: Sequence[HeadId], layer: int, n_heads: int) -> Tensor:
    """Which head of a layer each is, (rows, n_heads)."""
    flags = torch.zeros(len(heads), n_heads, dtype=torch.bool)
    for row, head in enumerate(heads):
        if head.layer == layer:
            flags[row, head.head] = True
    return flags


def _at_last(kept: Kept, value: Values, last: int) -> Kept:
    """What heads give instead: what they found, but for one position."""
    values = {layer: found.clone() for layer, found in kept.found.items()}
    for layer, found in values.items():
        found[:, :, last : last + 1] = value[layer].to(found)
    return replace(kept, values=values)
