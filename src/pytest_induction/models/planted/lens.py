"""Planted models as TransformerLens bridges, through its own native source: nothing of Hugging Face is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pytest_induction.errors import ModelError

if TYPE_CHECKING:
    from pytest_induction.models.planted.model import PlantedLayer, PlantedModel


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
