"""Way in 5: attention written by hand. Every softmax over (positions x positions) is watched, and sdpa calls with it.

A softmax is taken for the pattern only if a trial pass shows its result to weigh something: nothing but casts, views and
changes without effect (dropout while evaluating) lie between it and a matrix product. Patterns that are changed on the way,
such as the difference of two, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.models.attention import PatternReader
from pytest_induction.models.calling import Caller
from pytest_induction.models.protocol import ListeningWay, Refused, Show
from pytest_induction.models.sdpa import Tap, Watch, cross_attention, try_out, watching

PRODUCTS = frozenset({"matmul", "__matmul__", "bmm", "einsum", "mm", "baddbmm"})
VIEWS = frozenset(
    {"view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "contiguous", "clone"}
    | {"swapaxes", "movedim", "__getitem__", "chunk", "split"}
)
HARMLESS = 1e-2  # what a cast to half precision may change,
EXACT = 1e-6  # and any other


class SoftmaxWay(ListeningWay):
    """Sees patterns where the model computes them itself, whatever its code is. Costs a little per torch function."""

    name = "softmax"

    def __init__(self, caller: Caller, tokens: Tensor, expected: int | None) -> None:
        self.caller = caller
        tap, watch = try_out(caller, tokens, Traced)
        if not tap.show.heads or not isinstance(watch, Traced):
            raise Refused(f"no softmax over (positions x positions) seen{watch.unreadable()}")
        watch.check()
        self.settle(tap.show, expected, excused=cross_attention(caller, tokens, watch))
        self.folded = tap.folded

    @contextmanager
    def listening(self, tokens: Tensor, show: Show) -> Iterator[None]:
        with watching(Tap(tokens, show), Shown):
            yield


class Shown(Watch):
    """Shows each softmax over (positions x positions) as a layer's pattern."""

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.is_square_softmax(func, output):
            pattern = self.unfolded(output)
            if pattern is None:
                raise Refused(f"a softmax of shape {tuple(output.shape)}, which is not (batch, heads, positions, positions)")
            self.tap.show(PatternReader(pattern))

    def unfolded(self, pattern: Tensor) -> Tensor | None:
        """The pattern with axes (batch, heads, positions, positions), or None."""
        batch = self.tap.batch
        if pattern.ndim == 3 and pattern.shape[0] % batch == 0:
            self.tap.folded |= pattern.shape[0] != batch
            return pattern.unflatten(0, (batch, -1))
        if pattern.ndim in (4, 5) and pattern.shape[0] == batch:
            return pattern.flatten(1, -3)
        return None


class Form(NamedTuple):
    """One form that a pattern took on its way: the tensor, what it held then, and the number of the pattern."""

    tensor: Tensor
    held: Tensor
    number: int


class Traced(Shown):
    """Follows each pattern, as well, to the product in which it weighs the values."""

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap)
        self._forms: dict[int, Form] = {}
        self._fate: list[str] = []

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        super().after(func, args, kwargs, output)
        self.note_oblong(func, output)
        if self.is_square_softmax(func, output):
            self._follow(output, len(self._fate))
            self._fate.append("used nowhere")
            return
        name = getattr(func, "__name__", "")
        inputs = list(_tensors([*args, *kwargs.values()]))
        for found in inputs:
            form = self._forms.get(id(found))
            if form is not None and form.tensor is found:
                self._judge(name, form, inputs, output)

    def _follow(self, tensor: Tensor, number: int) -> None:
        self._forms[id(tensor)] = Form(tensor, tensor.detach().clone(), number)

    def _judge(self, name: str, form: Form, inputs: list[Tensor], output: Any) -> None:
        """What a function made of a pattern: a weighted sum of values, the same pattern, or another one."""
        intact = torch.equal(form.tensor, form.held)  # what works in place returns its argument
        if name in PRODUCTS and intact and not self._is_square(output):
            self._fate[form.number] = ""
        elif intact and _same(name, form, inputs, output):
            self._follow(output, form.number)
        elif self._fate[form.number]:
            self._fate[form.number] = f"changed by `{name}`"

    def check(self) -> None:
        """Raise `Refused` unless every pattern was used as it was."""
        fates = [fate for fate in self._fate if fate]
        if fates:
            raise Refused(f"{len(self._fate)} softmax calls over (positions x positions), of which {len(fates)} are {fates[0]}")


def _same(name: str, form: Form, inputs: list[Tensor], after: Any) -> bool:
    """Whether a function gave its argument back, in another layout or precision at most.

    One that takes other numbers may do so now, as mixing of heads does at first, and not after some training.
    """
    before = form.held
    others = [each for each in inputs if each is not form.tensor and each.is_floating_point() and each.ndim > 0]
    if not isinstance(after, Tensor) or (others and name != "where"):
        return False
    if name in VIEWS:
        return after.numel() == before.numel()
    close = HARMLESS if min(after.element_size(), before.element_size()) < 4 else EXACT
    return after.shape == before.shape and torch.allclose(after.float(), before.float(), atol=close, rtol=close)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
