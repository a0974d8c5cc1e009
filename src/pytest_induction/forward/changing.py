"""Changes of torch, of modules and of what a whole process shares, each with its undoing; heard in this thread only.

A name that all threads share, as that of a torch function, is given a function that asks who calls: the thread that put something
there gets that, any other one the original. It is put back when the last thread has left, in whatever order they leave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pytest_induction.errors import ModelError
from pytest_induction.undoing import Changes, Undo, noting

LONGEST_WAIT = 300.0  # seconds for a module that another thread measures
AUTOCAST = ("cpu", "cuda")  # where lower precision may be switched on
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
HOW_HOOKS_ARE_CALLED = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def torch_state() -> Undo:
    """What puts back gradients, autocast and the depth to which it is nested, of this thread."""
    gradients = torch.is_grad_enabled()
    lowered = [torch.is_autocast_enabled(kind) for kind in AUTOCAST]
    nested = _nested()

    def undo() -> None:
        torch.set_grad_enabled(gradients)
        if _nested() == nested:
            return  # what changes the rest counts as nested
        while _nested() > nested:
            torch.autocast_decrement_nesting()
        for kind, was in zip(AUTOCAST, lowered, strict=True):
            torch.set_autocast_enabled(kind, was)
        if not nested:
            torch.clear_autocast_cache()

    return undo


def _nested() -> int:
    """How many blocks of autocast there are around; asked so that nothing comes between."""
    return (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting())[1]


noting.append(torch_state)


def enter_mode(changes: Changes, mode: Any) -> None:
    """Have a mode of torch functions listen."""
    changes.undone_by(partial(_leave_mode, mode))
    mode.__enter__()


def _leave_mode(mode: Any) -> None:
    above = []
    while any(each is mode for each in _modes()):
        top = torch._C._pop_torch_function_stack()  # noqa: SLF001 - torch's own way out takes whichever is the last
        if top is not mode:
            above.append(top)
    for each in reversed(above):
        torch._C._push_on_torch_function_stack(each)  # noqa: SLF001 - as above


def _modes() -> list[Any]:
    return [torch._C._get_function_stack_at(each) for each in range(torch._C._len_torch_function_stack())]  # noqa: SLF001 - see above


def add_hooks(
    changes: Changes, parts: Iterable[nn.Module], hook: Callable[..., Any], *, before: bool = False, with_kwargs: bool = False
) -> None:
    """Call a hook in passes of this thread, after each of the modules or `before` it."""
    thread, parts = get_ident(), list(parts)

    def own(part: nn.Module, *given: Any) -> Any:
        return hook(part, *given) if get_ident() == thread else None

    changes.undone_by(partial(_remove_hooks, parts, own))
    for part in parts:
        if before:
            part.register_forward_pre_hook(own, with_kwargs=with_kwargs)
        else:
            part.register_forward_hook(own, with_kwargs=with_kwargs)


def _remove_hooks(parts: Iterable[nn.Module], hook: Any) -> None:
    remove_hooks(parts, lambda part, number, found: found is hook)


def remove_hooks(parts: Iterable[nn.Module], unwanted: Callable[[nn.Module, int, Any], bool]) -> None:
    """Remove hooks of modules, which are told by the module, the number and the hook."""
    for part in parts:
        for name in HOOKS:
            held = vars(part).get(name, {})
            for number in [number for number, found in [*held.items()] if unwanted(part, number, found)]:
                for how in HOW_HOOKS_ARE_CALLED:
                    vars(part).get(how, {}).pop(number, None)
                held.pop(number, None)  # in the end: it is found by it


def replace_forward(changes: Changes, part: nn.Module, instead: Callable[..., Any], *, everywhere: bool = False) -> None:
    """Run something in place of a module's forward, in passes of this thread or `everywhere`."""
    held, forward, thread = vars(part), part.forward, get_ident()
    own = held.get("forward")

    def called(*args: Any, **options: Any) -> Any:
        return (instead if get_ident() == thread else forward)(*args, **options)

    changes.undone_by(partial(held.pop, "forward", None) if own is None else partial(held.__setitem__, "forward", own))
    held["forward"] = instead if everywhere else called  # what a bridge is set as an attribute, it hands on to what it wraps


class Turn:
    """Something that one thread has at a time. Taken and left in one step each, so that nothing comes between."""

    def __init__(self) -> None:
        self._threads: dict[str, int] = {}

    @property
    def is_mine(self) -> bool:
        return self._threads.get("") == get_ident()

    def take(self, *, pause: float = 0.0, longest: float | None = None) -> bool:
        """Wait for it, so many seconds at the `longest`; whether this thread has it."""
        mine = get_ident()
        if self._threads.setdefault("", mine) == mine:
            return True
        started = time.monotonic()
        while self._threads.setdefault("", mine) != mine:
            if longest is not None and time.monotonic() - started > longest:
                return False
            time.sleep(pause)
        return True

    def leave(self) -> None:
        """Let others have it, where it is this thread's."""
        if self._threads.get("") == get_ident():
            self._threads.clear()

    def forget(self) -> None:
        """Let others have it, whichever thread's it is."""
        self._threads.clear()


