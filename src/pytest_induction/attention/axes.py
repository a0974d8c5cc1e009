"""Which axis of a softmax, and of a product of a pattern and values, is which of a pattern's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, permutations, product
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pytest_induction.attention.errors import BackendUnavailable

Side = str
ROWS, HEADS, QUERIES = "rows", "heads", "queries"
AXIS_OF_SOFTMAX = 1  # among the arguments of a softmax


class SeenSoftmax(NamedTuple):
    """One softmax of a verification pass: what it gave, its axis of keys, and how many rows and positions there were."""

    output: Tensor
    key: int
    batch: int
    positions: int

    @property
    def others(self) -> list[int]:
        """The axes that are not that of keys."""
        return [axis for axis in range(self.output.ndim) if axis != self.key]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and positions."""
        return self.batch, self.positions


class Axes(NamedTuple):
    """The axis of keys, and of what each other axis is made, from the outermost to the innermost."""

    key: int
    others: tuple[tuple[Side, ...], ...]

    @classmethod
    def usual(cls, ndim: int) -> Axes:
        """Rows, heads, queries and keys in this order; with three axes, rows and heads in one."""
        if ndim == 3:
            return cls(2, ((ROWS, HEADS), (QUERIES,)))
        return cls(ndim - 1, ((ROWS,), *[(HEADS,)] * (ndim - 3), (QUERIES,)))

    def fits(self, shape: Sequence[int], batch: int, positions: int) -> bool:
        """Whether a softmax of this shape is a pattern over so many rows and positions."""
        if len(shape) != len(self.others) + 1 or shape[self.key] != positions:
            return False
        known = {ROWS: batch, QUERIES: positions}
        sizes = zip(_without(shape, self.key), self.others, strict=True)
        return all(_divides(prod(known.get(side, 1) for side in sides), size, rest=HEADS in sides) for size, sides in sizes)

    def apart(self, pattern: Tensor, batch: int, positions: int) -> Tensor:
        """A pattern as (rows, heads, queries, keys)."""
        return self.found_apart(pattern.movedim(self.key, -1), batch, positions)

    def together(self, pattern: Tensor, shape: Sequence[int], batch: int, positions: int) -> Tensor:
        """A pattern (rows, heads, queries, keys) as the model has it, with this shape."""
        moved = (*_without(shape, self.key), shape[self.key])
        return self.found_together(pattern, moved, batch, positions).movedim(-1, self.key)

    def found_apart(self, found: Tensor, batch: int, positions: int) -> Tensor:
        """What has the other axes in the order of the model, and one more behind them, as (rows, heads, queries, that one)."""
        sizes = self._sizes(found.shape, batch, positions)
        order = self._order()
        return found.reshape(*sizes, found.shape[-1]).permute(*order, len(order)).reshape(batch, -1, positions, found.shape[-1])

    def found_together(self, apart: Tensor, shape: Sequence[int], batch: int, positions: int) -> Tensor:
        """The other way round: (rows, heads, queries, last) in the order of the model, with this shape."""
        sizes, order = self._sizes(shape, batch, positions), self._order()
        back = sorted(range(len(order)), key=lambda place: order[place])
        unfolded = apart.reshape(*(sizes[place] for place in order), apart.shape[-1])
        return unfolded.permute(*back, len(order)).reshape(*shape[:-1], apart.shape[-1])

    def _sizes(self, shape: Sequence[int], batch: int, positions: int) -> list[int]:
        """The sizes of all sides, in the order in which they lie."""
        known = {ROWS: batch, QUERIES: positions}
        sizes = []
        for size, sides in zip(shape, self.others, strict=False):
            rest = size // prod(known.get(side, 1) for side in sides)
            sizes += [known.get(side, rest) for side in sides]
        return sizes

    def _order(self) -> list[int]:
        """The places of rows, of all that are heads, and of queries, among the sides."""
        sides = [side for each in self.others for side in each]
        return [place for wanted in (ROWS, HEADS, QUERIES) for place, side in enumerate(sides) if side == wanted]


