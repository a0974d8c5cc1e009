"""A report is never greener than pytest: page, Markdown, records, and what GitHub gets, of sessions that end badly in any way."""

import re
import sys
from dataclasses import replace

import pytest

from pytest_induction.report.session_records import result
from tests.sessions import FAILS, HEAD, LAST, PARALLEL, assert_green, assert_red, runner


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest with every report, as GitHub Actions does."""
    return runner(pytester, monkeypatch)


ALONE_AND_MOSTLY_BESIDE = pytest.mark.parametrize(
    "processes", [pytest.param((), id="alone"), pytest.param(PARALLEL, id="xdist", marks=pytest.mark.exhaustive)]
)


@pytest.mark.parametrize("processes", [(), PARALLEL], ids=["alone", "xdist"])
def test_what_passed_is_green(run, pytester, processes):
    """The control: tests of others are counted, and not listed; a failure that was expected is none, nor is a skipped module."""
    expected = "\n@pytest.mark.xfail(strict=True)\ndef test_expected():\n    assert False\n"
    skipped = "import pytest\npytest.skip('no', allow_module_level=True)\n"
    pytester.makepyfile(test_it=HEAD + expected + LAST, test_skipped=skipped)
    seen = run(*processes)
    assert_green(seen)
    assert seen.heading[1] == "All 4 tests passed"
    assert seen.markdown.startswith("## ✅ Induction: 3 passed, 1 xfailed, 1 skipped\n")
    assert [test.nodeid for test in seen.records.tests] == ["test_it.py::test_first", "test_it.py::test_last"]
    assert seen.records.others == {"passed": 1, "skipped": 1, "xfailed": 1}
    for view in (seen.page, seen.markdown):
        assert "3 tests are counted and not listed, without anything of ours: 1 passed, 1 skipped, 1 xfailed" in view


DIES = """
def test_dies(induction_model):
    os._exit(1)
"""
DIES_ELSEWHERE = """
def test_dies():
    os._exit(1)
"""
DIES_EARLY = """
@pytest.fixture
def dying(induction_model):
    os._exit(1)

def test_dies(dying):
    pass
"""
DIES_LATE = """
@pytest.fixture
def dying(induction_model):
    yield
    os._exit(1)

def test_dies(dying):
    pass
"""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(DIES, id="ours"),
        pytest.param(DIES_ELSEWHERE, id="other", marks=pytest.mark.exhaustive),
        pytest.param(DIES_EARLY, id="setup", marks=pytest.mark.exhaustive),
        pytest.param(DIES_LATE, id="teardown"),
    ],
)
def test_a_worker_that_dies(run, pytester, body):
    """In a test of ours or of others, before it or after it; the next worker runs the rest."""
    pytest.importorskip("xdist")
    pytester.makepyfile(HEAD + body + LAST)
    seen = run(*PARALLEL)
    assert seen.status == 1
    assert_red(seen, "worker .*gw0.* crashed while running .*test_dies", errors=2)
    assert seen.outcomes == {"failed": 1, "passed": 3}
    assert seen.heading == ("failed", "1 of 4 tests failed")


@pytest.mark.exhaustive
def test_a_time_limit_that_ends_the_process(run, pytester):
    """pytest-timeout's method `thread`, in a worker."""
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(HEAD + "\ndef test_slow(induction_model):\n    time.sleep(60)\n" + LAST)
    seen = run(*PARALLEL, "--timeout=1", "--timeout-method=thread")
    assert seen.status == 1
    assert_red(seen, "crashed while running .*test_slow", errors=2)


def test_tests_that_no_worker_is_left_for(run, pytester):
    """They are not run, and named, also those of other plugins."""
    pytest.importorskip("xdist")
    pytester.makepyfile(HEAD + DIES + LAST + "\ndef test_other():\n    pass\n")
    seen = run(*PARALLEL, "--max-worker-restart=0")
    assert seen.status == 1
    assert_red(seen, "2 tests not run", errors=2)
    assert seen.outcomes == {"failed": 1, "passed": 2, "not run": 2}
    left = [(test.nodeid, test.is_ours) for test in seen.records.tests if test.outcome == "not run"]
    assert [(name.rpartition("::")[2], is_ours) for name, is_ours in left] == [("test_last", True), ("test_other", False)]
    assert seen.heading == ("failed", "1 of 3 tests failed, 2 not run")


