"""pytest-induction: the list of an nnsight model that is there already."""

import nnsight

from pytest_induction import find_induction_heads


def load(directory):
    return nnsight.TransformersModel(directory, task="text-generation", dispatch=True)


def heads(model, tokens):
    return sorted(str(head) for head in find_induction_heads(model).heads), None
