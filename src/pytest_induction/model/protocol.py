"""What every model under test offers, whatever it is underneath; how it is read, and what cannot be measured on it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import AttentionBackend
from pytest_induction.attention.capture import Observer
from pytest_induction.attention.leaks import HOLDS, UNSEEN
from pytest_induction.attention.pattern import CutReader, Reader, StackedReader, kept
from pytest_induction.display import Displayed, View, rows_table
from pytest_induction.errors import InductionError, ModelError, TextError, UnsupportedModel, because_of
from pytest_induction.formatting import as_line
from pytest_induction.forward.calling import (
    Caller,
    as_found,
    condition,
    device_of,
    dtype_of,
    fingerprint,
    first_line,
    is_out_of_memory,
    uncompiled,
)
from pytest_induction.records import TokenSpace
from pytest_induction.spending import WITH_GRADIENTS, charge
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


active_edits: WeakKeyDictionary[nn.Module, Intervention] = WeakKeyDictionary()
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
    return active_edits.get(module) or (None if inner is None else active_edits.get(inner))


@dataclass(repr=False)
class ModelUnderTest(Displayed):
    """A causal transformer as the user runs it, and what a probe needs to know about it.

    `caller` runs the module that is measured; `given` is the one that was given, which may be around it, and `weights` the
    innermost one that has all weights. `backend` is None where none can read the attention; `tried` then says why, and
    behaviour can still be measured. `memory` is the most bytes that a forward pass may take; None for a share of what is free.
    `draws` says that the model draws random numbers of Python or numpy, `mixes_rows` that a row must run alone where another
    batch must give the same: because the rows beside it change its logits, or because there may be none.
    """

    caller: Caller
    given: nn.Module
    weights: nn.Module
    name: str
    space: TokenSpace
    backend: AttentionBackend | None
    tried: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tokenizer: Any = None
    seed: int = 0
    memory: int | None = None
    draws: bool = False
    mixes_rows: bool = False
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _measured: nn.Module | None = field(default=None, repr=False)  # keeps alive what `caller` runs

    def view(self) -> View:
        """What there is to show: what is known of it, without its modules."""
        backend, limit = self.backend, "no limit" if self.space.n_ctx is None else f"{self.space.n_ctx} positions"
        read = "its attention cannot be read"
        if backend is not None:
            read = f"{len(backend.layers)} layers x {backend.n_heads} heads by {backend.name}"
        runs = f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        layers = [{"layer": place, "module": path} for place, path in enumerate(backend.layers if backend else ())]
        facts = (f"{read}, {runs}", f"{self.space.d_vocab} token ids, {limit}", *self.notes, *self.tried)
        return View(f"ModelUnderTest {self.name}", facts, (rows_table("layers", layers, shown=("layer", "module")),))

    @property
    def module(self) -> nn.Module:
        """The module that is measured."""
        return self.caller.module

    @property
    def intervening(self) -> Intervention | None:
        """What changes every pass for the time being."""
        return active_edits.get(self.module)

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
    def reading(self) -> AttentionBackend:
        """The backend. Raises `UnsupportedModel` where there is none, with what each one saw."""
        if self.backend is None:
            raise UnsupportedModel(f"the attention of {self.name} cannot be read", self.tried, as_text(self.diagnosis()))
        return self.backend

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
        caller, most = self.caller, self.caller.convention.most_rows
        if most is not None and len(tokens) > most:
            parts = zip(tokens.split(most), _split(attention_mask, tokens, most), strict=True)
            return torch.cat([self.logits(*part, positions=positions, gradients=gradients) for part in parts])
        keep: dict[str, Any] = {}
        if (
            positions is not None
            and caller.is_unchanged_transformers
            and caller.knows(KEEP)
            and caller.convention.inputs.is_plain
        ):
            keep = {KEEP: positions.to(self.device)}
        filled = self._filled(tokens, attention_mask)
        charge(self, filled.numel() * (WITH_GRADIENTS if gradients else 1))
        with as_found(self.module, draws=self.draws, tokens=filled), self._named(tokens), torch.set_grad_enabled(gradients):
            output = caller(filled, attention_mask, **keep)
        if positions is None:
            return caller.logits_of(output, filled)[:, : tokens.shape[1]]
        if keep and getattr(getattr(output, "logits", None), "shape", ())[1:2] == positions.shape:
            return caller.logits_of(output, tokens[:, positions.to(tokens.device)])
        return _at(caller.logits_of(output, filled), positions)

    def random_ids(self, rows: int, positions: int, *, seed: int = 0) -> Tensor:
        """Ordinary ids, the same each time: (rows, positions), or as many positions as the model has."""
        usable = torch.tensor(self.space.ordinary or [0])
        size = (rows, min(positions, self.space.n_ctx or positions))
        chosen = torch.randint(0, len(usable), size, generator=torch.Generator().manual_seed(seed))
        return usable[chosen].to(self.device)

    def fitting(self, tokens: Tensor) -> Tensor:
        """As many of the rows as one pass takes, as long as it takes them."""
        return self.caller.convention.filled(tokens[: self.caller.convention.most_rows])

    def _filled(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The ids, as long as the model takes them."""
        filled = self.caller.convention.filled(tokens)
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
        backend, most = self.reading, self.caller.convention.most_rows
        if most is not None and len(tokens) > most:
            return self._observe_in_parts(tokens, observer, attention_mask, most, logits=logits)
        filled = self._filled(tokens, attention_mask)
        charge(self, filled.numel())
        seen = observer if filled is tokens else _cut(observer, tokens.shape[1])
        found_so = as_found(self.module, draws=self.draws, tokens=filled)
        with found_so as hooked, self._named(tokens), self._changed(filled, attention_mask):
            stops = early_stop and backend.can_stop and not hooked  # code that listens for the end of a module may count on it
            last = (len(backend.layers) if n_layers is None else n_layers) if stops else None
            found = backend.run(filled, attention_mask, seen, logits=logits, last=last)
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
        """Say which model failed on what, where a forward pass raises in its own words or a backend gives up midway."""
        try:
            yield
        except InductionError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise  # fewer rows may fit
            context = "" if self.space.n_ctx is None else f" (its context is said to be {self.space.n_ctx})"
            failed = ModelError(f"{self.name} failed on token ids {tuple(tokens.shape)}{context}: {first_line(error)}")
            raise because_of(failed, error, by_factory=False) from error

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

    def remembered(self, key: Hashable) -> Any:
        """What is remembered for this key, as long as the model has not changed since; None where nothing is."""
        return self._known.get((key, condition(self.module)))


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


