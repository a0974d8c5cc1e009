"""The losses of a model while sets of heads are ablated: as many sets as fit in a pass, each begun where its first head is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import InterceptingBackend
from pytest_induction.attention.edits import Edit, Record, Replace
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.forward.calling import is_out_of_memory
from pytest_induction.forward.changing import add_hooks, have_alone, replace_forward
from pytest_induction.interventions.active import apply_edits
from pytest_induction.interventions.arguments import table_of
from pytest_induction.interventions.edits import HOW, Replacement, given
from pytest_induction.measuring.losses import losses_of
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.model.batching import batch_size, in_batches
from pytest_induction.model.circuits import TRIED
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import advance
from pytest_induction.records import HeadId
from pytest_induction.undoing import Changes, puts_back


class Blocks:
    """The blocks of a model in order, one for each attention layer; none where a pass cannot begin at one of them.

    `pointwise` are the parts of the last block that treat every position by itself, as an MLP does.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module] = (), pointwise: Sequence[nn.Module] = ()) -> None:
        self._model = model
        self._blocks = list(blocks)
        self._pointwise = list(pointwise)

    @property
    def any(self) -> bool:
        """Whether a pass can begin later than at the first layer."""
        return bool(self._blocks)

    @contextmanager
    def kept(self) -> Iterator[list[Any]]:
        """What each block gives in a pass inside the block, as it gave it."""
        gave: list[Any] = []

        def keep(part: nn.Module, inputs: Any, output: Any) -> None:
            gave.append(_like(output, _stream(output).detach()))

        with Changes() as changes:
            add_hooks(changes, self._blocks, keep)
            yield gave

    @contextmanager
    def begun_at(self, layer: int, gave: Sequence[Any], rows: Tensor | None = None) -> Iterator[None]:
        """In a pass inside the block, blocks before `layer` are not run: what the one before it gave stands for all of them.

        `rows` are the numbers of the kept rows that the rows of the pass are, where these are not the same.
        """
        skipped = self._blocks[:layer]
        with Changes() as changes:
            have_alone(changes, self._model)
            if skipped:
                stream = _stream(gave[layer - 1])
                stream = stream if rows is None else stream[rows.to(stream.device)]
                for block, own in zip(skipped, gave, strict=False):
                    replace_forward(changes, block, _giving(_like(own, stream)))
            yield

    @contextmanager
    def ended_after(self, layer: int, stop: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
        """In a pass inside the block, `stop` is called with what block `layer` gives, and may raise."""
        with Changes() as changes:
            add_hooks(changes, [self._blocks[layer]], stop)
            yield

    def run_until(self, layer: int, run: Callable[[], object]) -> None:
        """Run a pass, with its edits, that ends once block `layer` gave what it gives; all of it where blocks are not known."""

        def stop(part: nn.Module, inputs: Any, output: Any) -> None:
            raise _Reached

        if not self.any:
            run()
            return
        with suppress(_Reached), self.ended_after(layer, stop):
            run()

    @contextmanager
    def needed_at(self, queries: Tensor) -> Iterator[None]:
        """In a pass inside the block, of which only the logits at some positions are looked at, the last block saves the rest."""
        with Changes() as changes:
            have_alone(changes, self._model)
            for part in self._pointwise:
                replace_forward(changes, part, _at(part.forward, queries))
            yield


@puts_back
def blocks_of(subject: ModelUnderTest) -> Blocks:
    """The blocks of a model, found and tried out once."""
    return subject.remember(("blocks",), lambda: _tried(subject))


OTHER_TRIES = 16  # passes over 32 tokens in which it is tried out where a pass may begin, beside one for each layer


def tried_out(subject: ModelUnderTest) -> int:
    """The most tokens on which it is tried out, once, how heads can be ablated and what their weights are."""
    return TRIED + 32 * (OTHER_TRIES + subject.n_layers)


def _tried(subject: ModelUnderTest) -> Blocks:
    backend = subject.reading
    found = _side_by_side(subject.module, backend.layers)
    blocks = Blocks(subject.module, found)
    others = isinstance(backend, InterceptingBackend) and backend.n_calls != len(
        backend.calls
    )  # calls that are none of a layer: not known where
    if not blocks.any or others or subject.mixes_rows or subject.draws:
        return Blocks(subject.module)
    tokens = subject.random_ids(2, 16)
    try:
        with blocks.kept() as gave:
            logits = subject.logits(tokens)
        if len(gave) != subject.n_layers or any(_stream(each).shape[:2] != tokens.shape for each in gave):
            return Blocks(subject.module)  # one of positions first cannot be given other rows
        subject.logits(tokens[:1].flip(1))  # what a block leaves on the module for a later one is of this pass from now on
        last = subject.n_layers - 1
        with blocks.begun_at(last, gave), backend.apply_edits(tokens, {}, first=last):
            if not torch.equal(subject.logits(tokens), logits):
                return Blocks(subject.module)
            pointwise = _pointwise(subject, found[-1], tokens, logits)
        # from the last to the first: what those before a block have left is still of the other pass
        if not all(_alone(subject, blocks, gave, layer, tokens) for layer in range(last - 1, 0, -1)):
            return Blocks(subject.module)
        return Blocks(subject.module, found, pointwise)
    except Exception:  # noqa: BLE001 - whatever a model of one's own minds, it is run from its beginning then
        return Blocks(subject.module)


class _Reached(BaseException):
    """Ends a pass at the block that was asked for; no `except Exception` of a model's own may swallow it."""


def _alone(subject: ModelUnderTest, blocks: Blocks, gave: Sequence[Any], layer: int, tokens: Tensor) -> bool:
    """Whether a block gives the same with none before it run; what comes after it is not run either."""
    found: list[Tensor] = []

    def stop(part: nn.Module, inputs: Any, output: Any) -> None:
        found.append(_stream(output))
        raise _Reached

    try:
        with (
            blocks.begun_at(layer, gave),
            subject.reading.apply_edits(tokens, {}, first=layer),
            blocks.ended_after(layer, stop),
        ):
            subject.logits(tokens)
    except _Reached:
        return torch.equal(found[0], _stream(gave[layer]))
    return False


def _pointwise(subject: ModelUnderTest, last: nn.Module, tokens: Tensor, logits: Tensor) -> list[nn.Module]:
    """The parts of the last block beside attention that may be run at some positions only; in passes begun at that block."""
    root, path = subject.module, subject.reading.layers[-1]
    attention = root.get_submodule(path)
    queries = torch.arange(tokens.shape[1] // 2, tokens.shape[1] - 1, device=tokens.device)

    def serves(part: nn.Module) -> bool:
        heavy = any(weight.ndim > 1 for weight in part.parameters())
        if not heavy or any(each is attention for each in part.modules()) or "forward" in vars(part):
            return False
        try:
            with Blocks(root, (), (part,)).needed_at(queries):
                return torch.equal(subject.logits(tokens)[:, queries], logits[:, queries])
        except Exception:  # noqa: BLE001 - as above
            return False

    return [part for part in last.children() if serves(part)]


def _side_by_side(root: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """The parts of a model that hold one of these paths each, as far up as they do; none where some hold two."""
    for depth in range(1, max((path.count(".") + 2 for path in paths), default=1)):
        prefixes = [".".join(path.split(".")[:depth]) for path in paths]
        if len(set(prefixes)) == len(paths) > 1:
            try:
                found = [root.get_submodule(prefix) for prefix in prefixes]
            except AttributeError:
                return []
            return [] if any("forward" in vars(part) for part in found) else found
    return []


def _stream(output: Any) -> Tensor:
    """The residual stream in what a block gave. Raises `TypeError` where it gave other tensors too."""
    first, *others = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, Tensor) or any(isinstance(other, Tensor) for other in others):
        raise TypeError("a block gives something else than the residual stream")
    return first


def _like(output: Any, stream: Tensor) -> Any:
    """What a block gave, with another stream."""
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def _at(forward: Callable[..., Any], queries: Tensor) -> Callable[..., Any]:
    """The forward of a part that is given and gives (rows, positions, ...), run at some positions only and zero elsewhere."""

    def at_queries(given: Tensor, *args: Any, **options: Any) -> Any:
        kept = queries.to(given.device)
        made = forward(given[:, kept], *args, **options)
        if not isinstance(made, Tensor) or made.shape[:2] != (len(given), len(kept)):
            raise TypeError("a part of the last block gives something else than a tensor of positions")
        whole = made.new_zeros(*given.shape[:2], *made.shape[2:])
        whole[:, kept] = made
        return whole

    return at_queries


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*args: Any, **options: Any) -> Any:
        return output

    return forward


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
    """What is kept of a clean pass over some rows: what each block gave, queries and keys, and what heads give instead.

    `found` is what heads of some layers found in that pass, (rows, heads, positions, d_head). With `at` heads give something else
    at that position alone.
    """

    gave: list[Any]
    frozen: dict[int, Edit]
    values: dict[int, Tensor]
    found: dict[int, Tensor] = field(default_factory=dict)
    at: int | None = None

    def of_row(self, row: int) -> Kept:
        """The same of one of the rows."""
        part = slice(row, row + 1)
        gave = [_like(each, _stream(each)[part]) for each in self.gave]
        frozen = {layer: _with_tensors(edit, lambda value: value[part]) for layer, edit in self.frozen.items()}
        return Kept(gave, frozen, self.values, {layer: found[part] for layer, found in self.found.items()}, self.at)


@dataclass
class SetLosses:
    """Losses (rows, positions) of the model as it is, and (sets, rows, positions) with each set of heads ablated."""

    clean: Array
    ablated: Array


@dataclass
class Passes:
    """Passes over token ids `rows` (rows, positions) whose losses at `queries`, ascending positions, are asked for.

    The loss at a query is that of the token after it, in nats. `other` are the rows, as many, from which heads are resampled.
    `read` gives other numbers than losses of logits (rows, queries, d_vocab), token ids and queries: (rows, n) of them.
    """

    subject: ModelUnderTest
    rows: Tensor
    queries: Tensor
    ablating: Ablating = field(default_factory=Ablating)
    other: Tensor | None = None
    read: Callable[[Tensor, Tensor, Tensor], Tensor] = field(default_factory=lambda: losses_at)

    def __post_init__(self) -> None:
        if self.ablating.how == "resample" and (self.other is None or self.other.shape != self.rows.shape):
            raise ArgumentError("resampling needs other rows, as many and as long")
        self._blocks: Blocks = blocks_of(self.subject)
        self._means = mean_found(self.subject, self.rows) if self.ablating.how == "mean" else {}

    def losses(self, sets: Sequence[HeadSet]) -> SetLosses:
        """The losses with each set ablated; raises `ModelError` where they are not finite."""

        def measured(rows: Tensor, part: slice) -> tuple[Array, Array]:
            kept, logits = self.clean(rows, part)
            clean = numbers(losses_at(logits, rows, self.queries))
            del logits
            return clean, self.ablated(rows, kept, sets)

        at_once = self._most(self.rows.shape[1])
        parts = in_batches(self.subject, self.rows, measured, logits=True, most=1 if self.subject.mixes_rows else at_once)
        result = SetLosses(np.concatenate([clean for clean, _ in parts]), np.concatenate([each for _, each in parts], axis=1))
        if not (np.isfinite(result.clean).all() and np.isfinite(result.ablated).all()):
            raise ModelError(f"the loss of {self.subject.name} is not finite with heads ablated {self.ablating.how!r}")
        return result

    def ablated(self, rows: Tensor, kept: Kept, sets: Sequence[HeadSet]) -> Array:
        """The losses (sets, rows, queries) with each set ablated, after a clean pass over the rows that gave what is kept."""
        table = table_of(self.subject, sets)
        order = np.argsort([_first_layer(heads, self.subject.n_layers) for heads in sets], kind="stable")
        chunks = self._chunks(sets, order, rows)
        found = np.concatenate([self._fitting(rows, kept, table[chunk]) for chunk in chunks])
        return found[np.argsort(np.concatenate(chunks))]

    def compared(
        self, heads: Sequence[HeadId], compare: Callable[[Tensor, Tensor, slice], T], *, same_edits: bool = False
    ) -> list[list[T]]:
        """What `compare` gives of the logits (rows, queries, d_vocab) of the model as it is and with one head ablated.

        For each batch of rows one of each head, in the order of the heads; it is also told which rows these are. A pass for each
        head, begun at its layer, after a whole one; logits of two are held at a time. With `same_edits` both passes are edited in
        the same layer, so that what does not depend on the head is equal bit by bit on every model; that takes a pass more for
        each layer with any of the heads.
        """

        def measured(rows: Tensor, part: slice) -> list[T]:
            (kept, clean), found, stepped = self.clean(rows, part), {}, None
            for number in sorted(range(len(heads)), key=lambda number: heads[number].layer):
                layer = heads[number].layer
                if same_edits and stepped != layer:
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

    def clean(self, rows: Tensor, part: slice, found_in: Collection[int] = ()) -> tuple[Kept, Tensor]:
        """A clean pass over some rows: what the passes after it need, and its logits at the queries.

        What heads of the layers `found_in` find is kept too.
        """
        frozen = range(self.subject.n_layers if self.ablating.pattern_preserving else 0)
        layers = sorted({*frozen, *found_in})
        records = {layer: [Record(inputs=layer in frozen, outputs=layer in found_in)] for layer in layers}
        with self._blocks.kept() as gave, apply_edits(self.subject, rows, records):  # by the way that ablated passes take
            logits = self.subject.logits(rows, positions=self.queries)
        values = self._means
        if self.other is not None and self.ablating.how == "resample":
            values = _found(self.subject, self.other[part])
        found = _seen(self.subject, {layer: records[layer][0] for layer in found_in})
        return Kept(gave, {layer: given(records[layer][0]) for layer in frozen}, values, found), logits

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
        return numbers(self.read(logits, tokens, self.queries)).reshape(len(table), len(rows), -1)

    def _logits(self, rows: Tensor, kept: Kept, table: Tensor, used: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids, and logits at the queries, (sets x rows, ...), of a pass in which the layers that are `used` are edited."""
        count = len(table)
        of_row = torch.arange(len(rows)).repeat(count)
        chosen = table.repeat_interleave(len(rows), 0)
        first = (used[0] if used else self.subject.n_layers - 1) if self._blocks.any else 0
        edits: dict[int, list[Edit]] = {}
        for layer in used:
            values = kept.values.get(layer)
            values = values if values is None or len(values) == 1 else values[of_row.to(values.device)]
            heads = self.subject.reading.heads[layer]
            edits[layer] = [Replace(chosen[:, layer, :heads], values, kept.at)]
        for layer, edit in kept.frozen.items():
            if layer >= first:
                edits.setdefault(layer, []).append(repeated(edit, count))
        tokens = rows.repeat(count, 1)
        begun, needed = self._blocks.begun_at(first, kept.gave, of_row), self._blocks.needed_at(self.queries)
        with begun, needed, apply_edits(self.subject, tokens, edits, first=first):
            logits = self.subject.logits(tokens, positions=self.queries)
        advance(len(tokens))
        return tokens, logits


def losses_at(logits: Tensor, tokens: Tensor, queries: Tensor) -> Tensor:
    """Losses (rows, queries), at least float32, of the tokens after some positions, from the logits there."""
    return losses_of(logits, tokens[:, queries.to(tokens.device) + 1].to(logits.device))


def repeated(edit: Edit, count: int) -> Edit:
    """A edit that gives what was recorded, for rows that stand `count` times one after the other."""
    return _with_tensors(edit, lambda value: value.repeat(count, 1, 1, 1))


def _with_tensors(edit: Edit, change: Callable[[Tensor], Tensor]) -> Edit:
    return type(edit)(**{name: change(value) for name, value in vars(edit).items() if isinstance(value, Tensor)})


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
    with apply_edits(subject, rows, records):
        subject.logits(rows, positions=torch.tensor([rows.shape[1] - 1]))
    return _seen(subject, {layer: edits[0] for layer, edits in records.items()})


def _seen(subject: ModelUnderTest, records: Mapping[int, Record]) -> dict[int, Tensor]:
    """What heads found, as it was recorded."""
    found = {layer: record.get("output") for layer, record in records.items()}
    if any(each is None for each in found.values()):
        raise ModelError(f"what the heads of {subject.name} find is not seen: they can be ablated with how='zero' only")
    return {layer: each for layer, each in found.items() if each is not None}


def _first_layer(heads: HeadSet, n_layers: int) -> int:
    return min((head.layer for head in heads), default=n_layers)