_shared = Turn()  # held for moments, while what all threads share is changed
_measuring: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


def _forget_turns() -> None:
    """In a process that was forked no other thread goes on."""
    for turn in (_shared, *_measuring.values()):
        turn.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)


def have_alone(changes: Changes, module: nn.Module) -> nn.Module:
    """Keep other threads from measuring the module, or what has the same weights, meanwhile: measured, it is in another mode.

    Gives its first part with weights of its own, by which they are told. They wait. Raises `ModelError` where that takes too
    long, as where a pass in one thread waits for the other.
    """
    part = with_weights(module)
    turn = _measuring.get(part) or _measuring.setdefault(part, Turn())
    if turn.is_mine:
        return part
    changes.undone_by(turn.leave)
    if not turn.take(pause=0.001, longest=LONGEST_WAIT):
        raise ModelError(
            f"`{type(module).__name__}` is measured in another thread, for {LONGEST_WAIT:.0f} seconds in one go: give each "
            "thread a copy of it, or measure in one after the other"
        )
    return part


def with_weights(module: nn.Module) -> nn.Module:
    """The first part with weights of its own, which a wrapper has in common with what it wraps."""
    ahead: list[nn.Module | None] = [module]
    seen: set[int] = set()
    while ahead:  # by hand, as this is done several times before every pass
        part = ahead.pop()
        if part is None or id(part) in seen:  # a part of two others, or of itself
            continue
        seen.add(id(part))
        for each in part._parameters.values():  # noqa: SLF001 - without those of its parts
            if each is not None:
                return part
        ahead += reversed(part._modules.values())  # noqa: SLF001 - as above
    return module


class Shared:
    """A setting of the whole process that blocks want another value for: the first sets it, the last puts it back."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
        self._read, self._write, self._value = read, write, value
        self._users: list[object] = []
        self._found: list[Any] = []

    def hold(self, changes: Changes) -> None:
        """Have the value until the changes are undone."""
        user = object()
        changes.undone_by(partial(self._let_go, user))
        _shared.take()
        self._users.append(user)
        if not self._found:
            self._found.append(self._read())
            self._write(self._value)
        _shared.leave()

    def _let_go(self, user: object) -> None:
        _shared.take()
        self._users[:] = [each for each in self._users if each is not user]
        if not self._users and self._found:
            self._write(self._found[0])
            self._found.clear()
        _shared.leave()


class _Detour:
    """What stands in a name that all threads share: calls what the thread that calls it has put there last, else the original."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.own: dict[int, list[tuple[_Place, Callable[..., Any]]]] = {}
        self.function = self._made()

    def _made(self) -> Callable[..., Any]:
        own, original = self.own, self.original

        def called(*args: Any, **options: Any) -> Any:
            mine = own.get(get_ident())
            return (mine[-1][1] if mine else original)(*args, **options)

        called.__dict__["detour"] = self
        return called


def _at(owner: Any, name: str) -> tuple[Any, _Detour | None]:
    """What stands in a name, and the detour that it is, if it is one."""
    function = getattr(owner, name)
    detour = getattr(function, "__dict__", {}).get("detour")  # which a user's function around it may have taken over
    return function, detour if isinstance(detour, _Detour) and detour.function is function else None


def beneath(owner: Any, name: str) -> Any:
    """What a call by the name that a module or class has for a function runs in this thread."""
    function, detour = _at(owner, name)
    if detour is None:
        return function
    mine = detour.own.get(get_ident())
    return mine[-1][1] if mine else detour.original


def take_over(changes: Changes, *names: tuple[Any, str, Callable[..., Any]]) -> None:
    """Have calls by these names of a module or class run something else, in this thread."""
    places = [_Place(*name) for name in names]
    changes.undone_by(partial(_leave, places))
    _shared.take()
    for place in places:
        place.enter()
    _shared.leave()


def _leave(places: Iterable[_Place]) -> None:
    _shared.take()
    for place in places:
        place.leave()
    _shared.leave()


class _Place:
    """One function in a name that all threads share; entered and left while no other thread changes any."""

    def __init__(self, owner: Any, name: str, instead: Callable[..., Any]) -> None:
        self._owner, self._name, self._instead = owner, name, instead
        self._detour: _Detour | None = None

    def enter(self) -> None:
        function, detour = _at(self._owner, self._name)
        if detour is None:
            detour = _Detour(function)
        self._detour = detour
        detour.own.setdefault(get_ident(), []).append((self, self._instead))
        if function is not detour.function:
            setattr(self._owner, self._name, detour.function)

    def leave(self) -> None:
        detour = self._detour
        if detour is None:
            return
        thread = get_ident()
        mine = detour.own.get(thread, [])
        mine[:] = [each for each in mine if each[0] is not self]
        if not mine:
            detour.own.pop(thread, None)
        if not detour.own and getattr(self._owner, self._name) is detour.function:
            setattr(self._owner, self._name, detour.original)
