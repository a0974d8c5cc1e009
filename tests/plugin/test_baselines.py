"""The baseline of a session through its life: first run, equal, changed, written again, equal again; and what it never does."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import FIXTURES, SHIPPED

UPDATE, ACCEPT = "--induction-update-baseline", "--induction-accept-baseline"
FILE = "induction-baseline.json"
TWO = """
from pathlib import Path

def value(name):
    return float(Path(name).read_text())

def test_first(induction_baseline):
    induction_baseline.check({"loss": value("first"), "fixed": 1.0})

def test_second(induction_baseline):
    induction_baseline.check({"loss": value("second")})
"""
NOISY = """
import random
import pytest

@pytest.fixture
def measured(induction_baseline):
    def measure():
        noise = random.Random(induction_baseline.seed).gauss(0, 0.1)
        return {"noisy": 5 + noise, "still": 2.0}
    return measure

def test_noise(induction_baseline, measured):
    induction_baseline.check(measured())
"""


@pytest.fixture
def run(pytester):
    """Run pytest with warnings as errors, and without what other plugins keep."""
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers\n")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


@pytest.fixture
def two(pytester, run):
    """Two tests that check what two files say: (run, write a value)."""
    pytester.makepyfile(test_two=TWO)

    def write(**values):
        for name, value in values.items():
            (pytester.path / name).write_text(str(value))

    write(first=2.5, second=0.25)
    return run, write


def kept(pytester, file=FILE):
    return json.loads((pytester.path / file).read_text())["entries"]


def life(start, write, file, written=""):
    """First run, written, equal, changed, written again, equal again; `start` runs pytest."""
    first = start()
    first.assert_outcomes(failed=2)
    first.stdout.fnmatch_lines([f"*BaselineFailed: baseline 'test_two.py::test_first' is new: {FILE} does not exist"])
    first.stdout.fnmatch_lines([f"*  next: to write it: pytest {UPDATE} test_two.py::test_first"])
    assert not file.exists()

    writing = start(UPDATE)
    writing.assert_outcomes(failed=2)
    writing.stdout.fnmatch_lines([f"baseline {FILE} is written when the session ends: 'test_two.py::test_first' (new); review*"])
    writing.stdout.fnmatch_lines(
        ["*= induction baseline =*", f"{FILE}: 2 new", "  written: test_two.py::test_first, *; review and commit it"]
    )
    before = file.read_bytes(), file.stat().st_mtime_ns

    for options in ((), (UPDATE,), (ACCEPT,)):
        equal = start(*options)
        equal.assert_outcomes(passed=2)
        equal.stdout.no_fnmatch_line("*induction baseline*")
        assert (file.read_bytes(), file.stat().st_mtime_ns) == before

    write(first=3.5)
    changed = start()
    changed.assert_outcomes(passed=1, failed=1)
    changed.stdout.fnmatch_lines(
        [
            "*baseline 'test_two.py::test_first' differs: 1 changed, of 2 fields",
            "*  changed: loss was 2.5, is 3.5: +1, tolerance 0.0025",
            f"*  file: {FILE}",
            f"*  next: if this is as it should be: pytest {UPDATE} test_two.py::test_first",
        ]
    )
    changed.stdout.fnmatch_lines([f"{FILE}: 1 same, 1 changed"])
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before

    again = start(UPDATE)
    again.assert_outcomes(passed=1, failed=1)
    assert file.read_bytes() == before[0].replace(b'value": 2.5', b'value": 3.5')  # and not a byte more
    start().assert_outcomes(passed=2)


def test_a_baseline_lives_as_it_should(pytester, two):
    """A first run fails and says how, writing fails for review, what is equal passes and touches nothing, a change fails."""
    run, write = two
    life(run, write, pytester.path / FILE)


def test_workers_write_nothing_and_the_session_writes_once(pytester, two, monkeypatch):
    """Two workers of pytest-xdist: the same outcomes, the same file, the same words."""
    pytest.importorskip("xdist")
    run, write = two

    def start(*arguments):
        with monkeypatch.context() as patched:  # two workers of few plugins: it is quick
            patched.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            patched.setenv("PYTEST_ADDOPTS", "-p xdist -p pytest_induction.plugin.hooks -p no:cacheprovider")
            return pytester.runpytest_subprocess("-n", "2", *arguments)

    writing = start(UPDATE)
    writing.assert_outcomes(failed=2)
    writing.stdout.fnmatch_lines([f"{FILE}: 2 new", "  written: test_two.py::test_first, *; review and commit it"])
    file = pytester.path / FILE
    before = file.read_bytes()
    write(first=3.5)
    changed = start()
    changed.assert_outcomes(passed=1, failed=1)
    changed.stdout.fnmatch_lines(["*  changed: loss was 2.5, is 3.5: +1, tolerance 0.0025", f"{FILE}: 1 same, 1 changed"])
    assert file.read_bytes() == before
    (pytester.path / "test_two.py").write_text(TWO.replace("test_second", "test_other"))
    accepted = start(ACCEPT)
    accepted.assert_outcomes(passed=2)
    accepted.stdout.fnmatch_lines(
        [
            f"{FILE}: 1 changed, 1 new",
            "  written: test_two.py::test_first, test_two.py::test_other",
            "  unused: test_two.py::test_second; no test of this session asked for them",
        ]
    )
    assert list(kept(pytester)) == ["test_two.py::test_first", "test_two.py::test_other", "test_two.py::test_second"]
    run().assert_outcomes(passed=2)


def test_what_is_accepted_passes(pytester, two):
    """The file is written, and the next run is held against it."""
    run, write = two
    run(ACCEPT).assert_outcomes(passed=2)
    write(second=9)
    run().assert_outcomes(passed=1, failed=1)
    result = run(ACCEPT)
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"{FILE}: 1 same, 1 changed", "  written: test_two.py::test_second"])
    assert kept(pytester)["test_two.py::test_second"]["fields"] == {"loss": {"value": 9.0}}


def test_missing_and_new_fields_fail_and_are_told_apart(pytester, run):
    """What the file has and the test does not measure never passes, nor what the test measures and the file lacks."""
    pytester.makepyfile(test_it="def test_it(induction_baseline):\n    induction_baseline.check({'a': 1, 'b': 2})\n")
    run(ACCEPT)
    pytester.makepyfile(test_it="def test_it(induction_baseline):\n    induction_baseline.check({'a': 1, 'c': 3.5})\n")
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*differs: 1 missing, 1 new, of 2 fields",
            "*  missing: b (in the file, not measured)",
            "*  new: c = 3.5 (measured, not in the file)",
        ]
    )
    assert "test_it.py:2" in result.stdout.str() and "checking.py" not in result.stdout.str()  # the user's line, not ours


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "'0.5'", "None", "True", "[1.0]"])
def test_what_is_no_finite_number_fails_and_is_not_written(pytester, run, value):
    """Whatever is asked for; one line says which field it is."""
    pytester.makepyfile(f"def test_it(induction_baseline):\n    induction_baseline.check({{'a': 1.0, 'b': {value}}})\n")
    result = run(ACCEPT)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ArgumentError: `measured` must have finite numbers, 'b' is *"])
    assert not (pytester.path / FILE).exists()


def test_entries_are_called_as_their_tests_whatever_the_arguments(pytester):
    """With no ini file pytest's root follows the arguments; the names of entries do not. Parameters are part of them."""
    body = "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_it(induction_baseline, x):\n    induction_baseline.check({'a': x})\n"
    pytester.mkdir("inside").joinpath("test_it.py").write_text(body)
    start = lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", f"--induction-baseline={FILE}", *arguments)
    start(ACCEPT, "inside/test_it.py").assert_outcomes(passed=2)
    assert list(kept(pytester)) == ["inside/test_it.py::test_it[1]", "inside/test_it.py::test_it[2]"]
    for arguments in ((), ("inside",), (pytester.path / "inside" / "test_it.py",)):
        start(*arguments).assert_outcomes(passed=2)


