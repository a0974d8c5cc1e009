"""Begin a forward pass at a later layer: what comes before it is taken from a pass that was kept.

No adapter knows the blocks. They are the parts of the model that hold one attention layer each, side by side; whether one gives
the residual stream, and nothing else that later ones need, is tried out: each block, with none before it run, must give what it
gave in a whole pass, bit by bit, and the last one the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.models.changing import add_hooks, have_alone, replace_forward
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.way_in import ListeningWay
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


def _tried(subject: ModelUnderTest) -> Blocks:
    way = subject.reading
    found = _side_by_side(subject.module, way.layers)
    blocks = Blocks(subject.module, found)
    others = isinstance(way, ListeningWay) and way.n_calls != len(way.calls)  # calls that are none of a layer: not known where
    if not blocks.any or others or subject.mixes_rows or subject.draws:
        return Blocks(subject.module)
    tokens = _trial_tokens(subject)
    try:
        with blocks.kept() as gave:
            logits = subject.logits(tokens)
        if len(gave) != subject.n_layers or any(_stream(each).shape[:2] != tokens.shape for each in gave):
            return Blocks(subject.module)  # one of positions first cannot be given other rows
        subject.logits(tokens[:1].flip(1))  # what a block leaves on the module for a later one is of this pass from now on
        last = subject.n_layers - 1
        with blocks.begun_at(last, gave), way.acting(tokens, {}, first=last):
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
            subject.reading.acting(tokens, {}, first=layer),
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


def _trial_tokens(subject: ModelUnderTest) -> Tensor:
    """Two rows of ordinary ids."""
    usable = subject.space.ordinary or [0]
    generator = torch.Generator().manual_seed(0)
    length = min(16, subject.space.n_ctx or 16)
    return torch.tensor(usable)[torch.randint(0, len(usable), (2, length), generator=generator)].to(subject.device)


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