def test_a_worker_that_dies_before_it_collects(run, pytester):
    """Where nothing is left to collect pytest says that there were no tests."""
    pytest.importorskip("xdist")
    pytester.makepyfile(HEAD)
    pytester.makeconftest("import os\n\ndef pytest_collection():\n    os.environ.get('PYTEST_XDIST_WORKER') and os._exit(1)\n")
    (pytester.path / "tox.ini").write_text("[pytest]\ninduction_model = somewhere\n")
    seen = run(*PARALLEL, "--max-worker-restart=0")
    assert seen.status != 0
    assert_red(seen, "worker gw0 died: ")
    assert seen.outcomes == {}


@ALONE_AND_MOSTLY_BESIDE
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken.gates.toml", "[model\n", "broken.gates.toml"),
        ("test_broken.py", "import no_such_module\n", "no_such_module"),
    ],
)
def test_what_cannot_be_collected(run, pytester, processes, name, text, said):
    """A gate file, a module: an error beside the tests that pass, or in place of them."""
    pytester.makepyfile(test_it=HEAD + LAST)
    (pytester.path / name).write_text(text)
    files = ("test_it.py", name)
    seen = run(*processes, "--continue-on-collection-errors", *files)
    assert seen.status == 1
    assert_red(seen, said)
    assert seen.outcomes == {"error": 1, "passed": 3}
    assert seen.heading == ("failed", "1 of 4 tests failed")
    if not processes:
        stopped = run(*files)
        assert stopped.status == 2
        assert_red(stopped, "1 error during collection", errors=2)
        assert stopped.outcomes == {"error": 1, "not run": 3}


@pytest.mark.parametrize(
    ("processes", "status"), [((), pytest.ExitCode.TESTS_FAILED), (PARALLEL, pytest.ExitCode.INTERRUPTED)], ids=["alone", "xdist"]
)
def test_a_limit_on_failures(run, pytester, processes, status):
    """Of `-x` the report says what it left out."""
    pytester.makepyfile(HEAD + FAILS + LAST + "\ndef test_slow():\n    time.sleep(3)\n" + LAST.replace("last", "after"))
    seen = run(*processes, "-x")
    assert seen.status == status
    assert_red(seen, "stopping after 1 failures", errors=2)
    assert seen.outcomes["failed"] == 1
    assert seen.outcomes["not run"] == 3 if not processes else seen.outcomes["not run"] > 0
    assert seen.heading[0] == "stopped" and seen.heading[1].endswith(" not run")


KINDS = {
    "call": (FAILS, "failed", "not at all"),
    "setup": (
        "\n@pytest.fixture\ndef bad():\n    assert False, 'not at all'\n\ndef test_it(bad):\n    pass\n",
        "error",
        "not at all",
    ),
    "teardown": (
        "\n@pytest.fixture\ndef bad():\n    yield\n    assert False, 'not at all'\n\ndef test_it(bad):\n    pass\n",
        "error",
        "not at all",
    ),
    "strict": ("\n@pytest.mark.xfail(strict=True, reason='not at all')\ndef test_it():\n    pass\n", "failed", "XPASS"),
    "unittest": (
        "\nclass TestIt(unittest.TestCase):\n    def test_it(self):\n        self.fail('not at all')\n",
        "failed",
        "not at all",
    ),
    "unexpected": (
        "\nclass TestIt(unittest.TestCase):\n    @unittest.expectedFailure\n    def test_it(self):\n        pass\n",
        "failed",
        "Unexpected success",
    ),
    "doctest": ("\ndef test_it():\n    '''\n    >>> 1 + 1\n    3\n    '''\n", "failed", "Expected"),
}


@ALONE_AND_MOSTLY_BESIDE
@pytest.mark.parametrize("kind", KINDS)
def test_failures_of_every_kind_without_anything_of_ours(run, pytester, processes, kind):
    """They are listed, counted, and marked once."""
    body, outcome, said = KINDS[kind]
    pytester.makepyfile(HEAD + body + LAST)
    seen = run("--doctest-modules", *processes)
    assert seen.status == 1
    assert [(test.outcome, test.is_ours) for test in seen.records.tests if not test.is_ours] == [(outcome, False)]
    assert said in next(test.message for test in seen.records.tests if not test.is_ours)
    assert_red(seen)
    assert ",line=" in seen.errors[0] or kind == "doctest"


