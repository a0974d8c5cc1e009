"""What was found out about a module is kept with it, so that it is tried out once, for as long as it is what it was.

It goes with the module: nothing here keeps one alive, and nothing is written into it. It counts as long as the module's
condition does: its parts, their classes, modes, hooks, forwards, settings and plain attributes; its weights and buffers, which
ones and how often torch has written to them. What a module does is never kept: every call measures it.
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pytest_induction.attention.backend import Attach
from pytest_induction.forward.changing import beneath, have_alone
from pytest_induction.model.adapt import adapt
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import attached
from pytest_induction.undoing import Changes, puts_back

MOST_KEPT = 4  # sets of arguments for each module
DEEPEST = 4  # containers and objects within each other that are looked into
LARGEST = 256  # entries of one
PLAIN = (bool, int, str, bytes, type(None), torch.dtype, torch.device)
EMPTIABLE = (dict, OrderedDict, list, set)
STORES = ("_parameters", "_buffers", "_modules")  # whose entries count one by one
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks_always_called",
    "_global_forward_hooks_with_kwargs",
)
NOT_TAKEN_OVER = frozenset({"given", "weights", "tokenizer", "seed", "memory", "_known", "_measured"})
State = dict[tuple[int, str, str], Any]


def taken_in(
    module: nn.Module,
    *,
    tokenizer: Any = None,
    seed: int = 0,
    memory: int | None = None,
    attach: Sequence[Attach] = (),
    without_pattern: Sequence[str] = (),
) -> ModelUnderTest:
    """The model under test of a module as `adapt` makes it; tried out only where that was not done, or is no longer true."""
    arguments = _Arguments(_reference(tokenizer), tuple(attach), tuple(without_pattern))
    found = _as_it_was(module, arguments)
    if found is not None:
        found.seed, found.memory = seed, memory
        return found
    before = _Condition(module)
    subject = adapt(module, tokenizer=tokenizer, seed=seed, memory=memory, attach=attach, without_pattern=without_pattern)
    if arguments.may_be_kept and (subject.tokenizer is None or _reference(subject.tokenizer) is not None):
        after = _Condition(module)
        after.leave_out_what_changed_since(before)
        held = _kept.setdefault(module, [])
        held[:] = [each for each in held if each.arguments != arguments][1 - MOST_KEPT :]
        held.append(_Kept(arguments, after, subject))
    return subject


@dataclass(frozen=True)
class _Arguments:
    """What a module was tried out with, beside what only the measurements need."""

    tokenizer: ReferenceType[Any] | None
    attach: tuple[Attach, ...]
    without_pattern: tuple[str, ...]

    @property
    def may_be_kept(self) -> bool:
        """Whether none of it can keep the module alive, as a function may that was made with it in hand.

        What a session of pytest offers all models to, the hook of conftest.py files, was made without any.
        """
        given = [each for each in self.attach if each not in attached()]
        return all(inspect.isfunction(each) and each.__closure__ is None for each in given)


class _Kept:
    """A model under test, without what holds its module."""

    def __init__(self, arguments: _Arguments, condition: _Condition, subject: ModelUnderTest) -> None:
        self.arguments, self.condition = arguments, condition
        self._weights, self._tokenizer = ref(subject.weights), _reference(subject.tokenizer)
        self._fields = {each.name: getattr(subject, each.name) for each in fields(subject) if each.name not in NOT_TAKEN_OVER}

    def of(self, module: nn.Module) -> ModelUnderTest | None:
        """The model under test anew, with nothing measured; None where a part of it is gone."""
        weights, tokenizer = self._weights(), None if self._tokenizer is None else self._tokenizer()
        if weights is None or (tokenizer is None and self._tokenizer is not None):
            return None
        measured = self._fields["caller"].module
        return ModelUnderTest(**self._fields, given=module, weights=weights, tokenizer=tokenizer, _measured=measured)


_kept: WeakKeyDictionary[nn.Module, list[_Kept]] = WeakKeyDictionary()


@puts_back
def _as_it_was(module: nn.Module, arguments: _Arguments) -> ModelUnderTest | None:
    """What is kept of the module for these arguments, where its condition is what it was."""
    held = next((each for each in _kept.get(module, ()) if each.arguments == arguments), None)
    if held is None:
        return None
    with Changes() as changes:
        have_alone(changes, module)  # no other thread has it in another mode meanwhile
        return held.of(module) if held.condition.holds(module) else None


def _reference(value: Any) -> ReferenceType[Any] | None:
    try:
        return None if value is None else ref(value)
    except TypeError:
        return None


class _Condition:
    """What a module is at one moment, attribute by attribute."""

    def __init__(self, module: nn.Module) -> None:
        self._state: State = {}
        # Of what is told by its place in memory, which another may have once it is gone.
        self._alive: list[ReferenceType[Any]] = []
        self._left_out: frozenset[tuple[int, str, str]] = frozenset()
        self._parts: list[nn.Module] = [module]
        self._met = {id(module)}
        self._classes: dict[type, Any] = {}
        self._objects: dict[int, int] = {}  # those that were looked into already, by their numbers
        for number, part in enumerate(self._parts):  # which grows meanwhile
            self._note(number, part)
        for name, value in _around():
            self._state[-1, name, ""] = self._token(value, 0)
        del self._parts, self._met, self._classes, self._objects

    def leave_out_what_changed_since(self, other: _Condition) -> None:
        """Ask no longer for what passes change by themselves, as they do with what counts them."""
        both = self._state.keys() & other._state.keys()
        changed = frozenset(key for key in both if self._state[key] != other._state[key])
        self._left_out = changed | (other._state.keys() - self._state.keys())

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is still in this condition."""
        if any(each() is None for each in self._alive):
            return False
        return _Condition(module).asked(self._left_out) == self.asked(self._left_out)

    def asked(self, left_out: frozenset[tuple[int, str, str]]) -> State:
        """The attributes, but for those left out."""
        return {key: value for key, value in self._state.items() if key not in left_out} if left_out else self._state

    def _note(self, number: int, part: nn.Module) -> None:
        state, kind = self._state, type(part)
        state[number, "class", ""] = self._of_class(kind)
        for name, value in vars(part).items():
            if name in STORES and isinstance(value, dict):
                for each, held in value.items():
                    state[number, name, each] = self._token(held, 0)
            else:
                state[number, name, ""] = type(value) if type(value) in EMPTIABLE and not value else self._token(value, 0)

    def _of_class(self, kind: type) -> Any:
        if kind not in self._classes:
            methods = (getattr(kind, name, None) for name in ("forward", "__call__"))  # what was compiled has none of its own
            self._classes[kind] = tuple(map(self._identity, (kind, *methods)))
        return self._classes[kind]

    def _token(self, value: Any, depth: int) -> Any:
        """Something that is equal as long as the value is the same one, with the same in it."""
        kind = type(value)
        if kind in PLAIN:
            return kind, value
        if kind is float or kind is complex:
            return repr(value)
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, nn.Module):
            if id(value) not in self._met:
                self._met.add(id(value))
                self._parts.append(value)
            return self._identity(value)
        return self._of_object(value, depth)

    def _of_object(self, value: Any, depth: int) -> Any:
        """The token of a container or an object: what it is, and what is in it."""
        if id(value) in self._objects:
            return "again", self._objects[id(value)]
        inside = _entries(value) if depth < DEEPEST else None
        if inside is None:
            return self._identity(value)
        self._objects[id(value)] = len(self._objects)
        found = [(name if type(name) in PLAIN else self._identity(name), self._token(each, depth + 1)) for name, each in inside]
        if isinstance(value, (set, frozenset)):
            return id(type(value)), frozenset(found)
        return (id(type(value)) if isinstance(value, (dict, list, tuple)) else self._identity(value)), tuple(found)

    def _of_tensor(self, tensor: Tensor) -> Any:
        if is_lazy(tensor):
            return self._identity(tensor)
        version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - nothing else tells of writes
        try:
            place = tensor.data_ptr()
        except RuntimeError:  # one of a kind that has no memory of its own
            place = 0
        return self._identity(tensor), version, place, tensor.shape, tensor.dtype, tensor.device

    def _identity(self, value: Any) -> tuple[int, int]:
        with suppress(TypeError):  # what cannot be referred to weakly, as a method of what is written in C
            self._alive.append(ref(value))
        return id(type(value)), id(value)


