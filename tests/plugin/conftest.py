"""Runs of pytest inside pytest forget what they import; what cannot be imported twice is imported here, once."""

import pytest

from tests.conftest import SHIPPED


@pytest.fixture(scope="session", autouse=True)
def _imported():
    import torch._dynamo  # noqa: F401

    import pytest_induction
    import pytest_induction.fixture
    import pytest_induction.plugin.benchmarks.suite
    import pytest_induction.plugin.gates.items
    import pytest_induction.report.terminal
    import pytest_induction.runs.sweep
    import tests.model.plain  # noqa: F401

    for spec in SHIPPED.values():
        model = pytest_induction.load_model(spec)
        pytest_induction.measure_heads(model, n_sequences=6)
    model.module.to("cpu")
