"""Shows the layers of one forward pass to an observer, one after the other, and notes the calls of a verification pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_induction.attention.errors import BackendUnavailable, StopForward
from pytest_induction.attention.joining import CallOutputs
from pytest_induction.attention.pattern import ChunkedReader, JoinedReader, QueryChunk, Reader
from pytest_induction.forward.calling import full_precision
from pytest_induction.undoing import noting

if TYPE_CHECKING:
    from pytest_induction.attention.tracking import ModuleCall, ModuleTracker


class Event(NamedTuple):
    """One call that may be attention: the module that makes it, its queries and keys, and whether it fits a layer of its own.

    `memory` is where the values lie that it weighs, if that is known; it is not held. `partial` says that it fits a layer but for
    its queries and keys, which may be some of the positions; `heads` is how many heads it has.
    """

    where: str
    queries: int
    keys: int
    fits: bool
    memory: StorageWeakRef | None = None
    partial: bool = False
    place: ModuleCall | None = None
    heads: int = 0


class Span(NamedTuple):
    """The positions that are the queries and the keys of a call."""

    queries: range
    keys: range


Noted = tuple[Sequence[Event], int]
"""The calls of a verification pass, and how many positions it had."""


def chunks_of(first: Noted, second: Noted) -> list[list[int]] | None:
    """The calls of the longer pass in parts that hold the queries of all positions each, where some hold several calls.

    None where they do not make up such parts, or other ones than in the shorter one.
    """
    short, long = _coverings(first), _coverings(second)
    if short is None or long is None or all(len(part) == 1 for part in (*short, *long)):
        return None
    return long if _seen(first, short) == _seen(second, long) else None


def _seen(noted: Noted, parts: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """The module and the number of heads of each part."""
    return [(noted[0][part[0]].where, noted[0][part[0]].heads) for part in parts]


def _coverings(noted: Noted) -> list[list[int]] | None:
    """All calls of a verification pass in parts whose queries make up its positions in order; None where they do not."""
    events, positions = noted
    parts: list[list[int]] = [[]]
    covered = 0
    for number, event in enumerate(events):
        last = events[number - 1] if parts[-1] else event
        if not event.partial or event.place is None or last.place is None or event.place[:3:2] != last.place[:3:2]:
            return None
        parts[-1].append(number)
        covered += event.queries
        if covered > positions or event.heads != last.heads:
            return None
        if covered == positions:
            parts.append([])
            covered = 0
    return parts[:-1] if not parts[-1] else None


Observer = Callable[[int, Reader], None]
"""Is handed each layer's number and a reader of its pattern during the forward pass, in order. The reader dies with the call."""
_measures: ContextVar[bool] = ContextVar("induction_looks", default=False)


class measuring(AbstractContextManager[None]):  # noqa: N801 - called as a function is
    """What is computed inside the block is of a measurement, and nothing that the model computes."""

    def __init__(self) -> None:
        self._before = _measures.get()

    def __enter__(self) -> None:
        _measures.set(True)

    def __exit__(self, *error: object) -> None:
        _measures.set(self._before)


noting.append(lambda: partial(_measures.set, _measures.get()))


def is_measuring() -> bool:
    """Whether a measurement computes something now."""
    return _measures.get()


class Capture:
    """Shows the layers of one forward pass to an observer, one after the other, and may end the pass after the last.

    In a verification pass (`layers` is None) every call that fits is taken for a layer, and all are noted. After it `layers` are
    the numbers of the calls that are, whatever else may look like one. `groups` says how many of these make one layer each, and
    `orders` how their heads lie, where that is not the order of the calls. With `chunked`, which needs the number of `positions`,
    the queries of every layer come in calls of some of them each. With `self_only` every position is to attend to itself only,
    and nothing is shown.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        last: int | None = None,
        running: ModuleTracker | None = None,
        layers: Collection[int] | None = None,
        groups: Sequence[int] | None = None,
        orders: Sequence[Sequence[int] | None] | None = None,
        chunked: bool = False,
        positions: int = 0,
        self_only: bool = False,
    ) -> None:
        self._observer = observer
        self.last = last
        self._layers = layers
        self._groups = groups
        self._orders = orders
        self._together: list[Reader] = []  # of a layer that is not complete yet
        self._chunks: list[QueryChunk] = []  # of heads that are not complete yet
        self.chunked = chunked
        self.positions = positions
        self._covered = 0  # positions that were queries of the heads that come now
        self.outputs = None if running is None else CallOutputs()  # of the calls of a verification pass
        self.running = running
        self.self_only = self_only
        self.heads: list[int] = []
        self.events: list[Event] = []
        self.n_events = 0
        self.stopped = False  # whether the last layer was shown and nothing after it is needed
        self.ends = True  # whether the pass ends right then

    @property
    def here(self) -> str:
        """The module that runs now, where that is followed."""
        return "" if self.running is None else self.running.here

    def record_call(
        self, queries: int, keys: int, *, fits: bool, values: Tensor | None = None, partial: bool = False, heads: int = 0
    ) -> bool:
        """Note a call that may be attention; whether it is a layer's. Raises `BackendUnavailable` where it does not fit one."""
        number = self.n_events
        self.n_events += 1
        if self._layers is None:
            place = None if self.running is None else self.running.place
            memory = None
            if values is not None and values.layout == torch.strided:
                memory = StorageWeakRef(values.untyped_storage())
            self.events.append(Event(self.here, queries, keys, fits, memory, partial, place, heads))
            return fits
        if self.chunked:
            if not partial:
                raise BackendUnavailable(
                    f"a layer attends from {queries} positions to {keys} keys, and did not where it was verified"
                )
            return True
        if number in self._layers and not fits:
            raise BackendUnavailable(
                f"a layer attends from {queries} positions to {keys} keys, and did not where it was verified"
            )
        return number in self._layers

    def span(self, queries: int, keys: int) -> Span:
        """Which positions the next call of some queries is of. They follow those before, and its keys end where they do.

        Raises `BackendUnavailable` where they cannot.
        """
        start, end = self._covered, self._covered + queries
        first = 0 if keys == self.positions else end - keys
        if end > self.positions or first < 0:
            raise BackendUnavailable(
                f"{queries} queries and {keys} keys are no chunk of {self.positions} positions that begins at {start}"
            )
        self._covered = end % self.positions
        return Span(range(start, end), range(first, first + keys))

    def __call__(self, reader: Reader | QueryChunk) -> None:
        if isinstance(reader, QueryChunk):
            self._chunks.append(reader)
            if self._covered:
                return
            reader, self._chunks = ChunkedReader(self._chunks), []
        if self._layers is None and self.events:
            self.events[-1] = self.events[-1]._replace(heads=reader.n_heads)
        self._together.append(reader)
        if self._groups is not None and len(self._together) < self._groups[len(self.heads)]:
            return
        order = None if self._orders is None else self._orders[len(self.heads)]
        whole = self._together[0] if len(self._together) == 1 else JoinedReader(self._together, order)
        self._together = []
        self.heads.append(whole.n_heads)
        if self._observer is not None:
            with full_precision(whole.device.type), measuring():  # what is measured is not rounded to what the model computes in
                self._observer(len(self.heads) - 1, whole)
        if len(self.heads) == self.last:
            self.stopped = True
            if self.ends:
                raise StopForward
