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
from pytest_induction.interventions.arguments import all_heads, table_of
from pytest_induction.interventions.passes import HeadSet, Passes, blocks_of, losses_at
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import batch_size, in_batches
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.prefix import Prefix, continues
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.few_shot import Prompts, Task

Values = Mapping[int, Tensor]
"""Of each layer what its heads give instead of what they find, (1 or rows, heads, 1, d_head)."""
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
    """Prompts in which some heads at a time give something else at one of the last positions.

    Nothing before that position changes. Where the model takes a prefix back, each set of heads costs the tokens from there on;
    else a pass over the prompt, begun at the first layer of the set.
    """

    def __init__(self, subject: ModelUnderTest, *, by_prefix: bool | None = None) -> None:
        self.subject = subject
        self.heads = all_heads(subject)
        self.by_prefix = self._circuits is not None if by_prefix is None else by_prefix

    @cached_property
    def _circuits(self) -> Circuits | None:
        """Where what heads found can be changed in a pass over a few tokens; None where it cannot."""
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
        return self.of_sets(rows, values, [[head] for head in self.heads])[..., 0].transpose(0, 2, 1)

    def of_sets(self, rows: Tensor, values: Sequence[Values], sets: Sequence[HeadSet], *, n_read: int = 1) -> Array:
        """Log probabilities of the last `n_read` tokens, (values, sets, rows, n_read), where all heads of a set give a value.

        They give it where the first of these tokens is asked for. Raises `ModelError` where log probabilities are not finite.
        """
        rows = rows.to(self.subject.device)
        found = (self._by_prefix if self.by_prefix else self._by_passes)(rows, values, sets, n_read)
        if not np.isfinite(found).all():
            raise ModelError(f"the logits of {self.subject.name} are not finite (NaN or infinity) with a head patched")
        return found

    def _by_prefix(self, rows: Tensor, values: Sequence[Values], sets: Sequence[HeadSet], n_read: int) -> Array:
        subject, circuits = self.subject, self._circuits
        if circuits is None:
            raise UnsupportedModel(f"passes of {subject.name} cannot begin after a prefix")
        ends, queries = rows[:, -1 - n_read :], torch.arange(n_read)
        prefix, blocks = Prefix(subject, rows[:, : -1 - n_read]), blocks_of(subject)
        with blocks.kept() as gave:
            prefix.logits(torch.arange(len(rows)), ends[:, :-1])
        found = np.empty((len(values), len(sets), len(rows), n_read))
        table = table_of(subject, sets)
        pairs = [(chosen, row) for chosen in range(len(sets)) for row in range(len(rows))]
        size = batch_size(subject, rows.shape[1], logits=False)
        for number, value in enumerate(values):
            for start in range(0, len(pairs), size):
                of_set, of_row = (list(each) for each in zip(*pairs[start : start + size], strict=True))
                places = torch.tensor(of_row)
                tokens = ends[places.to(rows.device)]
                edits = _edits(table[of_set], circuits, {layer: _of_rows(each, places) for layer, each in value.items()})
                first = min(edits, default=0) if blocks.any else 0
                begun = blocks.begun_at(first, gave, places)
                with begun, apply_edits_to_outputs(subject, circuits, tokens[:, :-1], edits):
                    logits = prefix.logits(places, tokens[:, :-1], first=first)
                found[number, of_set, of_row] = -numbers(losses_at(logits, tokens, queries))
        return found

    def _by_passes(self, rows: Tensor, values: Sequence[Values], sets: Sequence[HeadSet], n_read: int) -> Array:
        at = rows.shape[1] - 1 - n_read
        passes = Passes(self.subject, rows, torch.arange(at, at + n_read))

        def measured(batch: Tensor, part: slice) -> Array:
            kept, _ = passes.clean(batch, part)
            numbered = torch.arange(len(rows))[part]
            given = [{layer: _of_rows(each, numbered) for layer, each in value.items()} for value in values]
            return np.stack([-passes.ablated(batch, replace(kept, values=each, at=at), sets) for each in given])

        most = 1 if self.subject.mixes_rows else None
        return np.concatenate(in_batches(self.subject, rows, measured, logits=True, most=most), axis=2)


def _of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """What heads give in rows of these numbers, where it is not the same in all."""
    return values if len(values) == 1 else values[rows.to(values.device)]


def _edits(table: Tensor, circuits: Circuits, value: Values) -> dict[int, list[Edit]]:
    """What is done in a pass in which each row has heads that give another value at its first position, (rows, layers, heads)."""
    layers = table.any(2).any(0).nonzero().flatten().tolist()
    return {layer: [Replace(table[:, layer, : circuits.layers[layer].n_heads], value[layer], at=0)] for layer in layers}
