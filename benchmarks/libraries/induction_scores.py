"""pytest-induction: the same score of the same rows."""

from transformers import AutoModelForCausalLM

from pytest_induction import measure_heads


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def heads(model, tokens):
    scores = measure_heads(model, tokens=tokens).prefix_matching
    return [f"L{layer}H{head}" for layer, head in zip(*(scores > 0.4).nonzero(), strict=True)], scores
