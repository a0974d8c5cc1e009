"""What a way in is, and how one that listens learns which of the calls that it hears are a model's layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from pytest_induction.models.attention import JoinedReader, Reader
from pytest_induction.models.calling import Caller, full_precision, quoted

if TYPE_CHECKING:
    from pytest_induction.models.acting import Steps
    from pytest_induction.models.census import Place, Running

Trials = tuple[Tensor, Tensor]
"""Token ids (batch, positions) of two lengths, on which a way in is tried out."""
Observer = Callable[[int, Reader], None]
"""Is handed each layer's number and a reader of its pattern during the forward pass, in order. The reader dies with the call."""


class Refused(Exception):
    """A way in cannot read this model; the message says what it saw."""


class NotInUse(Refused):
    """A way in has nothing to do with this model, which is worth saying only if no other way serves."""


class Enough(BaseException):
    """Ends a forward pass after the last attention layer; no `except Exception` of a model's own may swallow it."""


_looks: ContextVar[bool] = ContextVar("induction_looks", default=False)


@contextmanager
def looking() -> Iterator[None]:
    """What is computed inside the block is of a measurement, and nothing that the model computes."""
    token = _looks.set(True)
    try:
        yield
    finally:
        _looks.reset(token)


def is_looking() -> bool:
    """Whether a measurement computes something now."""
    return _looks.get()


class Event(NamedTuple):
    """One call that may be attention: the module that makes it, its queries and keys, and whether it fits a layer of its own.

    `values` are what it weighs, where that is known.
    """

    where: str
    queries: int
    keys: int
    fits: bool
    values: Tensor | None = None


class Show:
    """Shows the layers of one forward pass to an observer, one after the other, and may end the pass after the last.

    In a trial (`layers` is None) every call that fits is taken for a layer and all are noted; after it, `layers` are the numbers
    of the calls that are, whatever else may look like one. `groups` says how many of these make one layer each. With `alone`
    every position is to attend to itself only, and nothing is shown.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        last: int | None = None,
        running: Running | None = None,
        layers: Collection[int] | None = None,
        groups: Sequence[int] | None = None,
        alone: bool = False,
    ) -> None:
        self._observer = observer
        self._last = last
        self._layers = layers
        self._groups = groups
        self._together: list[Reader] = []  # of a layer that is not complete yet
        self.running = running
        self.alone = alone
        self.heads: list[int] = []
        self.places: list[Place] = []
        self.events: list[Event] = []
        self.n_events = 0
        self.stopped = False  # whether the last layer was shown and nothing after it is needed
        self.ends = True  # whether the pass ends right then

    @property
    def here(self) -> str:
        """The module that runs now, where that is followed."""
        return "" if self.running is None else self.running.here

    def hears(self, queries: int, keys: int, *, fits: bool, values: Tensor | None = None) -> bool:
        """Note a call that may be attention; whether it is a layer's. Raises `Refused` where it is, and does not fit one."""
        number = self.n_events
        self.n_events += 1
        if self._layers is None:
            self.events.append(Event(self.here, queries, keys, fits, values))
            return fits
        if number in self._layers and not fits:
            raise Refused(f"a layer attends from {queries} positions to {keys} keys, and did not in the trial")
        return number in self._layers

    def __call__(self, reader: Reader) -> None:
        if self.running is not None:
            self.places.append(self.running.place)
        self._together.append(reader)
        if self._groups is not None and len(self._together) < self._groups[len(self.heads)]:
            return
        whole = self._together[0] if len(self._together) == 1 else JoinedReader(self._together)
        self._together = []
        self.heads.append(whole.n_heads)
        if self._observer is not None:
            with full_precision(whole.device.type), looking():  # what is measured is not rounded to what the model computes in
                self._observer(len(self.heads) - 1, whole)
        if len(self.heads) == self._last:
            self.stopped = True
            if self.ends:
                raise Enough

    @contextmanager
    def until_last(self) -> Iterator[None]:
        """A forward pass that may end early."""
        with suppress(Enough):
            yield


