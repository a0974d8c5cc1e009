"""What one pass of an unknown model shows: the table that token ids look up, and the modules that are given these ids.

A wrapper is followed by what runs: the modules that are given the ids, whatever they are called, are the ones that know their
vocabulary, context and special ids; and one of them that returns the very logits is the model that the others are around.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_induction.models.census import following_calls
from pytest_induction.models.changing import enter_mode
from pytest_induction.models.outputs import parts_of
from pytest_induction.undoing import Changes

LOOK_UPS = frozenset({"embedding", "__getitem__", "index_select"})
LONGER = frozenset({"pad", "constant_pad_nd", "cat", "concat", "concatenate"})
NORMS = frozenset({"layer_norm", "rms_norm"})
ROWS_AT_ONCE = 16_384  # of a table, that are held in another precision
FEWEST_OWN = 8  # ids with a row of their own, without which rows say nothing


class Inner(NamedTuple):
    """A module within another one that was given the token ids: how deep it lies, what it returned, and whether by them alone.

    It was if what it was given beside them is nothing, a switch, a mask of whole numbers or positions: no name of a kernel, no
    function, no numbers that scores or states may be changed by.
    """

    name: str
    module: nn.Module
    depth: int
    alone: bool
    output: Any


class FirstPass(TorchFunctionMode):
    """Watches one pass over `tokens` (rows, positions)."""

    def __init__(self, module: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self.table: tuple[int, int] | None = None  # the shape of what the ids look up
        self.padding: frozenset[int] = frozenset()  # ids that have no row there of their own
        self.given: list[Inner] = []  # in the order in which they began
        self.lengths: set[int] = set()  # of what was made longer along an axis that had as many entries as there are positions
        self._module, self._tokens = module, tokens
        self._names = {id(part): name for name, part in module.named_modules()}
        self._made: dict[int, tuple[Tensor, nn.Module]] = {}  # what a module returned, by the innermost one that did
        self._by_norm: dict[int, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the pass inside the block."""
        stack: list[int | None] = []

        def entering(part: nn.Module, inputs: Any, options: Any) -> None:
            number = None
            if self._has_ids((inputs, options)):
                number = len(self.given)
                alone = _is_simple((inputs, options))
                self.given.append(Inner(self._names.get(id(part), ""), part, len(stack), alone, None))
            stack.append(number)

        def leaving(part: nn.Module, inputs: Any, output: Any) -> None:
            number = stack.pop()
            if number is not None:
                self.given[number] = self.given[number]._replace(output=output)
            for _, tensor in parts_of(output):
                self._made.setdefault(id(tensor), (tensor, part))

        with following_calls(self._module, entering, leaving), Changes() as changes:
            enter_mode(changes, self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in LOOK_UPS:
            self._look_up(args, kwargs or {})
        elif name in LONGER:
            self._made_longer(args, output)
        elif name in NORMS and isinstance(output, Tensor):
            self._by_norm[id(output)] = output
        return output

    def _look_up(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        tensors += [each for arg in args if isinstance(arg, tuple) for each in arg if isinstance(each, Tensor)]
        tables = [each for each in tensors if each.is_floating_point() and each.ndim == 2]
        if tables and any(self._are_ids(each) for each in tensors) and (self.table is None or len(tables[0]) > self.table[0]):
            rows, width = tables[0].shape
            self.table = rows, width
            self.padding = _without_own_row(tables[0].detach())  # now, as a sharded model lets go of its weights after use

    def _made_longer(self, args: Any, output: Any) -> None:
        first = args[0] if args else None
        given = [each for each in (first if isinstance(first, (list, tuple)) else [first]) if isinstance(each, Tensor)]
        if not isinstance(output, Tensor):
            return
        for each in given:
            if each.ndim == output.ndim:
                pairs = zip(each.shape, output.shape, strict=True)
                self.lengths |= {now for was, now in pairs if was == self._tokens.shape[1] < now}

    def _has_ids(self, values: Any) -> bool:
        if isinstance(values, Tensor):
            return self._are_ids(values)
        if isinstance(values, Mapping):
            return any(map(self._has_ids, values.values()))
        return isinstance(values, (list, tuple)) and any(map(self._has_ids, values))

    def _are_ids(self, values: Tensor) -> bool:
        """Whether these are the token ids: as they are, turned, in one row, with something before or behind."""
        tokens = self._tokens
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool or values.numel() < tokens.numel():
            return False
        if values.numel() == tokens.numel():
            flat = values.flatten().to(tokens)
            return bool(torch.equal(flat, tokens.flatten()) or torch.equal(flat, tokens.T.flatten()))
        turned = values.T if values.ndim == 2 and values.shape[1] == len(tokens) and values.shape[0] != len(tokens) else values
        if turned.ndim != 2 or len(turned) != len(tokens) or turned.shape[1] <= tokens.shape[1]:
            return False
        width = tokens.shape[1]
        return bool(torch.equal(turned[:, :width].to(tokens), tokens) or torch.equal(turned[:, -width:].to(tokens), tokens))

    def is_hidden(self, logits: Tensor) -> bool:
        """Whether what was taken for logits is what a norm, or one of several modules of a kind, returned: a hidden state."""
        if self._by_norm.get(id(logits)) is logits:
            return True
        found = self._made.get(id(logits))
        if found is None or found[0] is not logits or found[1] is self._module:
            return False
        part = found[1]
        weights = list(part.parameters())
        twins = sum(type(other) is type(part) for other in self._module.modules())
        is_norm = bool(weights) and all(weight.ndim < 2 for weight in weights)
        return is_norm or (twins > 1 and not isinstance(part, nn.Linear) and any(True for _ in part.children()))

    @property
    def special(self) -> set[int]:
        """Ids that a table of embeddings, or a module that is given the ids, keeps for padding."""
        named = (getattr(each.module, "padding_idx", None) for each in self.given)
        return {int(token) for token in named if isinstance(token, int)}

    @property
    def sources(self) -> tuple[nn.Module, ...]:
        """The module, and those within it that were given the ids: whose declarations are about them."""
        found = dict.fromkeys([self._module, *(each.module for each in self.given)])
        return tuple(part for part in found if not isinstance(part, nn.Embedding))


def _is_simple(value: Any) -> bool:
    """Whether an argument is token ids, or what any model may be given beside them without a change of what it does."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if isinstance(value, Mapping):
        return all(map(_is_simple, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int))


def _without_own_row(table: Tensor) -> frozenset[int]:
    """Ids whose row of a table (ids, width) is another id's too, where enough ids have one of their own."""
    if table.is_meta or table.is_quantized:
        return frozenset()
    weights = torch.arange(1, table.shape[1] + 1, device=table.device, dtype=torch.float32).cos()
    sums = torch.cat([part.float() @ weights for part in table.split(ROWS_AT_ONCE)])
    _, group, counts = torch.unique(sums, return_inverse=True, return_counts=True)
    shared = counts[group] > 1
    if int((~shared).sum()) < FEWEST_OWN:
        return frozenset()
    found: list[Tensor] = []
    for number in group[shared].unique():
        tokens = (group == number).nonzero().flatten()
        same = tokens[(table[tokens] == table[tokens[0]]).all(1)]
        found += [same] if len(same) > 1 else []
    return frozenset(torch.cat(found).tolist()) if found else frozenset()
