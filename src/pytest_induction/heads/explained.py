"""How much of what a head does copy suppression explains: all else of it is its mean, and the model goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pytest_induction.behaviour.matches import mean_of_tokens
from pytest_induction.errors import ModelError
from pytest_induction.forward.changing import add_hooks
from pytest_induction.interventions.active import apply_edits
from pytest_induction.interventions.passes import Blocks, blocks_of
from pytest_induction.measuring.losses import at_least_float32, in_parts
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import in_batches
from pytest_induction.model.capture import HeadOutputCapture, ReadByLayers
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.lens import Lens
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Ids
from pytest_induction.progress import advance, progress
from pytest_induction.records import HeadId
from pytest_induction.undoing import Changes, puts_back

TOKENS = 20  # that stand before a query: of so many one is kept, one at least
LEAST_KL = 1e-6  # nats a query: of a head whose mean ablation changes less there is nothing to explain
PASSES = 2  # over each row: what heads read, and the model as it is
PASSES_OF_A_HEAD = 3  # mean ablation, what suppression explains, and other keys


@dataclass(frozen=True)
class ExplainedHead:
    """How much of the effect of one head copy suppression explains, and other keys in place of those predicted.

    `recovered`, at most 1, is 1 - KL(model || only suppression kept) / KL(model || mean-ablated), both summed over queries and
    rows: 1 where suppression is all that the head does, 0 where keeping it does no more than the mean, below 0 where less.
    `others` is the same with as many other earlier keys, drawn at random: the null. The `_error` of each is its standard error
    over rows. `ablated_kl` is KL(model || mean-ablated) in nats, the mean over queries: below a millionth all else is NaN.
    """

    layer: int
    head: int
    recovered: float
    recovered_error: float
    others: float
    others_error: float
    ablated_kl: float

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers, None where there is none."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: None if np.isnan(value) else value for name, value in values.items()}


def n_kept(count: int) -> int:
    """How many are kept of so many different tokens before a query: 5 %, rounded up."""
    return -(-count // TOKENS)


@dataclass
class _Read:
    """What one head reads of some rows, and how much of it is lowered where.

    `found` is what it found, (rows, positions, d_head), over the scale of the norm behind attention. `lowered` (rows, queries,
    keys), 0 or below, is how much of what is written from a key lies along the direction of its own token. `kept` (2, rows,
    queries, keys) says of which keys it is kept: of what is predicted most, and of other keys.
    """

    found: Tensor
    lowered: Tensor
    kept: Tensor

    @classmethod
    def join(cls, parts: Sequence[_Read]) -> _Read:
        """The same head on more rows."""
        found, lowered, kept = ([getattr(part, each.name) for part in parts] for each in fields(cls))
        return cls(torch.cat(found), torch.cat(lowered), torch.cat(kept, 1))

    def of_rows(self, part: slice) -> _Read:
        return _Read(self.found[part], self.lowered[part], self.kept[:, part])


class _Reading(ReadByLayers):
    """Some heads in one pass over a batch of rows, as it comes; told as a `Watch` is."""

    def __init__(
        self, circuits: Circuits, rows: Tensor, heads: Sequence[HeadId], draw: Callable[[int, int], np.random.Generator]
    ) -> None:
        super().__init__(circuits, {head.layer for head in heads})
        self._lens, self._heads, self._draw = Lens(circuits), heads, draw
        self._rows, self._directions = rows, circuits.written(rows)
        self._keys: dict[int, Tensor] = {}
        self.found: dict[HeadId, _Read] = {}

    def enter(self, layer: int, stream: Tensor) -> None:
        """Choose the keys of each query by what the stream before a layer predicts."""
        if layer in self._layers:
            rows = zip(stream, self._rows.cpu().numpy(), strict=True)
            chosen = [self._chosen(each, row, self._draw(number, layer)) for number, (each, row) in enumerate(rows)]
            self._keys[layer] = torch.stack(chosen, 1)

    def take(self, layer: int, found: Tensor, pattern: Tensor | None) -> None:
        """Note what the heads of a layer found, and how much of what they write lowers the token that it comes from."""
        if layer not in self._layers:
            return
        if pattern is None:
            raise TypeError("what copy suppression explains needs the pattern")
        outs, keys, values = self._circuits.layers[layer].outs, self._keys.pop(layer), self._values.pop(layer)
        behind = self._scales.pop(layer, None)
        for head in (head for head in self._heads if head.layer == layer):
            directions = self._directions.to(outs.device)
            own = directions @ outs[head.head].to(directions).mT  # batch, keys, d_head
            along = torch.linalg.vecdot(values[:, :, head.head].to(own), own)
            along = along / torch.linalg.vecdot(directions, directions).clamp_min(torch.finfo(directions.dtype).tiny)
            lowered = pattern[:, head.head].to(along) * along.clamp_max(0)[:, None]
            lowered = lowered if behind is None else lowered / behind.to(along)[..., None]
            self.found[head] = _Read(found[:, :, head.head].to(along), lowered, keys.to(along.device))

    def _chosen(self, stream: Tensor, row: Ids, rng: np.random.Generator) -> Tensor:
        """Of each query the keys (2, queries, keys) where the tokens stand that are predicted most, and as many at random.

        Which of several tokens that are predicted alike is drawn at random too.
        """
        ids, places = np.unique(row, return_inverse=True)
        logits = self._lens.logits(self._circuits.final_norm(stream), ids)
        length, device, token_at = len(row), logits.device, torch.from_numpy(places).to(logits.device)
        earlier = torch.ones(length, length, dtype=torch.bool, device=device).tril(-1)
        earlier[:, 0] = False
        there = torch.zeros(length, len(ids), device=device).index_add_(1, token_at, earlier.float()) > 0  # queries, tokens
        wanted = torch.tensor([[n_kept(count)] for count in there.sum(1).tolist()], device=device)
        tokens = _first(logits.masked_fill(~there, -torch.inf), wanted, rng)
        kept = tokens[:, token_at] & earlier
        left = earlier & ~kept
        others = _first(left.float(), kept.sum(1, keepdim=True), rng) & left
        return torch.stack([kept, others])


def _first(values: Tensor, wanted: Tensor, rng: np.random.Generator) -> Tensor:
    """Which of the values (rows, n) are among the `wanted` (rows, 1) largest of their row, of equal ones some at random."""
    shuffled = torch.from_numpy(rng.random(values.shape).argsort(1)).to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    is_first = torch.arange(values.shape[1], device=values.device) < wanted
    return torch.zeros_like(is_first).scatter(1, order, is_first)


@dataclass
class _Head:
    """One head on all rows: what it reads, and the means, over all positions but the first, of what is not kept of it."""

    id: HeadId
    read: _Read
    outs: Tensor  # d_head, d_model
    means: Tensor  # of all that it writes; without what is lowered of what is predicted most; without that of other keys

    def changes(self, directions: Tensor, part: slice) -> Tensor:
        """What its layer writes more with each of the three ablations, (3, rows, positions, d_model), on some rows."""
        written, kept = _written(self.read.of_rows(part), self.outs, directions)
        made = self.means[:, None, None] + torch.stack([torch.zeros_like(written), *kept]) - written
        made[:, :, 0] = 0
        return made


def _written(read: _Read, outs: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """What a head writes, (rows, positions, d_model), and what is kept of it, (2, rows, positions, d_model)."""
    return read.found @ outs.to(read.found), (read.lowered * read.kept) @ directions.to(read.lowered)


def explained(
    subject: ModelUnderTest, rows: Ids, queries: NDArray[np.int64], heads: Sequence[HeadId], seed: int
) -> tuple[ExplainedHead, ...]:
    """How much of what each of the heads does to the model's predictions at the `queries` copy suppression explains.

    At every position q but the first, the keys k with 0 < k < q are looked at where one of the 5 % of tokens stands that the
    stream before the head's layer predicts most at q. What the head writes from each of them is kept along the logit of the key's
    own token, where that lowers it. All else that the head writes is its mean over rows and positions, the first left out. It is
    changed where the layer writes to the residual stream, the scale of a norm behind attention held fixed, and all that comes
    after is computed anew.

    Raises `ModelError` where logits are not finite.
    """
    circuits, tokens = circuits_of(subject), torch.from_numpy(rows)
    with progress("what copy suppression explains", len(rows) * (PASSES + PASSES_OF_A_HEAD * len(heads))):
        read = read_by_heads(subject, circuits, tokens, heads, seed)
        known = [_known(circuits, tokens, head, each) for head, each in read.items()]
        passes = ChangedPasses(subject, circuits, torch.from_numpy(queries))

        def measured(batch: Tensor, part: slice) -> Array:
            return passes.divergences(batch, part, known)

        parts = in_batches(subject, tokens, measured, logits=True, most=1 if subject.mixes_rows else None)
    found = np.concatenate(parts, axis=2)
    if not np.isfinite(found).all():
        raise ModelError(f"the logits of {subject.name} are not finite with heads ablated")
    return tuple(of_head(head.id, each, len(queries)) for head, each in zip(known, found, strict=True))


def read_by_heads(
    subject: ModelUnderTest, circuits: Circuits, tokens: Tensor, heads: Sequence[HeadId], seed: int
) -> dict[HeadId, _Read]:
    """What each of the heads reads of all rows."""
    capture = HeadOutputCapture(subject, circuits)

    def measured(batch: Tensor, part: slice) -> dict[HeadId, _Read]:
        def draw(row: int, layer: int) -> np.random.Generator:
            return np.random.default_rng([seed, 31, part.start + row, layer])

        one = _Reading(circuits, batch, heads, draw)
        capture(batch, one.take, patterns=True, watch=one)
        return one.found

    parts = in_batches(subject, tokens, measured, logits=False)
    return {head: _Read.join([part[head] for part in parts]) for head in heads}


def _known(circuits: Circuits, tokens: Tensor, head: HeadId, read: _Read) -> _Head:
    """A head with its means over all rows."""
    outs, sums = circuits.layers[head.layer].outs[head.head], []
    for number in range(len(tokens)):
        row = slice(number, number + 1)
        written, kept = _written(read.of_rows(row), outs, circuits.written(tokens[row]))
        sums.append(torch.stack([written, *(written - kept)])[:, 0, 1:].double().sum(1))
    means = torch.stack(sums).sum(0) / (len(tokens) * (tokens.shape[1] - 1))
    return _Head(head, read, outs, means.to(read.found))


@dataclass
class ChangedPasses:
    """Passes in which one head at a time writes something else, each begun at its layer."""

    subject: ModelUnderTest
    circuits: Circuits
    queries: Tensor

    def __post_init__(self) -> None:
        self.blocks: Blocks = blocks_of(self.subject)

    @puts_back
    def divergences(self, rows: Tensor, part: slice, heads: Sequence[_Head]) -> Array:
        """KL(model || with each of three ablations of each head), (heads, 3, rows), sums over the queries, in nats."""
        with self.blocks.kept() as gave, apply_edits(self.subject, rows, {}):
            clean = self.subject.logits(rows, positions=self.queries)
        directions, found = self.circuits.written(rows), []
        for head in heads:
            of_head = [kl(clean, self.logits(rows, head.id.layer, change, gave)) for change in head.changes(directions, part)]
            found.append(torch.stack(of_head).sum(-1))
        return numbers(torch.stack(found))

    def logits(self, rows: Tensor, layer: int, change: Tensor, gave: Sequence[Any]) -> Tensor:
        """Logits at the queries where a layer writes more by that much; `gave` is what blocks gave in the pass without."""
        first = layer if self.blocks.any else 0
        begun, needed = self.blocks.begun_at(first, gave), self.blocks.needed_at(self.queries)
        with begun, needed, self._adding(layer, change), apply_edits(self.subject, rows, {}, first=first):
            logits = self.subject.logits(rows, positions=self.queries)
        advance(len(rows))
        return logits

    @contextmanager
    def _adding(self, layer: int, change: Tensor) -> Iterator[None]:
        """In a pass inside the block a layer writes more by that much, (rows, positions, d_model)."""
        one = self.circuits.layers[layer]

        def more(part: nn.Module, inputs: Any, output: Any) -> Any:
            made = output[0] if isinstance(output, tuple) else output
            made = made + (change / one.factor).to(made)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        gives = one.normed or one.writes or self.subject.module.get_submodule(one.path)
        with Changes() as changes:
            add_hooks(changes, [gives], more)
            yield


def kl(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted || found) of logits (rows, queries, d_vocab), (rows, queries), at least float32, in nats."""
    parts = [
        functional.kl_div(of_found.log_softmax(-1), of_wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        for of_wanted, of_found in (map(at_least_float32, pair) for pair in in_parts(wanted, found))
    ]
    return torch.cat(parts).view(wanted.shape[:2])


def of_head(head: HeadId, found: Array, n_queries: int) -> ExplainedHead:
    """One head by its divergences (3, rows), sums over so many queries: ablated, of suppression, of other keys."""
    ablated, kept, other = found.astype(np.float64)
    changed = float(ablated.mean() / n_queries)
    of_rows = [mean_of_tokens(ablated - each, ablated) if changed >= LEAST_KL else np.full(2, np.nan) for each in (kept, other)]
    (recovered, error), (others, others_error) = ((each.mean(), each.std(ddof=1) / np.sqrt(len(each))) for each in of_rows)
    return ExplainedHead(head.layer, head.head, float(recovered), float(error), float(others), float(others_error), changed)
