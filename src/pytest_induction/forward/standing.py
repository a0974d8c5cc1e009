"""What a module keeps beside its weights, as it stood at one moment: what passes write to or make, and how that is put back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pytest_induction.forward.changing import HOOKS

OF_TORCH = frozenset(vars(nn.Module()))  # names in which torch itself keeps what a module is
MADE = (Tensor, nn.Module)
PLAIN = (type(None), bool, int, float, str, list, dict, set, Tensor)  # what is put back under a name that is private to a module


class Standing:
    """What a module and its parts keep in plain attributes and hooks, which a pass that is cut off must leave as a whole one."""

    def __init__(self, module: nn.Module, *, private: bool = False) -> None:
        self._before = [
            (part, name, value, _held(value))
            for part in all_parts(module)
            for name, value in (*_own(part, private=private), *((name, vars(part)[name]) for name in HOOKS))
        ]

    def restore(self) -> bool:
        """Put everything back as it was, and tell whether anything was not."""
        changed = False
        for part, name, value, held in self._before:
            now = vars(part).get(name)
            if now is value and _equal(_held(now), held):
                continue
            changed = True
            vars(part)[name] = value
            if isinstance(value, list):
                value[:] = held
            elif isinstance(value, (dict, set)):
                value.clear()
                value.update(held)
            elif not held and _held(value):
                value.release()
        return changed


class Memory(Standing):
    """What a module and its parts keep in tensors that are no weights: buffers, and plain attributes. And which parts there are.

    A cache is such a tensor. Those with some `names` are kept; all of them where there are none. Of weights, and of modules, only
    which ones there are is kept: what is in them is not.
    """

    def __init__(self, module: nn.Module, names: Collection[str] | None = None) -> None:
        super().__init__(module, private=True)
        parts = [*all_parts(module)]
        self._stores: list[tuple[dict[str, Any], set[str]]] = []
        self._parts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for part in parts:
            for store in (part._buffers, vars(part), part._parameters, part._modules):  # noqa: SLF001 - nothing else tells
                if isinstance(store, dict):  # a script keeps them elsewhere
                    self._stores.append((store, set(store)))
            for store in (part._parameters, part._modules):  # noqa: SLF001 - as above
                if isinstance(store, dict):
                    self._parts.append((store, {name: value for name, value in store.items() if is_replaceable(value)}))
        self._tensors = [
            (store, name, value, value.detach().clone())
            for part in parts
            for store in (part._buffers, vars(part))  # noqa: SLF001 - as above
            if isinstance(store, dict)
            for name, value in store.items()
            if isinstance(value, Tensor) and not value.is_meta and (names is None or name in names)
        ]

    def written(self, *, private: bool = True) -> frozenset[str]:
        """The names of tensors that are not as they were, and of weights and modules that are others.

        What was None, or a container, under a name that is `private` to a module counts where it is asked for: to put it back
        after each pass would cost a TransformerLens bridge several times what the pass does, and it is the same in each.
        """
        written = {name for store, name, value, kept in self._tensors if not _is_as_kept(store.get(name), value, kept)}
        for part, name, value, held in self._before:  # what was none before is one now, or what is in a container
            if name.startswith("_") and not private:
                continue
            now = vars(part).get(name)
            filled = isinstance(now, (list, dict)) and _holds_parts(now) and not _equal(now, held)
            if filled or (isinstance(now, Tensor) and not isinstance(value, Tensor)):
                written.add(name)
        written |= {name for store, before in self._stores for name in set(store) - before if isinstance(store[name], MADE)}
        written |= {name for store, held in self._parts for name, value in held.items() if store.get(name) is not value}
        return frozenset(written)

    def restore(self, *, also: bool = False) -> frozenset[str]:  # type: ignore[override]
        """Put back the tensors that are not as they were, plain attributes with them, and give the names of the tensors.

        Plain attributes alone only where they are to be put back `also`.
        """
        written = self.written()
        with torch.no_grad():
            for store, name, value, kept in self._tensors:
                if not _is_as_kept(store.get(name), value, kept):
                    value.copy_(kept)
                    store[name] = value
        if written or also:
            super().restore()
            for store, before in self._stores:
                for name in set(store) - before:
                    del store[name]
            for store, held in self._parts:
                store.update({name: value for name, value in held.items() if store.get(name) is not value})
        return written


writes: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""The names of tensors that passes of a module were seen to write to, which are no weights, and of parts that they made."""


def all_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in a module, and in those that it keeps unregistered."""
    for part in (module, *kept_in(module)):
        yield from part.modules()


def kept_in(module: nn.Module) -> list[nn.Module]:
    """Modules that a module keeps without registering them, as a TransformerBridge does."""
    return [value for value in vars(module).values() if isinstance(value, nn.Module)]


def _is_as_kept(now: Any, value: Tensor, kept: Tensor) -> bool:
    """Whether what stands in a name now is the tensor that stood there, with the same numbers."""
    return now is value and torch.equal(value, kept)


def is_replaceable(value: Any) -> bool:
    """Whether another object in its place is another part. What shards weights, or packs them, replaces them in its passes."""
    return value is None or isinstance(value, nn.Module) or type(value) is nn.Parameter


def _holds_parts(value: list[Any] | dict[Any, Any]) -> bool:
    return any(isinstance(each, MADE) for each in (value.values() if isinstance(value, dict) else value))


def _own(part: nn.Module, *, private: bool) -> Iterator[tuple[str, Any]]:
    """The attributes of a module that are not torch's; also those `private` to it where it is plain what they are."""
    for name, value in vars(part).items():
        if not name.startswith("_") or (private and name not in OF_TORCH and type(value) in PLAIN):
            yield name, value


def _held(value: Any) -> Any:
    """What a container holds, or whether a lock is held; None for anything else."""
    if isinstance(value, (list, dict, set)):
        return value.copy()
    locked = getattr(value, "locked", None)
    return bool(locked()) if callable(locked) else None


def _equal(now: Any, held: Any) -> bool:
    """Whether a container holds what it held; one of tensors that are others, which do not compare, does not."""
    try:
        return bool(now == held)
    except (RuntimeError, ValueError):
        return False