MOVES = re.compile(rf"{UNSEEN} in (.*) too, ")  # of modules that may attend where nothing sees it
PATH = re.compile(r"`([^`]+)` \(")
CLASS = re.compile(r"\((\w+)\)")
SHOWN_LAYERS = 4  # that are named one by one
Line = tuple[str, str]


def diagnose(subject: ModelUnderTest) -> tuple[Line, ...]:
    """Lines of a label and a text, in the order in which they are read."""
    return (
        ("model", _what(subject)),
        ("sequences", _sequences(subject)),
        *(_read(subject) if subject.backend is not None else _unread(subject)),
        ("behaviour", _behaviour(subject)),
        *(("note", note) for note in subject.notes),
    )


def as_text(lines: tuple[Line, ...], indent: str = "  ") -> str:
    """The lines, one below the other."""
    width = max(len(label) for label, _ in lines)
    return "\n".join(as_line(f"{indent}{label:<{width}}  {text}") for label, text in lines)


def _what(subject: ModelUnderTest) -> str:
    module = subject.module
    count = sum(weight.numel() for weight in module.parameters())
    dtype = str(subject.dtype).removeprefix("torch.")
    return f"{subject.name}: {type(module).__name__}, {count:,} parameters, {dtype} on {subject.device}"


def _sequences(subject: ModelUnderTest) -> str:
    space = subject.space
    context = "any length that was tried" if space.n_ctx is None else f"up to {space.n_ctx} positions"
    first = "no first token of their own" if space.bos_id is None else f"first token {space.bos_id}"
    usable = space.d_vocab - len(space.excluded)
    mask = "padding by attention_mask" if subject.caller.takes_mask else "no padding: it takes no attention_mask"
    return f"{context}, {first}, {usable:,} usable of {space.d_vocab:,} token ids, {mask}"


def _read(subject: ModelUnderTest) -> tuple[Line, ...]:
    backend = subject.reading
    cost = "whole patterns are made" if backend.makes_patterns else "no pattern is ever made"
    end = "a pass without logits ends after the last attention" if backend.can_stop else "every pass runs to its end"
    return (
        ("backend", f"{backend.name}: {cost}, {end}"),
        *(("not taken", reason) for reason in subject.tried),
        ("layers", _layers(backend.layers, backend.heads)),
        ("heads", "prefix matching, previous token, duplicate token, first token; has_induction_head"),
    )


