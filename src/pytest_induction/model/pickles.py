"""What a pickle makes, counted from its opcodes before anything is made. Standard library only.

A value that is referred to often takes no more bytes than one that is referred to once, but whatever goes through it does so each
time: a tuple of two that are the same tuple of two, forty deep, takes hours to hash, to compare or to print. A pickle of a few
hundred bytes can ask for that. Here each value has a weight, the number of values that it would be if it were written out without
references, and work is what hashing keys and calling functions may go through. Both are bounded by the length of the pickle.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from pytest_induction.files import UnfitFileError

MOST_WORK = 2**24  # values that are gone through, for a start, a second or less; and `WORK_A_BYTE` more for each byte
WORK_A_BYTE = 2  # what trainers write takes 1 at most
MOST_CONTAINERS = 2**22  # lists, tables, sets and marks, each of a byte
DEEPEST_TUPLE = 100  # tuples in tuples: hashing goes down without a limit of its own. What trainers write has three
MOST_LOOPS = 8  # references to what grew afterwards: it lies in itself, or is more than it weighed
_LEVEL = 2**60  # a weight is the values, always fewer than this, and how deep tuples lie in it times this
_LETTERS = 64  # of a text, as much work as a value
_DIGITS = 4  # bytes of a number, which is hashed anew each time


def check_pickle(content: bytes, start: int = 0) -> int:
    """Go through the pickle that begins at `start`: the place of its end, or -1 where it comes to none.

    Raises `OSError` where making it would take time or memory beyond all bounds. What else is wrong is for others to say: they
    come no further than this does.
    """
    try:
        return _Walk(content, start, MOST_WORK + WORK_A_BYTE * (len(content) - start)).go()
    except (IndexError, KeyError, ValueError, OverflowError):
        return -1


class _Walk:
    """The stack of an unpickler, with weights in place of values.

    What can grow, a list, a table or an object, is where it was made a list: its weight, and how many references there were.
    A reference to it is a number, as everything else is: no pickler lets a thing grow by one, so that nothing grows unseen.
    """

    def __init__(self, content: bytes, start: int, most: int) -> None:
        self._content, self._at = content, start
        self._most, self._work, self._containers, self._loops = most, 0, 0, 0
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []

    def go(self) -> int:  # noqa: C901, PLR0912 - a call for each of millions of opcodes would take twice as long
        """Where it ends. Raises `IndexError`, `KeyError` or `ValueError` where it breaks off, or is broken."""
        content, at, memo, stack = self._content, self._at, self._memo, self._stack
        while True:
            code = content[at]
            at += 1
            if code == _MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif code == _BINGET:
                value = memo[content[at]]
                stack.append(value if value.__class__ is int else self.reference(value))
                at += 1
            elif code in _SKIPPED:
                at += _SKIPPED[code]
                stack.append(1)
            elif code == _TUPLE2 and stack[-1] == stack[-2] == 1:
                stack[-2:] = (3 + _LEVEL,)
            elif code == _TUPLE1 and stack[-1] == 1:
                stack[-1] = 2 + _LEVEL
            elif code == _BINPUT:
                memo[content[at]] = stack[-1]
                at += 1
            elif code == _LONG_BINPUT:
                memo[int.from_bytes(content[at : at + 4], "little")] = stack[-1]
                at += 4
            elif code == _LONG_BINGET:
                stack.append(self.reference(memo[int.from_bytes(content[at : at + 4], "little")]))
                at += 4
            elif code in _CALLS and stack[-2] == 1 and stack[-1].__class__ is int:
                self.charge(stack[-1:])
                stack[-2:] = ([stack[-1] + 2, 0],)
            elif code == _MARK:
                self.count()
                self._outer.append(stack)
                stack = self._stack = []
            elif code == _STOP:
                return at
            else:
                self._at = at
                _STEPS[code](self)
                at, stack = self._at, self._stack

    # What takes values from the stack

    def weigh(self, items: list[Any]) -> int:
        """What values weigh together, which lie in something now."""
        try:
            return sum(items)
        except TypeError:
            for place, item in enumerate(items):
                if item.__class__ is list:
                    items[place] = item[0]
            return sum(items)

    def charge(self, items: list[Any]) -> int:
        """The same, of values that are gone through now."""
        weight = self.weigh(items)
        self._work += weight % _LEVEL
        if self._work > self._most:
            raise _too_much()
        return weight

    def held(self, weight: int) -> int:
        if weight % _LEVEL > self._most:
            raise _too_much()
        return weight

    def marked(self) -> list[Any]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def last(self, count: int) -> list[Any]:
        """So many values from the stack."""
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def tuple(self, items: list[Any]) -> None:
        weight = self.weigh(items)
        if weight >= _LEVEL:  # tuples in it: as deep as the deepest
            depth = max(items) // _LEVEL
            weight = weight % _LEVEL + depth * _LEVEL
            if depth >= DEEPEST_TUPLE:
                raise UnfitFileError(f"its tuples lie more than {DEEPEST_TUPLE} deep in each other: it holds no weights")
        self._stack.append(self.held(weight + 1 + _LEVEL))

    def frozen(self) -> None:
        items = self.marked()
        self.charge(items)
        self.tuple(items)

    def growing(self, weight: int) -> None:
        """What lies on top has so much more in it."""
        top = self._stack[-1]
        if top.__class__ is not list:
            raise UnfitFileError("it adds to what it has finished, which no pickle of weights does")
        self._loops += top[1]
        if self._loops > MOST_LOOPS:
            raise UnfitFileError("its values lie in themselves, or in each other: it holds no weights")
        top[0] = self.held(top[0] + weight % _LEVEL)

    def grow(self, items: list[Any]) -> None:
        self.growing(self.weigh(items))

    def add(self) -> None:
        self.growing(self.charge(self.marked()))

    def set_items(self, items: list[Any]) -> None:
        weight = self.weigh(items)
        self.charge(items[::2])
        self.growing(weight)

    def dict(self) -> None:
        items = self.marked()
        weight = self.weigh(items)
        self.charge(items[::2])
        self.made(weight % _LEVEL)

    def call(self, items: list[Any]) -> None:
        """A function, or a class, of arguments: it may go through all of them, and what it makes may hold them."""
        weight = self.charge(items)
        if weight >= _LEVEL:
            weight = weight % _LEVEL + max(items) // _LEVEL * _LEVEL
        self.made(weight)

    def instance(self) -> None:
        self.line(), self.line()
        self.call([1, *self.marked()])

    def build(self) -> None:
        weight = self.charge(self.last(1))
        self.growing(weight)

    def persistent(self) -> None:
        self.charge(self.last(1))
        self._stack.append(1)

    # What puts them there

    def made(self, weight: int) -> None:
        self._stack.append([self.held(weight + 1), 0])

    def new(self) -> None:
        self.count()
        self._stack.append([1, 0])

    def count(self) -> None:
        self._containers += 1
        if self._containers > MOST_CONTAINERS:
            raise UnfitFileError(f"it makes more than {MOST_CONTAINERS} lists and tables: it holds no weights")

    def number(self, length: int) -> int:
        self._at += length
        return int.from_bytes(self._content[self._at - length : self._at], "little")

    def long(self, length: int, unit: int = _DIGITS) -> None:
        count = self.number(length)
        self._at += count
        self._stack.append(1 + count // unit)

    def line(self) -> bytes:
        begin = self._at
        self._at = self._content.index(b"\n", begin) + 1
        return self._content[begin : self._at]

    def plain(self) -> None:
        self._stack.append(1 + len(self.line()) // _DIGITS)

    def names(self) -> None:
        self.line(), self.line()
        self._stack.append(1)

    def two_names(self) -> None:
        self.last(2)
        self._stack.append(1)

    # What is kept, and referred to

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def fetch(self, place: int) -> None:
        self._stack.append(self.reference(self._memo[place]))

    def again(self) -> None:
        self._stack.append(self.reference(self._stack[-1]))

    def reference(self, value: Any) -> int:
        """The weight of what is referred to, as it is now."""
        if value.__class__ is list:
            value[1] += 1
            value = value[0]
        weight: int = value
        return weight

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.marked()


def _too_much() -> UnfitFileError:
    return UnfitFileError("its values are referred to so often that going through them would not end: it holds no weights")


def _code(opcode: str) -> int:
    code: int = getattr(pickle, opcode)[0]
    return code


def _step(opcodes: str, step: Callable[[_Walk], object]) -> dict[int, Callable[[_Walk], object]]:
    return {_code(opcode): step for opcode in opcodes.split()}


_MEMOIZE, _BINGET, _LONG_BINGET, _BINPUT, _LONG_BINPUT = map(_code, ("MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT"))
_TUPLE1, _TUPLE2, _MARK, _STOP = map(_code, ("TUPLE1", "TUPLE2", "MARK", "STOP"))
_CALLS = (_code("REDUCE"), _code("NEWOBJ"))
_SKIPPED = {  # what puts a plain value on the stack, with the bytes that follow
    _code(opcode): length
    for opcodes, length in (
        ("NONE NEWTRUE NEWFALSE EMPTY_TUPLE NEXT_BUFFER", 0),
        ("BININT1 EXT1", 1),
        ("BININT2 EXT2", 2),
        ("BININT EXT4", 4),
        ("BINFLOAT", 8),
    )
    for opcode in opcodes.split()
}
_STEPS = {
    **_step("EMPTY_LIST EMPTY_DICT EMPTY_SET", _Walk.new),
    **_step("TUPLE1", lambda walk: walk.tuple(walk.last(1))),
    **_step("TUPLE2", lambda walk: walk.tuple(walk.last(2))),
    **_step("TUPLE3", lambda walk: walk.tuple(walk.last(3))),
    **_step("TUPLE", lambda walk: walk.tuple(walk.marked())),
    **_step("APPEND", lambda walk: walk.grow(walk.last(1))),
    **_step("APPENDS", lambda walk: walk.grow(walk.marked())),
    **_step("SETITEM", lambda walk: walk.set_items(walk.last(2))),
    **_step("SETITEMS", lambda walk: walk.set_items(walk.marked())),
    **_step("ADDITEMS", _Walk.add),
    **_step("FROZENSET", _Walk.frozen),
    **_step("DICT", _Walk.dict),
    **_step("LIST", lambda walk: walk.made(walk.weigh(walk.marked()) % _LEVEL)),
    **_step("REDUCE NEWOBJ", lambda walk: walk.call(walk.last(2))),
    **_step("NEWOBJ_EX", lambda walk: walk.call(walk.last(3))),
    **_step("OBJ", lambda walk: walk.call(walk.marked())),
    **_step("INST", _Walk.instance),
    **_step("BUILD", _Walk.build),
    **_step("BINPERSID", _Walk.persistent),
    **_step("GLOBAL", _Walk.names),
    **_step("STACK_GLOBAL", _Walk.two_names),
    **_step("PUT", lambda walk: walk.put(int(walk.line()))),
    **_step("GET", lambda walk: walk.fetch(int(walk.line()))),
    **_step("DUP", _Walk.again),
    **_step("POP", _Walk.pop),
    **_step("POP_MARK", _Walk.marked),
    **_step("SHORT_BINSTRING SHORT_BINBYTES SHORT_BINUNICODE", lambda walk: walk.long(1, _LETTERS)),
    **_step("BINUNICODE BINSTRING BINBYTES", lambda walk: walk.long(4, _LETTERS)),
    **_step("BINUNICODE8 BINBYTES8 BYTEARRAY8", lambda walk: walk.long(8, _LETTERS)),
    **_step("LONG1", lambda walk: walk.long(1)),
    **_step("LONG4", lambda walk: walk.long(4)),
    **_step("INT LONG FLOAT STRING UNICODE PERSID", _Walk.plain),
    **_step("PROTO", lambda walk: walk.number(1)),
    **_step("FRAME", lambda walk: walk.number(8)),
    **_step("READONLY_BUFFER", lambda _: None),
}
