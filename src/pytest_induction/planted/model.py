"""The transformer that planted heads live in: attention only, one sdpa call a layer; also as a TransformerLens bridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_induction.errors import ArgumentError, ModelError
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
    "ngram",
    "longest_match",
    "function_vector",
    "label_check",
    "own_token",
    "retrieval",
    "concept",
    "lookahead",
    "word_end",
    "carrying",
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
    """A transformer whose heads were set by construction. Made by the functions of `pytest_induction.planted`.

    Token ids (batch, positions) in, logits (batch, positions, d_vocab) out, in the dtype of the weights: `W_E` (d_vocab,
    d_model), `W_pos` (n_ctx, d_model), `layers` of `PlantedLayer`, `W_U` (d_model, d_vocab). `answers` says what each planted
    head is, by its `HeadId`; every other head rests on the first position and writes nothing. Sequences begin with
    `bos_token_id`, which nothing matches and which copies as nothing. `tasks` are the few-shot tasks that it does,
    `facts` those that it can retrieve, `words` those whose meaning it copies.
    """

    bos_token_id = 0
    tasks: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType({})
    facts: Mapping[str, Sequence[int]] = MappingProxyType({})
    words: Sequence[tuple[int, ...]] = ()

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
        return bridge(self)


def bridge(model: PlantedModel) -> Any:
    """A `TransformerBridge` with copies of the model's weights, in their dtype and on their device."""
    try:
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources import boot_native
    except ImportError:
        raise ModelError("`to_transformer_lens` needs TransformerLens 4: pip install 'pytest-induction[lens]'") from None
    n_heads, d_model, d_head = _layers(model)[0].W_Q.shape
    config = TransformerBridgeConfig(
        n_layers=len(model.layers),
        n_heads=n_heads,
        d_model=d_model,
        d_head=d_head,
        d_vocab=model.vocab_size,
        n_ctx=model.n_ctx,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="standard",
        seed=0,  # so that drawing the weights that are replaced below leaves the user's generator alone
    )
    config.bos_token_id = model.bos_token_id  # it has no such field; this is where a measurement looks for it
    made: Any = boot_native(config, device=model.W_E.device, dtype=model.W_E.dtype)
    state = {name: torch.zeros_like(value) for name, value in made.state_dict().items()} | _state(model)
    made.load_state_dict(state)
    return made.eval()


def _state(model: PlantedModel) -> dict[str, Tensor]:
    """The weights by the names of TransformerLens, as linear layers hold them: (out, in), heads side by side."""
    state = {"embed.weight": model.W_E, "pos_embed.weight": model.W_pos, "unembed.weight": model.W_U.T}
    for number, layer in enumerate(_layers(model)):
        for name, weight in (("q", layer.W_Q), ("k", layer.W_K), ("v", layer.W_V)):
            state[f"blocks.{number}.attn.{name}.weight"] = weight.transpose(1, 2).flatten(0, 1)
        state[f"blocks.{number}.attn.o.weight"] = layer.W_O.flatten(0, 1).T
    return {name: weight.detach() for name, weight in state.items()}


def _layers(model: PlantedModel) -> list[PlantedLayer]:
    return cast("list[PlantedLayer]", list(model.layers))
