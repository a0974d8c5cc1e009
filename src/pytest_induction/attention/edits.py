"""Edits of attention while a model runs: of queries, keys, scores and patterns, and of what heads found.

An edit is what is changed in one layer of one pass. It sees a call with axes (rows, heads, positions, d_head), whatever the
model's own layout. A layer may have several; where it has none, its call is run as the model made it, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_induction.attention.capture import Capture
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.kernels import AttentionCall

ALL = slice(None)
MASKED = -9e3  # a score below it is one of a mask: of -inf, of the lowest number there is, or of the -1e4 of old models


class LayerPart(NamedTuple):
    """Which heads, and which key heads, of a layer one call computes: all, but where heads attend one by one."""

    heads: slice = ALL
    keys: slice = ALL


class Edit:
    """What is done to the attention of one layer in a pass: nothing, in this one."""

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        """The call to run in place of the model's; the same object where it is to stay as it is."""
        return call

    def on_scores(self, scores: Tensor, part: LayerPart) -> Tensor:
        """What to take the softmax of in place of (rows, heads, queries, keys), where patterns are computed and no call is shown.

        Keys that are none of a position, as sinks, come after the positions. The same object where it is to stay as it is.
        """
        return scores

    def on_pattern(self, pattern: Tensor, part: LayerPart) -> Tensor:
        """The pattern to weigh by in place of (rows, heads, queries, keys), where a model computes patterns and shows no call.

        Keys that are none of a position, as sinks, come after the positions. The same object where it is to stay as it is.
        """
        return pattern

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        """What is given back for what the heads found, (rows, heads, positions, d_head); no call where only patterns are seen."""
        return output

    @property
    def needs_call(self) -> bool:
        """Whether patterns do not suffice, where a model computes these: what edits queries and keys alone."""
        return self._has("on_call") and not (self._has("on_pattern") or self.needs_scores)

    @property
    def needs_scores(self) -> bool:
        """Whether the scores before the softmax must be changed, where a model computes patterns."""
        return self._has("on_scores")

    @property
    def needs_output(self) -> bool:
        """Whether what heads found must be seen, also where patterns are: what has nothing for a pattern."""
        return self._has("on_output") and not self._has("on_pattern")

    @property
    def needs_output_only(self) -> bool:
        """Whether what heads found suffices."""
        return not (self._has("on_call") or self._has("on_pattern") or self.needs_scores)

    def _has(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(Edit, name)


Edits = Mapping[int, Sequence[Edit]]
"""Of some layers, by their number, what is done there, in order."""


class EditingCapture(Capture):
    """The layers of one pass are edited instead of being shown. The first `first` layers are not run in it."""

    def __init__(self, edits: Edits, *, layers: Collection[int], groups: Sequence[int] | None, first: int = 0) -> None:
        super().__init__(layers=layers, groups=groups)
        self._edits = edits
        self._first = first
        self.heads = [0] * first
        self.n_events = first if groups is None else sum(groups[:first])
        self._calls = self._n_heads = self._n_keys = 0  # of the layer that is not complete yet

    @property
    def edits_next(self) -> bool:
        """Whether the layer that comes next has edits."""
        return bool(self._edits.get(len(self.heads)))

    @property
    def edits_call(self) -> bool:
        """Whether one of them looks at the call, and not only at what it gives."""
        return any(type(edit).on_call is not Edit.on_call for edit in self._edits.get(len(self.heads), ()))

    def apply(self, call: AttentionCall, run: Callable[[AttentionCall | None], Tensor]) -> Tensor:
        """What the call gives, (rows, heads, positions, d_head), with its layer's edits; `run(None)` runs the model's own."""
        edits, part = self.next(call.query.shape[1], call.key.shape[1])
        edited = call
        for edit in edits:
            edited = edit.on_call(edited, part)
        output = run(None if edited is call else edited)
        for edit in edits:
            output = edit.on_output(output, edited, part)
        return output

    def comes(self, heads: int, keys: int) -> tuple[Sequence[Edit], LayerPart]:
        """The edits of the call that comes next, of so many heads and key heads, and the part of its layer that it is.

        No edits for a call that is no layer's.
        """
        if self._layers is not None and self.n_events not in self._layers:
            return (), LayerPart()
        return self._edits.get(len(self.heads), ()), self._part(heads, keys)

    def next(self, heads: int, keys: int) -> tuple[Sequence[Edit], LayerPart]:
        """The same of the call of a layer that was recorded; it is over then."""
        edits, part = self._edits.get(len(self.heads), ()), self._part(heads, keys)
        self._calls, self._n_heads, self._n_keys = self._calls + 1, self._n_heads + heads, self._n_keys + keys
        if self._calls == self._calls_here:
            self.heads.append(self._n_heads)
            self._calls = self._n_heads = self._n_keys = 0
        return edits, part

    @property
    def _calls_here(self) -> int:
        return 1 if self._groups is None else self._groups[len(self.heads)]

    def _part(self, heads: int, keys: int) -> LayerPart:
        if self._calls_here == 1:
            return LayerPart()
        return LayerPart(slice(self._n_heads, self._n_heads + heads), slice(self._n_keys, self._n_keys + keys))


def _of_part(values: Tensor, heads: slice) -> Tensor:
    """Those of some heads, (rows, heads, ...); one for all heads stays."""
    return values if values.shape[1] == 1 else values[:, heads]


def _allowed(call: AttentionCall) -> Tensor:
    """Which keys a query may attend to, broadcast to (rows, heads, queries, keys); a mask may say so by its lowest numbers."""
    if call.mask is None:
        allowed = torch.ones(call.query.shape[2], call.key.shape[2], dtype=torch.bool, device=call.query.device)
    else:
        allowed = call.mask if call.mask.dtype == torch.bool else call.mask > torch.finfo(call.mask.dtype).min / 2
    return allowed.tril() if call.causal else allowed


def _beside_sinks(entries: Tensor, pattern: Tensor) -> Tensor:
    """Entries (..., queries, keys) with nothing in the place of what comes after the positions in a pattern."""
    return F.pad(entries, (0, pattern.shape[-1] - entries.shape[-1]))


@dataclass
class Replace(Edit):
    """Some heads give other `values` (broadcast to rows, heads, positions, d_head) than what they found; None is zero.

    `heads` is boolean, (rows or 1, n_heads). They do so at every position, or at the position `at` alone.
    """

    heads: Tensor
    values: Tensor | None = None
    at: int | None = None

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        chosen = self.heads[:, part.heads, None, None].to(output.device)
        if self.at is not None:
            chosen = chosen & (torch.arange(output.shape[2], device=output.device) == self.at)[:, None]
        if self.values is None:
            return output.masked_fill(chosen, 0)
        return torch.where(chosen, _of_part(self.values, part.heads).to(output), output)


@dataclass
class Scale(Edit):
    """What heads found counts by a factor, (rows or 1, n_heads)."""

    by: Tensor

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        return output * self.by[:, part.heads, None, None].to(output)


@dataclass
class Close(Edit):
    """Some entries get no attention, and what is left of a query's is shared out as it was (-inf before the softmax).

    `closed` is boolean, (rows or 1, heads or 1, queries, keys). A query with nothing left, of what the model lets it see, finds
    zero.
    """

    closed: Tensor
    _emptied: Tensor | None = field(default=None, init=False, repr=False)  # the queries with nothing left, of the call that runs

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        closed = _of_part(self.closed, part.heads).to(call.query.device)
        allowed = _allowed(call)
        left = allowed & ~closed
        nothing = ~left.any(-1, keepdim=True)
        self._emptied = nothing & allowed.any(-1, keepdim=True)
        if call.mask is None or call.mask.dtype == torch.bool:
            mask = torch.where(nothing, allowed, left)  # kernels give NaN where nothing is open
        else:
            mask = call.mask.masked_fill(closed & ~nothing, -torch.inf)
        return call._replace(mask=mask, causal=False)

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        return output if self._emptied is None else output.masked_fill(self._emptied, 0)

    def on_pattern(self, pattern: Tensor, part: LayerPart) -> Tensor:
        closed = _of_part(self.closed, part.heads).to(pattern.device)
        left = pattern.masked_fill(_beside_sinks(closed, pattern), 0)
        kept = left.sum(-1, keepdim=True)
        return left * (pattern.sum(-1, keepdim=True) / torch.where(kept > 0, kept, 1.0))


@dataclass
class Substitute(Edit):
    """Some heads, (n_heads,) boolean, attend by another pattern, (rows or 1, heads or 1, queries, keys)."""

    heads: Tensor
    pattern: Tensor

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        if call is None:  # values were weighed by the other pattern
            return output
        chosen = self.heads[part.heads].to(output.device)
        values = call.value.repeat_interleave(output.shape[1] // call.value.shape[1], 1)
        mixed = _of_part(self.pattern, part.heads).to(output) @ values
        return torch.where(chosen[:, None, None], mixed, output)

    def on_pattern(self, pattern: Tensor, part: LayerPart) -> Tensor:
        chosen = self.heads[part.heads, None, None].to(pattern.device)
        other = _beside_sinks(_of_part(self.pattern, part.heads).to(pattern), pattern)
        return torch.where(chosen, other, pattern)


@dataclass
class Smear(Edit):
    """Each key is mixed with the one before it: `share`, (key heads or 1,) from 0 to 1, is what is kept of its own.

    Scores are mixed in their place where no keys are seen: they are products of queries and keys, and their masks stay.
    """

    share: Tensor

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        key = call.key
        share = self._of(part).to(key)
        mixed = share * key[:, :, 1:] + (1 - share) * key[:, :, :-1]
        return call._replace(key=torch.cat([key[:, :, :1], mixed], dim=2))

    def on_scores(self, scores: Tensor, part: LayerPart) -> Tensor:
        positions = scores.shape[-2]
        own, others = scores[..., :positions], scores[..., positions:]
        seen = (own > MASKED).tril()
        if bool((seen[..., 1:] & ~seen[..., :-1]).any()):
            raise BackendUnavailable("a position may attend to a key and not to the one before it, whose score is not known")
        share, finite = self._of(part).to(own), own.masked_fill(~seen, 0)
        mixed = share * finite[..., 1:] + (1 - share) * finite[..., :-1]
        mixed = torch.where(seen[..., 1:], mixed, own[..., 1:])
        return torch.cat([own[..., :1], mixed, others], dim=-1)

    def _of(self, part: LayerPart) -> Tensor:
        return (self.share if len(self.share) == 1 else self.share[part.keys])[:, None, None]


@dataclass
class Give(Edit):
    """Queries or keys of another pass, (rows, heads or key heads, positions, d_head), in place of the layer's own.

    Of all heads, or of some, (n_heads,) boolean; heads that share a key share what is given.
    """

    query: Tensor | None = None
    key: Tensor | None = None
    heads: Tensor | None = None

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        query = call.query if self.query is None else self._chosen(self.query[:, part.heads], call.query, part)
        key = call.key if self.key is None else self._chosen(self.key[:, part.keys], call.key, part)
        return call._replace(query=query, key=key)

    def _chosen(self, given: Tensor, own: Tensor, part: LayerPart) -> Tensor:
        given = given.to(own)
        if self.heads is None:
            return given.expand_as(own)
        chosen = self.heads[part.heads].to(own.device)
        chosen = chosen.unflatten(0, (own.shape[1], -1)).any(1)
        return torch.where(chosen[:, None, None], given, own)


@dataclass
class GivePattern(Edit):
    """Patterns of another pass, where a model computes patterns itself and shows no call."""

    pattern: Tensor

    def on_pattern(self, pattern: Tensor, part: LayerPart) -> Tensor:
        return _beside_sinks(self.pattern[:, part.heads].to(pattern), pattern).expand_as(pattern)


@dataclass
class Record(Edit):
    """Keeps queries, keys and what heads found, as they are when the edit is applied, parts of a layer put together."""

    inputs: bool = False
    outputs: bool = False
    _kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def on_call(self, call: AttentionCall, part: LayerPart) -> AttentionCall:
        if self.inputs:
            self._keep("query", call.query)
            self._keep("key", call.key)
        return call

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
        if self.outputs:
            self._keep("output", output)
        return output

    def on_pattern(self, pattern: Tensor, part: LayerPart) -> Tensor:
        if self.inputs:
            self._keep("pattern", pattern[..., : pattern.shape[-2]])
        return pattern

    @property
    def needs_output(self) -> bool:
        return self.outputs

    @property
    def needs_output_only(self) -> bool:
        return not self.inputs

    def _keep(self, name: str, values: Tensor) -> None:
        self._kept.setdefault(name, []).append(values.detach().clone())

    def get(self, name: str) -> Tensor | None:
        """`query`, `key`, `output` or `pattern`, (rows, heads, positions, ...); None for what was not seen."""
        parts = self._kept.get(name)
        return None if parts is None else torch.cat(parts, dim=1)