def test_two_processes_tell_the_same_of_failures_as_one(run, pytester):
    """In the same words, without the name of the worker."""
    plain = "\ndef test_plain(induction_model):\n    assert 1 == 2, 'plain'\n"
    pytester.makepyfile(HEAD + "".join(body for body, _, _ in KINDS.values()).replace("test_it(bad)", "test_bad(bad)") + plain)
    one, two = ([replace(test, seconds=0) for test in run("-p", "no:randomly", *each).records.tests] for each in ((), PARALLEL))
    assert len(one) == 5 and one == two
    assert next(test.message for test in one if test.nodeid.endswith("plain")).startswith("AssertionError: plain")


SUBTESTS = {
    "fixture": """
def test_parts(induction_model, subtests):
    for number in range(3):
        with subtests.test("part", number=number):
            assert number != 1, "not this one"
""",
    "unittest": """
class TestParts(unittest.TestCase):
    def test_parts(self):
        for number in range(3):
            with self.subTest("part", number=number):
                self.assertNotEqual(number, 1, "not this one")
""",
}


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="this pytest has no subtests")
@ALONE_AND_MOSTLY_BESIDE
@pytest.mark.parametrize("kind", SUBTESTS)
def test_a_subtest_that_fails(run, pytester, processes, kind):
    """Its test failed, whatever the report on that says."""
    pytester.makepyfile(HEAD + SUBTESTS[kind] + LAST)
    seen = run(*processes)
    assert seen.status == 1
    assert_red(seen, "not this one")
    assert seen.outcomes == {"failed": 1, "passed": 3}
    (test,) = [test for test in seen.records.tests if test.outcome == "failed"]
    assert re.match(r"subtest .*\[part\] \(number='?1'?\): AssertionError: .*not this one", test.message)


def test_what_comes_after_a_failure_is_told_too(run, pytester):
    """A test that failed, and whose teardown did."""
    fixture = "\n@pytest.fixture\ndef bad():\n    yield\n    assert False, 'nor this'\n"
    pytester.makepyfile(HEAD + fixture + "\ndef test_it(bad, induction_model):\n    assert False, 'not that'\n")
    seen = run()
    (test,) = [test for test in seen.records.tests if test.outcome == "failed"]
    assert re.match("call: .*not that.*\n\nteardown: .*nor this", test.message, re.DOTALL)
    assert_red(seen, "not that")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("raise KeyboardInterrupt", 2, "interrupted"),
        ("pytest.exit('enough of this')", 2, "pytest.exit: enough of this"),
        ("pytest.exit('enough of this', returncode=0)", 0, "pytest.exit: enough of this"),
        ("pytest.exit('enough of this', returncode=42)", 42, "pytest.exit: enough of this"),
    ],
)
def test_a_session_that_is_ended(run, pytester, line, status, said):
    """Even where it claims to have ended well: tests were left out."""
    pytester.makepyfile(HEAD + f"\ndef test_it():\n    {line}\n" + LAST)
    seen = run()
    assert seen.status == status
    assert_red(seen, said, errors=2)
    assert seen.outcomes == {"passed": 2, "error": 1, "not run": 1}
    assert seen.heading == ("stopped", "1 of 3 tests failed, 1 not run")


FINISH = """
@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    session.exitstatus = 1
"""
AROUND = """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    done = yield
    session.exitstatus = 9
    return done
"""
UNCONFIGURE = """
def pytest_sessionstart(session):
    session.config.mine = session

def pytest_unconfigure(config):
    config.mine.exitstatus = 7
"""
EXITS = """
def pytest_terminal_summary():
    pytest.exit("not so good", returncode=3)
"""
USAGE = """
def pytest_sessionfinish():
    raise pytest.UsageError("slower than before")
"""
INTERNAL = """
def pytest_runtest_logfinish():
    raise ValueError("a mistake")
"""
CONFTESTS = {
    "finish": (FINISH, 1, "exit status 1"),
    "around": (AROUND, 9, "exit status 9"),
    "unconfigure": (UNCONFIGURE, 7, "exit status 7"),
    "summary": (EXITS, 3, "internal error"),
    "usage": (USAGE, 4, "slower than before"),
    "internal": (INTERNAL, 3, "internal error.*ValueError: a mistake"),
}


