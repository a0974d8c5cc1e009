"""A notebook with transformers alone: eager attention returns its patterns, and the rest is indexing."""

import torch
from transformers import AutoModel


def load(directory):
    return AutoModel.from_pretrained(directory, attn_implementation="eager")


def heads(model, tokens):
    period = tokens.shape[1] // 2  # rows are a first token and two copies of a block
    with torch.no_grad():
        patterns = model(tokens, output_attentions=True, use_cache=False).attentions
    stripes = [pattern.diagonal(1 - period, 2, 3)[..., 2:].mean((0, 2)) for pattern in patterns]  # of the second copy
    scores = torch.stack(stripes)
    return [f"L{layer}H{head}" for layer, head in (scores > 0.4).nonzero().tolist()], scores