def test_several_checks_of_a_test_need_names(pytester, run):
    """Two entries of one name would be held against each other."""
    pytester.makepyfile(
        """
        def test_unnamed(induction_baseline):
            induction_baseline.check({"a": 1})
            induction_baseline.check({"a": 2})

        def test_named(induction_baseline):
            induction_baseline.check({"a": 1})
            induction_baseline.check({"a": 2}, name="the other")
        """
    )
    result = run(ACCEPT)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*ArgumentError: this test has asked for the entry * before: give each check a `name` of its own"]
    )
    assert list(kept(pytester))[-1] == "the other"


def test_checks_come_before_the_end_of_the_test(pytester, run):
    """One that comes while fixtures are torn down is an error, and nothing of it is written."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def early_and_late(induction_baseline):
            induction_baseline.check({"a": 1}, name="early")
            yield
            induction_baseline.check({"a": 1}, name="late")

        def test_it(early_and_late):
            pass
        """
    )
    result = run(UPDATE)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*BaselineError: the test has ended: ask for the entry 'late' before*"])
    assert list(kept(pytester)) == ["early"]


def test_an_entry_that_two_tests_measure_differently_is_not_written(pytester, run):
    """The session fails and names both, though they passed."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("x", [1, 2])
        def test_it(induction_baseline, x):
            induction_baseline.check({"a": x}, name="same")
        """
    )
    result = run(ACCEPT)
    result.assert_outcomes(passed=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["  not written: same, of which *test_it[[]1], *test_it[[]2] have different numbers; name each check"]
    )
    assert not (pytester.path / FILE).exists()


