"""Interventions as a user names them, the edits that they are in a pass, and the block or call in which they are in force."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pytest_induction.attention.edits import Close, Edit, Give, GivePattern, Record, Replace, Scale, Smear, Substitute
from pytest_induction.errors import ArgumentError, user_facing
from pytest_induction.interventions.active import ActiveEdits, apply_edits
from pytest_induction.interventions.arguments import HeadsLike, all_heads, heads_of, number, tensor, token_ids
from pytest_induction.measuring.observing import ModelLike, check_range
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.records import HeadId
from pytest_induction.undoing import Changes

Replacement = Literal["zero", "mean", "resample"]
HOW = ("zero", "mean", "resample")
PATTERNS = ("previous token", "induction")
Layers = dict[int, list[Edit]]
Pass = Callable[[Mapping[int, Sequence[Edit]]], None]
"""Runs the pass that is being changed, with these edits and nothing else."""


@dataclass(frozen=True)
class Clean:
    """What an intervention may ask of the pass that it changes: its token ids (rows, positions), and the same pass unchanged."""

    subject: ModelUnderTest
    tokens: Tensor
    run: Pass

    def recorded(
        self, layers: Sequence[int], tokens: Tensor | None = None, *, inputs: bool = False, outputs: bool = False
    ) -> dict[int, Record]:
        """What some layers do in a clean pass over these tokens, or over those of the pass itself."""
        edits = {layer: Record(inputs, outputs) for layer in layers}
        if tokens is None:
            self.run({layer: [edit] for layer, edit in edits.items()})
        else:
            taken = {layer: [edit] for layer, edit in edits.items()}
            with apply_edits(self.subject, tokens, taken):
                self.subject.logits(tokens)
        return edits


class Intervention(ABC):
    """One change to how the heads of a model act. Made by the functions of this module."""

    @abstractmethod
    def edits(self, clean: Clean) -> Layers:
        """The edits of each layer that it changes, for one pass."""

    def change(self, subject: ModelUnderTest, changes: Changes) -> None:  # noqa: B027 - most change nothing else
        """Change the model itself, for as long as the block lasts."""


@dataclass(frozen=True)
class Ablation(Intervention):
    """See `ablate`."""

    heads: HeadsLike
    how: Replacement
    source: Tensor | None

    def edits(self, clean: Clean) -> Layers:
        heads = heads_of(clean.subject, self.heads)
        layers = sorted({head.layer for head in heads})
        values: dict[int, Tensor] = {}
        if self.how != "zero" and layers:
            seen = clean.recorded(layers, _on(self.source, clean), outputs=True)
            found = {layer: _known(record.get("output"), "what its heads find") for layer, record in seen.items()}
            values = {layer: self._values(each, clean.tokens) for layer, each in found.items()}
        return {layer: [Replace(_flags(clean.subject, layer, heads)[None], values.get(layer))] for layer in layers}

    def _values(self, found: Tensor, tokens: Tensor) -> Tensor:
        if self.how == "mean":
            return found.mean((0, 2), keepdim=True)
        if self.source is None:
            if len(found) < 2:
                raise ArgumentError("resampling among the rows of a batch needs two of them, or a `source` of other tokens")
            return found.roll(1, 0)
        _check_shape(len(found), found.shape[2], tokens)
        return found


@dataclass(frozen=True)
class Scaling(Intervention):
    """See `scale`."""

    heads: HeadsLike
    by: float

    def edits(self, clean: Clean) -> Layers:
        heads = heads_of(clean.subject, self.heads)
        made: Layers = {}
        for layer in sorted({head.layer for head in heads}):
            flags = _flags(clean.subject, layer, heads)
            made[layer] = [Scale(torch.where(flags, self.by, 1.0)[None])]
        return made


@dataclass(frozen=True)
class LeavingIn(Intervention):
    """See `leave_in`."""

    heads: HeadsLike
    among: HeadsLike | None
    how: Replacement
    source: Tensor | None

    def edits(self, clean: Clean) -> Layers:
        kept = set(heads_of(clean.subject, self.heads))
        others = all_heads(clean.subject) if self.among is None else heads_of(clean.subject, self.among)
        return Ablation([head for head in others if head not in kept], self.how, self.source).edits(clean)


@dataclass(frozen=True)
class Knockout(Intervention):
    """See `knock_out`."""

    heads: HeadsLike
    entries: Tensor

    def edits(self, clean: Clean) -> Layers:
        heads, (_, positions) = heads_of(clean.subject, self.heads), clean.tokens.shape
        closed = self.entries
        if closed.dtype != torch.bool:
            if closed.numel() and not 0 <= int(closed.min()) <= int(closed.max()) < positions:
                raise ArgumentError(f"`entries` names positions outside the {positions} of the tokens that the model is given")
            flat = torch.zeros(positions, positions, dtype=torch.bool)
            flat[tuple(closed.cpu().T)] = True
            closed = flat
        closed = _for_rows(closed, clean.tokens, "`entries`")
        return {
            layer: [Close(closed & _flags(clean.subject, layer, heads)[:, None, None].to(closed.device))]
            for layer in sorted({head.layer for head in heads})
        }


@dataclass(frozen=True)
class Substitution(Intervention):
    """See `substitute_pattern`."""

    heads: HeadsLike
    pattern: str | Tensor

    def edits(self, clean: Clean) -> Layers:
        heads = heads_of(clean.subject, self.heads)
        pattern = self.pattern if isinstance(self.pattern, Tensor) else ideal_pattern(self.pattern, clean.tokens)
        pattern = _for_rows(pattern, clean.tokens, "`pattern`")
        return {
            layer: [Substitute(_flags(clean.subject, layer, heads), pattern)] for layer in sorted({head.layer for head in heads})
        }


@dataclass(frozen=True)
class Frozen(Intervention):
    """See `freeze_patterns`."""

    source: Tensor | None

    def edits(self, clean: Clean) -> Layers:
        layers = range(clean.subject.n_layers)
        if self.source is not None:
            _check_shape(len(self.source), self.source.shape[1], clean.tokens)
        seen = clean.recorded(layers, _on(self.source, clean), inputs=True)
        return {layer: [given(record)] for layer, record in seen.items()}


@dataclass(frozen=True)
class Smearing(Intervention):
    """See `smear`."""

    share: float

    def edits(self, clean: Clean) -> Layers:
        share = torch.tensor([self.share], dtype=torch.float64)
        return {layer: [Smear(share)] for layer in range(clean.subject.n_layers)}


def ablate(heads: HeadsLike, how: Replacement = "zero", *, source: Any = None) -> Intervention:
    """Some heads give something else than what they find, at every position; all that comes after them is computed anew.

    `how` is "zero"; "mean", the mean of what the head finds over all rows and positions; or "resample", what it finds at the same
    position of other tokens. These are taken on `source`, token ids (rows, positions), with the model as it is; without one, on
    the tokens that the model is given, "resample" then taking each row from the row before it.
    """
    if how not in HOW:
        raise ArgumentError(f"`how` must be one of {', '.join(HOW)}, got {how!r}")
    return Ablation(heads, how, _given_source(source))


def leave_in(heads: HeadsLike, *, among: HeadsLike | None = None, how: Replacement = "zero", source: Any = None) -> Intervention:
    """All heads `among` these, or all of the model, are ablated but some: what is left shows what those suffice for."""
    if how not in HOW:
        raise ArgumentError(f"`how` must be one of {', '.join(HOW)}, got {how!r}")
    return LeavingIn(heads, among, how, _given_source(source))


def scale(heads: HeadsLike, by: float) -> Intervention:
    """What some heads find counts `by` times: 0 ablates them, 1 changes nothing, 2 doubles them."""
    return Scaling(heads, number("by", by, "be a finite number", -math.inf, math.inf))


def knock_out(heads: HeadsLike, entries: Any) -> Intervention:
    """Some heads cannot attend where `entries` says: -inf before the softmax, so that the rest of a query's attention grows.

    `entries` is a sequence of (query, key) positions, or boolean (positions, positions) or (rows, positions, positions), True
    where there is to be no attention.
    """
    closed = tensor("entries", entries, "pairs (query, key) or a boolean mask")
    if closed.dtype != torch.bool and (closed.ndim != 2 or closed.shape[-1] != 2 or closed.is_floating_point()):
        raise ArgumentError(f"`entries` must be pairs (query, key) or a boolean mask, got {closed.dtype} {tuple(closed.shape)}")
    return Knockout(heads, closed)


def substitute_pattern(heads: HeadsLike, pattern: str | Any) -> Intervention:
    """Some heads attend by another pattern than their own, and find by it what their values are.

    `pattern` is "previous token", "induction" (evenly after the earlier occurrences of the query's token, on the first position
    where there are none), or numbers (positions, positions) or (rows, positions, positions).
    """
    if isinstance(pattern, str):
        if pattern not in PATTERNS:
            raise ArgumentError(f"`pattern` must be one of {', '.join(PATTERNS)}, or numbers, got {pattern!r}")
        return Substitution(heads, pattern)
    numbers = tensor("pattern", pattern, "a name, or numbers (positions, positions)")
    numbers = numbers if numbers.is_floating_point() else numbers.float()
    if not torch.isfinite(numbers).all():
        raise ArgumentError(
            "`pattern` must be finite numbers, got NaN or infinity: give the pattern after the softmax, not before"
        )
    if numbers.ndim not in (2, 3) or numbers.shape[-1] != numbers.shape[-2]:
        raise ArgumentError(f"`pattern` must be (positions, positions) for all rows or for each, got {tuple(numbers.shape)}")
    return Substitution(heads, numbers)


def freeze_patterns(source: Any = None) -> Intervention:
    """All heads attend as they do in a clean pass, over the same tokens or over `source`, whatever else is changed.

    Queries and keys of that pass are kept, never a pattern, but in models that compute patterns themselves. With an ablation
    this makes it pattern-preserving: only what is moved along the patterns changes.
    """
    return Frozen(_given_source(source))


def smear(share: float) -> Intervention:
    """Every key is mixed with the one before it: `share` of its own, from 0 to 1, the rest the key of the position before.

    Keys are mixed as they are multiplied, after any rotary embedding. `smear_keys` makes the shares learnable.
    """
    return Smearing(number("share", share, "lie from 0 to 1", 0, 1))


def ideal_pattern(name: str, tokens: Tensor) -> Tensor:
    """An ideal head's pattern on token ids (rows, positions): (rows, positions, positions), each query's mass 1.

    Where a query has nothing to attend to, as at the first position, its mass is on the first.
    """
    positions = tokens.shape[1]
    ones = torch.ones(positions, positions, dtype=torch.bool, device=tokens.device)
    before = ones.tril(-1)
    if name == "previous token":
        wanted = (before & ~ones.tril(-2)).expand(len(tokens), -1, -1)
    else:
        same = (tokens[:, :, None] == tokens[:, None, :]) & before
        wanted = same.roll(1, 2)  # the position after an earlier occurrence is not after the query
        wanted[:, :, 0] = False
    count = wanted.sum(-1, keepdim=True)
    pattern = wanted / count.clamp_min(1)
    pattern[..., 0] += (count == 0)[..., 0]
    return pattern


def given(record: Record) -> Edit:
    """The edit that gives a layer what was recorded of it in another pass: queries and keys, or the pattern."""
    pattern = record.get("pattern")
    return Give(record.get("query"), record.get("key")) if pattern is None else GivePattern(pattern)


def joined(interventions: Sequence[Intervention], clean: Clean) -> Layers:
    """The edits of several interventions, in order."""
    made: Layers = {}
    for intervention in interventions:
        for layer, edits in intervention.edits(clean).items():
            made.setdefault(layer, []).extend(edits)
    return made


def _check_shape(rows: int, positions: int, tokens: Tensor) -> None:
    """Raise `ArgumentError` where what was found on other tokens cannot stand for what is found on these."""
    if positions != tokens.shape[1] or rows not in (1, len(tokens)):
        raise ArgumentError(
            f"`source` must have the shape of the tokens that the model is given, {tuple(tokens.shape)} or one row, "
            f"got {(rows, positions)}"
        )


def _flags(subject: ModelUnderTest, layer: int, heads: Sequence[HeadId]) -> Tensor:
    """Which heads of a layer are among these, (n_heads,)."""
    chosen = {head.head for head in heads if head.layer == layer}
    return torch.tensor([head in chosen for head in range(subject.reading.heads[layer])])


def _for_rows(numbers: Tensor, tokens: Tensor, name: str) -> Tensor:
    """(rows or 1, 1, queries, keys) of what was given for all rows or for each."""
    numbers = numbers[None] if numbers.ndim == 2 else numbers
    rows, positions = tokens.shape
    if numbers.shape[-2:] != (positions, positions) or len(numbers) not in (1, rows):
        raise ArgumentError(
            f"{name} must be ({positions}, {positions}) or ({rows}, {positions}, {positions}) for the tokens of this pass, "
            f"got {tuple(numbers.shape)}"
        )
    return numbers[:, None]


def _given_source(source: Any) -> Tensor | None:
    return None if source is None else token_ids("source", source)


def _on(source: Tensor | None, clean: Clean) -> Tensor | None:
    if source is None:
        return None
    check_range(clean.subject, int(source.min()), int(source.max()))
    return source.to(clean.tokens.device)


def _known(found: Tensor | None, what: str) -> Tensor:
    if found is None:
        raise ArgumentError(f"{what} is not seen in this model: only `zero` can be done to it")
    return found


def intervene(model: ModelLike, *interventions: Intervention) -> AbstractContextManager[ModelUnderTest]:
    """Every pass of the model inside the block is changed by these interventions, whatever calls it; afterwards it is as it was.

    Gives the model under test, on which all that can be measured is then measured under the interventions. The module itself is
    called as ever, with token ids (rows, positions) and without a cache. Gradients flow through what is changed.

    Raises `ArgumentError` for heads that the model does not have, `UnsupportedModel` where it cannot be edited like that:
    both at the first pass. Taps of convolutions that it does not have are told as the block begins.

    >>> with intervene(model, ablate("L1H3")) as ablated:                    # doctest: +SKIP
    ...     logits = model(tokens)
    ...     scores = measure_heads(ablated)
    """
    wrong = [each for each in interventions if not isinstance(each, Intervention)]
    if wrong:
        raise ArgumentError(f"`intervene` takes interventions, such as `ablate('L1H3')`, got `{type(wrong[0]).__name__}`")
    subject = load_model(model)

    def edits_for(tokens: Tensor, run: Any) -> Any:
        return joined(interventions, Clean(subject, tokens, run))

    def change(changes: Changes) -> None:
        for intervention in interventions:
            intervention.change(subject, changes)

    return ActiveEdits(subject, edits_for, change).installed()


@user_facing
def run_with(model: ModelLike, tokens: Any, *interventions: Intervention) -> Tensor:
    """Logits (rows, positions, d_vocab) of token ids (rows, positions) under interventions; see `intervene`.

    >>> run_with(model, tokens, ablate("L1H3"), freeze_patterns()).shape     # doctest: +SKIP
    torch.Size([1, 101, 64])
    """
    ids = token_ids("tokens", tokens)
    with intervene(model, *interventions) as subject:
        check_range(subject, int(ids.min()), int(ids.max()))
        return subject.logits(ids)
