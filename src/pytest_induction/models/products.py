"""Where rows, heads and positions lie in what a product of a pattern and values gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.models.refusals import Refused

PRODUCTS = frozenset(
    {"matmul", "__matmul__", "__rmatmul__", "linalg_matmul", "bmm", "mm", "baddbmm", "einsum"}
    | {"tensordot", "inner", "linear", "addbmm", "addmm", "vecdot", "linalg_vecdot", "multi_dot", "linalg_multi_dot"}
)
OF_TWO = frozenset({"matmul", "__matmul__", "__rmatmul__", "linalg_matmul", "bmm", "mm"})  # of two tensors, and nothing added
OF_VALUES = -1  # in place of a stride: the axis of d_head


class Operand(NamedTuple):
    """A pattern as a product is given it. `places` is a tensor of its shape whose strides are those in the whole pattern.

    `shape` is that of the whole pattern with the keys last; keys that are none of a position are not given.
    """

    pattern: Tensor
    places: Tensor
    shape: torch.Size


class Layout(NamedTuple):
    """How to see what a product gave as a pattern's other axes and d_head: its axes in order, their sizes then, that shape."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, operand: Operand, args: Sequence[Any], output: Tensor) -> Layout:
        """The layout of what the function `name` gave for a pattern and values.

        Raises `Refused` unless it sums over the keys of the whole pattern, and leaves its other axes.
        """
        if name in OF_TWO:
            strides = _of_two(name, operand, args, output)
        elif name == "einsum":
            strides = _of_einsum(operand, args)
        else:
            raise Refused(f"its pattern weighs values in `{name}`, whose axes are not known")
        axes = sorted(range(output.ndim), key=lambda axis: -strides[axis])  # that of d_head comes last
        *others, keys = operand.shape
        outer = [(strides[axis], output.shape[axis]) for axis in axes[:-1] if output.shape[axis] > 1]
        ends = [*outer, (keys, 1)]
        side_by_side = all(stride == other * size for (stride, _), (other, size) in pairwise(ends))
        if strides.count(OF_VALUES) != 1 or not side_by_side or prod(size for _, size in outer) != prod(others):
            raise Refused(f"what `{name}` gives has other axes than rows, heads, positions and d_head")
        sizes = tuple(output.shape[axis] for axis in axes)
        return cls(tuple(axes), sizes, (*others, sizes[-1]))

    def apart(self, output: Tensor) -> Tensor:
        """What the product gave, with the other axes of the pattern and d_head."""
        return output.permute(self.order).reshape(self.shape)

    def together(self, found: Tensor) -> Tensor:
        """The axes of the product again."""
        back = sorted(range(len(self.order)), key=lambda place: self.order[place])
        return found.reshape(self.sizes).permute(back)


def _of_two(name: str, operand: Operand, args: Sequence[Any], output: Tensor) -> list[int]:
    """The stride in the whole pattern of each axis of what a matrix product gives."""
    operands = list(args[:2])[:: -1 if name == "__rmatmul__" else 1]
    strides = operand.places.stride()
    if len(operands) != 2 or len(strides) < 2 or operands[0].ndim < 2 or operands[1].ndim < 2:
        raise Refused(f"its pattern weighs values in a `{name}` that is not of two matrices")
    left = operands[0] is operand.pattern
    summed, kept = (-1, -2) if left else (-2, -1)
    _check_summed(name, operand, summed)
    before = [0] * (output.ndim - len(strides)) + [*strides[:-2]]
    return [*before, *((strides[kept], OF_VALUES) if left else (OF_VALUES, strides[kept]))]


def _of_einsum(operand: Operand, args: Sequence[Any]) -> list[int]:
    """As `_of_two`, of an einsum that is written out as one."""
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        raise Refused("its pattern weighs values in an `einsum` of another form than 'pattern,values->found'")
    given, result = equation.replace(" ", "").replace("...", ".").split("->")
    terms = given.split(",")
    mine, other = terms if operands[0] is operand.pattern else terms[::-1]
    unnamed = operand.places.ndim - len(mine.replace(".", ""))
    letters = list(_written_out(mine, unnamed))
    summed = [place for place, letter in enumerate(letters) if letter not in _written_out(result, unnamed)]
    if len(summed) != 1 or letters[summed[0]] not in other or len(set(letters)) != len(letters):
        raise Refused(f"its pattern weighs values in an `einsum` that does not sum over keys alone, {equation!r}")
    _check_summed("einsum", operand, summed[0])
    strides = dict(zip(letters, operand.places.stride(), strict=True))
    return [strides.get(letter, OF_VALUES) for letter in _written_out(result, unnamed)]


def _written_out(term: str, unnamed: int) -> list[str]:
    """The axes of a term, those that have no letter by numbers."""
    return [name for letter in term for name in (map(str, range(unnamed)) if letter == "." else letter)]


def _check_summed(name: str, operand: Operand, axis: int) -> None:
    if operand.places.shape[axis] > 1 and operand.places.stride(axis) != 1:
        raise Refused(f"its pattern weighs values in a `{name}` that does not sum over keys")
