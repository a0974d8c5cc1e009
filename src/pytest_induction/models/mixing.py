"""Whether a module mixes positions by shares that no content changes, as a running mean or a convolution does.

Attention, linear attention and recurrences with gates take shares that depend on content, and no experiment on a module tells
these from each other: whatever kernel makes the shares, a state may hold enough to make them too. Fixed shares are told by one:
with other contents at the positions that look back, the same change earlier does the same to them. The module is given other
weights for it, so that weights which make a pattern uniform, as zeros do, tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.models.flow import Flow, Given, Key, tensors_of

SHARE = 1e-3  # of a change, that two may differ by and be the same
ROUNDING = 1e-5  # of the numbers that changed
NOISE = 0.5


def mixes_by_fixed_shares(part: nn.Module, given: Given, size: tuple[int, int], place: int) -> bool:
    """Whether exchanging what `part` is given up to `place` does the same to later positions, whatever is given there.

    `given` are its arguments of one call, `size` the rows and positions. False where that cannot be tried out.
    """
    try:
        weights = {name: _otherwise(weight, number) for number, (name, weight) in enumerate(_weights(part))}
        changes = [_changes(part, weights, given, size, place, other) for other in (False, True)]
    except Exception:  # noqa: BLE001 - whatever a module minds, it is not known to be harmless then
        return False
    return _are_alike(*changes)


def _weights(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters()
    yield from part.named_buffers()


def _otherwise(weight: Tensor, number: int) -> Tensor:
    """Another weight of the same size; what is no parameter, or holds no fractions, stays as it is."""
    weight = weight.detach()
    if not weight.is_floating_point():
        return weight.clone()
    numbers = weight.float()
    noise = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(number)).to(numbers.device)
    return numbers + noise * NOISE * (numbers.shape[-1] if numbers.ndim > 1 else 1) ** -0.5


def _changes(
    part: nn.Module, weights: Mapping[str, Tensor], given: Given, size: tuple[int, int], place: int, other: bool
) -> dict[tuple[Key, int], tuple[Tensor, Tensor]]:
    """What every module within is given or gives at later positions: the change, where what is given earlier is exchanged.

    With `other`, later positions are given something else.
    """
    flow = Changes(part, size)

    def run(*, exchanged: bool) -> None:
        def instead(tensor: Tensor) -> Tensor:
            axis = flow.axis_of(tensor)
            if axis is None:
                return tensor.detach().float() if tensor.is_floating_point() else tensor.detach().clone()
            numbers = tensor.detach().float()
            noise = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0)).to(numbers.device) * numbers.std()
            own, more = (part.split([place + 1, part.shape[axis] - place - 1], axis) for part in (numbers, noise))
            return torch.cat([own[0] + exchanged * more[0], own[1] + other * more[1]], axis)

        args, options = _mapped(given, instead)
        torch.func.functional_call(part, dict(weights), args, options)

    with torch.no_grad():
        with flow.noting():
            run(exchanged=False)
        with flow.comparing(place):
            run(exchanged=True)
    return flow.changes


def _are_alike(
    one: Mapping[tuple[Key, int], tuple[Tensor, Tensor]], other: Mapping[tuple[Key, int], tuple[Tensor, Tensor]]
) -> bool:
    """Whether the same changed by the same, and anything did."""
    if one.keys() != other.keys():
        return False
    any_moved = False
    for key, (change, size) in one.items():
        also, its = other[key]
        most, numbers = torch.maximum(change.abs().max(), also.abs().max()), torch.maximum(size, its)
        any_moved = any_moved or bool(most > 100 * ROUNDING * numbers)
        if not bool((change - also).abs().max() <= SHARE * most + ROUNDING * numbers):
            return False
    return any_moved


class Changes(Flow):
    """Keeps by how much everything changes after the exchanged positions, and takes that away again."""

    def __init__(self, part: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(part, torch.empty(size, device="meta"), ())
        self.changes: dict[tuple[Key, int], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def comparing(self, place: int) -> Iterator[None]:
        """A pass whose changes are kept."""

        def compare(key: Key, path: str, values: Any) -> Any:
            if key == ("", 0, "given"):
                return values  # what is exchanged
            known = self.known.get(key, [])
            for index, (each, was) in enumerate(zip(tensors_of(values), known, strict=False)):
                if was is not None and was.values.shape == each.shape:
                    axis = self.axis_of(each) or 0
                    after = (each - was.values).narrow(axis, place + 1, each.shape[axis] - place - 1)
                    self.changes[key, index] = after, was.values.abs().max()
            return self.without(values, iter(known), place)

        with self.following(compare):
            yield


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: _mapped(value, change) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_mapped(value, change) for value in values)
    return values
