"""What every model under test offers, whatever it is underneath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError, TextError, UnsupportedModel
from pytest_induction.models.attention import Reader
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
)
from pytest_induction.models.diagnosis import as_text, diagnose
from pytest_induction.models.weights import fingerprint
from pytest_induction.records import TokenSpace

if TYPE_CHECKING:
    from pytest_induction.models.census import Running

T = TypeVar("T")
Observer = Callable[[int, Reader], None]
"""Is handed each layer's number and a reader of its pattern during the forward pass, in order. The reader dies with the call."""


class Refused(Exception):
    """A way in cannot read this model; the message says what it saw."""


class NotInUse(Refused):
    """A way in has nothing to do with this model, which is worth saying only if no other way serves."""


class Enough(BaseException):
    """Ends a forward pass after the last attention layer; no `except Exception` of a model's own may swallow it."""


class Show:
    """Shows the layers of one forward pass to an observer, one after the other, and may end the pass after the last."""

    def __init__(self, observer: Observer | None = None, *, last: int | None = None, running: Running | None = None) -> None:
        self._observer = observer
        self._last = last
        self.running = running
        self.heads: list[int] = []
        self.places: list[tuple[str, int]] = []  # module path, and number of the module's pass

    def __call__(self, reader: Reader) -> None:
        self.heads.append(reader.n_heads)
        if self.running is not None:
            self.places.append((self.running.here, self.running.this_pass))
        if self._observer is not None:
            with full_precision(reader.device.type):  # what is measured must not be rounded to what the model computes in
                self._observer(len(self.heads) - 1, reader)
        if len(self.heads) == self._last:
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
    folded: bool = False  # whether heads and rows share an axis, so that which is which must be tried out
    makes_patterns: bool = True  # whether whole patterns lie in memory while it looks
    stops: bool = True  # whether it knows how to end a pass early
    can_stop: bool = False  # whether a pass may end after the last attention layer; found out by trial

    @abstractmethod
    def __init__(self, caller: Caller, tokens: Tensor, expected: int | None) -> None: ...

    @property
    def n_heads(self) -> int:
        """Heads of the layer that has most."""
        return max(self.heads)

    @abstractmethod
    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, early_stop: bool = False
    ) -> Tensor | None:
        """One forward pass under observation: the logits if asked for. Raises `ModelError` if a layer was not seen."""

    def all_seen(self, seen: int) -> None:
        """Raise `ModelError` unless every layer was observed: a layer that goes unseen would silently have no score."""
        if seen != len(self.layers):
            expected = f"{len(self.layers)} attention layers were expected in this forward pass"
            raise ModelError(f"{expected}, {seen} were seen by {self.name}")

    def settle(self, show: Show, expected: int | None, excused: Sequence[str] = ()) -> None:
        """Take the layers that the trial pass showed. Raises `Refused` if attention may have run unseen, but in those excused."""
        if show.running is None:
            raise TypeError("the trial pass must follow the modules that run")
        self.notes += show.running.check(show.places, expected, excused)
        self.layers, self.heads = tuple(path or f"call {index}" for index, (path, _) in enumerate(show.places)), tuple(show.heads)


class ListeningWay(WayIn):
    """A way in that listens while the model runs as it is called."""

    base_serves: bool = False  # whether the model without its logits shows every layer too

    @abstractmethod
    def listening(self, tokens: Tensor, show: Show) -> AbstractContextManager[object]:
        """Show each layer of a forward pass over `tokens` inside the block."""

    def run(
        self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool, early_stop: bool = False
    ) -> Tensor | None:
        show = Show(observer, last=len(self.layers) if early_stop and not logits else None)
        output = None
        with show.until_last(), self.listening(tokens, show):
            output = self.caller(tokens, attention_mask, logits=logits or not self.base_serves)
        self.all_seen(len(show.heads))
        return logits_of(output, tokens) if logits else None


@dataclass
class ModelUnderTest:
    """A causal transformer as the user runs it, and what a probe needs to know of it.

    `way` is None where no way in can read the attention; `tried` then says why, and behaviour can still be measured.
    `memory` is the most bytes that a forward pass may take; None for a share of what is free.
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
        with as_found(self.module), self._named(tokens):
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
        with as_found(self.module), self._named(tokens):
            return way.run(tokens, attention_mask, observer, logits=logits, early_stop=early_stop and way.can_stop)

    @contextmanager
    def _named(self, tokens: Tensor) -> Iterator[None]:
        """Say which model failed on what, where a forward pass raises in its own words or a way in gives up midway."""
        try:
            yield
        except (RuntimeError, IndexError, Refused) as error:
            if is_out_of_memory(error):
                raise  # fewer rows may fit
            raise ModelError(f"{self.name} failed on token ids {tuple(tokens.shape)}: {first_line(error)}") from error

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
