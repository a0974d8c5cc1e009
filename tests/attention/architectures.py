"""A tiny random model of every causal type that the installed transformers knows, from its config alone.

The sizes that configs share are set by name, in the config and in the configs inside of it; what only one type needs stands in
`OWN`. Windows and chunks are shorter than the tokens that are measured, and no other size equals their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.attention.eager import Batch

POSITIONS = 53
PADDING = 7
D_VOCAB = 67
USABLE = range(4, 60)  # ids that no type gives a meaning of their own
MARKER = 65  # any special id but the three below: never drawn
SIZES: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 6),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 6),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 6),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 3),
    **dict.fromkeys(("head_dim", "attention_head_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 90),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff", "dim_ff"), 80),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"), 40),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group",), 2),
    **dict.fromkeys(("topk_group",), 1),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "window_size", "attention_window_size"), 9),
    "attention_chunk_size": 13,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 18,
    "rotary_dim": 8,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "attn_logit_softcapping": 2.0,
    "query_pre_attn_scalar": 16,
    **dict.fromkeys(("index_n_heads", "indexer_n_heads"), 2),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 16),
    "index_topk": 12,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 12),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    "mamba_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": D_VOCAB,
    "image_size": 28,
    "patch_size": 14,
    "depth": 1,
}
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}  # the class of these types takes the config of a part
SLIDING = ["sliding_attention", "full_attention"] * 2
LINEAR = ["linear_attention", "full_attention"] * 2
CONVOLVED = ["conv", "full_attention"] * 2
HYBRID = ["linear_attention", "hybrid"] * 2
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
DOTS = {
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 28,
    "swa_kv_lora_rank": 20,
    "swa_head_dim": 20,
    "swa_qk_nope_head_dim": 12,
    "swa_v_head_dim": 18,
}
ALONE = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 4}
OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "big_bird": {"attention_type": "original_full"},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"n_head": 8},
    "cohere_compass_text": {"layer_types": SLIDING, "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE}},
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 3, "rope_theta": 10000.0}, "ffn_config": {"hidden_size": 96}},
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 8,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "layer_types": [
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "partial_rotary_factor": 0.5,
    },
    "dots3_note_text": DOTS,
    "dots3_note": {
        "text_config": DOTS,
        "vision_config": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 96, "adapter_out_dim": 96},
        "audio_config": {"adapter_input_size": 96, "adapter_out_dim": 96, "feature_size": 16, "downsample_hidden_size": 8},
    },
    **{kind: {"layer_types": SLIDING} for kind in ("gemma3_text", "kolibri1", "mellum", "ministral")},
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1, "layer_types": SLIDING},
    **{kind: {"layer_types": SLIDING, "use_sliding_window": True} for kind in ("qwen2", "qwen2_moe", "smollm3")},
    "gemma3": {"text_config": {"layer_types": SLIDING}},
    "gemma3n_text": {"layer_types": SLIDING, "num_kv_shared_layers": 2},
    "gemma4": {"text_config": {"layer_types": SLIDING, "global_head_dim": 24, "num_kv_shared_layers": 2}},
    "gemma4_text": {"layer_types": SLIDING, "global_head_dim": 24, "num_kv_shared_layers": 2},
    "gemma4_assistant": {"text_config": {**ALONE, "layer_types": SLIDING}},
    "gemma4_unified_assistant": {"text_config": {**ALONE, "layer_types": SLIDING}},
    "gemma4_unified": {"text_config": {"layer_types": SLIDING, "global_head_dim": 24}},
    "gemma4_unified_text": {"layer_types": SLIDING, "global_head_dim": 24},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": LINEAR},
    "hrm_text": {"num_hidden_layers": 2, "L_cycles": 1},
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 12,
        "d_rel": 4,
        "rel_extent": 16,
    },
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 12,
        "d_rel": 4,
        "rel_extent": 16,
        "unpadded_vocab_size": D_VOCAB,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LINEAR},
    "laguna": {"layer_types": SLIDING, "num_attention_heads_per_layer": [6, 9, 6, 9]},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": CONVOLVED},
    "blt": {
        "encoder_hash_byte_group_vocab": 97,
        "encoder_config": {"hidden_size_global": 96, "num_hidden_layers": 1},
        "decoder_config": {"hidden_size_global": 96},
        "global_config": {"num_hidden_layers": 2},
    },
    "lfm3": {"layer_types": ["conv", "sliding_attention", "full_attention", "conv"]},
    "longcat_flash": {"head_dim": 8, "expert_ffn_hidden_size": 40, "zero_expert_num": 2, "num_layers": 2},
    "mamba2": {"num_heads": 12, "n_groups": 2},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "index_block_size": 4,
        "index_topk_blocks": 3,
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 40,
    },
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": 12, "indexer_compress_ratio": 4},
    "qwen4_exp": {"text_config": {"indexer_kv_heads": 1, "indexer_budget": 12, "indexer_compress_ratio": 4}},
    "reformer": {
        "axial_pos_embds_dim": [32, 64],
        "axial_pos_shape": [8, 12],
        "attn_layers": ["local", "lsh"] * 2,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "feed_forward_size": 80,
        "num_buckets": 4,
        "hash_seed": 1,
    },
    "roc_bert": {"pronunciation_vocab_size": D_VOCAB, "shape_vocab_size": D_VOCAB},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": HYBRID},
    "zamba2": {"layers_block_type": HYBRID, "num_mem_blocks": 1, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid_sliding", "hybrid"] * 2},
}


def types() -> tuple[str, ...]:
    """Every model type that transformers makes a causal language model of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(model_type: str, implementation: str | None = None) -> nn.Module:
    """A seeded model of this type; `implementation` sets how it computes attention, its own choice by default."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    torch.manual_seed(7)
    config = tiny_config(model_type)
    options = {} if implementation is None else {"attn_implementation": implementation}
    if model_type in PARTS:
        architecture = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        model = architecture._from_config(getattr(config, PARTS[model_type]), **options)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, **options)
    _spread(model)
    return model.eval()


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Make patterns differ from uniform ones and from each other, whatever the type does at the start."""
    for weight in filter(torch.is_floating_point, model.parameters()):
        if not bool(weight.any()):  # biases, sinks, learned temperatures that begin at zero
            nn.init.normal_(weight, std=0.1 if weight.numel() > 8 else 1.0)
        elif weight.ndim > 1 and 0 < float(weight.std()) < 0.1:  # a scale that is fixed in the type's code
            weight.mul_(0.2 / weight.std())


