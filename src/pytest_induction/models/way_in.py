"""What a way in is, and how one that listens learns which of the calls that it hears are a model's layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pytest_induction.models.attention import JoinedReader, Reader
from pytest_induction.models.calling import Caller, full_precision, quoted
from pytest_induction.models.chunks import ChunkedReader, QueryChunk
from pytest_induction.models.events import Event, Span, chunks_of, share_memory
from pytest_induction.models.joining import Outputs
from pytest_induction.undoing import noting

if TYPE_CHECKING:
    from pytest_induction.models.acting import Steps
    from pytest_induction.models.census import Running

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


class looking(AbstractContextManager[None]):  # noqa: N801 - called as a function is
    """What is computed inside the block is of a measurement, and nothing that the model computes."""

    def __init__(self) -> None:
        self._before = _looks.get()

    def __enter__(self) -> None:
        _looks.set(True)

    def __exit__(self, *error: object) -> None:
        _looks.set(self._before)


noting.append(lambda: partial(_looks.set, _looks.get()))


def is_looking() -> bool:
    """Whether a measurement computes something now."""
    return _looks.get()


class Show:
    """Shows the layers of one forward pass to an observer, one after the other, and may end the pass after the last.

    In a trial (`layers` is None) every call that fits is taken for a layer and all are noted; after it, `layers` are the numbers
    of the calls that are, whatever else may look like one. `groups` says how many of these make one layer each, and `orders` how
    their heads lie, where that is not the order of the calls. With `chunked`, which needs the number of `positions`, the queries
    of every layer come in calls of some of them each. With `alone` every position is to attend to itself only, and nothing is
    shown.
    """

    def __init__(
        self,
        observer: Observer | None = None,
        *,
        last: int | None = None,
        running: Running | None = None,
        layers: Collection[int] | None = None,
        groups: Sequence[int] | None = None,
        orders: Sequence[Sequence[int] | None] | None = None,
        chunked: bool = False,
        positions: int = 0,
        alone: bool = False,
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
        self.outputs = None if running is None else Outputs()  # of the calls of a trial
        self.running = running
        self.alone = alone
        self.heads: list[int] = []
        self.events: list[Event] = []
        self.n_events = 0
        self.stopped = False  # whether the last layer was shown and nothing after it is needed
        self.ends = True  # whether the pass ends right then

    @property
    def here(self) -> str:
        """The module that runs now, where that is followed."""
        return "" if self.running is None else self.running.here

    def hears(
        self, queries: int, keys: int, *, fits: bool, values: Tensor | None = None, partial: bool = False, heads: int = 0
    ) -> bool:
        """Note a call that may be attention; whether it is a layer's. Raises `Refused` where it is, and does not fit one."""
        number = self.n_events
        self.n_events += 1
        if self._layers is None:
            place = None if self.running is None else self.running.place
            self.events.append(Event(self.here, queries, keys, fits, values, partial, place, heads))
            return fits
        if self.chunked:
            if not partial:
                raise Refused(f"a layer attends from {queries} positions to {keys} keys, and did not in the trial")
            return True
        if number in self._layers and not fits:
            raise Refused(f"a layer attends from {queries} positions to {keys} keys, and did not in the trial")
        return number in self._layers

    def span(self, queries: int, keys: int) -> Span:
        """Which positions the next call of some queries is of. They follow those before, and its keys end where they do.

        Raises `Refused` where they cannot.
        """
        start, end = self._covered, self._covered + queries
        first = 0 if keys == self.positions else end - keys
        if end > self.positions or first < 0:
            raise Refused(f"{queries} queries and {keys} keys are no chunk of {self.positions} positions that begins at {start}")
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
            with full_precision(whole.device.type), looking():  # what is measured is not rounded to what the model computes in
                self._observer(len(self.heads) - 1, whole)
        if len(self.heads) == self.last:
            self.stopped = True
            if self.ends:
                raise Enough


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
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, last: int | None = None
    ) -> Tensor | None:
        """One forward pass under observation: the logits if asked for. Raises `Refused` if a layer was not seen.

        Without logits it may end once so many layers as `last` says were seen; None is all of it.
        """

    @abstractmethod
    def alone(self, tokens: Tensor) -> AbstractContextManager[object]:
        """In a pass inside the block every layer lets each position attend to itself only, if it `can_isolate`."""

    def acting(self, tokens: Tensor, steps: Steps, *, first: int = 0) -> AbstractContextManager[object]:
        """In a pass over `tokens` inside the block layers take these steps; `first` layers are not run in it.

        Raises `Refused` where what is seen by this way cannot be changed.
        """
        raise Refused(f"what is read by {self.name} cannot be made to act otherwise")

    def all_seen(self, seen: int, last: int | None = None) -> None:
        """Raise `Refused` unless every layer was observed, or the first `last`: one that goes unseen would have no score."""
        wanted = len(self.layers) if last is None else last
        if seen != wanted:
            expected = f"{wanted} attention layers were expected in this forward pass"
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
    orders: tuple[list[int] | None, ...] | None = None  # how the heads of such a layer lie, where not in the order of the calls
    chunked: bool = False  # whether the queries of a layer come in calls of some of them each
    is_chunked_from: Callable[[int], bool] = staticmethod(
        lambda positions: False
    )  # learns whether it is, from so many positions on
    check_names: Callable[[], None]  # what to look at where nothing better can be had than the names of modules

    @abstractmethod
    def listening(self, tokens: Tensor, show: Show) -> AbstractContextManager[object]:
        """Show each layer of a forward pass over `tokens` inside the block."""

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, last: int | None = None
    ) -> Tensor | None:
        last = None if logits else last
        show = self.show(tokens, observer, last=last)
        try:
            return self._listened(tokens, attention_mask, show, logits=logits)
        except Refused:
            if self.chunked or not self.is_chunked_from(tokens.shape[1]):
                raise
        seen = len(show.heads)  # layers that were shown before the first chunk came

        def rest(layer: int, reader: Reader) -> None:
            if layer >= seen:
                observer(layer, reader)

        show = self.show(tokens, rest, last=last)
        return self._listened(tokens, attention_mask, show, logits=logits)

    def _listened(self, tokens: Tensor, attention_mask: Tensor | None, show: Show, *, logits: bool) -> Tensor | None:
        stops, output = show.last is not None, None
        with suppress(Enough), self.listening(tokens, show):
            output = self.caller(tokens, attention_mask, logits=logits or stops or not self.base_serves)
        self.all_seen(len(show.heads), show.last)
        if not stops and not self.chunked and show.n_events != self.n_calls:
            raise Refused(f"{self.n_calls} calls that may be attention were expected in a pass, {show.n_events} were seen")
        return self.caller.logits_of(output, tokens) if logits else None

    def alone(self, tokens: Tensor) -> AbstractContextManager[object]:
        return self.listening(tokens, self.show(tokens, alone=True))

    def show(self, tokens: Tensor, observer: Observer | None = None, **options: Any) -> Show:
        """What shows the layers of a pass over `tokens` to an observer."""
        known = {"layers": self.calls, "groups": self.groups, "orders": self.orders, "chunked": self.chunked}
        return Show(observer, **known, positions=tokens.shape[1], **options)  # type: ignore[arg-type]

    def refuse_chunks(self) -> None:
        """Raise `Refused` where heads cannot be made to act otherwise, since they attend in parts."""
        if not self.acts:
            raise Refused("its queries attend in chunks, or its heads lie in another order than their calls come in")

    def settle(self, shows: Sequence[Show], expected: int | None) -> None:
        """Take the layers that trial passes of two lengths showed.

        Raises `Refused` if none was, or one may be only a part of a layer. What has as many keys at either length is no
        self-attention, and left alone.
        """
        first, second = shows
        if (chunks := chunks_of((first.events, first.positions), (second.events, second.positions))) is not None:
            self._settle_chunks(second, chunks, expected)
            return
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
        excused = [one.where for number, (one, _) in enumerate(pairs) if number not in self.calls and one.where]
        kept = [[number] for number in sorted(self.calls)]
        groups = self._take(first, kept, expected, excused)
        for group, then in pairwise(groups):
            one, other = first.events[group[-1][0]], first.events[then[0][0]]
            if one.place is None or other.place is None or one.place[:2] != other.place[:2]:
                continue
            if one.where and share_memory(one.values, other.values):
                raise Refused(f"{quoted(one.where)} attends to the same values twice, so neither pattern is that of the layer")
            if first.outputs is not None and first.outputs.are_at_odds(group[-1][0], then[0][0]):
                why = first.outputs.apart([group[-1][0], then[0][0]])
                raise Refused(
                    f"{quoted(one.where)} makes several attention calls in one pass that are neither one layer nor two{why}"
                )

    def _settle_chunks(self, show: Show, parts: list[list[int]], expected: int | None) -> None:
        """The same where queries come in chunks: all calls of the longer trial, in parts that hold all queries of some heads."""
        self.chunked, self.acts = True, False
        self.calls, self.n_calls = frozenset(range(len(show.events))), len(show.events)
        for group in self._take(show, parts, expected, []):
            calls = [call for part in group for call in part]
            if len(calls) > 1 and show.outputs is not None and (why := show.outputs.apart(calls)):
                where = quoted(show.events[calls[0]].where)
                raise Refused(f"{where} makes {len(calls)} attention calls in one pass, so none of them is its pattern{why}")
        self.check_names = _refuse_unchecked_chunks

    def _take(self, show: Show, parts: list[list[int]], expected: int | None, excused: list[str]) -> list[list[list[int]]]:
        """Take these calls of a pass, in parts that hold all queries of some heads, for layers; the parts of each layer."""
        running, outputs = show.running, show.outputs
        if running is None or outputs is None:
            raise TypeError("the trial pass must follow the modules that run")
        heads = [show.events[part[0]].heads for part in parts]
        places = [place for part in parts if (place := show.events[part[0]].place) is not None]
        groups = running.joined(places, heads, lambda numbers: not outputs.apart([parts[number][-1] for number in numbers]))
        together = [[parts[number][-1] for number in group] for group in groups]
        self.groups = tuple(map(len, groups)) if len(groups) < len(parts) else None
        self.heads = tuple(sum(heads[number] for number in group) for group in groups)
        orders = tuple(outputs.order(group) if len(group) > 1 else None for group in together)
        self.orders = orders if any(orders) else None
        self.acts = self.acts and self.orders is None
        taken = [running.of_all([places[number] for number in group]) for group in groups]
        self.notes += running.check(
            taken, expected, lambda some: outputs.apart([call for each in some for call in together[each]])
        )
        self.check_names = partial(running.check_names, [*(place.path for place in taken), *excused])
        self.layers = tuple(place.path or f"call {index}" for index, place in enumerate(taken))
        return [[parts[number] for number in group] for group in groups]


def _refuse_unchecked_chunks() -> None:
    """What is looked at where rows beside a row change its logits, so that nothing else can be checked."""
    raise Refused("its queries attend in chunks, and which positions they are cannot be checked where rows change with others")
