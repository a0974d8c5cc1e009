"""What every model under test offers, whatever it is underneath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pytest_induction.errors import InductionError, ModelError, TextError, UnsupportedModel
from pytest_induction.models.attention import JoinedReader, Reader
from pytest_induction.models.calling import (
    Caller,
    as_found,
    condition,
    device_of,
    dtype_of,
    first_line,
    full_precision,
    is_out_of_memory,
    logits_of,
    quoted,
)
from pytest_induction.models.diagnosis import as_text, diagnose
from pytest_induction.models.weights import fingerprint
from pytest_induction.records import TokenSpace

if TYPE_CHECKING:
    from pytest_induction.models.census import Place, Running

T = TypeVar("T")
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


class Event(NamedTuple):
    """One call that may be attention: the module that makes it, its queries and keys, and whether it fits a layer of its own."""

    where: str
    queries: int
    keys: int
    fits: bool


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
        self.stopped = False

    @property
    def here(self) -> str:
        """The module that runs now, where that is followed."""
        return "" if self.running is None else self.running.here

    def hears(self, queries: int, keys: int, *, fits: bool) -> bool:
        """Note a call that may be attention; whether it is a layer's. Raises `Refused` where it is, and does not fit one."""
        number = self.n_events
        self.n_events += 1
        if self._layers is None:
            self.events.append(Event(self.here, queries, keys, fits))
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
            with full_precision(whole.device.type):  # what is measured must not be rounded to what the model computes in
                self._observer(len(self.heads) - 1, whole)
        if len(self.heads) == self._last:
            self.stopped = True
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
        """One forward pass under observation: the logits if asked for. Raises `ModelError` if a layer was not seen."""

    @abstractmethod
    def alone(self, tokens: Tensor) -> AbstractContextManager[object]:
        """In a pass inside the block every layer lets each position attend to itself only, if it `can_isolate`."""

    def all_seen(self, seen: int) -> None:
        """Raise `ModelError` unless every layer was observed: a layer that goes unseen would silently have no score."""
        if seen != len(self.layers):
            expected = f"{len(self.layers)} attention layers were expected in this forward pass"
            raise ModelError(f"{expected}, {seen} were seen by {self.name}")


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
            raise ModelError(f"{self.n_calls} calls that may be attention were expected in a pass, {show.n_events} were seen")
        return logits_of(output, tokens) if logits else None

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
        joined = first.running.joined([place for place, _ in kept])
        self.groups = tuple(map(len, joined)) if len(joined) < len(kept) else None
        heads = iter([heads for _, heads in kept])
        self.heads = tuple(sum(next(heads) for _ in group) for group in joined)
        places = [first.running.of_all(group) for group in joined]
        self.notes += first.running.check(places, expected)
        self.check_names = partial(first.running.check_names, [*(place.path for place in places), *excused])
        self.layers = tuple(place.path or f"call {index}" for index, place in enumerate(places))


@dataclass
class ModelUnderTest:
    """A causal transformer as the user runs it, and what a probe needs to know of it.

    `way` is None where no way in can read the attention; `tried` then says why, and behaviour can still be measured.
    `memory` is the most bytes that a forward pass may take; None for a share of what is free. `draws` says that the model draws
    random numbers of Python or numpy.
    """

    module: nn.Module
    name: str
    space: TokenSpace
    way: WayIn | None
    tried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    seed: int = 0
    memory: int | None = None
    draws: bool = False
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def n_layers(self) -> int:
        return len(self.reading.layers)

    @property
    def n_heads(self) -> int:
        return self.reading.n_heads

    @property
    def device(self) -> torch.device:
        return device_of(self.module)

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.module)

    @property
    def reading(self) -> WayIn:
        """The way in. Raises `UnsupportedModel` where there is none, with what each one saw."""
        if self.way is None:
            raise UnsupportedModel(f"the attention of {self.name} cannot be read\n{as_text(self.diagnosis())}", self.tried)
        return self.way

    def logits(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (batch, positions, d_vocab) of token ids (batch, positions), unobserved."""
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        with as_found(self.module, draws=self.draws), self._named(tokens):
            return logits_of(Caller(self.module)(tokens, attention_mask), tokens)

    def observe(
        self,
        tokens: Tensor,
        observer: Observer,
        *,
        attention_mask: Tensor | None = None,
        logits: bool = False,
        early_stop: bool = True,
    ) -> Tensor | None:
        """One forward pass over token ids (batch, positions) with every layer's attention shown to `observer`.

        Where no logits are asked for it ends after the last attention layer, unless `early_stop` is False.
        """
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        way = self.reading
        with as_found(self.module, draws=self.draws) as hooked, self._named(tokens):
            stops = early_stop and way.can_stop and not hooked  # whoever listens for the end of a module may count on it
            return way.run(tokens, attention_mask, observer, logits=logits, early_stop=stops)

    @contextmanager
    def _named(self, tokens: Tensor) -> Iterator[None]:
        """Say which model failed on what, where a forward pass raises in its own words or a way in gives up midway."""
        try:
            yield
        except InductionError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise  # fewer rows may fit
            context = "" if self.space.n_ctx is None else f" (its context is said to be {self.space.n_ctx})"
            raise ModelError(f"{self.name} failed on token ids {tuple(tokens.shape)}{context}: {first_line(error)}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. Raises `TextError` where the model has no tokenizer."""
        if self.tokenizer is None:
            raise TextError(f"{self.name} has no tokenizer: pass token ids, or give the model a `tokenizer` attribute")
        try:
            encoded = self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError:  # a tokenizer of the user's own may take the text alone
            encoded = self.tokenizer.encode(text)
        return [int(token) for token in getattr(encoded, "ids", encoded)]

    def diagnosis(self) -> tuple[tuple[str, str], ...]:
        """What the model is, how it is read, what can be measured on it and what to change: labels and texts."""
        return diagnose(self)

    def fingerprint(self) -> str:
        return fingerprint(self.module)

    def remember(self, key: Hashable, measure: Callable[[], T]) -> T:
        """What `measure` gave the last time for this key, as long as the model has not changed since."""
        whole = (key, condition(self.module))
        if whole not in self._known:
            self._known[whole] = measure()
        return self._known[whole]


def _on(device: torch.device, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return tokens.to(device), None if attention_mask is None else attention_mask.to(device)