def tiny_config(model_type: str) -> Any:
    """The config of this type with every size that we know made small."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    return kind(**_merged(_settings(kind), OWN.get(model_type, {})))


def _settings(kind: type) -> dict[str, Any]:
    """What to pass to a config class: the sizes that it has, and the same for the configs inside of it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in SIZES:
            found[field.name] = SIZES[field.name]
        elif field.name.endswith(("_token_id", "_token_index")) and isinstance(field.default, int):
            found[field.name] = MARKER
        elif "drop" in field.name and isinstance(field.default, float):
            found[field.name] = 0.0
        if field.name == "is_decoder":
            found["is_decoder"] = True
        if field.name == "kv_lora_rank":  # multi-head latent attention has as many key heads as query heads
            found["num_key_value_heads"] = SIZES["num_attention_heads"]
    for name, spec in getattr(kind, "sub_configs_defaults", {}).items():
        inner = spec.get_config_class(spec.model_type)
        found[name] = {"model_type": spec.model_type, **_settings(inner)}
    return found


def _merged(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a type's own instead where it has some, also inside of configs."""
    merged = dict(settings)
    for name, value in own.items():
        inside = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if inside else value
    return merged


def probes() -> list[Batch]:
    """Two batches of two rows: one period for both rows, and a period of its own for each."""
    return [Batch(_rows(17, 17)), Batch(_rows(14, 23))]


def padded() -> Batch:
    """Two rows, the second padded on the left."""
    tokens = _rows(12, 15)
    real = torch.ones_like(tokens)
    tokens[1, :PADDING], real[1, :PADDING] = SIZES["pad_token_id"], 0
    return Batch(tokens, real)


def _rows(*periods: int) -> torch.Tensor:
    """Rows of a token that comes once and a block that repeats, of this period each."""
    generator = torch.Generator().manual_seed(sum(periods))
    rows = []
    for period in periods:
        first, *block = (torch.randperm(len(USABLE), generator=generator)[: period + 1] + USABLE[0]).tolist()
        rows.append(torch.tensor([first, *block * POSITIONS][:POSITIONS]))
    return torch.stack(rows)


def declared_layers(model: nn.Module) -> int | None:
    """How many layers the config names, those of the decoder where it has two counts."""
    for name in ("decoder_layers", "num_decoder_layers", "num_hidden_layers"):
        for config in (model.config.get_text_config(), model.config):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
    return None
