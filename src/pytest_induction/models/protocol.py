"""What every model under test offers, whatever it is underneath."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError, TextError, UnsupportedModel
from pytest_induction.models.attention import Reader
from pytest_induction.models.calling import Caller, as_found, condition, device_of, dtype_of, fingerprint, first_line, logits_of
from pytest_induction.records import TokenSpace

T = TypeVar("T")
Observer = Callable[[int, Reader], None]
"""Is handed each layer's number and a reader of its pattern during the forward pass, in order. The reader dies with the call."""


class Refused(Exception):
    """A way in cannot read this model; the message says what it saw."""


class WayIn(ABC):
    """One way to see a model's attention while it runs. Building one tries it out, and raises `Refused`."""

    name: str
    layers: tuple[str, ...]  # module paths of the attention layers, in order
    n_heads: int
    notes: tuple[str, ...] = ()

    @abstractmethod
    def run(self, tokens: Tensor, attention_mask: Tensor | None, observer: Observer, *, logits: bool) -> Tensor | None:
        """One forward pass under observation: the logits if asked for. Raises `ModelError` if a layer was not seen."""


def all_seen(way: WayIn, seen: int) -> None:
    """Raise `ModelError` unless every layer was observed: a layer that goes unseen would silently have no score."""
    if seen != len(way.layers):
        raise ModelError(f"{len(way.layers)} attention layers were expected in this forward pass, {seen} were seen by {way.name}")


@dataclass
class ModelUnderTest:
    """A causal transformer as the user runs it, and what a probe needs to know of it.

    `way` is None where no way in can read the attention; `tried` then says why, and behaviour can still be measured.
    """

    module: nn.Module
    name: str
    space: TokenSpace
    way: WayIn | None
    tried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    seed: int = 0
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

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
            raise UnsupportedModel(
                f"the attention of {self.name} cannot be read. Tried: {'; '.join(self.tried)}. "
                "A Hugging Face model loaded with attn_implementation='sdpa' or 'eager', or a module that calls "
                "torch.nn.functional.scaled_dot_product_attention, can be",
                self.tried,
            )
        return self.way

    def logits(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (batch, positions, d_vocab) of token ids (batch, positions), unobserved."""
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        with as_found(self.module), self._named(tokens):
            return logits_of(Caller(self.module)(tokens, attention_mask), tokens)

    def observe(
        self, tokens: Tensor, observer: Observer, *, attention_mask: Tensor | None = None, logits: bool = False
    ) -> Tensor | None:
        """One forward pass over token ids (batch, positions) with every layer's attention shown to `observer`."""
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        with as_found(self.module), self._named(tokens):
            return self.reading.run(tokens, attention_mask, observer, logits=logits)

    @contextmanager
    def _named(self, tokens: Tensor) -> Iterator[None]:
        """Say which model failed on what, where a forward pass raises in its own words or a way in gives up midway."""
        try:
            yield
        except (RuntimeError, IndexError, Refused) as error:
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

    def fingerprint(self) -> str:
        return fingerprint(self.module)

    def remember(self, key: Hashable, measure: Callable[[], T]) -> T:
        """What `measure` gave the last time for this key, as long as the model has not changed since."""
        whole = (key, condition(self.module))
        if whole not in self._memory:
            self._memory[whole] = measure()
        return self._memory[whole]


def _on(device: torch.device, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return tokens.to(device), None if attention_mask is None else attention_mask.to(device)
