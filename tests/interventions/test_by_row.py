"""Rows with sets of their own: what one pass for each gives, means and resampled heads from the neighbouring rows."""

import numpy as np
import pytest
import torch

from pytest_induction import load_model
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.interventions.by_row import Rows
from pytest_induction.model.batching import bytes_per_sequence
from pytest_induction.records import HeadId
from tests.interventions.test_passes import QUERIES, MixingRows, Model, by_one_pass_each

TOKENS = torch.randint(1, 40, (5, 13), generator=torch.Generator().manual_seed(0))
GROUPS = [(0, 1), (2, 3, 4)]
SETS = [[HeadId(1, 0)], [HeadId(0, 1), HeadId(2, 0)]]


@pytest.mark.parametrize(("kind", "frozen"), [(Model, False), (Model, True), (MixingRows, False)])
def test_each_row_has_its_own_sets_by_every_kind(kind, frozen):
    """Also where memory holds one row only, and where rows of a batch change each other."""
    subject = load_model(kind().double().eval())
    asked = []

    def sets_of(row):
        asked.append(row)
        return {"zero": SETS[: 1 + row % 2], "mean": SETS, "resample": SETS}

    for memory in (None, bytes_per_sequence(subject, 13, logits=True)):
        subject.memory = memory
        asked.clear()
        found = list(Rows(subject, TOKENS, QUERIES, range(3), pattern_preserving=frozen).losses(sets_of))
        assert asked == [0, 1, 2, 3, 4] == list(range(len(found)))
        for group in GROUPS:
            for place, row in enumerate(group):
                own, others = TOKENS[[row]], TOKENS[[group[(place + 1) % len(group)]]]
                np.testing.assert_allclose(found[row].clean, by_one_pass_each(subject, [[]], rows=own)[0, 0], atol=1e-9)
                zero = by_one_pass_each(subject, SETS[: 1 + row % 2], rows=own, frozen=frozen)
                np.testing.assert_allclose(found[row].ablated["zero"], zero[:, 0], atol=1e-9)
                resampled = by_one_pass_each(subject, SETS, "resample", rows=own, others=others, frozen=frozen)
                np.testing.assert_allclose(found[row].ablated["resample"], resampled[:, 0], atol=1e-9)
                if kind is Model:
                    means = by_one_pass_each(subject, SETS, "mean", rows=TOKENS[list(group)], frozen=frozen)
                    np.testing.assert_allclose(found[row].ablated["mean"], means[:, place], atol=1e-9)


def test_of_a_row_that_only_serves_another_nothing_is_asked():
    subject, asked = load_model(Model().double().eval()), []
    found = list(
        Rows(subject, TOKENS[:2], QUERIES, range(3), counted=1).losses(lambda row: asked.append(row) or {"resample": SETS})
    )
    assert len(found) == 1 and asked == [0]
    with pytest.raises(ArgumentError, match="two or more are needed, got 1"):
        Rows(subject, TOKENS[:1], QUERIES, ())


def test_losses_that_are_not_finite_are_told():
    subject = load_model(Model().double().eval())
    rows = Rows(subject, TOKENS[:2], QUERIES, ())
    subject.module.out.register_forward_hook(lambda part, inputs, output: output * float("nan"))
    with pytest.raises(ModelError, match="is not finite"):
        list(rows.losses(lambda _: {"zero": SETS}))
