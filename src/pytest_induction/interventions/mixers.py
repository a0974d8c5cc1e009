"""The blocks of a model, and what in each of them moves information between positions: attention, a state, or a convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.forward.changing import add_hooks, have_alone, replace_forward
from pytest_induction.interventions.taps import reach_of
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import Changes, puts_back

Kind = Literal["attention", "state", "convolution"]
ROWS = 2
CHANGED = 3  # the position at which a module is given something else, to see which others follow
LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True, eq=False)
class Mixer:
    """A module of block `layer` that moves information between positions.

    "attention" is what an attention backend reads, "convolution" what reaches no further than its own taps. All else is a
    "state": a recurrence, a state space, linear attention, or attention that no backend reads.
    """

    path: str
    layer: int
    kind: Kind
    module: nn.Module


@dataclass(frozen=True, eq=False)
class ResidualStream:
    """The blocks of a model in order, with their paths, and all that mixes positions in them."""

    blocks: tuple[nn.Module, ...]
    paths: tuple[str, ...]
    mixers: tuple[Mixer, ...]

    def of_kind(self, kind: Kind) -> tuple[Mixer, ...]:
        return tuple(each for each in self.mixers if each.kind == kind)


@puts_back
def residual_stream(subject: ModelUnderTest) -> ResidualStream:
    """The blocks and mixers of a model, found once, by what they do to a few tokens.

    Blocks are the longest list of modules that each run once in a pass and give (rows, positions, width). A mixer is a part of a
    block whose output changes at a later position when its input is changed at one, or the block itself where no part of it
    does. Raises `UnsupportedModel` where there are no such blocks.
    """
    return subject.remember(("residual stream",), lambda: _found(subject))


def _found(subject: ModelUnderTest) -> ResidualStream:
    lists = [(path, each) for path, each in subject.module.named_modules() if isinstance(each, LISTS) and len(each)]
    reach = max((reach_inside(part) for _, each in lists for part in each.children()), default=0)
    tokens = subject.random_ids(ROWS, CHANGED + reach + 8)
    ran: dict[nn.Module, list[tuple[int, ...] | None]] = {}

    def note(part: nn.Module, inputs: Any, output: Any) -> None:
        stream = first_tensor(output)
        ran.setdefault(part, []).append(None if stream is None else tuple(stream.shape))

    with Changes() as changes:
        add_hooks(changes, dict.fromkeys(part for _, each in lists for part in each.children()), note)
        subject.logits(tokens)

    def is_stream(each: nn.Module) -> bool:
        shapes = {shape for part in each.children() for shape in ran.get(part, [])}
        once = all(len(ran.get(part, [])) == 1 for part in each.children())
        return once and len(shapes) == 1 and all(shape and len(shape) == 3 and shape[:2] == tokens.shape for shape in shapes)

    path, chosen = max(((path, each) for path, each in lists if is_stream(each)), key=lambda one: len(one[1]), default=("", None))
    if chosen is None:
        raise UnsupportedModel(
            f"the blocks of {subject.name} are not found: expected a list of modules that each run once and give "
            f"({', '.join(map(str, tokens.shape))}, width), saw none among {len(lists)} lists"
        )
    named = [(f"{path}.{name}" if path else name, block) for name, block in chosen.named_children()]
    parts = {
        (f"{own}.{name}", number): part for number, (own, block) in enumerate(named) for name, part in block.named_children()
    }
    mixing = _mixing(subject, tokens, [*parts.values(), *chosen.children()])
    mixers: list[Mixer] = []
    for number, (own, block) in enumerate(named):
        inside = [(name, part) for (name, layer), part in parts.items() if layer == number and part in mixing]
        for name, part in inside or [(own, block)]:
            if part in mixing:
                mixers.append(Mixer(name, number, _kind(subject, name, mixing[part] > reach_inside(part)), part))
    return ResidualStream(tuple(chosen.children()), tuple(own for own, _ in named), tuple(mixers))


def reach_inside(module: nn.Module) -> int:
    """How many positions back the taps of a module and its parts reach together."""
    return sum(reach_of(part) for part in module.modules())


def _kind(subject: ModelUnderTest, path: str, is_far: bool) -> Kind:
    layers = () if subject.backend is None else subject.backend.layers
    if any(f"{layer}.".startswith(f"{path}.") or f"{path}.".startswith(f"{layer}.") for layer in layers):
        return "attention"
    return "state" if is_far else "convolution"


def _mixing(subject: ModelUnderTest, tokens: Tensor, parts: Sequence[nn.Module]) -> dict[nn.Module, int]:
    """How far behind a position the output of each part changes with its input there, for those where it does."""
    found: dict[nn.Module, int] = {}

    def tried(part: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            output = forward(*args, **options)
            stream, given = first_tensor(output), _given(args, options)
            if given is None or stream is None or stream.shape[:2] != tokens.shape or given[1].shape[:2] != tokens.shape:
                return output
            place, hidden = given
            other = hidden.clone()
            other[:, CHANGED] = hidden[:, CHANGED + 1].flip(-1)
            args, options = _with(args, options, place, other)
            changed = first_tensor(forward(*args, **options))
            if changed is not None:
                far = (changed != stream).flatten(2).any(2).any(0)[CHANGED + 1 :].nonzero()
                found[part] = max(found.get(part, 0), int(far.max()) + 1 if len(far) else 0)
            return output

        return instead

    with Changes() as changes:
        have_alone(changes, subject.module)
        for part in dict.fromkeys(parts):
            replace_forward(changes, part, tried(part, part.forward))
        subject.logits(tokens)
    return {part: far for part, far in found.items() if far}


def first_tensor(output: Any) -> Tensor | None:
    """The residual stream in what a module gave: a tensor, or the first of a tuple."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) else None