def test_unused_entries_are_named_where_all_tests_ran_and_only_there(pytester, two):
    """A selection, a test that was left out or did not end, or a file that was named: then nothing is called unused."""
    run, _ = two
    run(ACCEPT)
    gone = TWO.replace("test_second", "test_other")
    (pytester.path / "test_two.py").write_text(gone)
    run(ACCEPT, "test_two.py").stdout.no_fnmatch_line("*unused:*")
    unused = "  unused: test_two.py::test_second; no test of this session asked for them"
    run().stdout.fnmatch_lines([unused])
    run("-k", "first or other").stdout.fnmatch_lines([unused])  # which deselects nothing
    for narrowed in (("-k", "first"), ("test_two.py",), ("--deselect", "test_two.py::test_first"), ("--ignore", "inside")):
        run(*narrowed).stdout.no_fnmatch_line("*unused:*")
    (pytester.path / "test_two.py").write_text(f"import pytest\n{gone}\n    pytest.skip('not today')\n")
    run().stdout.no_fnmatch_line("*unused:*")
    assert "test_two.py::test_second" in kept(pytester)  # never removed by itself


def test_a_tolerance_written_by_hand_holds_and_stays(pytester, two):
    """Also when its number is written again."""
    run, write = two
    run(ACCEPT)
    file = pytester.path / FILE
    file.write_text(re.sub(r'"value": 2.5', '"value": 2.5,\n     "tolerance": 0.5', file.read_text()))
    write(first=2.9)
    run().assert_outcomes(passed=2)
    write(first=3.5)
    run().assert_outcomes(passed=1, failed=1)
    run(ACCEPT).assert_outcomes(passed=2)
    assert kept(pytester)["test_two.py::test_first"]["fields"]["loss"] == {"value": 3.5, "tolerance": 0.5}


def test_what_a_failed_test_measured_is_not_written(pytester, run):
    """What is accepted is what a test stands behind; other tests do not matter, nor that -x ends the session."""
    pytester.makepyfile(
        """
        def test_good(induction_baseline):
            induction_baseline.check({"a": 1})

        def test_bad(induction_baseline):
            induction_baseline.check({"a": 2})
            assert False

        def test_never(induction_baseline):
            induction_baseline.check({"a": 3})
        """
    )
    result = run(ACCEPT, "-x")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["  written: *::test_good", "  not written: *::test_bad, whose tests failed otherwise"])
    assert [name.rpartition("::")[2] for name in kept(pytester)] == ["test_good"]


def test_a_session_that_is_broken_off_writes_what_was_complete(pytester):
    """Ctrl-C in the second test leaves the first one's entry."""
    pytester.makepyfile(
        """
        def test_good(induction_baseline):
            induction_baseline.check({"a": 1})

        def test_stopped(induction_baseline):
            induction_baseline.check({"a": 2})
            raise KeyboardInterrupt
        """
    )
    assert pytester.inline_run("-p", "no:cacheprovider", ACCEPT, no_reraise_ctrlc=True).ret == 2
    assert [name.rpartition("::")[2] for name in kept(pytester)] == ["test_good"]


