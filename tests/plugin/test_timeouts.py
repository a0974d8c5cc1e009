"""pytest-timeout ends a test of ours by either of its methods, wherever it is; so do -x, --lf and Ctrl-C."""

import signal
import time
from contextlib import nullcontext

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from pytest_induction import alarms
from tests.conftest import FIXTURES

pytest.importorskip("pytest_timeout")

SLOW = """
import time
import torch
from pytest_induction import find_counterexample, load_model, measure_heads, sweep
from pytest_induction.planted import induction_head

SLOW = {"pause": 0.0}

class Later(torch.nn.Module):
    '''Quick while it is tried out, slow when it is measured.'''
    def __init__(self):
        super().__init__()
        self.inner = induction_head()

    def forward(self, tokens):
        time.sleep(SLOW["pause"])
        return self.inner(tokens)

def make():
    time.sleep(60)

def cancels():
    import signal
    signal.alarm(0)
    return induction_head()

def takes():
    import signal
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.alarm(100)
    signal.alarm(0)
    return induction_head()
"""
PLACES = {
    "loading": """
def test_it():
    load_model("test_slow.py:make")
""",
    "measuring": """
def test_it():
    model = load_model(Later())
    SLOW["pause"] = 0.2
    for seed in range(1000):
        measure_heads(model, seed=seed)
""",
    "searching": """
def test_it():
    model = load_model(Later())
    SLOW["pause"] = 0.05
    find_counterexample(model, lambda outcome: True, probes="repeated_sequences", budget=100000)
""",
    "searching within a test of hypothesis": """
from hypothesis import given, settings, strategies as st

MODEL = load_model(Later())  # an alarm that goes off outside of the search is a failure to hypothesis, which begins again

@settings(deadline=None)
@given(st.integers())
def test_it(number):
    SLOW["pause"] = 0.05
    find_counterexample(MODEL, lambda outcome: True, probes="repeated_sequences", budget=100000)
""",
    "on given probes": """
from hypothesis import settings
from pytest_induction import given_probes
from pytest_induction.probes.strategies import repeated_sequences

@settings(max_examples=100000, deadline=None)
@given_probes(repeated_sequences, model=induction_head())
def test_it(outcome):
    time.sleep(0.01)
""",
    "after a factory has cancelled the alarm": """
def test_it():
    load_model("test_slow.py:cancels")
    time.sleep(60)
""",
    "after a factory has taken the alarm": """
def test_it():
    load_model("test_slow.py:takes")
    time.sleep(60)
""",
    "sweeping here": """
def test_it(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "step_1.pt")
    sweep(tmp_path, tmp_path / "run", factory="test_slow.py:make")
""",
    "sweeping in processes": """
def test_it(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "step_1.pt")
    sweep(tmp_path, tmp_path / "run", factory="test_slow.py:make", workers=1)
""",
}


@pytest.fixture
def slow(pytester):
    """Makes a file with a test that takes far too long somewhere."""
    return lambda where: pytester.makepyfile(test_slow=SLOW + PLACES[where])


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms")
@pytest.mark.parametrize("where", PLACES)
def test_an_alarm_ends_the_test(slow, pytester, where):
    """At once, as one failure that says so; the tests after it run."""
    slow(where)
    pytester.makepyfile(test_zz="def test_after(): pass")
    seconds = 3.0 if "processes" in where or "within" in where else 1.0  # processes, or the search, must be there by then
    began = time.monotonic()
    result = pytester.runpytest_inprocess(f"--timeout={seconds}", "--timeout-method=signal", "-p", "no:cacheprovider")
    assert time.monotonic() - began < 30
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines([f"E * Failed: Timeout (>{seconds}s) from pytest-timeout."])
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("where", ["measuring", "sweeping in processes"])
def test_a_thread_ends_the_session(slow, pytester, where):
    slow(where)
    began = time.monotonic()
    seconds = 3.0 if "processes" in where else 1.0
    result = pytester.runpytest_subprocess(
        f"--timeout={seconds}", "--timeout-method=thread", "-p", "no:cacheprovider", timeout=100
    )
    assert result.ret == 1 and time.monotonic() - began < 60
    assert "+ Timeout +" in str(result.stdout) + str(result.stderr)


def test_an_alarm_that_goes_off_in_time_goes_off_once():
    """Inside code that cancels none; and one that code inside sets for itself is left to it."""
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with alarms.kept():
            time.sleep(0.1)
        time.sleep(0.1)
        assert len(heard) == 1
        signal.setitimer(signal.ITIMER_REAL, 30)
        with alarms.kept():
            pass
        assert 29 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        with alarms.kept():
            signal.alarm(0)
        assert 29 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms")
@pytest.mark.parametrize("guarded", [True, False])
def test_hypothesis_takes_what_an_alarm_raises_for_a_failure(guarded):
    """Without the guard: it shrinks it, and then says that the test is flaky."""
    begun = []

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers()))
    def search(_):
        if not begun:
            begun.append(1)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            time.sleep(5)  # where it goes off

    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the time is over"))
    try:
        with (
            pytest.raises(pytest.fail.Exception if guarded else Flaky, match="the time is over" if guarded else None),
            alarms.getting_through() if guarded else nullcontext(),
        ):
            search()
        assert begun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_first_failure_ends_the_session_and_is_what_is_run_again(pytester):
    """With -x, and with --lf."""
    given = f"--induction-run={FIXTURES / 'runs' / 'one-layer'}"
    result = pytester.runpytest_inprocess(given, "-x")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    pytester.runpytest_inprocess(given, "--lf").assert_outcomes(failed=1, deselected=4)
