"""Which attention calls of a module are one layer together: those whose results lie side by side when they are used.

In a verification pass the results of all calls are followed. Beside the memory of each tensor that holds some of them goes a
table of the same size, for as long as the model holds that memory; it says of every number the head of which call it is.
Functions that only move numbers move the table too, those that work on each number by itself keep it, and any other function
uses what it is given. Calls are one layer if every function that uses one of them is given all of them, nothing combines their
numbers, and none of them is computed from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "unsqueeze", "squeeze", "expand", "swapaxes", "swapdims"}
    | {"movedim", "moveaxis", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "__getitem__", "t", "contiguous"}
    | {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack", "pad", "index_select"}
    | {"roll", "flip", "repeat", "clone", "_unsafe_view"}
)
BY_NUMBER = frozenset(  # each number of what comes out is made of the numbers in its place
    {"add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__rsub__", "__isub__", "sub_", "subtract", "rsub"}
    | {"mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply", "div", "__truediv__", "__rtruediv__", "__itruediv__", "div_"}
    | {"neg", "__neg__", "to", "float", "half", "bfloat16", "double", "type", "type_as", "dropout", "dropout_", "feature_dropout"}
    | {"sigmoid", "silu", "tanh", "relu", "where", "masked_fill", "masked_fill_", "nan_to_num", "clamp", "lerp", "addcmul"}
    | {"true_divide", "detach", "requires_grad_"}
)
REDUCTIONS = frozenset({"sum", "mean", "nansum", "nanmean", "amax", "amin", "median", "logsumexp", "prod", "max", "min"})
MATRICES = frozenset({"matmul", "__matmul__", "linear", "bmm", "mm", "mv", "inner"})
WRITES = frozenset({"__setitem__", "copy_"})
LARGEST = 1 << 26  # numbers of a memory that is followed


class CallOutputs:
    """Follows what the calls of one pass gave, by the number of each call."""

    def __init__(self) -> None:
        self.broken = False  # whether something could not be followed
        self.orders: dict[frozenset[int], list[tuple[int, int]]] = {}  # of calls side by side, how their heads lie
        self._tables: dict[int, tuple[StorageWeakRef, Tensor]] = {}  # of each memory, by where it lies, with the memory itself
        self._heads: list[tuple[int, int]] = [(-1, -1)]  # the call and the head of each number in a table
        self._from: dict[int, tuple[ref[Tensor], frozenset[int]]] = {}  # of each tensor, the calls it was computed from
        self._memories: dict[int, frozenset[int]] = {}  # the same of each memory with a table that was written to
        self._used: dict[int, dict[frozenset[int], str]] = {}  # of each call, beside which it was used, and by what function
        self._combined: dict[tuple[int, int], str] = {}
        self._followed: set[int] = set()
        self._asked: dict[int, tuple[ref[Tensor], ref[Tensor]]] = {}
        self._twice: set[tuple[int, int]] = set()  # calls that have the same pattern
        self._fed: set[tuple[int, int]] = set()

    def asked(self, call: int, query: Tensor, key: Tensor) -> None:
        """A call attends by these; another that does so too has the same pattern."""
        for other, held in self._asked.items():
            if all((one := each()) is not None and _is_same(one, now) for each, now in zip(held, (query, key), strict=True)):
                self._twice.add((other, call))
        self._asked[call] = ref(query), ref(key)

    def given(self, call: int, tensors: Iterable[Tensor]) -> None:
        """A call takes these, which may have been computed from what others gave."""
        self._fed |= {(source, call) for each in tensors for source in self._sources(each)}

    def gave(self, call: int, output: Tensor, n_heads: int) -> None:
        """A call gave this."""
        self._let_go()
        first = len(self._heads)
        axes = [axis for axis, size in enumerate(output.shape[:-1]) if size == n_heads]
        axis = 1 if output.ndim == 4 and 1 in axes else axes[0] if len(axes) == 1 else None
        table = self._table(output, make=True)
        if table is None:
            self.broken = True
            return
        if axis is None or n_heads == 1:
            self._heads.append((call, 0))
            table.fill_(first)
        else:
            self._heads += [(call, head) for head in range(n_heads)]
            places = [1] * output.ndim
            places[axis] = n_heads
            table.copy_(torch.arange(first, first + n_heads, device=table.device).view(places).expand(output.shape))
        self._followed.add(call)
        self._mark(output, frozenset({call}))

    def after(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Follow them through a torch function."""
        if not self._from:
            return
        try:
            self._follow(getattr(func, "__name__", ""), func, (args, kwargs), output)
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):  # a tensor of another kind than most
            self.broken = True

    def are_at_odds(self, one: int, other: int) -> bool:
        """Whether two calls are neither one layer nor two in a row: something combines what they give, or drops it."""
        fed = (min(one, other), max(one, other)) in self._fed
        dropped = not self.broken and {one, other} <= self._followed and not (self._used.get(one) and self._used.get(other))
        return not fed and (dropped or (min(one, other), max(one, other)) in self._combined)

    def apart(self, calls: Sequence[int]) -> str:
        """Why these calls are not one layer, in words that follow a comma; nothing where they are."""
        for one, other in combinations_with_replacement(calls, 2):
            if (one, other) in self._combined:
                return f", and what they give is combined by `{self._combined[one, other]}`"
            if (one, other) in self._twice:
                return ", and two attend by the same queries and keys"
            if (one, other) in self._fed:
                return ", and one is computed from what another gives"
        return next((why for call in calls if (why := self._why_by_itself(call, frozenset(calls)))), "")

    def _why_by_itself(self, call: int, calls: frozenset[int]) -> str:
        """Why what a call gave is not used beside what all of these calls gave, in the same words."""
        used = self._used.get(call, {})
        if call not in self._followed or (self.broken and not used):
            return ", and what they give cannot be followed"
        if not used:
            return ", and what one gives is used nowhere"
        by_itself = next((name for beside, name in used.items() if not beside >= calls), None)
        return "" if by_itself is None else f", and what one gives is used by itself, by `{by_itself}`"

    def order(self, calls: Sequence[int]) -> list[int] | None:
        """The heads of calls that are one layer in the order in which they lie, counted call by call; None if it is that."""
        order = next((heads for beside, heads in self.orders.items() if beside >= set(calls)), [])
        mine = [head for head in order if head[0] in calls]
        counted = sorted(mine)
        places = [counted.index(head) for head in mine]
        return None if places == sorted(places) else places

    def _follow(self, name: str, func: Any, given: tuple[Any, Any], output: Any) -> None:
        args, kwargs = given
        inputs = list(tensors_in([*args, *kwargs.values()]))
        sources = frozenset().union(*(self._sources(each) for each in inputs))
        if not sources:
            return
        made = list(tensors_in([output]))
        for each in (*made, *inputs[: name in WRITES or name.endswith("_")]):
            self._mark(each, sources | self._sources(each))
        if name in WRITES:
            self._written(func, args, kwargs, sources)
            return
        owned = [(each, table) for each in inputs if (table := self._table(each)) is not None and bool(table.any())]
        if not owned or not made:
            return
        if name in BY_NUMBER and len(made) == 1:
            self._by_number(name, owned, made[0])
        elif name in MOVES or name == "__get__":
            if not all(self._known(each) for each in made):
                self._moved(func, args, kwargs, made)
        else:
            for each, table in owned:
                self._use(table, name)
                if self._adds_up(table, _summed_axes(name, each, args, kwargs)):
                    calls = sorted({self._heads[owner][0] for owner in table.unique().tolist() if owner})
                    self._combined |= {pair: name for pair in combinations(calls, 2) if pair not in self._combined}

    def _adds_up(self, table: Tensor, axes: list[int]) -> bool:
        """Whether a sum over these axes adds numbers of calls, one of each, as a mean of calls does and a projection does not."""
        of_calls = torch.tensor([call for call, _ in self._heads], device=table.device)[table.long()]
        count = int((of_calls + 1).flatten().bincount().count_nonzero())
        differ = [1 < table.shape[axis] <= count and bool((of_calls.diff(dim=axis) != 0).all()) for axis in axes]
        return any(differ) and all(each or table.shape[axis] == 1 for each, axis in zip(differ, axes, strict=True))

    def _by_number(self, name: str, owned: list[tuple[Tensor, Tensor]], made: Tensor) -> None:
        tables = [table.expand(made.shape) if table.shape != made.shape else table for _, table in owned]
        whole = tables[0].clone()
        for table in tables[1:]:
            clash = (whole != table) & (whole != 0) & (table != 0)
            if bool(clash.any()):
                pairs = torch.stack([whole[clash], table[clash]]).unique(dim=1).T.tolist()
                calls = {tuple(sorted((self._heads[one][0], self._heads[other][0]))) for one, other in pairs}
                self._combined |= {(one, other): name for one, other in calls if (one, other) not in self._combined}
                for each in tables:
                    self._use(each, name)
                if (in_place := self._table(made)) is not None:
                    in_place.zero_()
                return
            whole = torch.maximum(whole, table)
        result = self._table(made, make=True)
        if result is not None:
            result.copy_(whole)

    def _moved(self, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        moved = tensors_in([func(*self._instead(args), **{key: self._instead([each])[0] for key, each in kwargs.items()})])
        for each, places in zip(made, moved, strict=True):
            table = self._table(each, make=True)
            if table is not None:
                table.copy_(places)

    def _written(self, func: Any, args: Any, kwargs: Any, sources: frozenset[int]) -> None:
        target = self._table(args[0], make=True)
        if target is not None:
            memory = args[0].untyped_storage().data_ptr()  # with a table, so that nothing that lay there before is meant
            self._memories[memory] = self._memories.get(memory, frozenset()) | sources
            func(target, *self._instead(args[1:]), **kwargs)

    def _use(self, table: Tensor, name: str) -> None:
        """A function uses what is in a table."""
        flat = table.flatten()
        size = flat.numel()
        places = torch.full((len(self._heads),), size, device=flat.device)  # where each head's first number lies
        places.scatter_reduce_(0, flat.long(), torch.arange(size, device=flat.device), "amin")
        lie = [
            self._heads[owner]
            for place, owner in sorted((place, owner) for owner, place in enumerate(places.tolist()))
            if owner and place < size
        ]
        calls = frozenset(call for call, _ in lie)
        self.orders.setdefault(calls, lie)
        for call in calls:
            self._used.setdefault(call, {}).setdefault(calls, name)

    def _instead(self, values: Sequence[Any]) -> list[Any]:
        """Tables in place of tensors of numbers; what holds none of them has a table of zeros."""
        found: list[Any] = []
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point():
                table = self._table(value)
                found.append(torch.zeros(value.shape, dtype=torch.int32, device=value.device) if table is None else table)
            elif isinstance(value, (list, tuple)):
                found.append(type(value)(self._instead(value)) if type(value) in (list, tuple) else value)
            else:
                found.append(value)
        return found

    def _table(self, tensor: Tensor, *, make: bool = False) -> Tensor | None:
        """The table of a tensor: who its numbers are of."""
        if not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided:
            return None
        memory = tensor.untyped_storage()
        size = memory.nbytes() // tensor.element_size()
        place = memory.data_ptr()
        self._let_go(place)
        held = self._tables.get(place)
        if held is None or len(held[1]) != size:
            if not make or not 0 < size <= LARGEST:
                return None
            held = StorageWeakRef(memory), torch.zeros(size, dtype=torch.int32, device=tensor.device)
            self._tables[place] = held
        return held[1].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _let_go(self, *places: int) -> None:
        """Forget memories that are freed, there or anywhere: others may come to lie where they were."""
        for place in places or (*self._tables,):
            held = self._tables.get(place)
            if held is not None and held[0].expired():
                del self._tables[place]
                self._memories.pop(place, None)

    def _known(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a memory that has a table, as a view does."""
        return self._table(tensor) is not None

    def _mark(self, tensor: Tensor, sources: frozenset[int]) -> None:
        self._from[id(tensor)] = ref(tensor), sources

    def _sources(self, tensor: Tensor) -> frozenset[int]:
        """The calls that a tensor was computed from, also where only a view of it was written to."""
        held = self._from.get(id(tensor))
        known = held[1] if held is not None and held[0]() is tensor else frozenset()
        if not self._memories:
            return known
        if tensor.layout != torch.strided or tensor.is_meta:
            return known
        place = tensor.untyped_storage().data_ptr()
        self._let_go(place)
        return known | self._memories.get(place, frozenset())


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one is other or (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def _summed_axes(name: str, tensor: Tensor, args: Any, kwargs: Any) -> list[int]:
    """The axes of a tensor that a function sums over, where that is known."""
    if name in REDUCTIONS:
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        axes = [given] if isinstance(given, int) else given
        return [axis % tensor.ndim for axis in axes] if isinstance(axes, (list, tuple)) and axes else list(range(tensor.ndim))
    if name == "einsum":
        return _summed_by_einsum(tensor, args)
    if name in MATRICES:
        return [tensor.ndim - 1 if args[0] is tensor or tensor.ndim == 1 else tensor.ndim - 2]
    return []


def _summed_by_einsum(tensor: Tensor, args: Any) -> list[int]:
    equation, *operands = args
    operands = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    place = next((place for place, each in enumerate(operands) if each is tensor), None)
    if not isinstance(equation, str) or "->" not in equation or "..." in equation or place is None:
        return []
    given, result = equation.replace(" ", "").split("->")
    return [axis for axis, letter in enumerate(given.split(",")[place]) if letter not in result]


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among some values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
