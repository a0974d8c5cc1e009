"""The terminal section as pytest writes it, tracebacks without our frames, and what an interrupted session keeps."""

import io
import json
import re
import shutil
from importlib import import_module

import pytest

from tests.conftest import FIXTURES, SHIPPED

RUNS = FIXTURES / "runs"
FACTORY = f"{FIXTURES / 'attention_only.py'}:two_layers"
GATED = (f"--induction-model={SHIPPED['llama']}", "-p", "no:cacheprovider")


def of_section(result):
    """The lines below the title of the section."""
    lines = result.outlines
    start = next(place for place, line in enumerate(lines) if re.fullmatch(r"=+ induction =+", line))
    return lines[start + 1 :]


def test_the_section_is_compact_and_shows_more_where_asked(pytester):
    """Claims, head map and the induction heads; with -v all scores, estimates and where they come from."""
    section = of_section(pytester.runpytest_inprocess(*GATED))
    assert section[3:6] == ["", "    prefix matching, 0 ▁▂▃▄▅▆▇█ 1: a row for each layer, a mark for each head", "    L0  ▁▁▁▁"]
    assert section[6].endswith("L1  ████")
    assert section[-2].startswith("  near          L0H1 ")
    assert not any("first token" in line or "measured" in line for line in section)
    verbose = of_section(pytester.runpytest_inprocess(*GATED, "-v"))
    assert sum(line.startswith("  measured      ") for line in verbose) == 3
    assert any("first token" in line for line in verbose)


def test_quiet_is_one_line(pytester):
    """And the exit status as ever."""
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", f"--induction-model={SHIPPED['one-layer']}", "--tb=no")
    assert result.ret == 1
    line = next(line for line in result.outlines if line.startswith("induction: "))
    assert line.startswith("induction: 0 SHOWN, 2 REFUTED (has_induction_head of ")
    assert not any(re.search(r"= induction =|▁|prefix matching", line) for line in result.outlines)


@pytest.mark.parametrize("name", ["CI", "BUILD_NUMBER"])
def test_quiet_is_one_line_in_ci_too(pytester, monkeypatch, name):
    """There pytest prints the whole reason of a failure in its own summary, under our line."""
    monkeypatch.setenv(name, "true")
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", f"--induction-model={SHIPPED['one-layer']}", "--tb=no")
    lines = result.outlines
    ours = next(place for place, line in enumerate(lines) if line.startswith("induction: "))
    assert "short test summary" in lines[ours + 1]
    assert sum("prefix matching" in line for line in lines) == 1


def test_a_try_that_was_run_again_is_not_counted(pytester):
    """What the last one found is."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        from pytest_induction import assert_copies_repeats
        from pytest_induction.planted import induction_head, uniform_head

        tries = [uniform_head(), induction_head()]

        def test_it():
            assert_copies_repeats(tries.pop(0))
        """
    )
    result = pytester.runpytest_inprocess("-q", "--reruns=1")
    assert "induction: 1 SHOWN, 0 REFUTED, 0 UNDETERMINED" in result.outlines


def test_colours_are_for_terminals_only(pytester):
    """Nothing but text in a file or a pipe; marks where they are asked for."""
    plain = pytester.runpytest_inprocess(*GATED)
    assert "\x1b[" not in plain.stdout.str()
    coloured = pytester.runpytest_inprocess(*GATED, "--color=yes").stdout.str()
    assert "\x1b[32m  SHOWN, passed  has_induction_head " in coloured
    assert re.search(r"\x1b\[1m  \* L1H0 ", coloured)


def test_a_terminal_without_block_characters_gets_digits(pytester, monkeypatch):
    """As its encoding says."""
    from pytest_induction.plugin import terminal as session_terminal

    class Ascii(io.StringIO):
        encoding = "ascii"

    told = {}
    real = session_terminal._write

    def write(reporter, evidence):
        file, written = reporter._tw._file, Ascii()
        reporter._tw._file = written
        try:
            real(reporter, evidence)
        finally:
            reporter._tw._file = file
        told["text"] = written.getvalue()

    monkeypatch.setattr(session_terminal, "_write", write)
    pytester.runpytest_inprocess(*GATED)
    assert re.search("^    L0  [.]{4}\n    L1  [89]{4}$", told["text"], re.MULTILINE)
    assert told["text"].isascii()


