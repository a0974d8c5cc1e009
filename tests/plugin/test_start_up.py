"""An ordinary pytest run does not pay for this plugin."""

import os
import resource
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "hypothesis",
    "transformers",
    "jinja2",
    "pytest_induction.model.load",
    "pytest_induction.fixture",
    "pytest_induction.plugin.benchmarks",
)
CONFTEST = f"""
import sys

def pytest_unconfigure():
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    if loaded:
        print("LOADED", *loaded)
"""


def run_fresh(place, *arguments, body="def test_it(): pass"):
    """pytest in a process of its own, with this plugin and no other."""
    (place / "conftest.py").write_text(CONFTEST)
    (place / "test_it.py").write_text(body)
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it: what was compiled once is kept
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(place), "-p", "no:cacheprovider", *arguments, str(place)]
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=True).stdout


def test_nothing_heavy_is_loaded_to_the_very_end(tmp_path):
    """Neither at start-up, nor while tests run, nor in the last hook."""
    assert "LOADED" not in run_fresh(tmp_path, "-p", "pytest_induction.plugin.hooks")
    assert "LOADED" not in run_fresh(
        tmp_path, "-p", "pytest_induction.plugin.hooks", body="import pytest_induction\ndef test_it(): pass"
    )


def test_the_guard_above_can_fail(tmp_path):
    """Using the package loads torch, and the guard says so."""
    body = "import pytest_induction\ndef test_it(): pytest_induction.measure_heads"
    assert "LOADED torch numpy" in run_fresh(tmp_path, "-p", "pytest_induction.plugin.hooks", body=body)


def test_importing_the_face_loads_nothing_heavy():
    """Nor does listing what it offers."""
    code = f"import sys, pytest_induction; dir(pytest_induction); print([n for n in {HEAVY!r} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


ENOUGH, MOST = 6, 36


def start_up_cost(place, *plugins, limit, most=MOST):
    """What these plugins add to a run, as a share of it: the cheapest run with them less the cheapest without, in processor seconds.

    A share, because one machine is slower than another, and than itself. Whatever else the machine does only ever adds, so more runs come closer to the truth: pairs go on until the difference
    is below `limit`, or there are `most` of them.
    """

    def seconds(*given):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_fresh(place, *given)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    loaded = [part for plugin in plugins for part in ("-p", plugin)]
    seconds(*loaded)  # writes what is compiled
    with_them: list[float] = []
    without: list[float] = []
    while len(without) < ENOUGH or (min(with_them) / min(without) - 1 >= limit and len(without) < most):
        with_them.append(seconds(*loaded))
        without.append(seconds())
    return min(with_them) / min(without) - 1


@pytest.mark.exhaustive  # on a machine that others share it fails at times; what is loaded at all is tested above, each time
def test_start_up_costs_less_than_15_percent_of_pytest_itself(tmp_path):
    """Against the same run without the plugin, interleaved."""
    assert start_up_cost(tmp_path, "pytest_induction.plugin.hooks", limit=0.15) < 0.15


@pytest.mark.exhaustive
def test_a_plugin_that_costs_a_tenth_of_a_second_would_be_seen(tmp_path, monkeypatch):
    """The measure above can fail."""
    burn = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < 0.1:\n    pass\n"
    (tmp_path / "slow_to_start.py").write_text(burn)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start_up_cost(tmp_path, "slow_to_start", limit=0.15, most=ENOUGH) > 0.15


@pytest.mark.parametrize("name", ["nonesuch", "_private"])
def test_unknown_names_are_attribute_errors(name):
    """As of any module."""
    import pytest_induction

    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(pytest_induction, name)
