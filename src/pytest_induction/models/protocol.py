"""What every model under test offers, whatever it is underneath."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from pytest_induction.errors import InductionError, ModelError, TextError, UnsupportedModel
from pytest_induction.models.attention import Reader
from pytest_induction.models.calling import (
    Caller,
    as_found,
    condition,
    device_of,
    dtype_of,
    first_line,
    is_out_of_memory,
    uncompiled,
)
from pytest_induction.models.capturing import Observer
from pytest_induction.models.diagnosis import as_text, diagnose
from pytest_induction.models.stacked import CutReader, StackedReader, kept
from pytest_induction.models.way_in import WayIn
from pytest_induction.models.weights import fingerprint
from pytest_induction.records import TokenSpace
from pytest_induction.undoing import puts_back

T = TypeVar("T")
KEEP = "logits_to_keep"  # what transformers calls it


class Intervention(Protocol):
    """What changes the passes of a model."""

    subject: ModelUnderTest

    def outside(self, tokens: Tensor, run: Callable[[], Any]) -> AbstractContextManager[None]:
        """Around a measured pass over `tokens`, which `run` makes without measuring."""

    def ahead(self, tokens: Tensor, run: Callable[[], Any]) -> AbstractContextManager[None]:
        """Around a pass over `tokens` that something else changes too, which `run` makes unchanged."""

    def set_aside(self) -> AbstractContextManager[None]:
        """Passes inside the block are not changed."""


in_force: WeakKeyDictionary[nn.Module, Intervention] = WeakKeyDictionary()
"""What changes every pass of a module for the time being, whatever it is known by."""
_inside: WeakKeyDictionary[nn.Module, ReferenceType[nn.Module]] = WeakKeyDictionary()


def remember_inside(module: nn.Module, inner: nn.Module) -> None:
    """Note that `inner` is the model that is measured where `module` is given."""
    if inner is not module:
        _inside[module] = ref(inner)


def changed_in(module: nn.Module) -> Intervention | None:
    """What changes the passes of a module, or of the model inside it, for the time being."""
    module = uncompiled(module)
    known = _inside.get(module)
    inner = None if known is None else known()
    return in_force.get(module) or (None if inner is None else in_force.get(inner))


@dataclass
class ModelUnderTest:
    """A causal transformer as the user runs it, and what a probe needs to know of it.

    `caller` runs the module that is measured; `given` is the one that was given, which may be around it, and `weights` the
    innermost one that has all weights. `way` is None where no way in can read the attention; `tried` then says why, and behaviour
    can still be measured. `memory` is the most bytes that a forward pass may take; None for a share of what is free. `draws` says
    that the model draws random numbers of Python or numpy, `mixes_rows` that a row must run alone where another batch must give
    the same: because the rows beside it change its logits, or because there may be none.
    """

    caller: Caller
    given: nn.Module
    weights: nn.Module
    name: str
    space: TokenSpace
    way: WayIn | None
    tried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    seed: int = 0
    memory: int | None = None
    draws: bool = False
    mixes_rows: bool = False
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> nn.Module:
        """The module that is measured."""
        return self.caller.module

    @property
    def intervening(self) -> Intervention | None:
        """What changes every pass for the time being."""
        return in_force.get(self.module)

    def as_it_is(self) -> AbstractContextManager[None]:
        """Passes inside the block are those of the weights, whatever changes passes otherwise."""
        return nullcontext() if self.intervening is None else self.intervening.set_aside()

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
            raise UnsupportedModel(f"the attention of {self.name} cannot be read", self.tried, as_text(self.diagnosis()))
        return self.way

    @puts_back
    def logits(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        gradients: bool = False,
    ) -> Tensor:
        """Logits (batch, positions, d_vocab) of token ids (batch, positions), unobserved.

        Of some `positions` (kept,) only, ascending, where they are given; transformers' own models do not compute the others.
        With `gradients` what was computed is kept for a backward pass.
        """
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        caller, most = self.caller, self.caller.form.most_rows
        if most is not None and len(tokens) > most:
            parts = zip(tokens.split(most), _split(attention_mask, tokens, most), strict=True)
            return torch.cat([self.logits(*part, positions=positions, gradients=gradients) for part in parts])
        keep: dict[str, Any] = {}
        if positions is not None and caller.is_unchanged_transformers and caller.knows(KEEP) and caller.form.inputs.is_plain:
            keep = {KEEP: positions.to(self.device)}
        filled = self._filled(tokens, attention_mask)
        with as_found(self.module, draws=self.draws), self._named(tokens), torch.set_grad_enabled(gradients):
            output = caller(filled, attention_mask, **keep)
        if positions is None:
            return caller.logits_of(output, filled)[:, : tokens.shape[1]]
        if keep and getattr(getattr(output, "logits", None), "shape", ())[1:2] == positions.shape:
            return caller.logits_of(output, tokens[:, positions.to(tokens.device)])
        return _at(caller.logits_of(output, filled), positions)

    def fitting(self, tokens: Tensor) -> Tensor:
        """As many of the rows as one pass takes, as long as it takes them."""
        return self.caller.form.filled(tokens[: self.caller.form.most_rows])

    def _filled(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The ids, as long as the model takes them."""
        filled = self.caller.form.filled(tokens)
        if filled is not tokens and attention_mask is not None:
            raise ModelError(f"{self.name} takes rows of some lengths only, and no `attention_mask` with them")
        return filled

    @puts_back
    def observe(
        self,
        tokens: Tensor,
        observer: Observer,
        *,
        attention_mask: Tensor | None = None,
        logits: bool = False,
        early_stop: bool = True,
        n_layers: int | None = None,
    ) -> Tensor | None:
        """One forward pass over token ids (batch, positions) with every layer's attention shown to `observer`.

        Where no logits are asked for it ends after the last attention layer, or after the first `n_layers`, unless `early_stop`
        is False. A pass that cannot end early shows all layers.
        """
        tokens, attention_mask = _on(self.device, tokens, attention_mask)
        way, most = self.reading, self.caller.form.most_rows
        if most is not None and len(tokens) > most:
            return self._observe_in_parts(tokens, observer, attention_mask, most, logits=logits)
        filled = self._filled(tokens, attention_mask)
        seen = observer if filled is tokens else _cut(observer, tokens.shape[1])
        with as_found(self.module, draws=self.draws) as hooked, self._named(tokens), self._changed(filled, attention_mask):
            stops = early_stop and way.can_stop and not hooked  # whoever listens for the end of a module may count on it
            last = (len(way.layers) if n_layers is None else n_layers) if stops else None
            found = way.run(filled, attention_mask, seen, logits=logits, last=last)
        return None if found is None else found[:, : tokens.shape[1]]

    def _observe_in_parts(
        self, tokens: Tensor, observer: Observer, attention_mask: Tensor | None, most: int, *, logits: bool
    ) -> Tensor | None:
        """Passes over at most so many rows each, after which the observer is shown each layer of all of them."""
        layers: dict[int, list[Reader]] = {}
        found = []
        for part, mask in zip(tokens.split(most), _split(attention_mask, tokens, most), strict=True):

            def keep(layer: int, reader: Reader) -> None:
                layers.setdefault(layer, []).append(kept(reader))

            found.append(self.observe(part, keep, attention_mask=mask, logits=logits))
        counts = [len(part) for part in tokens.split(most)]
        for layer in sorted(layers):
            observer(layer, StackedReader(layers[layer], counts))
        return torch.cat([each for each in found if each is not None]) if logits else None

    def _changed(self, tokens: Tensor, attention_mask: Tensor | None) -> AbstractContextManager[None]:
        """Around a measured pass: what changes it, or what that needs, where this must come before what measures."""
        if self.intervening is None:
            return nullcontext()
        return self.intervening.outside(tokens, lambda: self.caller(tokens, attention_mask))

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
        """Token ids of a text, without special tokens.

        Raises `TextError` where the model has no tokenizer, `ModelError` for one that gives ids which the model does not have.
        """
        if self.tokenizer is None:
            raise TextError(f"{self.name} has no tokenizer: pass token ids, or give the model a `tokenizer` attribute")
        try:
            encoded = self.tokenizer.encode(text, add_special_tokens=False)
        except TypeError:  # a tokenizer of the user's own may take the text alone
            encoded = self.tokenizer.encode(text)
        ids = [int(token) for token in getattr(encoded, "ids", encoded)]
        strange = max(ids, default=0)
        if self.caller.d_vocab is not None and strange >= self.caller.d_vocab:
            known = f"the model has ids 0 to {self.caller.d_vocab - 1}"
            raise ModelError(f"{self.name}: its tokenizer gives id {strange}, and {known}: they do not belong together")
        return ids

    def diagnosis(self) -> tuple[tuple[str, str], ...]:
        """What the model is, how it is read, what can be measured on it and what to change: labels and texts."""
        return diagnose(self)

    def fingerprint(self) -> str:
        return fingerprint(self.weights)

    def remember(self, key: Hashable, measure: Callable[[], T]) -> T:
        """What `measure` gave the last time for this key, as long as the model has not changed since."""
        whole = (key, condition(self.module))
        if whole not in self._known:
            self._known[whole] = measure()
        return self._known[whole]


def _split(mask: Tensor | None, tokens: Tensor, most: int) -> Sequence[Tensor | None]:
    """The parts of a mask that belong to parts of the rows."""
    return [None] * -(-len(tokens) // most) if mask is None else mask.split(most)


def _cut(observer: Observer, positions: int) -> Observer:
    """The observer, shown the first positions only."""
    return lambda layer, reader: observer(layer, CutReader(reader, positions))


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    """Logits of these positions, ascending; no copy where they are next to each other."""
    first, last = int(positions[0]), int(positions[-1])
    near = last - first + 1 == len(positions)
    return logits[:, first : last + 1] if near else logits[:, positions.to(logits.device)]


def _on(device: torch.device, tokens: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return tokens.to(device), None if attention_mask is None else attention_mask.to(device)