class WayIn(ABC):
    """One way to see a model's attention while it runs. Building one tries it out, and raises `Refused`."""

    name: str
    caller: Caller
    layers: tuple[str, ...]  # module paths of the attention layers, in order
    heads: tuple[int, ...]  # of each layer
    notes: tuple[str, ...] = ()
    makes_patterns: bool = True  # whether whole patterns lie in memory while it looks
    can_isolate: bool = True  # whether it can make layers attend otherwise, and not only look
    acts: bool = True  # whether what it sees can be changed there; what heads found, at their output projection, else
    acts_outside: bool = False  # whether `acting` is entered before a measurement that is to see what it does, or inside it
    stops: bool = True  # whether it knows how to end a pass early
    can_stop: bool = False  # whether a pass may end after the last attention layer; found out by trial

    @abstractmethod
    def __init__(self, caller: Caller, trials: Trials, expected: int | None) -> None: ...

    @property
    def n_heads(self) -> int:
        """Heads of the layer that has most."""
        return max(self.heads)

    @abstractmethod
    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, early_stop: bool = False
    ) -> Tensor | None:
        """One forward pass under observation: the logits if asked for. Raises `Refused` if a layer was not seen."""

    @abstractmethod
    def alone(self, tokens: Tensor) -> AbstractContextManager[object]:
        """In a pass inside the block every layer lets each position attend to itself only, if it `can_isolate`."""

    def acting(self, tokens: Tensor, steps: Steps, *, first: int = 0) -> AbstractContextManager[object]:
        """In a pass over `tokens` inside the block layers take these steps; `first` layers are not run in it.

        Raises `Refused` where what is seen by this way cannot be changed.
        """
        raise Refused(f"what is read by {self.name} cannot be made to act otherwise")

    def all_seen(self, seen: int) -> None:
        """Raise `Refused` unless every layer was observed: a layer that goes unseen would silently have no score."""
        if seen != len(self.layers):
            expected = f"{len(self.layers)} attention layers were expected in this forward pass"
            raise Refused(f"{expected}, {seen} were seen by {self.name}")


@contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Have `check` look at a pass inside the block, also at one that ends early: whoever watches has seen the last layer."""
    try:
        yield
    except Enough:
        check()
        raise
    check()


class ListeningWay(WayIn):
    """A way in that listens while the model runs as it is called."""

    base_serves: bool = False  # whether the model without its logits shows every layer too
    calls: frozenset[int]  # which of the calls that are heard in a pass are a layer's
    n_calls: int  # all that are heard
    groups: tuple[int, ...] | None  # how many of these make a layer, where it is not one each
    check_names: Callable[[], None]  # what to look at where nothing better can be had than the names of modules

    @abstractmethod
    def listening(self, tokens: Tensor, show: Show) -> AbstractContextManager[object]:
        """Show each layer of a forward pass over `tokens` inside the block."""

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, early_stop: bool = False
    ) -> Tensor | None:
        stops = early_stop and not logits
        show = Show(observer, last=len(self.layers) if stops else None, layers=self.calls, groups=self.groups)
        output = None
        with show.until_last(), self.listening(tokens, show):
            output = self.caller(tokens, attention_mask, logits=logits or stops or not self.base_serves)
        self.all_seen(len(show.heads))
        if not stops and show.n_events != self.n_calls:
            raise Refused(f"{self.n_calls} calls that may be attention were expected in a pass, {show.n_events} were seen")
        return self.caller.logits_of(output, tokens) if logits else None

    def alone(self, tokens: Tensor) -> AbstractContextManager[object]:
        return self.listening(tokens, Show(layers=self.calls, alone=True))

    def settle(self, shows: Sequence[Show], expected: int | None) -> None:
        """Take the layers that trial passes of two lengths showed.

        Raises `Refused` if none was, or one may be only a part of a layer. What has as many keys at either length is no
        self-attention, and left alone.
        """
        first, second = shows
        if first.running is None:
            raise TypeError("the trial pass must follow the modules that run")
        if len(first.events) != len(second.events):
            raise Refused(
                f"{len(first.events)} calls that may be attention in a short pass, {len(second.events)} in a longer one"
            )
        pairs = list(zip(first.events, second.events, strict=True))
        self.calls = frozenset(number for number, (one, other) in enumerate(pairs) if one.fits and other.fits)
        self.n_calls = len(pairs)
        for number, (one, other) in enumerate(pairs):
            if number not in self.calls and one.keys != other.keys:
                what = f"from {one.queries} positions to {one.keys} keys, which follow the number of positions"
                raise Refused(f"{quoted(one.where)} attends {what}, and not as (rows, heads, positions, positions)")
        fitting = [number for number, (one, _) in enumerate(pairs) if one.fits]
        shown = zip(fitting, first.places, first.heads, strict=True)
        kept = [(place, heads) for number, place, heads in shown if number in self.calls]
        excused = [one.where for number, (one, _) in enumerate(pairs) if number not in self.calls and one.where]
        joined = first.running.joined([place for place, _ in kept], [count for _, count in kept])
        self.groups = tuple(map(len, joined)) if len(joined) < len(kept) else None
        heads = iter([heads for _, heads in kept])
        self.heads = tuple(sum(next(heads) for _ in group) for group in joined)
        places = [first.running.of_all(group) for group in joined]
        self.notes += first.running.check(places, expected)
        weighed = [pairs[number][0].values for number in sorted(self.calls)]
        for (here, its), (there, others) in pairwise(zip([place for place, _ in kept], weighed, strict=True)):
            if here.path and here[:2] == there[:2] and _share_memory(its, others):
                raise Refused(f"{quoted(here.path)} attends to the same values twice, so neither pattern is that of the layer")
        self.check_names = partial(first.running.check_names, [*(place.path for place in places), *excused])
        self.layers = tuple(place.path or f"call {index}" for index, place in enumerate(places))


def _share_memory(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are parts of one, as the halves of a projection are."""
    if one is None or other is None:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
