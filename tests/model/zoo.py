"""Tiny random Hugging Face models of many kinds, from configs alone."""

import torch
import transformers as hf

SMALL = {"vocab_size": 61, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
COMMON = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
ZOO = {
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config,
        {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.3},
    ),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, GROUPED),
    "gpt-neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, COMMON),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {**GROUPED, "sliding_window": 6}),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, GROUPED),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, {**GROUPED, "sliding_window": 6, "attn_logit_softcapping": 2.0}),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, {**GROUPED, "sliding_window": 6}),
    "bloom": (
        hf.BloomForCausalLM,
        hf.BloomConfig,
        {**SMALL, "hidden_size": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.3},
    ),
    "gpt-oss": (
        hf.GptOssForCausalLM,
        hf.GptOssConfig,
        {
            **GROUPED,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
        },
    ),
}


def build(kind: str, implementation: str | None = None) -> torch.nn.Module:
    """A seeded model; `implementation` sets how it computes attention, its own choice by default."""
    architecture, config, options = ZOO[kind]
    torch.manual_seed(7)
    settings = config(**options)
    if implementation is not None:
        settings._attn_implementation = implementation
    return architecture(settings).eval()