@ALONE_AND_MOSTLY_BESIDE
@pytest.mark.parametrize("kind", CONFTESTS)
def test_what_others_make_of_the_exit_status(run, pytester, monkeypatch, processes, kind):
    """However late they change it; nothing else is wrong."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # of the worker that runs this test
    body, status, said = CONFTESTS[kind]
    pytester.makepyfile(HEAD + LAST)
    pytester.makeconftest(f"import os\nimport pytest\nif 'PYTEST_XDIST_WORKER' not in os.environ:\n{indented(body)}")
    seen = run(*processes)
    assert seen.status == status
    assert_red(seen, said)
    assert seen.records.exit_status == status


def indented(text):
    return "".join(f"    {line}" for line in text.splitlines(keepends=True))


def test_a_hook_that_raises_at_the_end(run, pytester):
    """The exception goes through pytest, which ends with a traceback; the reports have it."""
    pytester.makepyfile(HEAD)
    pytester.makeconftest("def pytest_sessionfinish():\n    raise RuntimeError('a mistake')\n")
    seen = run(fresh=True)
    assert seen.status == 1
    assert_red(seen, "RuntimeError: a mistake")


def test_coverage_below_its_bound(run, pytester):
    """pytest-cov fails a session in which all tests passed."""
    pytest.importorskip("pytest_cov")
    pytester.makepyfile(HEAD, mine="def never():\n    return 1\n")
    seen = run("--cov=mine", "--cov-fail-under=100", fresh=True)
    assert seen.status == 1
    assert_red(seen, "exit status 1")
    assert seen.heading == ("failed", "2 tests passed: the session failed")


DIFFER = """
@pytest.mark.parametrize("value", [1.0, 2.0])
def test_number(induction_baseline, value):
    induction_baseline.check({"n": value}, name="same")
"""


def test_a_baseline_that_is_not_written(run, pytester):
    """Tests passed, and differ over an entry."""
    pytester.makepyfile(HEAD + DIFFER)
    seen = run("--induction-accept-baseline")
    assert seen.status == 1
    assert_red(seen, "baseline .* was not written: tests differ over .*same")
    assert seen.outcomes == {"passed": 4}


def test_a_mistake_in_a_worker(run, pytester):
    """Which pytest-xdist hands on, and then makes one of its own."""
    pytest.importorskip("xdist")
    pytester.makepyfile(HEAD + LAST)
    body = indented("def pytest_runtest_logfinish():\n    raise ValueError('a mistake')\n")
    pytester.makeconftest(f"import os\nif 'PYTEST_XDIST_WORKER' in os.environ:\n{body}")
    seen = run(*PARALLEL)
    assert seen.status != 0
    assert_red(seen, "internal error", errors=len(seen.errors))


@pytest.mark.skipif(not hasattr(pytest.ExitCode, "MAX_WARNINGS_ERROR"), reason="this pytest has no --max-warnings")
def test_more_warnings_than_are_allowed(run, pytester):
    """Pytest counts them after its summary."""
    pytester.makepyfile(HEAD + "\ndef test_warns():\n    import warnings\n    warnings.warn('oh')\n")
    seen = run("--max-warnings=0", fresh=True)
    assert seen.status == 6
    assert_red(seen, "exit status 6 .too many warnings")


def test_wrong_usage(run, pytester):
    """A path that is not there: nothing was run."""
    pytester.makepyfile(HEAD)
    (pytester.path / "tox.ini").write_text("[pytest]\ninduction_model = somewhere\n")
    seen = run("--induction-model=os:path", "no_such_test.py")
    assert seen.status == 4
    assert_red(seen, "UsageError: .*no_such_test.py")
    assert "passed" not in seen.heading[1]


def test_settings_that_are_refused_are_told_github(pytester, monkeypatch):
    """Before there is a session; reports are as they were, since nothing was measured."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (pytester.path / "report.md").write_text("before")
    done = pytester.runpytest("--induction-model=os:path", "--induction-memory=much", "--induction-report=report.md")
    assert done.ret == 4
    done.stdout.fnmatch_lines(["::error title=The session is red::UsageError: --induction-memory: *"])
    assert (pytester.path / "report.md").read_text() == "before"


def test_a_process_that_ends_at_once(run, pytester):
    """It leaves reports that say that the session has not ended, in place of those of a session before."""
    pytester.makepyfile(HEAD)
    assert_green(run())
    pytester.makepyfile(HEAD + DIES)
    seen = run(fresh=True)
    assert seen.status == 1
    assert seen.heading[0] == "stopped" and seen.markdown.startswith("## ❌ ") and result(seen.records) == "stopped"
    for view in (seen.page, seen.markdown, seen.records.to_json()):
        assert "the session has not ended" in view


