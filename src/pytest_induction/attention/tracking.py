"""Which modules ran, and whether attention may have run in one where none was seen.

A model may mix attention layers with others (state space, linear attention, none at all), so the number of layers that it
declares does not tell how many to expect. What tells is its modules: one that is called attention and ran, or a block built
like those in which attention was seen, must have shown it too.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.forward.calling import quoted
from pytest_induction.forward.changing import add_hooks
from pytest_induction.undoing import Changes

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
NO_SOFTMAX = re.compile(  # mixing modules of transformers' own that are called attention and have no pattern
    r"linear_?att|lightning|delta|mamba|rwkv|ssm|recurrent|retention|lstm|gru|hyena|conv|hebbian|noop|identity",
    re.IGNORECASE,
)
SERVES = re.compile(r"att.*(norm|drop|mask|residual|embed|rotary|pool)", re.IGNORECASE)  # what only serves or follows attention
MOST_NAMED = 6
SEALED = ("softmax", "scaled_dot_product_attention")
NUMBERED = re.compile(r"^(.*?\b)(\d+)(?:\.|$)")
NUMBERED_LAST = re.compile(r"(?:^|\.)\d+$")


@contextmanager
def following_calls(module: nn.Module, entering: Callable[..., Any], leaving: Callable[..., Any]) -> Iterator[None]:
    """Call these as hooks before and after every module of this thread's passes inside the block; what they return counts."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]  # whose calls nothing can follow
    with Changes() as changes:
        add_hooks(changes, parts, entering, before=True, with_kwargs=True)
        add_hooks(changes, parts, leaving)
        yield


class ModuleCall(NamedTuple):
    """Where a layer's attention was seen.

    `number` is that of the module's pass, `unit` that of the block it lies in, or 0 where it lies in none; `source` is the first
    tensor that the module was given, and `version` how often it had been written to.
    """

    path: str
    number: int = 0
    unit: int = 0
    source: Tensor | None = None
    version: int = 0