FAILING = f"""
import pytest
from pytest_induction import *
from pytest_induction.interventions import ablate, intervene
from pytest_induction.planted import uniform_head
from pytest_induction.probes.strategies import repeated_sequences
from pytest_induction.properties import completes_repeats

RUN = {str(RUNS / "one-layer")!r}
CALLS = {{
    "assertion": lambda _: assert_phase_change(RUN),
    "property": lambda _: check_property(uniform_head(), "completes_repeats", max_examples=1, seed=0),
    "no run": lambda _: load_run("no-such-run"),
    "bad argument": lambda _: measure_heads(uniform_head(), n_sequences=0),
    "bad backend": lambda _: ablate("L0H0", how="no_such"),
    "bad intervention": lambda _: intervene(uniform_head(), "x").__enter__(),
    "fixture, assertion": lambda induction: induction.assert_has_induction_head(max_sequences=28),
    "fixture, argument": lambda induction: induction.assert_no_induction_head(seed=-1),
    "fixture, text": lambda induction: induction.assert_learns_in_context(),
    "fixture, measure": lambda induction: induction.measure_heads(n_sequences=0),
    "fixture, probe": lambda induction: induction.probe(period=999),
}}


@pytest.fixture(scope="session")
def induction_model():
    return uniform_head()


@pytest.mark.parametrize("name", CALLS)
def test_it(induction, name):
    CALLS[name](induction)


@given_probes(repeated_sequences, period=(4, 4))
def test_given(outcome):
    completes_repeats(outcome)


@given_probes(repeated_sequences, period=(4, 4))
def test_given_own(outcome):
    assert outcome.losses.mean() < 0.1


@given_probes(repeated_sequences, no_such=1)
def test_given_wrong(outcome):
    pass
"""


def test_tracebacks_show_the_users_own_file_alone(pytester):
    """Whatever fails: an assertion, a bad argument, through the fixture, on generated sequences."""
    place = pytester.makepyfile(FAILING).name
    result = pytester.runpytest_inprocess("-v", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=14)
    said = result.stdout.str()
    assert set(re.findall(r"^(\S+\.py):\d+: ", said, re.MULTILINE)) == {place}
    assert not re.search(r"pytest_induction/|hypothesis/\w+\.py|During handling|Traceback", said)
    assert len(re.findall(r"^E +pytest_induction\.errors\.", said, re.MULTILINE)) == 12


def test_full_trace_shows_our_frames(pytester):
    """They are hidden, not lost."""
    pytester.makepyfile("from pytest_induction.interventions import ablate\ndef test_it(): ablate('L0H0', how='no_such')")
    for more, shown in (((), False), (("--full-trace",), True)):
        said = pytester.runpytest_inprocess("-p", "no:cacheprovider", *more).stdout.str()
        assert bool(re.search(r"pytest_induction/\S*\.py:\d+", said)) is shown
        assert "ArgumentError: `how`" in said


def kept(pytester):
    """Where the one sweep of a session is kept."""
    (place,) = (pytester.path / ".pytest_cache" / "d" / "induction-sweeps").iterdir()
    return place


