"""Way in 5: attention written by hand. Every softmax over (positions x positions) is watched, and sdpa calls with it.

A softmax is taken for the pattern only if it is followed to a matrix product in which it weighs something as it is: nothing but
casts, views and changes without effect (dropout while evaluating) lie between. Patterns that are changed on the way, such as the
difference of two, are refused. Every pass is followed, since what has no effect on a few tokens may have one on many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.models.acting import Steps
from pytest_induction.models.attention import PatternReader
from pytest_induction.models.calling import Caller
from pytest_induction.models.editing import Editing
from pytest_induction.models.flex import check_output_is_all
from pytest_induction.models.products import PRODUCTS, tensors_in
from pytest_induction.models.sdpa import Tap, Watch, each_itself, is_softmax, try_out, watching
from pytest_induction.models.way_in import Enough, ListeningWay, Refused, Show, Trials, looking

TWO_OPERANDS = frozenset({"matmul", "__matmul__", "linalg_matmul", "bmm", "mm", "baddbmm"})  # whose axes are known
VIEWS = frozenset(
    {"view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "contiguous", "clone"}
    | {"swapaxes", "movedim", "__getitem__", "chunk", "split", "unbind", "detach", "view_as", "reshape_as", "expand_as"}
    | {"__get__"}  # of a property, such as mT
)
HARMLESS = 1e-2  # what a cast to half precision may change,
EXACT = 1e-6  # and any other
STAMPED = 65_536  # numbers of a pattern whose places are looked at to see whether it was written to
UNUSED = "used nowhere"
FOLLOWED = 3  # patterns that are followed at a time in a measurement; two may be used together, as in a difference


class SoftmaxWay(ListeningWay):
    """Sees patterns where the model computes them itself, whatever its code is. Costs a little per torch function."""

    name = "softmax"
    acts_outside = True

    def __init__(self, caller: Caller, trials: Trials, expected: int | None) -> None:
        self.caller = caller
        shows, watches = try_out(caller, trials, Traced)
        if not shows[0].events:
            raise Refused(f"no softmax seen{watches[0].sealed()}")
        self.settle(shows, expected)
        for watch in watches:
            watch.check(self.calls)
        check_output_is_all(self, trials[0], watches)
        self._editing = Editing(caller, trials[0], self.layers, calls=self.calls, groups=self.groups)

    def acting(self, tokens: Tensor, steps: Steps, *, first: int = 0) -> AbstractContextManager[object]:
        return self._editing.acting(tokens, steps, first=first)

    @contextmanager
    def listening(self, tokens: Tensor, show: Show) -> Iterator[None]:
        show.ends = False  # but when it is known what becomes of the last pattern
        with watching(Tap(tokens, show), Traced) as watch, suppress(Enough):
            watch.follows = FOLLOWED
            yield
        watch.check(self.calls)


class Form(NamedTuple):
    """One form that a pattern takes on its way: a tensor, its state then, the softmaxes it is of, and what changed it, if any."""

    tensor: Tensor
    stamp: tuple[float, float]
    numbers: frozenset[int]
    changed_by: str


class Traced(Watch):
    """Shows each softmax over (positions x positions) as a layer's pattern, and follows it to the product in which it weighs."""

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap)
        self.follows: int | None = None  # how many patterns at a time; None for all
        self._forms: dict[int, Form] = {}
        self._summed: dict[int, tuple[Tensor, frozenset[int]]] = {}  # what patterns weighed, which none may weigh again
        self._fate: dict[int, str] = {}  # of each softmax, by the number of its call

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if not (self._forms or self.tap.show.stopped or is_softmax(func, output)):
            return output
        with looking():
            return self._looked_at(func, args, kwargs, output)

    def _looked_at(self, func: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if is_softmax(func, output):
            pattern = self._unfolded(output)
            number = self.tap.show.n_events
            if self.tap.show.hears(*output.shape[-2:], fits=pattern is not None) and pattern is not None:
                return self._shown(pattern, output, number)
        if self._forms:
            self._judge(getattr(func, "__name__", ""), args, kwargs, output)
        if self.tap.show.stopped and UNUSED not in self._fate.values():
            raise Enough
        return output

    def _shown(self, pattern: Tensor, output: Tensor, number: int) -> Tensor:
        if self.tap.show.alone:
            return each_itself(output)
        self._follow(output, frozenset({number}))
        self._fate[number] = UNUSED
        if self.follows is not None:
            self._let_go(sorted(self._fate)[: -self.follows])
        self.tap.show(PatternReader(pattern))
        return output

    def _let_go(self, numbers: list[int]) -> None:
        """Follow these patterns no more; that they are used later than that was seen in the trial."""
        self._forms = {key: form for key, form in self._forms.items() if form.numbers.isdisjoint(numbers)}
        self._summed = {key: held for key, held in self._summed.items() if held[1].isdisjoint(numbers)}
        self._fate |= {number: "" for number in numbers if self._fate[number] == UNUSED}

    def _unfolded(self, pattern: Tensor) -> Tensor | None:
        """The pattern with axes (batch, heads, positions, positions), or None."""
        batch, positions = self.tap.batch, self.tap.positions
        if pattern.shape[-2:] != (positions, positions):
            return None
        if pattern.ndim == 3 and pattern.shape[0] % batch == 0:
            return pattern.unflatten(0, (batch, -1))
        if pattern.ndim in (4, 5) and pattern.shape[0] == batch:
            return pattern.flatten(1, -3)
        return None

    def _follow(self, tensor: Tensor, numbers: frozenset[int], changed_by: str = "") -> None:
        self._forms[id(tensor)] = Form(tensor, _stamp(tensor), numbers, changed_by)

    def _judge(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """What a function made of the patterns among its arguments: sums weighted by one, the same pattern, or another one."""
        inputs = list(tensors_in([*args, *kwargs.values()]))
        found = [form for each in inputs if (form := self._forms.get(id(each))) is not None and form.tensor is each]
        if not found:
            return
        numbers = frozenset().union(*(form.numbers for form in found))
        changed_by = next((form.changed_by for form in found if form.changed_by), "")
        one = found[0].tensor  # what works in place returns its argument, so that its stamp tells
        intact = len(found) == 1 and not changed_by and _stamp(one) == found[0].stamp
        if name in PRODUCTS:
            again = any(numbers & self._summed.get(id(each), (each, frozenset()))[1] for each in inputs)
            weighs = intact and not again and _weighs(name, one, args)
            self._used(numbers, "" if weighs else f"changed by `{changed_by or name}`")
            if isinstance(output, Tensor):
                self._summed[id(output)] = output, numbers
            return
        if not (intact and _same(name, one, inputs, output)):
            changed_by = changed_by or name
            if any(each.ndim > 2 and each.shape[-2:] != one.shape[-2:] for each in inputs if id(each) not in self._forms):
                self._used(numbers, f"changed by `{changed_by}`")  # it meets values, in whatever kind of sum
        for each in tensors_in([output]):
            if each.is_floating_point():  # a comparison picks; what it picks is compared where it is used
                self._follow(each, numbers, changed_by)

    def _used(self, numbers: frozenset[int], fate: str) -> None:
        """Patterns weighed something, as they are or changed; changed once is changed."""
        self._fate |= {number: fate for number in numbers if fate or self._fate[number] == UNUSED}

    def check(self, calls: frozenset[int]) -> None:
        """Raise `Refused` unless every pattern was used as it was."""
        fates = sorted(fate for number, fate in self._fate.items() if fate and number in calls)
        if fates:
            raise Refused(f"{len(calls)} softmax calls over (positions x positions), of which {len(fates)} are {fates[0]}")


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
    sums = pattern.sum(axis, dtype=torch.float32)  # of a causal pattern only those over the keys are all one
    return bool((((sums - 1).abs() < HARMLESS) | (sums.abs() < HARMLESS)).all())


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