def test_the_same_test_twice(run, pytester):
    """The worst of its runs counts, not the last."""
    body = "\nruns = []\n\ndef test_twice(induction_model):\n    runs.append(1)\n    assert len(runs) > 1, 'the first'\n"
    pytester.makepyfile(test_it=HEAD + body)
    seen = run("--keep-duplicates", "test_it.py", "test_it.py")
    assert seen.status == 1
    assert_red(seen, "the first")


FLAKY = "\nruns = []\n\ndef test_flaky(induction_model):\n    runs.append(1)\n    assert len(runs) > 1, 'the first'\n"


@ALONE_AND_MOSTLY_BESIDE
def test_tests_that_are_run_again(run, pytester, processes):
    """The last attempt counts; where none passes the test failed; where the plugin fails flaky sessions, so does the report."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(HEAD + FLAKY + LAST)
    seen = run("--reruns=1", *processes)
    assert_green(seen)
    assert seen.outcomes == {"passed": 4}
    pytester.makepyfile(HEAD + FLAKY.replace("> 1", "> 9"))
    assert_red(run("--reruns=1", *processes), "the first")


def test_flaky_sessions_fail_where_they_are_to(run, pytester):
    """pytest-rerunfailures changes the exit status at the end."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(HEAD + FLAKY)
    seen = run("--reruns=1", "--fail-on-flaky")
    assert seen.status == 7
    assert_red(seen, "exit status 7")


@pytest.mark.parametrize(
    ("options", "status", "left"),
    [(["--collect-only"], 0, 3), (["--setup-only"], 0, 3), (["-k", "no_such_test"], 5, 0)],
)
def test_nothing_that_was_run_is_neither_green_nor_red(run, pytester, options, status, left):
    """Pytest's own words for it are no errors."""
    pytester.makepyfile(HEAD + LAST)
    seen = run(*options)
    assert seen.status == status
    assert seen.heading == ("empty", f"None of {left} tests was run" if left else "No test was run")
    assert seen.markdown.startswith("## ⏭️ ")
    assert result(seen.records) == "empty" and not seen.errors
    assert seen.outcomes.get("not run", 0) == left


def test_one_report_that_cannot_be_written_is_in_the_others(run, pytester):
    """The session fails by it, and they say so."""
    lose = "\ndef test_it(induction_model):\n    os.remove('records.json')\n    os.mkdir('records.json')\n"
    pytester.makepyfile(HEAD + lose)
    names = [f"--induction-report={name}" for name in ("first.md", "records.json")]
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", *names)
    assert done.ret == 1
    said = (pytester.path / "first.md").read_text()
    assert said.startswith("## ❌ ") and "a report was not written" in said
    (kept,) = [line for line in done.outlines if line.startswith("report: the records are in ")]
    (pytester.path / kept.split()[5].rstrip(";")).unlink()


def test_a_session_without_anything_of_ours_tells_github_nothing(pytester, monkeypatch):
    """Unless a report was asked for."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makepyfile(FAILS)
    assert not [line for line in pytester.runpytest().outlines if line.startswith("::")]
    assert not (pytester.path / "summary.md").exists()


def test_tests_that_others_mark_are_marked_once(run, pytester):
    """A plugin that marks what fails in its call leaves us what it does not mark."""
    around = "\n@pytest.fixture\ndef bad():\n    assert False\n\ndef test_it(bad):\n    pass\n"
    pytester.makepyfile(HEAD + FAILS + around + LAST)
    stand_in = "import sys\ndef pytest_configure(config):\n    config.pluginmanager.register(sys, {!r})\n"
    assert len(run().errors) == 1  # about both
    pytester.makeconftest(stand_in.format("pytest_github_actions_annotate_failures"))
    (line,) = run().errors
    assert "test_it" in line and "test_fails" not in line


def test_without_a_terminal_github_is_told(run, pytester, capfd):
    """`-p no:terminal` takes the lines, and not the marks."""
    pytester.makepyfile(HEAD + FAILS)
    (pytester.path / "tox.ini").write_text("[pytest]\n")
    done = pytester.run(
        sys.executable, "-m", "pytest", "-p", "no:terminal", "-p", "no:cacheprovider", "--induction-report=report.md"
    )
    assert done.ret == 1
    assert [line.partition(" ")[0] for line in done.outlines] == ["::error"]
