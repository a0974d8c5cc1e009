"""litgpt models, where it is installed: it pins an older huggingface-hub than transformers 5 needs (tox environment `litgpt`)."""

import pytest
import torch
from torch import nn

from tests.attention.patterns import TOLERANCE, repeated, softmax_by_loop, worst_difference

library = pytest.importorskip("litgpt.model")
Config = pytest.importorskip("litgpt.config").Config

FAMILIES = {
    "pythia-14m": {},
    "Llama-3.2-1B": {"n_query_groups": 2},
    "Gemma-2-2b": {"n_query_groups": 2, "head_size": 8, "attention_logit_softcapping": 2.0, "sliding_window_size": 6},
    "Mistral-7B-v0.1": {"n_query_groups": 2, "sliding_window_size": 6},
    "Mixtral-8x7B-v0.1": {"n_query_groups": 2, "n_expert": 4},
    "Gemma-3-1b-it": {"n_query_groups": 2, "head_size": 8, "sliding_window_size": 6},
    "Qwen3-0.6B": {"n_query_groups": 2, "head_size": 8},
    "falcon-7b": {"n_query_groups": 1},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_litgpt_models_are_measured(family, monkeypatch):
    """Each family against a loop over the queries, keys and masks that its attention is given."""
    sizes = {"block_size": 64, "vocab_size": 61, "padded_vocab_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 32}
    torch.manual_seed(0)
    model = library.GPT(Config.from_name(family, **{**sizes, "intermediate_size": 48, **FAMILIES[family]})).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=0.3)
    tokens, wanted = repeated(), []
    plain = library.CausalSelfAttention.scaled_dot_product_attention

    def listening(self, query, key, value, mask=None):
        cap = self.config.attention_logit_softcapping
        scale = (self.config.attention_scores_scalar or self.config.head_size) ** -0.5
        window = self.config.sliding_window_size if self.apply_sliding_window_attention else None

        def change(scores):
            scores = torch.tanh(scores / cap) * cap if cap else scores
            hidden = 0 if window is None else max(0, len(scores) - window)
            return torch.cat([torch.full((hidden,), -torch.inf, dtype=scores.dtype), scores[hidden:]])

        wanted.append(softmax_by_loop(query, key, scale, change))
        return plain(self, query, key, value, mask)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(library.CausalSelfAttention, "scaled_dot_product_attention", listening)
        model(tokens)
    assert worst_difference(model, tokens, wanted) < TOLERANCE
