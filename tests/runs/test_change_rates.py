"""How often a change is called what it is not, over seeded noise, shapes, places and ways to record: never, here."""

import numpy as np
import pytest

from pytest_induction.records import Verdict
from tests.runs.curves import X, abrupt, heads, log_steps, logistic, noise_of, ramp

SHOWN, REFUTED, UNDETERMINED = Verdict.SHOWN, Verdict.REFUTED, Verdict.UNDETERMINED


def test_noise_never_passes_for_a_change_and_a_change_never_for_none():
    """Of 40 flat series with noise of any size none is SHOWN; of 40 abrupt ones none is REFUTED, and with little noise all are SHOWN."""
    for seed in range(40):
        size, likeness = (0.01, 0.03, 0.1, 0.2)[seed % 4], (0.0, 0.5, 0.9)[seed % 3]
        noise = noise_of(len(X), size, seed, likeness)
        assert heads(noise / 0.7, noise=0).verdict is not SHOWN
        changed = heads(abrupt() + noise / 0.7, noise=0)
        assert changed.verdict is not REFUTED
        assert changed.verdict is SHOWN or size > 0.01


@pytest.mark.parametrize("spacing", ["even", "logarithmic"])
def test_coarse_records_of_abrupt_changes_are_never_called_gradual_or_none(spacing):
    """Wherever the change lies among 12 to 40 snapshots, also before the second or at the last."""
    verdicts = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        count = (12, 20, 40)[seed % 3]
        steps = np.arange(count) * (10_000 // count) if spacing == "even" else log_steps(count)
        found = heads(abrupt(steps, rng.uniform(1.0, 3.9), rng.uniform(0.05, 0.35)), steps, seed=seed)
        verdicts.append(found.verdict)
        assert found.verdict is not REFUTED, (seed, found.summary)
    assert verdicts.count(UNDETERMINED) > 3


@pytest.mark.parametrize("spacing", ["even", "logarithmic"])
def test_gradual_changes_are_never_called_abrupt(spacing):
    """Of shapes that are none of those that are fitted, too."""
    for seed in range(18):
        rng = np.random.default_rng(seed)
        steps = np.arange(60) * 150 if spacing == "even" else log_steps(60)
        x = np.log10(np.maximum(steps, 0.5))
        place, width = rng.uniform(1.5, 3.0), rng.uniform(0.7, 1.5)
        shape = [logistic(x, place, width), ramp(x, place, width), 1 - (1 + steps / 10**place) ** -0.8][seed % 3]
        assert heads(shape, steps, noise=0.01, seed=seed).verdict is not SHOWN
