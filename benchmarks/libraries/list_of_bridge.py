"""pytest-induction: the list of a TransformerBridge that is there already."""

from transformer_lens.model_bridge import TransformerBridge

from pytest_induction import find_induction_heads


def load(directory):
    return TransformerBridge.boot_transformers(directory)


def heads(model, tokens):
    return sorted(str(head) for head in find_induction_heads(model).heads), None
