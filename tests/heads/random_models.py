"""Models with random weights, of varied kind, shape, vocabulary and scale."""

import numpy as np
import torch
import transformers as hf

from tests.model.plain import Plain


def random_models(count, seed):
    """`count` models, each made when its turn comes."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        torch.manual_seed(int(rng.integers(2**31)))
        heads = int(rng.choice([1, 2, 4, 8]))
        width = heads * int(rng.choice([4, 8, 16]))
        common = {
            "vocab_size": int(rng.choice([16, 50, 128, 1000])),
            "initializer_range": float(rng.choice([0.02, 0.1, 0.5, 1.0])),
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": None,
        }
        layers = int(rng.integers(1, 5))
        if index % 3 == 0:
            config = hf.GPT2Config(
                n_layer=layers, n_head=heads, n_embd=width, n_positions=int(rng.choice([32, 64, 128])), **common
            )
            yield hf.GPT2LMHeadModel(config).eval()
        elif index % 3 == 1:
            yield hf.LlamaForCausalLM(
                hf.LlamaConfig(
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    num_key_value_heads=int(rng.choice([heads, 1])),
                    hidden_size=width,
                    intermediate_size=2 * width,
                    max_position_embeddings=int(rng.choice([32, 64, 128])),
                    tie_word_embeddings=bool(rng.integers(2)),
                    **common,
                )
            ).eval()
        else:
            model = Plain(d_vocab=common["vocab_size"], layers=layers)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(float(rng.choice([0.5, 1, 4, 10])))
            yield model