def axis_of(args: Sequence[Any], kwargs: dict[str, Any], ndim: int) -> int:
    """The axis that a softmax is taken over."""
    given = args[AXIS_OF_SOFTMAX] if len(args) > AXIS_OF_SOFTMAX else kwargs.get("dim")
    if not isinstance(given, int):  # what torch takes where none is given
        return 0 if ndim in (0, 1, 3) else 1
    return given % ndim


def may_fit(shape: Sequence[int], key: int, batch: int, positions: int) -> bool:
    """Whether a softmax of this shape may be a pattern, in whatever order its axes are."""
    return shape[key] == positions and len(shape) > 1 and not prod(_without(shape, key)) % (batch * positions)


def find_axes(
    short: Mapping[int, SeenSoftmax], long: Mapping[int, SeenSoftmax], fewer: Callable[[], Mapping[int, SeenSoftmax]]
) -> dict[int, Axes]:
    """The axes of each softmax, by its number, that may be a pattern in verification passes of two lengths.

    `fewer` runs the shorter pass without its last row; it is asked only if sizes do not tell.
    """
    both = [number for number, one in short.items() if number in long and _are_alike(one, long[number])]
    found = {number: _plain(short[number], long[number]) for number in both}
    if None in found.values():
        less = fewer()
        found |= {
            number: _folded(short[number], long[number], less[number])
            for number in both
            if found[number] is None and number in less and _are_alike(short[number], less[number])
        }
    return {number: axes for number, axes in found.items() if axes is not None}


def _are_alike(one: SeenSoftmax, other: SeenSoftmax) -> bool:
    return one.output.ndim == other.output.ndim and one.key == other.key


def _plain(short: SeenSoftmax, long: SeenSoftmax) -> Axes | None:
    """The axes where sizes tell them: one axis is as long as the sequence, and one has as many entries as there are rows.

    None where that is not so, or where another axis may be that of the rows as well.
    """
    follow = [axis for axis in short.others if _follows(axis, short, long)]
    left = [axis for axis in short.others if axis not in follow]
    rows = [axis for axis in left if short.output.shape[axis] == short.batch]
    if len(follow) != 1 or short.output.shape[follow[0]] != short.positions or len(rows) != 1:
        return None
    if rows[0] != 0 and any(short.output.shape[axis] % short.batch == 0 for axis in left if axis not in rows):
        return None
    kinds = {follow[0]: (QUERIES,), rows[0]: (ROWS,)}
    return Axes(short.key, tuple(kinds.get(axis, (HEADS,)) for axis in short.others))


def _folded(short: SeenSoftmax, long: SeenSoftmax, fewer: SeenSoftmax) -> Axes | None:
    """The axes by what is computed for batches of two sizes: `fewer` holds the first rows of `short`, and no others.

    None where no order of rows, heads and queries gives each row the same pattern in both.
    """
    made_of = [_sides(axis, short, long, fewer) for axis in short.others]
    sides = [side for each in made_of for side in each]
    if sides.count(ROWS) != 1 or sides.count(QUERIES) != 1:
        return None
    orders = product(*(list(permutations(each)) for each in made_of))
    candidates = [Axes(short.key, tuple(others)) for others in orders]
    candidates = [axes for axes in candidates if all(axes.fits(seen.output.shape, *seen.size) for seen in (short, long, fewer))]
    return min(candidates, key=lambda axes: _distance(axes, short, fewer), default=None)


def _sides(axis: int, short: SeenSoftmax, long: SeenSoftmax, fewer: SeenSoftmax) -> tuple[Side, ...]:
    """What an axis is made of; heads are what is left."""
    size = short.output.shape[axis]
    sides: list[Side] = []
    if size * fewer.batch == fewer.output.shape[axis] * short.batch:
        sides.append(ROWS)
        size //= short.batch
    if _follows(axis, short, long):
        sides.append(QUERIES)
        size //= short.positions
    return (*sides, HEADS) if size > 1 or not sides else tuple(sides)


