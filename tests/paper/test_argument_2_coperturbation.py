"""Argument 2: smeared keys make induction heads possible in one layer, and earlier in two; in-context learning moves with them."""

import pytest

from pytest_induction import Verdict
from pytest_induction.runs.perturbation import assert_coperturbation
from tests.paper.zoo import SEEDS, changes, names, run
from tests.runs.claims import evidence_of


@pytest.mark.parametrize("layers", ["1l", "2l"])
@pytest.mark.parametrize("seed", SEEDS)
def test_smeared_keys_move_both(layers, seed):
    """Where one layer had no phase change it has one; where two had one it comes earlier."""
    found = assert_coperturbation(run(f"{layers}-s{seed}"), run(f"{layers}-smeared-s{seed}"))
    assert found.verdict is Verdict.SHOWN


@pytest.mark.parametrize("layers", ["1l", "2l"])
def test_over_the_seeds_together(layers):
    runs = [[run(name) for name in names(kind)] for kind in (layers, f"{layers}-smeared")]
    assert assert_coperturbation(*runs).verdict is Verdict.SHOWN


@pytest.mark.parametrize(
    ("control", "treated"),
    [("2l-s0", "2l-s1"), ("2l-s0", "3l-s0"), ("1l-smeared-s0", "2l-smeared-s0"), ("1l-smeared-s0", "1l-s0"), ("1l-s0", "1l-s1")],
)
def test_what_makes_induction_no_earlier_moves_nothing(control, treated):
    """The control: another seed, another layer beside those that suffice, the smearing taken away, and no induction in either."""
    assert evidence_of(assert_coperturbation, run(control), run(treated)).verdict is Verdict.REFUTED


@pytest.mark.parametrize("seed", SEEDS)
def test_smeared_keys_make_one_layer_as_good_as_two(seed):
    """Its heads match in layer 0, and from as early on as those of two smeared layers."""
    one, two = (changes(f"{kind}-smeared-s{seed}")["prefix_matching"].midpoint.step.value for kind in ("1l", "2l"))
    assert 0.7 < one / two < 1.4
