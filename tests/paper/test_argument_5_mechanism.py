"""Argument 5: induction heads find their place by what an earlier head has written into their keys, and copy what is there."""

import numpy as np
import pytest

from pytest_induction import Verdict, assert_induction_circuit, measure_copying
from tests.paper.zoo import PLAIN, PREVIOUS, causes, changes, kinds_of_heads, names, run
from tests.runs.claims import evidence_of


@pytest.mark.parametrize(("name", "head"), [("two-layers", (1, 1)), ("three-layers-text", (2, 0)), ("llama", (1, 0))])
def test_the_circuit_is_there_and_is_used(name, head, shipped):
    """Keys read a previous-token head, match the same token, and are needed; values copy."""
    found = assert_induction_circuit(shipped[name])
    assert (found.verdict, found.reason) == (Verdict.SHOWN, "key_composition")
    assert (found.heads[0].layer, found.heads[0].head) == head
    assert found.estimates["lost_through_keys"].low > 0.5
    assert measure_copying(shipped[name]).ov_eigenvalue[head] > 0.5


@pytest.mark.parametrize("name", ["one-layer", "one-layer-smeared"])
def test_one_layer_has_no_circuit(name, shipped):
    """The control: nothing earlier to read from, also where smeared keys do its work."""
    assert evidence_of(assert_induction_circuit, shipped[name]).verdict is not Verdict.SHOWN


@pytest.mark.parametrize("name", names(*PLAIN))
def test_matching_by_the_token_before_forms_with_the_heads(name):
    """Row 7, the QK trace: of heads that match it is high from the window on, of all others and before it near nothing."""
    found, (induction, _) = causes(name), kinds_of_heads(name)
    traces, steps = found["qk_trace"], found["steps"]
    before, last = np.searchsorted(steps, found["window"][0]), traces[-1]
    others = np.nan_to_num(last[~induction])
    assert last[induction].min() > 10 * traces[before][induction].max() > 0
    assert last[induction].min() > 3 * np.abs(others).max()


@pytest.mark.parametrize("name", names(*PLAIN))
def test_previous_token_heads_form_with_them(name):
    """In the layer below, by half a decade of tokens at the most before or after."""
    _, previous = kinds_of_heads(name)
    assert previous[0].any()
    scores = np.array([each.previous_token[0] for each in run(name).snapshots])[:, previous[0]].max(axis=1)
    formed = run(name).steps[int((scores >= PREVIOUS).argmax())]
    assert abs(np.log10(formed / changes(name)["prefix_matching"].midpoint.step.value)) < 0.5