def test_a_test_that_is_run_again_counts_once(pytester, run):
    """By pytest-rerunfailures: what its last run measured is what is written."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        RUNS = []

        def test_flaky(induction_baseline):
            RUNS.append(0)
            induction_baseline.check({"runs": len(RUNS)})
            assert len(RUNS) == 2
        """
    )
    result = run(ACCEPT, "--reruns", "2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"{FILE}: 1 new"])
    assert [each["fields"] for each in kept(pytester).values()] == [{"runs": {"value": 2.0}}]


def test_calibrated_tolerances_are_those_of_the_noise(pytester, run):
    """A field that changes with the seed gets room, one that does not keeps the default; other seeds then pass."""
    pytester.makepyfile(test_noise=NOISY)
    result = run(ACCEPT, "--induction-calibrate=8")
    result.assert_outcomes(passed=1)
    fields = kept(pytester)["test_noise.py::test_noise"]["fields"]
    assert fields["still"] == {"value": 2.0, "tolerance": 0.00201}
    assert 0.2 < fields["noisy"]["tolerance"] < 1.2
    for seed in range(5):
        run(f"--induction-seed={seed}").assert_outcomes(passed=1)
    before = (pytester.path / FILE).read_bytes()
    run(UPDATE, "--induction-calibrate=8").assert_outcomes(passed=1)
    assert (pytester.path / FILE).read_bytes() == before
    run(UPDATE, "--induction-calibrate=9").assert_outcomes(failed=1)
    assert (pytester.path / FILE).read_bytes() != before


def test_match_lengths_are_held_against_a_baseline(pytester, run):
    """Written, equal, and changed where a head no longer matches, at the name of the head and the number of tokens."""
    pytester.makepyfile(
        test_lengths="""
        def test_lengths(induction, induction_baseline):
            induction_baseline.check(induction.measure_match_lengths(n_sequences=4))
        """
    )
    model = "from pytest_induction import planted\n\ndef make():\n    return planted.{}\n"
    for name, call in (("good", "induction_head()"), ("lost", "previous_token_head(head=0)")):
        (pytester.path / f"{name}.py").write_text(model.format(call))
    of = lambda name, *options: run("test_lengths.py", "-k", "test_lengths", f"--induction-model={name}.py:make", *options)
    of("good", ACCEPT).assert_outcomes(passed=1)
    (entry,) = kept(pytester).values()
    assert len(entry["fields"]) == 4 * 8
    assert entry["fields"]["exactly_one.L1H0"]["value"] == pytest.approx(1, abs=1e-5)
    assert entry["fields"]["after_breaks.L1H0"]["value"] == pytest.approx(0, abs=1e-5)
    of("good").assert_outcomes(passed=1)
    changed = of("lost")
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["*differs: 3 changed, of 32 fields", "*  changed: *.L1H0 was 1, is *"])


def test_calibration_reseeds_the_model_and_leaves_no_trace(pytester, run):
    """The fixture `induction` measures with other probes in each repeat, a marker's seed goes on too, verdicts are told once."""
    pytester.makepyfile(
        """
        import pytest

        SEEDS = []

        @pytest.mark.induction(seed=40)
        def test_marked(induction, induction_baseline):
            SEEDS.append(induction.seed)
            induction_baseline.check(induction.measure_heads(n_sequences=6))

        def test_plain(induction, induction_model, induction_baseline, record_property):
            record_property("seed", induction.seed)
            assert induction.seed == induction_model.seed == induction_baseline.seed
            induction.assert_copies_repeats(max_sequences=28)
            induction_baseline.check({"fixed": 1})
            induction_baseline.assert_heads_preserved(name="heads of it", n_sequences=12)
            SEEDS.append(induction.seed)

        def test_late(request):
            request.getfixturevalue("induction_baseline")

        def test_seeds(request):
            assert SEEDS == [40, 41, 42, 43, 44, 40, 3, 4, 5, 6, 7, 3]
        """
    )
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['two-layers']}\n")
    result = run(ACCEPT, "--induction-calibrate", "5", "--induction-seed=3", "--junit-xml=report.xml", "-ojunit_family=legacy")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["--induction-calibrate repeats tests that take 'induction_baseline' as an argument*"])
    result.stdout.fnmatch_lines(["*SHOWN*copies_repeats*", "  calibrated, but no repeat differs: *::test_plain; *"])
    result.stdout.no_fnmatch_line("*times)*")
    assert (pytester.path / "report.xml").read_text().count('name="seed"') == 1
    marked = next(each for name, each in kept(pytester).items() if name.endswith("test_marked"))
    assert kept(pytester)["heads of it"]["profile"]["probed"]["seed"] == 3
    assert len(marked["fields"]) == 2 * 8 and marked["environment"]["device"] == "cpu"
    assert max(each["tolerance"] for each in marked["fields"].values()) > 0.01