def _entries(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """What is in a container or in an object that holds settings; None for what is not looked into."""
    if isinstance(value, dict):
        return value.items() if len(value) <= LARGEST else None
    if isinstance(value, (list, tuple)):
        return enumerate(value) if len(value) <= LARGEST else None
    if isinstance(value, (set, frozenset)):
        return ((each, None) for each in value) if len(value) <= LARGEST else None
    if isinstance(value, type) or callable(value):
        return None
    inside = getattr(value, "__dict__", None)
    return inside.items() if type(inside) is dict and len(inside) <= LARGEST else None


def _around() -> Iterator[tuple[str, Any]]:
    """What of the process decides what a module does: hooks on all modules, and the attention functions that they look up."""
    for name in GLOBAL_HOOKS:
        yield name, vars(nn.modules.module).get(name)
    yield "attention", beneath(F, "scaled_dot_product_attention")
    utils: Any = sys.modules.get("transformers.modeling_utils")
    interface = getattr(utils, "AttentionInterface", None)
    yield "attention functions", getattr(interface, "_global_mapping", None)
    registered: Callable[..., Any] | None = getattr(utils, "ALL_ATTENTION_FUNCTIONS", None)
    yield "attention functions of transformers", vars(registered) if hasattr(registered, "__dict__") else None
