"""What all tests share: one thread, seeded models, no network."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: two threads each take a fifth longer, and wait
pytest_plugins = ["pytester"]

import torch  # noqa: E402

from pytest_induction.claims import restore, snapshot  # noqa: E402

torch.set_num_threads(1)

if find_spec("transformers") is None:  # modules whose tests are all about its models
    modules = Path(__file__).parent.rglob("test_*.py")
    collect_ignore = [path for path in modules if re.search("^from transformers import", path.read_text(), re.MULTILINE)]

FIXTURES = Path(__file__).parents[1] / "fixtures"
SLOW = frozenset(Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").split())
REPEATS = Path(__file__).with_name("repeats.txt")  # absent while all tests are timed
REPEATED = frozenset(REPEATS.read_text(encoding="utf-8").splitlines() if REPEATS.is_file() else ())
SHIPPED = {
    "one-layer": f"{FIXTURES}/attention_only.py:one_layer",
    "one-layer-smeared": f"{FIXTURES}/attention_only.py:one_layer_smeared",
    "two-layers": f"{FIXTURES}/attention_only.py:two_layers",
    "three-layers-text": f"{FIXTURES}/attention_only.py:three_layers_text",
    "llama": str(FIXTURES / "models" / "llama-2l"),
    "virtual": str(FIXTURES / "models" / "gpt2-2l-virtual"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what was measured to be slow (`make test` leaves it out, `make test-all` runs it), and slow cases that repeat another."""
    for item in items:
        if item.nodeid in REPEATED:
            item.add_marker("exhaustive")
        if item.nodeid.partition("[")[0] in SLOW and item.get_closest_marker("exhaustive") is None:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _claims_of_the_package():
    """Claims that a test registers, or a session inside it that ends before it can forget them, are of that test alone."""
    known = snapshot()
    yield
    restore(known)


@pytest.fixture
def shipped() -> dict[str, str]:
    """Names of the shipped models -> how to name them to the plugin."""
    return SHIPPED


@pytest.fixture(scope="session")
def _imported():
    """Runs of pytest inside pytest forget what they import; what cannot be imported twice, or takes long, is imported here, once."""
    import torch._dynamo  # noqa: F401

    import pytest_induction
    import pytest_induction.fixture
    import pytest_induction.plugin.benchmarks.suite
    import pytest_induction.plugin.gates.items
    import pytest_induction.report.terminal
    import pytest_induction.runs.sweep
    import tests.model.plain  # noqa: F401

    loaded = [spec for spec in SHIPPED.values() if ".py:" in spec or find_spec("transformers") is not None]
    for spec in loaded:
        model = pytest_induction.load_model(spec)
        pytest_induction.measure_heads(model, n_sequences=6)
    model.module.to("cpu")


@pytest.fixture(autouse=True)
def _inner_sessions_are_in_order(request, monkeypatch):
    """A session inside a test is as at a desk: nothing shuffles its tests, and no CI is told of them or changes what is printed.

    It writes no bytecode: a file of the same length that a test writes within the same second would be taken for the one before.
    """
    if "pytester" in request.fixturenames:
        request.getfixturevalue("_imported")  # before `pytester`, which forgets what is imported after it
        request.getfixturevalue("pytester")  # it clears the variable
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:randomly")
        for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
            monkeypatch.delenv(name, raising=False)