def like(output: Any, stream: Tensor) -> Any:
    """What a module gave, with another stream."""
    return type(output)((stream, *output[1:])) if isinstance(output, (tuple, list)) else stream


def _given(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[int | str, Tensor] | None:
    """The first tensor (rows, positions, width) that a module is given, and its place."""
    places: list[tuple[int | str, Any]] = [*enumerate(args), *options.items()]
    return next(
        ((place, each) for place, each in places if isinstance(each, Tensor) and each.ndim == 3 and each.is_floating_point()),
        None,
    )


def _with(
    args: tuple[Any, ...], options: Mapping[str, Any], place: int | str, hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is given, with another tensor in that place."""
    if isinstance(place, int):
        return (*args[:place], hidden, *args[place + 1 :]), dict(options)
    return args, {**options, place: hidden}


@dataclass(frozen=True, eq=False)
class Recorded:
    """What modules were `given` in a pass, and what they `gave`, (rows, positions, width)."""

    given: dict[nn.Module, Tensor]
    gave: dict[nn.Module, Tensor]


@contextmanager
def recorded(parts: Sequence[nn.Module]) -> Iterator[Recorded]:
    """What these modules are given and give in a pass inside the block."""
    seen = Recorded({}, {})

    def before(part: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        found = _given(args, options)
        if found is not None:
            seen.given[part] = found[1].detach()

    def after(part: nn.Module, inputs: Any, output: Any) -> None:
        stream = first_tensor(output)
        if stream is not None:
            seen.gave[part] = stream.detach()

    with Changes() as changes:
        add_hooks(changes, parts, before, before=True, with_kwargs=True)
        add_hooks(changes, parts, after)
        yield seen


@contextmanager
def other_memory(
    subject: ModelUnderTest, mixers: Sequence[Mixer], given: Mapping[nn.Module, Tensor], positions: slice, begin: int
) -> Iterator[None]:
    """In a pass inside the block the mixers answer, from position `begin` on, as if they had been given something else before.

    At `positions`, all before `begin`, each sees the rows of `given` (what it was given in another pass, see `recorded`) in
    place of its own. What it gives before `begin` stays. So what attention finds there, or a state holds of it, is that of
    other rows; all else is not.
    """

    def exchanging(mixer: Mixer, forward: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            output, found, source = forward(*args, **options), _given(args, options), given.get(mixer.module)
            stream = first_tensor(output)
            if found is None or stream is None or source is None or found[1].shape != source.shape:
                raise ModelError(f"`{mixer.path}` was not given the (rows, positions, width) that it was given before")
            place, hidden = found
            other = hidden.clone()
            other[:, positions] = source[:, positions]
            args, options = _with(args, options, place, other)
            changed = first_tensor(forward(*args, **options))
            return output if changed is None else like(output, torch.cat([stream[:, :begin], changed[:, begin:]], dim=1))

        return instead

    with Changes() as changes:
        have_alone(changes, subject.module)
        for mixer in mixers:
            replace_forward(changes, mixer.module, exchanging(mixer, mixer.module.forward))
        yield


@contextmanager
def restored(block: nn.Module, gave: Tensor, positions: Tensor) -> Iterator[None]:
    """In a pass inside the block, that block of the model gives at some positions what it gave in another pass."""

    def after(part: nn.Module, inputs: Any, output: Any) -> Any:
        stream = first_tensor(output)
        if stream is None or stream.shape != gave.shape:
            raise ModelError(f"a block gave {None if stream is None else tuple(stream.shape)}, expected {tuple(gave.shape)}")
        changed = stream.clone()
        changed[:, positions] = gave[:, positions]
        return like(output, changed)

    with Changes() as changes:
        add_hooks(changes, [block], after)
        yield
