"""What heads write from single keys to the last position of a row, on the way straight to the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pytest_induction.attention.pattern import Reader
from pytest_induction.forward.changing import add_hooks
from pytest_induction.model.capture import listening
from pytest_induction.model.head_weights import Circuits, LayerCircuits
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.undoing import Changes, puts_back


@dataclass(frozen=True)
class ByKey:
    """One layer at the last position: its `pattern` (batch, n_heads, positions), and what heads raise from each key.

    `raised` (batch, n_heads, tokens, keys) is by how much the logit of each token rises, above the mean over the vocabulary, by
    what is written from each key alone, in nats: A[q, k] v_k W_O along the unembedding, norms folded and their scales held fixed.
    """

    pattern: Tensor
    raised: Tensor


@puts_back
def written_by_key(subject: ModelUnderTest, circuits: Circuits, rows: Tensor, keys: Tensor, tokens: Tensor) -> list[ByKey]:
    """One pass over `rows` (batch, positions): of each layer what its heads write from `keys` to the logits of `tokens`.

    Both are (batch, n): positions and token ids. Patterns are read of the last position alone, and logits of none.
    """
    one = _Pass(circuits, keys, circuits.written(tokens), rows.shape[1] - 1)
    base = subject.caller.base
    to_the_end = base is not None and circuits.ends not in set(base.modules())
    with Changes() as changes:
        for number, layer in enumerate(circuits.layers):
            add_hooks(changes, [layer.reads], listening(partial(one.given, number)), before=True, with_kwargs=True)
            if layer.normed is not None:
                add_hooks(changes, [layer.normed], listening(partial(one.normed, number)), before=True, with_kwargs=True)
        if circuits.ends is not None:
            add_hooks(changes, [circuits.ends], listening(one.ended), before=True, with_kwargs=True)
        subject.observe(rows, one.shown, logits=to_the_end, early_stop=False)
    scale = one.scale
    return [
        ByKey(one.patterns[number], raised if scale is None else raised / scale.to(raised)[:, None, None, None])
        for number, raised in sorted(one.raised.items())
    ]


@dataclass
class _Pass:
    """What is seen in one pass, as it comes; a backend may show the pattern before what the values are made of, or after."""

    circuits: Circuits
    keys: Tensor
    directions: Tensor
    query: int
    patterns: dict[int, Tensor] = field(default_factory=dict)
    raised: dict[int, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None
    _read: dict[int, Tensor] = field(default_factory=dict)
    _behind: dict[int, Tensor] = field(default_factory=dict)

    def given(self, number: int, given: Tensor) -> None:
        rows = torch.arange(len(given), device=given.device)[:, None]
        self._read[number] = given[rows, self.keys.to(given.device)]
        self._hand_on(number)

    def shown(self, number: int, attention: Reader) -> None:
        self.patterns[number] = attention.pattern_of(range(self.query, self.query + 1))[:, :, 0].clone()
        self._hand_on(number)

    def normed(self, number: int, given: Tensor) -> None:
        self._behind[number] = self.circuits.layers[number].behind.scale(given[:, self.query])
        self._hand_on(number)

    def ended(self, residual: Tensor) -> None:
        self.scale = self.circuits.final_norm.scale(residual[:, self.query])

    def _hand_on(self, number: int) -> None:
        """What is there of a layer, once all of it is."""
        layer = self.circuits.layers[number]
        if number not in self._read or number not in self.patterns or (layer.normed and number not in self._behind):
            return
        raised = _raised(layer, self._read.pop(number), self.directions) * _at(self.patterns[number], self.keys)[:, :, None]
        behind = self._behind.pop(number, None)
        self.raised[number] = raised if behind is None else raised / behind.to(raised)[:, None, None, None]


def _raised(layer: LayerCircuits, given: Tensor, directions: Tensor) -> Tensor:
    """What values made of `given` (batch, keys, d_model) raise along `directions` (batch, tokens, d_model), for all mass."""
    outs = layer.outs
    own = directions.to(outs.device) @ outs.to(directions.dtype).flatten(0, 1).mT
    own = own.unflatten(-1, outs.shape[:2])  # batch, tokens, n_heads, d_head
    values = layer.values_of(given)
    return torch.einsum("bkhd,bthd->bhtk", values.to(own), own)


def _at(pattern: Tensor, keys: Tensor) -> Tensor:
    """The entries of a pattern (batch, n_heads, positions) at some keys, (batch, n_heads, keys)."""
    places = keys.to(pattern.device)[:, None].expand(-1, pattern.shape[1], -1)
    return pattern.gather(-1, places)
