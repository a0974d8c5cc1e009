"""Attention written by hand. Every softmax over (positions x positions) is intercepted, and sdpa calls with it.

A softmax is taken for the pattern only if it is followed to a matrix product in which it weighs something as it is: nothing but
casts, views and changes without effect (dropout while evaluating) lie between. Patterns that are changed on the way, such as the
difference of two, are refused. Every pass is followed, since what has no effect on a few tokens may have one on many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.attention.axes import PRODUCTS, Axes, SeenSoftmax, axis_of, find_axes, itself, may_fit
from pytest_induction.attention.backend import InterceptingBackend, VerificationInputs
from pytest_induction.attention.capture import Capture, Span, measuring
from pytest_induction.attention.edits import Edits
from pytest_induction.attention.errors import BackendUnavailable, StopForward
from pytest_induction.attention.interceptor import (
    InterceptingMode,
    Interceptor,
    check_output_is_all,
    intercepted,
    verification_passes,
)
from pytest_induction.attention.joining import tensors_in
from pytest_induction.attention.pattern import PatternReader, QueryChunk
from pytest_induction.attention.softmax_edits import SoftmaxEditor
from pytest_induction.attention.softmaxes import is_softmax
from pytest_induction.forward.calling import Caller

TWO_OPERANDS = frozenset({"matmul", "__matmul__", "linalg_matmul", "bmm", "mm", "baddbmm"})  # whose axes are known
VIEWS = frozenset(
    {"view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "contiguous", "clone"}
    | {"swapaxes", "movedim", "__getitem__", "chunk", "split", "unbind", "detach", "view_as", "reshape_as", "expand_as"}
    | {"__get__"}  # of a property, such as mT
)
HARMLESS = 1e-2  # what a cast to half precision may change,
EXACT = 1e-6  # and any other
STAMPED = 65_536  # numbers of a pattern whose places are looked at to see whether it was written to
MULTIPLIED = frozenset({"mul", "__mul__", "__rmul__", "multiply"})
UNUSED = "used nowhere"
FOLLOWED = 3  # patterns that are followed at a time in a measurement; two may be used together, as in a difference


class SoftmaxBackend(InterceptingBackend):
    """Sees patterns where the model computes them itself, whatever its code is. Costs a little per torch function."""

    name = "softmax"
    reads = (
        "every softmax over (positions x positions) that weighs something unchanged, with its axes in any order, and "
        "`sdpa` and `flex_attention` calls beside it"
    )
    models = "attention written by hand"
    makes_patterns = True
    can_isolate = True
    edits_outside = True
    stops = True
    learns_chunks = True

    def __init__(self, caller: Caller, inputs: VerificationInputs) -> None:
        self.caller = caller
        captures, modes = verification_passes(caller, inputs.tokens, TracingMode)
        if not captures[0].events:
            raise BackendUnavailable(f"no softmax seen{modes[0].sealed()}")
        fewer = lambda: verification_passes(caller, (inputs.short[:-1],), TracingMode)[1][0].seen  # noqa: E731 - a row less, if need be
        self.axes = find_axes(modes[0].seen, modes[1].seen, fewer)
        for capture, mode in zip(captures, modes, strict=True):
            capture.events = [
                event._replace(fits=event.fits and (number in self.axes or number not in mode.seen))
                for number, event in enumerate(capture.events)
            ]
        self.resolve_layers(captures, inputs.expected)
        for mode in modes:
            mode.check(frozenset(range(mode.interceptor.capture.n_events)) if self.chunked else self.calls)
        check_output_is_all(self, inputs.short, modes)
        self._editor: SoftmaxEditor | None = None
        if self.can_edit:
            self._editor = SoftmaxEditor(caller, inputs.short, self.layers, calls=self.calls, groups=self.groups, axes=self.axes)

    def apply_edits(self, tokens: Tensor, edits: Edits, *, first: int = 0) -> AbstractContextManager[object]:
        self.refuse_chunks()
        if self._editor is None:
            raise TypeError("a backend that can edit has an editor")
        return self._editor.apply_edits(tokens, edits, first=first)

    @contextmanager
    def intercepting(self, tokens: Tensor, capture: Capture) -> Iterator[None]:
        capture.ends = False  # but when it is known what becomes of the last pattern
        with intercepted(Interceptor(tokens, capture), TracingMode) as mode, suppress(StopForward):
            mode.follows, mode.axes = FOLLOWED, self.axes
            yield
        mode.check(frozenset(range(capture.n_events)) if self.chunked else self.calls)


class FollowedPattern(NamedTuple):
    """A pattern as it is on its way: a tensor, its state then, the softmaxes it is of, and what changed it, if any."""

    tensor: Tensor
    stamp: tuple[float, float]
    numbers: frozenset[int]
    changed_by: str


class TracingMode(InterceptingMode):
    """Shows each softmax over (positions x positions) as a layer's pattern, and follows it to the product in which it weighs."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__(interceptor)
        self.follows: int | None = None  # how many patterns at a time; None for all
        self.axes: Mapping[int, Axes] | None = (
            None  # of the softmaxes that are patterns, by their numbers; None while that is verified
        )
        self._ended = False
        self.seen: dict[int, SeenSoftmax] = {}  # in a verification pass, the softmaxes that may be patterns
        self._followed: dict[int, FollowedPattern] = {}
        self._summed: dict[int, tuple[Tensor, frozenset[int]]] = {}  # what patterns weighed, which none may weigh again
        self._weighted: dict[int, tuple[Tensor, FollowedPattern]] = {}  # values times a pattern, not summed yet
        self._fate: dict[int, str] = {}  # of each softmax, by the number of its call

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if not (self._followed or self._weighted or self.interceptor.capture.stopped or is_softmax(func, output)):
            return output
        with measuring():
            return self._intercepted(func, args, kwargs, output)

    def _intercepted(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if is_softmax(func, output):
            seen = SeenSoftmax(output, axis_of(args, kwargs, output.ndim), self.interceptor.batch, self.interceptor.positions)
            number = self.interceptor.capture.n_events
            if self._record_call(seen, number):
                return self._verified(seen, number, args) if self.axes is None else self._shown(seen, number)
        if self._followed or self._weighted:
            self._judge(getattr(func, "__name__", ""), args, kwargs, output)
        if self.interceptor.capture.stopped and UNUSED not in self._fate.values() and not self._ended:
            self._ended = True  # where an interrupt keeps it in place, what is run to clean up is not ended by it too
            raise StopForward
        return output

    def _record_call(self, seen: SeenSoftmax, number: int) -> bool:
        """Whether a softmax is a layer's pattern, or, in a verification pass, may be one or a part of one."""
        shape, key = seen.output.shape, seen.key
        fits = may_fit(shape, key, *seen.size) if self.axes is None else self._axes(number, seen).fits(shape, *seen.size)
        partial = key == len(shape) - 1 in (2, 3) and shape[-2] <= shape[-1] <= seen.positions and shape[0] % seen.batch == 0
        partial = partial and (len(shape) == 3 or shape[0] == seen.batch)
        heads = seen.output.numel() // (seen.batch * (seen.positions**2 if fits else shape[-2:].numel()))
        queries = seen.positions if fits else shape[-2 if key == len(shape) - 1 else -1]
        recorded = self.interceptor.capture.record_call(queries, shape[key], fits=fits, partial=partial, heads=heads)
        return recorded or (partial and self.axes is None)

    def _axes(self, number: int, seen: SeenSoftmax) -> Axes:
        """Those that verification found; as usual where the call of this number was no softmax there."""
        return (self.axes or {}).get(number) or Axes.usual(seen.output.ndim)

    def _verified(self, seen: SeenSoftmax, number: int, args: Any) -> Tensor:
        """What a softmax gives in a verification pass, in which it is followed."""
        self._follow(seen.output, frozenset({number}))
        self._fate[number] = UNUSED
        self.seen[number] = seen._replace(output=seen.output.detach().clone())
        if self.interceptor.capture.outputs is not None:
            self.interceptor.capture.outputs.given(number, tensors_in(args[:1]))
        return seen.output

    def _shown(self, seen: SeenSoftmax, number: int) -> Tensor:
        """What is given back for a softmax that is a pattern, or a part of one, which is shown and followed."""
        output, capture = seen.output, self.interceptor.capture
        axes = self._axes(number, seen)
        span = capture.span(*output.shape[-2:]) if capture.chunked else None
        if capture.self_only:
            return itself(axes, output, *seen.size) if span is None else _itself_in(span, output)
        self._follow(output, frozenset({number}))
        self._fate[number] = UNUSED
        if self.follows is not None:
            self._let_go(sorted(self._fate)[: -self.follows])
        if span is None:
            capture(PatternReader(axes.apart(output, *seen.size)))
        else:
            rows = output.reshape(seen.batch, -1, *output.shape[-2:])
            capture(QueryChunk(lambda: rows, span.queries, span.keys, rows.device, rows.dtype))
        return output

    def _let_go(self, numbers: list[int]) -> None:
        """Follow these patterns no more; that they are used later than that was seen in verification."""
        self._followed = {key: followed for key, followed in self._followed.items() if followed.numbers.isdisjoint(numbers)}
        self._summed = {key: held for key, held in self._summed.items() if held[1].isdisjoint(numbers)}
        self._fate |= {number: "" for number in numbers if self._fate[number] == UNUSED}

    def _follow(self, tensor: Tensor, numbers: frozenset[int], changed_by: str = "") -> None:
        self._followed[id(tensor)] = FollowedPattern(tensor, _stamp(tensor), numbers, changed_by)

    def _judge(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """What a function made of the patterns among its arguments: sums weighted by one, the same pattern, or another one."""
        inputs = list(tensors_in([*args, *kwargs.values()]))
        self._sum(name, args, kwargs, inputs, output)
        found = [
            followed for each in inputs if (followed := self._followed.get(id(each))) is not None and followed.tensor is each
        ]
        if not found:
            return
        numbers = frozenset().union(*(followed.numbers for followed in found))
        changed_by = next((followed.changed_by for followed in found if followed.changed_by), "")
        one = found[0].tensor  # what works in place returns its argument, so that its stamp tells
        intact = len(found) == 1 and not changed_by and _stamp(one) == found[0].stamp
        if name in PRODUCTS:
            again = any(numbers & self._summed.get(id(each), (each, frozenset()))[1] for each in inputs)
            weighs = intact and not again and _weighs(name, one, args)
            self._used(numbers, "" if weighs else f"changed by `{changed_by or name}`")
            if isinstance(output, Tensor):
                self._summed[id(output)] = output, numbers
                if weighs and self.axes is None:
                    self._weighed(numbers, inputs, output)
            return
        if name in MULTIPLIED and intact and isinstance(output, Tensor) and output.ndim > 2 and output.numel() > one.numel():
            self._weighted[id(output)] = output, found[0]
            return
        if not (intact and _same(name, one, inputs, output)):
            changed_by = changed_by or name
            if any(each.ndim > 2 and each.shape[-2:] != one.shape[-2:] for each in inputs if id(each) not in self._followed):
                self._used(numbers, f"changed by `{changed_by}`")  # it meets values, in whatever kind of sum
        for each in tensors_in([output]):
            if each.is_floating_point():  # a comparison picks; what it picks is compared where it is used
                self._follow(each, numbers, changed_by)

    def _sum(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor], output: Any) -> None:
        """Where a function is given what a pattern weighs number by number: it sums that over the keys, or changes it."""
        for each in inputs:
            weighted, followed = self._weighted.get(id(each), (None, None))
            if weighted is not each or followed is None:
                continue
            del self._weighted[id(each)]
            intact = _stamp(followed.tensor) == followed.stamp
            sums = name == "sum" and intact and _sums_over_keys(followed.tensor, each, args, kwargs)
            self._used(followed.numbers, "" if sums else f"changed by `{name if intact else 'mul'}`")
            if sums and isinstance(output, Tensor) and self.axes is None:
                self._weighed(followed.numbers, [], output)

    def _weighed(self, numbers: frozenset[int], inputs: list[Tensor], output: Tensor) -> None:
        """What heads find is followed in a verification pass."""
        outputs = self.interceptor.capture.outputs
        if outputs is None:
            return
        for number in numbers:
            outputs.given(number, inputs)
            outputs.gave(number, output, self.interceptor.capture.events[number].heads)

    def _used(self, numbers: frozenset[int], fate: str) -> None:
        """Patterns weighed something, as they are or changed; changed once is changed."""
        self._fate |= {number: fate for number in numbers if fate or self._fate[number] == UNUSED}

    def check(self, calls: frozenset[int]) -> None:
        """Raise `BackendUnavailable` unless every pattern was used as it was."""
        fates = sorted(fate for number, fate in self._fate.items() if fate and number in calls)
        if fates:
            raise BackendUnavailable(
                f"{len(calls)} softmax calls over (positions x positions), of which {len(fates)} are {fates[0]}"
            )


def _itself_in(span: Span, pattern: Tensor) -> Tensor:
    """A pattern of some queries over some keys in which every position attends to itself only."""
    places = [torch.arange(each.start, each.stop, device=pattern.device) for each in span]
    return (places[0][:, None] == places[1]).to(pattern.dtype).expand_as(pattern).clone()


def _weighs(name: str, pattern: Tensor, args: Sequence[Any]) -> bool:
    """Whether a product sums something over the keys of a pattern, for each of its queries, and mixes nothing else."""
    if name == "einsum":
        axis = _summed_axis(pattern, args)
    else:
        operands = args[1:3] if name == "baddbmm" else args[:2]
        left = operands[0] is pattern
        axis = (-1 if left else -2) if len(operands) == 2 and name in TWO_OPERANDS else None
    if axis is None:
        return False
    return _sums_to_one(pattern, axis)


def _sums_to_one(pattern: Tensor, axis: int) -> bool:
    """Whether an axis is that of the keys: of a causal pattern only the sums over these are all one."""
    sums = pattern.sum(axis, dtype=torch.float32)
    return bool((((sums - 1).abs() < HARMLESS) | (sums.abs() < HARMLESS)).all())


def _sums_over_keys(pattern: Tensor, weighted: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a sum of what a pattern weighs number by number is one over its keys alone."""
    given = args[1] if len(args) > 1 else kwargs.get("dim")
    axes = [given] if isinstance(given, int) else list(given or ())
    if len(axes) != 1:
        return False
    axis = axes[0] % weighted.ndim - weighted.ndim
    return -axis <= pattern.ndim and pattern.shape[axis] == weighted.shape[axis] and _sums_to_one(pattern, axis)


def _summed_axis(pattern: Tensor, args: Sequence[Any]) -> int | None:
    """The axis of the pattern that an einsum of two operands sums over, if it is one and the other axes stay."""
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    given, result = equation.replace(" ", "").split("->")
    terms = given.split(",")
    mine = terms[0 if operands[0] is pattern else 1].replace("...", ".")
    other = terms[1 if operands[0] is pattern else 0].replace("...", ".")
    summed = [letter for letter in mine if letter not in result]
    if len(summed) != 1 or summed[0] not in other or len(set(mine)) != len(mine):
        return None
    place = mine.index(summed[0])
    return place - len(mine) if "." in mine[:place] or "." not in mine else place


def _same(name: str, before: Tensor, inputs: list[Tensor], after: Any) -> bool:
    """Whether a function gave its argument back, in another layout or precision at most.

    One that takes other numbers may do so now, as mixing of heads does at first, and not after some training.
    """
    others = [each for each in inputs if each is not before and each.is_floating_point() and each.ndim > 0]
    if others and name not in ("where", "type_as", "view_as", "reshape_as", "expand_as"):
        return False
    if name in VIEWS:
        return True
    if not isinstance(after, Tensor) or after.shape != before.shape:
        return False
    close = HARMLESS if min(after.element_size(), before.element_size()) < 4 else EXACT
    return torch.allclose(after.float(), before.float(), atol=close, rtol=close)


def _stamp(tensor: Tensor) -> tuple[float, float]:
    """Other numbers whenever other ones are written to the tensor: the sum of all, and that of some by their places."""
    some = tensor.flatten()[:: max(1, tensor.numel() // STAMPED)].double()
    return float(tensor.sum(dtype=torch.float64)), float(some @ torch.arange(len(some), dtype=some.dtype, device=some.device))