def test_a_field_that_some_repeat_lacks_cannot_be_calibrated(pytester, run):
    """One line says which, and nothing is written."""
    body = "def test_it(induction_baseline):\n    seed = induction_baseline.seed\n    induction_baseline.check({'a': 1, **({'b': 2} if seed % 2 == 0 else {})})\n"
    pytester.makepyfile(test_it=body)
    result = run(ACCEPT, "--induction-calibrate=5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*BaselineError: entry 'test_it.py::test_it' cannot be calibrated: 'b' was measured in 3 of 5 *"]
    )
    assert not (pytester.path / FILE).exists()


def test_numbers_within_tolerance_are_told_of_where_another_machine_may_be_why(pytester, two):
    """Only where they differ and something that changes arithmetic does; what is equal is not spoken of."""
    run, write = two
    run(ACCEPT)
    file = pytester.path / FILE
    text = re.sub(r'"torch": "[^"]*"', '"torch": "1.0"', file.read_text())
    file.write_text(re.sub(r'"python": "[^"]*"', '"python": "3.0"', text))
    run().stdout.no_fnmatch_line("*induction baseline*")
    write(first=2.5001)
    result = run()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["  within tolerance, but not the same: test_two.py::test_first (torch 1.0 there, * here)"])
    write(first=4)
    run().stdout.fnmatch_lines(["*  measured elsewhere: python 3.0 there, * here; torch 1.0 there, * here"])


def usage(*arguments):
    return ["--induction-baseline=there.json", *arguments]


USAGE = {
    "no file": (["--induction-baseline=none.json"], "--induction-baseline: there is no 'none.json': write it with"),
    "directory": (["--induction-baseline=."], "--induction-baseline: . is a directory"),
    "no directory": (["--induction-baseline=no/b.json", UPDATE], "no/b.json would lie in a directory that does not exist"),
    "damaged": (["--induction-baseline=test_it.py"], "test_it.py is damaged"),
    "both": ([UPDATE, ACCEPT], "give one of them"),
    "few": (["--induction-calibrate=4", UPDATE], "expected a whole number of repeats from 5 up, got '4'"),
    "words": (["--induction-calibrate=many", UPDATE], "expected a whole number of repeats from 5 up, got 'many'"),
    "calibrate alone": (["--induction-calibrate=5"], "give --induction-update-baseline or --induction-accept-baseline too"),
}


@pytest.mark.parametrize("case", USAGE)
def test_options_that_cannot_be_are_usage_errors(pytester, run, case):
    """One line, before anything is measured."""
    pytester.makepyfile(test_it="def test_it(induction_baseline): induction_baseline.check({'a': 1})")
    arguments, said = USAGE[case]
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()
    assert len(result.stderr.str().strip().splitlines()) == 1


def test_a_damaged_file_fails_its_tests_and_is_left_alone(pytester, two):
    """The one of the ini key is read when it is asked for; not even accepting writes over it."""
    run, _ = two
    file = pytester.path / "mine.json"
    file.write_text('{"schema": 1,')
    pytester.makeini("[pytest]\ninduction_baseline = mine.json\n")
    result = run(ACCEPT)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*BaselineError: *mine.json is damaged: *line 1*; mend it by hand, or have it from version control"]
    )
    assert file.read_text() == '{"schema": 1,'