def _distance(axes: Axes, short: SeenSoftmax, fewer: SeenSoftmax) -> float:
    """How far the patterns of the same rows lie from each other, and how much lies on later keys, read by these axes."""
    one, other = (axes.apart(seen.output, *seen.size).float() for seen in (short, fewer))
    return float((one[: fewer.batch] - other).norm() + one.triu(1).norm())


def _follows(axis: int, short: SeenSoftmax, long: SeenSoftmax) -> bool:
    """Whether an axis grows with the length."""
    return short.output.shape[axis] * long.positions == long.output.shape[axis] * short.positions


def _without(shape: Sequence[int], key: int) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis != key)


def _divides(known: int, size: int, *, rest: bool) -> bool:
    return size % known == 0 if rest else size == known


def itself(axes: Axes, pattern: Tensor, batch: int, positions: int) -> Tensor:
    """A pattern of the same shape and kind in which every position attends to itself only."""
    heads = pattern.numel() // (batch * positions**2)
    eye = torch.eye(positions, dtype=pattern.dtype, device=pattern.device).expand(batch, heads, positions, positions)
    return axes.together(eye, pattern.shape, batch, positions).contiguous()


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


class AxisLayout(NamedTuple):
    """How to see what a product gave as a pattern's other axes and d_head: its axes in order, their sizes then, that shape."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, operand: Operand, args: Sequence[Any], output: Tensor) -> AxisLayout:
        """The layout of what the function `name` gave for a pattern and values.

        Raises `BackendUnavailable` unless it sums over the keys of the whole pattern, and leaves its other axes.
        """
        if name in OF_TWO:
            strides = _of_two(name, operand, args, output)
        elif name == "einsum":
            strides = _of_einsum(operand, args)
        else:
            raise BackendUnavailable(f"its pattern weighs values in `{name}`, whose axes are not known")
        axes = sorted(range(output.ndim), key=lambda axis: -strides[axis])  # that of d_head comes last
        *others, keys = operand.shape
        outer = [(strides[axis], output.shape[axis]) for axis in axes[:-1] if output.shape[axis] > 1]
        ends = [*outer, (keys, 1)]
        side_by_side = all(stride == other * size for (stride, _), (other, size) in pairwise(ends))
        if strides.count(OF_VALUES) != 1 or not side_by_side or prod(size for _, size in outer) != prod(others):
            raise BackendUnavailable(f"what `{name}` gives has other axes than rows, heads, positions and d_head")
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
        raise BackendUnavailable(f"its pattern weighs values in a `{name}` that is not of two matrices")
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
        raise BackendUnavailable("its pattern weighs values in an `einsum` of another form than 'pattern,values->found'")
    given, result = equation.replace(" ", "").replace("...", ".").split("->")
    terms = given.split(",")
    mine, other = terms if operands[0] is operand.pattern else terms[::-1]
    unnamed = operand.places.ndim - len(mine.replace(".", ""))
    letters = list(_written_out(mine, unnamed))
    summed = [place for place, letter in enumerate(letters) if letter not in _written_out(result, unnamed)]
    if len(summed) != 1 or letters[summed[0]] not in other or len(set(letters)) != len(letters):
        raise BackendUnavailable(f"its pattern weighs values in an `einsum` that does not sum over keys alone, {equation!r}")
    _check_summed("einsum", operand, summed[0])
    strides = dict(zip(letters, operand.places.stride(), strict=True))
    return [strides.get(letter, OF_VALUES) for letter in _written_out(result, unnamed)]


def _written_out(term: str, unnamed: int) -> list[str]:
    """The axes of a term, those that have no letter by numbers."""
    return [name for letter in term for name in (map(str, range(unnamed)) if letter == "." else letter)]


def _check_summed(name: str, operand: Operand, axis: int) -> None:
    if operand.places.shape[axis] > 1 and operand.places.stride(axis) != 1:
        raise BackendUnavailable(f"its pattern weighs values in a `{name}` that does not sum over keys")