class ModuleTracker:
    """The paths of the modules whose forward is running now, innermost last, and of all that ever ran."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.stack: list[ModuleCall] = []
        self.ran: list[str] = []
        self._names = {id(part): name for name, part in module.named_modules()}

    @property
    def here(self) -> str:
        return self.stack[-1].path if self.stack else ""

    @property
    def place(self) -> ModuleCall:
        """The module that runs now, and the pass of the block around it."""
        if not self.stack:
            return ModuleCall("")
        blocks = [place for place in self.stack if NUMBERED_LAST.search(place.path)]
        named = [place for place in self.stack if self._is_attention(place.path)]
        unit = (blocks or named or [ModuleCall("")])[-1].number
        return self.stack[-1]._replace(unit=unit)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow every call of a module inside the block."""
        self.stack, self.ran, self._count = [], [], 0
        with following_calls(self.module, self._entering, self._leaving):
            yield

    def _entering(self, part: nn.Module, inputs: Any, options: Any) -> None:
        name = self._names.get(id(part))
        self._count += 1
        source = next((each for each in (*inputs, *options.values()) if isinstance(each, Tensor)), None)
        version = 0 if source is None or source.is_inference() else source._version  # noqa: SLF001 - nothing else tells
        self.stack.append(ModuleCall(self.here if name is None else name, self._count, 0, source, version))
        if name is not None:
            self.ran.append(name)

    def _leaving(self, part: nn.Module, inputs: Any, output: Any) -> None:
        self.stack.pop()

    def joined(
        self, places: Sequence[ModuleCall], heads: Sequence[int], side_by_side: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """The places by their numbers in groups of one, but for those that are parts of one layer.

        That is so for modules of one list, one head each, all given the same, and for calls that one pass of a module, or of a
        block, makes if what they give lies side by side.
        """
        groups: list[list[int]] = []
        for number, (place, count) in enumerate(zip(places, heads, strict=True)):
            last = places[number - 1] if groups else ModuleCall("")
            beside = _list_of(place.path) == _list_of(last.path) is not None and place.path != last.path
            same = place.source is not None and place.source is last.source and place.version == last.version
            one_each = beside and same and count == 1 and heads[number - 1] == 1
            within = place.unit == last.unit and (place.unit or place.path == last.path)
            if groups and (one_each or (within and side_by_side([*groups[-1], number]))):
                groups[-1].append(number)
            else:
                groups.append([number])
        return groups

    def of_all(self, group: Sequence[ModuleCall]) -> ModuleCall:
        """One place for a group: that of its module, or of what holds all of them."""
        paths = {place.path for place in group}
        if len(paths) == 1:
            return group[0]
        lists = {_list_of(path) for path in paths}
        common = (lists.pop() or "") if len(lists) == 1 else ""
        return ModuleCall(common or ".".join(_common([path.split(".") for path in paths])), unit=0)

    def check(
        self, places: Sequence[ModuleCall], expected: int | None, apart: Callable[[Sequence[int]], str] = lambda numbers: ""
    ) -> tuple[str, ...]:
        """Notes on layers without attention. Raises `BackendUnavailable` where the places cannot be the layers of the model.

        `expected` is how many it declares. `apart` says why some of the places, by their numbers, are not one layer.
        """
        seen = [place.path for place in places]
        if not seen:
            raise BackendUnavailable("no call seen in which positions attend to positions")
        for (path, unit), count in Counter((place.path, place.unit) for place in places).items():
            if count > 1 and unit:
                why = apart([number for number, place in enumerate(places) if (place.path, place.unit) == (path, unit)])
                raise BackendUnavailable(
                    f"`{path}` makes {count} attention calls in one pass, so none of them is its pattern{why}"
                )
        if expected is not None and len(seen) > expected:
            raise BackendUnavailable(f"attention seen {len(seen)} times, the model declares {expected} layers")
        if expected is None or len(seen) == expected:
            return ()
        others = self._other_blocks(seen)
        if len(seen) + len(others) < expected:
            raise BackendUnavailable(f"attention of {len(seen)} layers seen, the model declares {expected}")
        named = [f"L{index} is {path}" for index, path in enumerate(seen)]
        return (f"layers without softmax attention: {_few(others)}", f"layers with it: {_few(named)}")

    def check_names(self, seen: Sequence[str]) -> None:
        """Raise `BackendUnavailable` if what is called attention, or built like a block that attends, ran and showed nothing.

        For where nothing better can be had than names.
        """
        silent = self._silent_attention(seen)
        twins = [name for name in self._other_blocks(seen) if self._ran(name) and self._is_built_like_one_of(name, seen)]
        unseen = silent or twins
        if unseen:
            where = f"`{unseen[0]}` ({type(self.module.get_submodule(unseen[0])).__name__})"
            raise BackendUnavailable(f"attention of {len(seen)} layers seen, none in {where}{_and_more(unseen)}")

    def attention_layers(self, count: int, expected: int | None) -> tuple[str, ...]:
        """Paths for `count` layers that came without any. Raises `BackendUnavailable` if more or fewer attention modules ran."""
        innermost = self._silent_attention(())
        if count == len(innermost):
            return tuple(innermost)
        if count != expected:
            raise BackendUnavailable(f"{count} attention patterns returned, but {len(innermost)} attention modules ran")
        return tuple(f"attentions[{index}]" for index in range(count))

    def _silent_attention(self, seen: Sequence[str]) -> list[str]:
        """Modules that are called attention and ran, and have nothing to do with those seen."""
        found = [name for name in dict.fromkeys(self.ran) if self._is_attention(name)]
        innermost = [name for name in found if not any(_within(other, name) and other != name for other in found)]
        return [name for name in innermost if not any(_related(name, other) for other in seen)]

    def _is_attention(self, name: str) -> bool:
        part = self.module.get_submodule(name)
        words = (name.rpartition(".")[2], type(part).__name__)
        named = any(ATTENTION.search(word) for word in words) and not any(SERVES.search(word) for word in words)
        named = named and not (is_of_transformers(part) and any(NO_SOFTMAX.search(word) for word in words))
        return named and any(True for _ in part.children())

    def _other_blocks(self, seen: Sequence[str]) -> list[str]:
        """Siblings of the numbered blocks in which attention was seen that showed none, whether they ran or not."""
        blocks = {match[0].rstrip(".") for path in seen if (match := NUMBERED.match(path))}
        lists = {block.rpartition(".")[0] for block in blocks}
        siblings = [name for name, _ in self.module.named_modules() if name.rpartition(".")[2].isdigit()]
        return [name for name in siblings if name.rpartition(".")[0] in lists and name not in blocks]

    def _ran(self, name: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for path in self.ran)

    def _is_built_like_one_of(self, name: str, seen: Sequence[str]) -> bool:
        blocks = {match[0].rstrip(".") for path in seen if (match := NUMBERED.match(path))}
        return any(self._build(name) == self._build(block) for block in blocks)

    def _build(self, name: str) -> list[tuple[str, type]]:
        return [(path, type(part)) for path, part in self.module.get_submodule(name).named_modules()]


def is_of_transformers(part: nn.Module) -> bool:
    """Whether a module runs code of a class that transformers wrote, and not of one that is only called like it."""
    kind = type(part)
    home = sys.modules.get(kind.__module__)
    return (
        kind.__module__.startswith("transformers.models.")
        and getattr(home, kind.__qualname__, None) is kind
        and "forward" not in vars(part)
    )


def _list_of(path: str) -> str | None:
    """The list that a module is a numbered part of."""
    return path.rpartition(".")[0] if NUMBERED_LAST.search(path) else None


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
    """What paths begin with, all of them."""
    return [steps[0] for steps in itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))]


def _related(one: str, other: str) -> bool:
    """Whether one of two module paths lies within the other."""
    return _within(one, other) or _within(other, one)


def _within(inner: str, outer: str) -> bool:
    """Whether a module path is another one, or lies within it."""
    return inner == outer or not outer or inner.startswith(f"{outer}.")


def sealed_in(module: nn.Module, name: str = "") -> str:
    """Words on a module that torch.jit or torch.export made a program of, with attention in it: what runs there shows nowhere."""
    for path, part in module.named_modules(prefix=name):
        if any(word in _program(part) for word in SEALED):
            return f"; {quoted(path)} is a compiled program, which nothing can read"
    return ""


def _program(part: nn.Module) -> str:
    """What a module calls without Python, or past what torch lets Python see."""
    if isinstance(part, torch.jit.ScriptModule):
        with suppress(AttributeError, RuntimeError):  # one without a forward
            return str(part.inlined_graph)
    if isinstance(part, torch.fx.GraphModule):
        return " ".join(str(node.target) for node in part.graph.nodes if isinstance(node.target, torch._ops.OpOverload))  # noqa: SLF001
    return ""


def _few(names: Sequence[str]) -> str:
    """All of them, or the first and the last where they are many."""
    return ", ".join(names if len(names) <= MOST_NAMED else [*names[: MOST_NAMED - 1], "...", names[-1]])


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
