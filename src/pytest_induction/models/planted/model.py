"""The transformer that planted heads live in: attention only, no normalisation, no biases, one sdpa call for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pytest_induction.errors import ArgumentError
from pytest_induction.records import HeadId

Kind = Literal[
    "induction",
    "pointer_induction",
    "virtual_induction",
    "previous_token",
    "duplicate_token",
    "first_token",
    "uniform",
    "count_back",
    "copy_suppression",
    "matching",
    "copying",
    "class_induction",
    "translation",
    "pattern",
]
Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # of a layer: queries, keys, values, outputs


class PlantedLayer(nn.Module):
    """The attention of one layer, in the shapes of TransformerLens.

    `W_Q`, `W_K`, `W_V` are (n_heads, d_model, d_head), `W_O` is (n_heads, d_head, d_model).
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V, self.W_O = (nn.Parameter(each) for each in weights)

    def forward(self, residual: Tensor) -> Tensor:
        """What the heads add to the residual stream: (batch, positions, d_model), as what they are given."""
        query, key, value = (_of_each_head(residual, weight) for weight in (self.W_Q, self.W_K, self.W_V))
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # batch, n_heads, positions, d_head
        return found.transpose(1, 2).flatten(2) @ self.W_O.flatten(0, 1)


def _of_each_head(residual: Tensor, weight: Tensor) -> Tensor:
    """What each head makes of the stream, (batch, n_heads, positions, d_head), in one product: half the time of one for each."""
    made = residual @ weight.transpose(0, 1).flatten(1)
    return made.unflatten(-1, (weight.shape[0], weight.shape[2])).transpose(1, 2)


class PlantedModel(nn.Module):
    """A transformer whose heads were set by construction. Made by the functions of `pytest_induction.models.planted`.

    Token ids (batch, positions) in, logits (batch, positions, d_vocab) out, in the dtype of the weights: `W_E` (d_vocab,
    d_model), `W_pos` (n_ctx, d_model), `layers` of `PlantedLayer`, `W_U` (d_model, d_vocab). `answers` says what each planted
    head is, by its `HeadId`; every other head rests on the first position and writes nothing. Sequences begin with
    `bos_token_id`, which nothing matches and which copies as nothing.
    """

    bos_token_id = 0

    def __init__(
        self, embed: Tensor, places: Tensor, layers: Sequence[Weights], unembed: Tensor, answers: Mapping[HeadId, Kind]
    ) -> None:
        super().__init__()
        self.W_E, self.W_pos, self.W_U = nn.Parameter(embed), nn.Parameter(places), nn.Parameter(unembed)
        self.layers = nn.ModuleList(PlantedLayer(weights) for weights in layers)
        self.answers = dict(answers)
        self.vocab_size, self.n_ctx = len(embed), len(places)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, positions, d_vocab). Raises `ArgumentError` for more positions than the context has."""
        if tokens.shape[1] > self.n_ctx:
            raise ArgumentError(f"`tokens` has {tokens.shape[1]} positions, the context has {self.n_ctx}")
        residual = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        for layer in self.layers:
            residual = residual + layer(residual)
        return residual @ self.W_U

    def to_transformer_lens(self) -> Any:
        """The same model as a `TransformerBridge` of TransformerLens 4, with copies of the weights, on the same device.

        Logits and `hook_pattern` are equal up to rounding. Raises `ModelError` where TransformerLens is not installed.
        """
        from pytest_induction.models.planted.lens import bridge

        return bridge(self)