def _layers(layers: tuple[str, ...], heads: tuple[int, ...]) -> str:
    named = [f"L{index} {path}" for index, path in enumerate(layers)]
    if len(named) > SHOWN_LAYERS:
        named = [*named[: SHOWN_LAYERS - 1], "...", named[-1]]
    runs = " then ".join(f"{len(list(run))} x {count}" for count, run in itertools.groupby(heads))
    return f"{len(layers)} with attention ({runs} heads): {', '.join(named)}"


def _unread(subject: ModelUnderTest) -> tuple[Line, ...]:
    return (
        ("backend", "none: no head can be measured"),
        *(("tried", reason) for reason in subject.tried),
        *(("to do", advice) for advice in _advice(subject.module, subject.tried)),
    )


def _advice(module: nn.Module, tried: tuple[str, ...]) -> list[str]:
    """What would make this model readable, the likeliest first. Says nothing of what a model is that no backend saw."""
    if type(module).__module__.startswith("torch.jit") or hasattr(module, "_c"):
        return ["a TorchScript module runs no code that can be watched: measure the module that it was made from"]
    config: Any = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    advice = []
    get_base = getattr(module, "get_base_model", None)
    if callable(get_base):
        inner = type(get_base()).__name__
        advice.append(f"if it adds keys, as prefix tuning does: measure the model inside, `get_base_model()` ({inner})")
    if isinstance(implementation, str) and implementation not in ("sdpa", "eager"):
        advice.append(f"it was loaded with attn_implementation={implementation!r}: load it with 'sdpa' or 'eager'")
    named = [name for name, part in module.named_modules() if _is_called_attention(name, part)]
    unseen = next((reason for reason in tried if MOVES.search(reason)), None)
    if unseen is not None:
        named = PATH.findall(unseen)
        advice.append(_declaring(unseen))
    elif any(reason.startswith("softmax: no ") for reason in tried):
        advice.append(
            "no attention was seen, which does not mean that there is none: compiled programs, kernels and other functions that "
            "nothing watches may attend; a model that does not has behaviour only, and no heads to measure"
        )
    where = f" (in `{named[0]}`, say)" if named else ""
    advice.append(
        f"call `pytest_induction.expose_attention` where it attends{where}, with the pattern, or with query and key where that "
        "is a softmax; or attach a hook that does, by `load_model(model, attach=...)`, conftest.py or `doctor --attach`: "
        "docs/models.md; attention by torch.nn.functional.scaled_dot_product_attention, or by a softmax that is used "
        "unchanged, needs neither"
    )
    return advice


def _declaring(reason: str) -> str:
    """How to declare the modules of which this was said, as it is to be written."""
    if HOLDS in reason:
        return (
            "if what moves it there has no attention pattern (a recurrence, linear attention), put it into a module of its own, "
            "which can be declared: --induction-without-pattern, `load_model(model, without_pattern=...)`"
        )
    names = _classes(reason)
    return (
        "if what moves it there has no attention pattern (a recurrence, linear attention), declare it by path or class: "
        f"--induction-without-pattern={','.join(names)}, `without_pattern = {json.dumps(names)}` in a gate file, "
        f"`--without-pattern={','.join(names)}` of doctor and sweep, `load_model(model, without_pattern=...)` or "
        "`InductionRecorder(..., without_pattern=...)`; nothing can check that, and a note will say so"
    )


def _classes(reason: str) -> list[str]:
    """The classes of the modules of which this was said."""
    found = MOVES.search(reason)
    return CLASS.findall(found[1]) if found else []


def why_unread(subject: ModelUnderTest, option: str) -> str:
    """The end of a line that says that attention cannot be read, where declaring modules by this option may change that."""
    reason = next((reason.partition(": ")[2] for reason in subject.tried if MOVES.search(reason)), "")
    if not reason or HOLDS in reason:
        return ""
    return f": {reason}; if that has no pattern, declare it: {option.format(','.join(_classes(reason)))}"


def _is_called_attention(name: str, part: nn.Module) -> bool:
    words = f"{name.rpartition('.')[2]} {type(part).__name__}".lower()
    return "attn" in words or "attention" in words


def _behaviour(subject: ModelUnderTest) -> str:
    text = "text" if subject.tokenizer is not None else "token ids of a text, as it has no tokenizer"
    return f"copies_repeats; learns_in_context, from {text}"
