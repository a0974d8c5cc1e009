"""TransformerLens: `detect_head` with its defaults, which takes text and counts both copies: a perfect head has about 0.5."""

import torch
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge


def load(directory):
    return TransformerBridge.boot_transformers(directory)


def heads(model, tokens):
    texts = [model.to_string(row[1:]) for row in tokens]
    with torch.no_grad():
        scores = detect_head(model, texts, "induction_head")
    return [f"L{layer}H{head}" for layer, head in (scores > 0.2).nonzero().tolist()], scores