class TestInterruption:
    """Ctrl-C: what was measured is shown, and where the rest is kept."""

    @pytest.fixture
    def interrupted(self, pytester, monkeypatch):
        """Run pytest, interrupted in the given call of a function that measures."""

        def run(place, name, *arguments, at=1):
            real, calls = getattr(place, name), []

            def measuring(*given, **named):
                calls.append(given)
                if len(calls) == at:
                    raise KeyboardInterrupt
                return real(*given, **named)

            monkeypatch.setattr(place, name, measuring)
            result = pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True)
            monkeypatch.setattr(place, name, real)
            assert result.ret == pytest.ExitCode.INTERRUPTED
            return result

        return run

    def test_in_a_gate_the_verdicts_before_it_are_shown(self, interrupted):
        """Whatever was reached; the gate is named."""
        from pytest_induction.behaviour import claims

        result = interrupted(claims, "judge_copying", *GATED)
        section = of_section(result)
        assert section[1].startswith("  SHOWN, passed  has_induction_head ")
        assert f"interrupted in {SHIPPED['llama']}::copies_repeats" in section

    def test_in_a_test_those_that_it_had_reached_are_shown_too(self, interrupted, pytester):
        """And told to who writes reports, under a key of the session."""
        from pytest_induction.behaviour import claims

        pytester.makeconftest(
            """
            import pytest
            from pytest_induction.plugin.terminal import INTERRUPTED

            @pytest.hookimpl(trylast=True)
            def pytest_sessionfinish(session):
                (told,) = session.config.stash[INTERRUPTED]
                print(told["nodeid"], [each["claim"] for each in told["evidence"]])
            """
        )
        pytester.makepyfile(
            """
            from pytest_induction import assert_copies_repeats, assert_has_induction_head
            from pytest_induction.planted import induction_head

            def test_it():
                assert_has_induction_head(induction_head())
                assert_copies_repeats(induction_head())
            """
        )
        result = interrupted(claims, "judge_copying", "-s")
        name = "test_in_a_test_those_that_it_had_reached_are_shown_too.py::test_it"
        assert f"{name} ['has_induction_head']" in result.stdout.str()
        section = of_section(result)
        assert section[1].startswith("  SHOWN, passed  has_induction_head ")
        assert f"interrupted in {name}; of what it found, 1 verdict above" in section

    def test_a_sweep_says_where_it_is_kept_and_goes_on(self, interrupted, pytester):
        """The same command measures the rest, and nothing twice."""
        workers = import_module("pytest_induction.runs.workers")  # the one that sessions in this process import

        checkpoints = pytester.mkdir("checkpoints")
        for step in (0, 25, 50):
            shutil.copy(RUNS / "two-layers-checkpoints" / f"step-{step:03d}.safetensors", checkpoints)
        options = [f"--induction-run={checkpoints}", f"--induction-factory={FACTORY}", "-k", "log_is_sane"]
        result = interrupted(workers._ProcessPool, "next_event", *options, at=3)  # it is ready, one checkpoint is measured
        said = [line for line in result.outlines if line.startswith("  the sweep of ")]
        assert said == [
            f"  the sweep of {checkpoints} is kept in {kept(pytester)}: the same again goes on where it was broken off"
        ]
        assert len((kept(pytester) / "snapshots.jsonl").read_text().splitlines()) == 1
        pytester.runpytest_inprocess(*options).assert_outcomes(failed=1, deselected=4)  # three checkpoints are too few to judge
        steps = [json.loads(line)["step"] for line in (kept(pytester) / "snapshots.jsonl").read_text().splitlines()]
        assert steps == [0, 25, 50]

    def test_nothing_is_said_of_tests_that_are_not_ours(self, pytester):
        """An unrelated session is not spoken about."""
        pytester.makepyfile("def test_it(): raise KeyboardInterrupt")
        result = pytester.runpytest_inprocess(no_reraise_ctrlc=True)
        assert "induction" not in "".join(line for line in result.outlines if not line.startswith("plugins:"))


class Watched(io.StringIO):
    """A terminal that somebody watches, or a file; what was written stays when it is closed."""

    def __init__(self, *, watched):
        super().__init__()
        self._watched = watched

    def isatty(self):
        return self._watched

    def close(self):
        self.seek(0)


@pytest.mark.parametrize("watched", [True, False])
def test_a_sweep_for_a_gate_and_a_report_show_how_far_they_are(pytester, monkeypatch, watched):
    """Where somebody watches, and nothing where nobody does."""
    from pytest_induction import progress
    from pytest_induction.plugin import hooks as plugin

    shown = []

    def opened(config):
        shown.append(Watched(watched=watched))
        return shown[-1]

    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "LINES", (600.0, 600.0))
    monkeypatch.setattr(plugin, "open_terminal", opened)
    checkpoints = pytester.mkdir("checkpoints")
    shutil.copy(RUNS / "two-layers-checkpoints" / "step-000.safetensors", checkpoints)
    report = ["--induction-report=report.json", "--induction-charts=heads"]
    run = [f"--induction-run={checkpoints}", f"--induction-factory={FACTORY}", f"--induction-model={SHIPPED['llama']}"]
    pytester.runpytest_inprocess(*run, *report, "-k", "log_is_sane or copies_repeats")
    said = "".join(each.getvalue() for each in shown)
    named = set(re.findall(r"\r([\w ]+):   0%", said))
    assert named >= {"sweep", "copies_repeats", "has_induction_head"} if watched else not said
