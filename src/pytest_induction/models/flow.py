"""Whether anything but the layers that are seen moves information between positions.

Names tell little about what a module does, and what a way in does not see it cannot count. So every layer that is seen is made to
let each position attend to itself only, and the first token is exchanged: whatever then changes at a later position came there
by another way. The module in which that happens first is either known to mix positions without any pattern (a convolution, a
recurrence), and is held still to look further, or it may hide attention.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_induction.models.calling import Caller, quoted
from pytest_induction.models.census import sealed_in
from pytest_induction.models.way_in import Refused

WITHOUT_PATTERN = frozenset(
    {
        "conv",
        "conv1d",
        "convolution",
        "mamba",
        "mamba2",
        "ssm",
        "ssd",
        "s4",
        "s6",
        "rwkv",
        "recurrent",
        "recurrence",
        "lru",
        "rglru",
    }
    | {
        "lstm",
        "gru",
        "rnn",
        "hyena",
        "retention",
        "lightning",
        "deltanet",
        "delta",
        "kda",
        "hebbian",
        "shift",
        "ema",
        "cumulative",
    }
)  # words in the names of what mixes positions and has no pattern; so does linear attention
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+[0-9]*|[A-Z]+[0-9]*")
MOST_KINDS = 12  # of such modules in one model
CLOSE = {torch.float64: 1e-8, torch.float32: 1e-4}  # what other rows of a batch may change by rounding
CLOSE_HALF = 3e-2
Key = tuple[str, int, str]


class Mixer(NamedTuple):
    """A module in whose own code something moved between positions, and how many positions it reached."""

    path: str
    reach: int


def mixers(caller: Caller, tokens: Tensor, usable: list[int], alone: Callable[[], AbstractContextManager[object]]) -> list[str]:
    """The modules that mix positions beside the layers that are seen, as far as they are known to have no pattern.

    `usable` are token ids to exchange the first one with. Raises `Refused` for a module that may hide attention.
    """
    other = tokens.clone()
    other[:, 0] = torch.tensor([next(token for token in usable if token != first) for first in tokens[:, 0].tolist()])
    found: list[str] = []
    for _ in range(MOST_KINDS):
        flow = Flow(caller.module, tokens, still={type(caller.module.get_submodule(path)) for path in found})
        with alone(), flow.first():
            caller(tokens)
        with alone(), flow.second():
            caller(other)
        mixer = flow.mixer
        if mixer is None:
            break
        part = caller.module.get_submodule(mixer.path)
        if mixer.path in found or not (mixer.reach == 1 or _is_known(mixer.path, part)):
            where = f"{quoted(mixer.path)} ({type(part).__name__})"
            raise Refused(
                f"information moves between positions in {where} too, where no attention is seen{sealed_in(part, mixer.path)}"
            )
        found.append(mixer.path)
    return found


def _is_known(path: str, part: nn.Module) -> bool:
    """Whether a module is one that mixes positions without a pattern, by its name or by what it is made of."""
    if any(isinstance(child, (nn.Conv1d, nn.RNNBase)) for child in (part, *part.children())):
        return True
    names = [WORD.findall(name) for name in (path.rpartition(".")[2], type(part).__name__)]
    words = [[word.lower() for word in name] for name in names]
    linear = any(one == "linear" and other.startswith("att") for name in words for one, other in pairwise(name))
    return linear or any(word in WITHOUT_PATTERN for name in words for word in name)


class Flow:
    """Compares what every module is given and gives at the positions after the first, in two passes."""

    def __init__(self, module: nn.Module, tokens: Tensor, *, still: set[type]) -> None:
        self.module = module
        self.mixer: Mixer | None = None
        self._rows, self._positions = tokens.shape
        self._still = still  # kinds of modules that give in the second pass what they gave in the first
        self._known: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        self._kept: dict[Key, Any] = {}
        self._names = {id(part): name for name, part in module.named_modules()}

    @contextmanager
    def first(self) -> Iterator[None]:
        """The pass that is compared with."""
        with self._following(self._note):
            yield

    @contextmanager
    def second(self) -> Iterator[None]:
        """The pass in which a difference is looked for."""
        with self._following(self._compare):
            yield

    @contextmanager
    def _following(self, look: Callable[[Key, str, list[Tensor]], None]) -> Iterator[None]:
        stack: list[tuple[str, int, bool]] = []  # path, which time it runs, and whether it or one around it is held still
        times: Counter[str] = Counter()

        def entering(part: nn.Module, inputs: Any, options: Any) -> None:
            name, within, still = self._names[id(part)], *(stack[-1][::2] if stack else ("", False))
            if not still:
                look((name, times[name], "in"), within, list(_tensors([inputs, options])))
            stack.append((name, times[name], still or type(part) in self._still))
            times[name] += 1

        def leaving(part: nn.Module, inputs: Any, output: Any) -> Any:
            name, time, still = stack.pop()
            key = (name, time, "out")
            if type(part) in self._still:
                output = self._kept.setdefault(key, output)
            if not still:
                look(key, name, list(_tensors([output])))
            return output

        handles = []
        for part in self.module.modules():
            if not isinstance(part, torch.jit.ScriptModule):
                handles.append(part.register_forward_pre_hook(entering, with_kwargs=True))
                handles.append(part.register_forward_hook(leaving))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, key: Key, at: str, tensors: list[Tensor]) -> None:
        self._known[key] = self._told(tensors)

    def _compare(self, key: Key, at: str, tensors: list[Tensor]) -> None:
        if self.mixer is not None:
            return
        for (sums, sizes), (before, _) in zip(self._told(tensors), self._known.get(key, []), strict=False):
            if sums.shape == before.shape:
                changed = ((sums - before).abs() > sizes)[:, 1:].any(0)
                if bool(changed.any()):
                    self.mixer = Mixer(at, int(changed.nonzero().max()) + 1)
                    return

    def _told(self, tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each tensor that has rows and positions, a weighted sum at each, and what that may change by rounding."""
        told = []
        for each in tensors:
            values = self._by_position(each)
            if values is not None:
                weights = torch.arange(1, values.shape[2] + 1, device=values.device).to(torch.float32).cos()
                close = CLOSE.get(each.dtype, CLOSE_HALF)
                told.append((values @ weights, close * values.norm(dim=2) * weights.norm() + close * 1e-3))
        return told

    def _by_position(self, tensor: Tensor) -> Tensor | None:
        """(rows, positions, numbers), or None for what is not laid out like that; scores and patterns are not."""
        sides = (self._rows, self._positions)
        if not tensor.is_floating_point() or tensor.ndim < 3 or tuple(tensor.shape[-2:]) == (self._positions,) * 2:
            return None
        if tuple(tensor.shape[:2]) == sides:
            return tensor.detach().flatten(2).float()
        if tuple(tensor.shape[:2]) == sides[::-1]:
            return tensor.detach().transpose(0, 1).flatten(2).float()
        if tensor.ndim == 4 and tensor.shape[0] == self._rows and tensor.shape[2] == self._positions:
            return tensor.detach().transpose(1, 2).flatten(2).float()
        return None


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, Mapping)):
            yield from _tensors(value)
