"""pytest-induction: the list, from rows of its own, with intervals, controls and what each head writes."""

from transformers import AutoModelForCausalLM

from pytest_induction import find_induction_heads


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def heads(model, tokens):
    return sorted(str(head) for head in find_induction_heads(model).heads), None
