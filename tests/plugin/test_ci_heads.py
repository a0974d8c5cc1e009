"""JUnit properties of the strongest head: match lengths, effects and reach, where they are known."""

from dataclasses import replace

from pytest_induction.plugin.ci import properties
from pytest_induction.records import Estimate
from tests.report import samples


def told(head):
    found = properties(samples.evidence(heads=(head,), nearest=()))
    assert len(dict(found)) == len(found)
    return {name.removeprefix("induction.has_induction_head."): value for name, value in found}


def test_what_is_known_of_a_head_is_told_with_its_intervals():
    masses = tuple(Estimate(value, value - 0.01, value + 0.02, "share") for value in (0.05, 0.62, 0.8))
    head = replace(
        samples.head(1, 0, 0.9, "matches"), match_lengths=masses, reach=17, ablation_effect=Estimate(0.12, 0.1, 0.14, "nats")
    )
    found = told(head)
    assert (found["exactly_one"], found["exactly_two"], found["three_or_more"]) == (0.05, 0.62, 0.8)
    assert (found["exactly_two.low"], found["exactly_two.high"]) == (0.61, 0.64)
    assert (found["copy_effect"], found["ablation_effect"], found["ablation_effect.low"]) == (2.31, 0.12, 0.1)
    assert found["reach"] == 17


def test_what_is_not_known_has_no_property():
    found = told(replace(samples.head(1, 0, 0.9, "matches"), copy_effect=None))
    assert found["prefix_matching"] == 0.9
    assert not {"exactly_one", "exactly_two", "three_or_more", "copy_effect", "ablation_effect", "reach"} & found.keys()