def test_a_file_that_cannot_be_written_fails_the_session(pytester, two, monkeypatch):
    """Though all tests passed, and says why."""
    run, _ = two
    monkeypatch.setattr(Path, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    result = run(ACCEPT)
    result.assert_outcomes(passed=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["  not written: *induction-baseline.json cannot be written: No space left on device"])
    assert [each.name for each in pytester.path.glob(".induction*")] == []


@pytest.fixture
def gate(run):
    """Gate a model by what a file has of its heads."""
    return lambda model, *arguments: run(
        f"--induction-model={model}", "--induction-baseline=heads.json", "-k", "heads_preserved", *arguments
    )


def test_a_named_model_is_held_against_the_heads_of_the_file(pytester, gate, run):
    """A gate writes them and fails, passes for the same model, and fails for one that has lost them."""
    name = f"{SHIPPED['two-layers']}::heads_preserved"
    writing = gate(SHIPPED["two-layers"], UPDATE)
    writing.assert_outcomes(failed=1, deselected=2)
    writing.stdout.fnmatch_lines(
        ["baseline heads.json is written when the session ends: 'heads' (new); review and commit it", "  written: heads;*"]
    )
    before = (pytester.path / "heads.json").read_bytes()
    same = gate(SHIPPED["two-layers"], ACCEPT, "-v")
    same.assert_outcomes(passed=1, deselected=2)
    same.stdout.fnmatch_lines([f"*{Path(name).name} PASSED*", "*SHOWN*heads_preserved*", "heads.json: 1 same"])
    assert (pytester.path / "heads.json").read_bytes() == before
    lost = gate(SHIPPED["one-layer"])
    lost.assert_outcomes(failed=1, deselected=2)
    lost.stdout.fnmatch_lines(["heads_preserved is REFUTED, expected SHOWN*"])
    assert (pytester.path / "heads.json").read_bytes() == before
    pytester.makepyfile(
        test_it="def test_it(induction_baseline):\n    assert induction_baseline.assert_heads_preserved(name='heads').verdict == 'SHOWN'\n"
    )
    run("test_it.py", "--induction-baseline=heads.json", f"-oinduction_model={SHIPPED['two-layers']}").assert_outcomes(passed=1)


def test_a_gate_needs_the_heads_in_the_file(pytester, gate, run):
    """A file that lacks them fails the gate where gates are all that is run; beside tests of one's own there is none."""
    pytester.makepyfile(test_it="def test_it(induction_baseline): induction_baseline.check({'a': 1})")
    run("--induction-baseline=heads.json", ACCEPT)
    result = gate(SHIPPED["two-layers"])
    result.assert_outcomes(failed=1, deselected=2)
    result.stdout.fnmatch_lines(
        ["baseline 'heads' is new: heads.json has no such entry", "  next: to write it: pytest *heads_preserved*"]
    )
    named = [f"--induction-model={SHIPPED['two-layers']}", "--induction-baseline=heads.json", "--collect-only", "-q"]
    assert "heads_preserved" not in run("test_it.py", *named).stdout.str()


def test_a_model_without_heads_is_not_kept(gate, pytester):
    """What has nothing to lose could never fail."""
    gate(SHIPPED["one-layer"], ACCEPT).assert_outcomes(failed=1, deselected=2)
    assert not (pytester.path / "heads.json").exists()


def test_the_blocks_of_the_page_run(pytester, run):
    """Written first, and then equal."""
    page = (FIXTURES.parent / "docs" / "baselines.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['llama']}\nfilterwarnings = error\nnorecursedirs = fixtures\n")
    (pytester.path / "fixtures").symlink_to(FIXTURES)
    pytester.makepyfile(**{f"test_block_{index}": block for index, block in enumerate(blocks)})
    for options in ((ACCEPT,), ()):
        outcomes = run(*options).parseoutcomes()
        assert outcomes.keys() == {"passed"}
        assert outcomes["passed"] == sum(len(re.findall(r"^def test_", block, re.MULTILINE)) for block in blocks)
