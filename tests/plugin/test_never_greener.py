"""A report is never greener than pytest: limits, selections, several workers, several reports on one test, and Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from pytest_induction.plugin.outcomes import SessionOutcomes, worst
from pytest_induction.report.session_records import result
from tests.sessions import FAILS, HEAD, LAST, NAMES, PARALLEL, Seen, assert_green, assert_red, runner, seen_of

TWO = ("-n", "2")
PROCESSES = pytest.mark.parametrize("processes", [(), TWO], ids=["alone", "xdist"])
MOSTLY_ALONE = pytest.mark.parametrize(
    "processes", [pytest.param((), id="alone"), pytest.param(TWO, id="xdist", marks=pytest.mark.exhaustive)]
)
REPORTS = [f"--induction-report={name}" for name in NAMES]


@pytest.fixture
def run(pytester, monkeypatch):
    """Run pytest with every report, as GitHub Actions does."""
    return runner(pytester, monkeypatch)


def tile(seen: Seen, name: str) -> int:
    """A number at the head of the page."""
    found = re.search(rf'<span class="outcome {name.replace(" ", "-")}">{name}</span></dt><dd>(\d+)<', seen.page)
    return int(found[1]) if found else 0


def assert_named(seen: Seen, *names: str) -> None:
    """Each of these tests is told by name in every view as one that was not run."""
    assert [test.nodeid for test in seen.records.tests if test.outcome == "not run"] == [f"test_it.py::{name}" for name in names]
    rows = [row for row in seen.page.replace("<wbr>", "").split("<tbody") if 'class="test not-run"' in row]
    for name in names:
        assert f'"nodeid":"test_it.py::{name}","outcome":"not run"' in seen.records.to_json()
        assert any(name in row for row in rows)
        for view in (seen.markdown, seen.summary):
            assert re.search(rf"not run \| none \| `{re.escape(name)}`", view)


DIES_FIRST = """
import os
import pytest

@pytest.fixture
def induction_model():
    os._exit(1)

def test_dies(induction_model):
    pass

def test_second(induction_model):
    pass

def test_third():
    pass
"""


def test_what_never_ran_is_named_though_no_worker_ever_reported(run, pytester):
    """The controller knows what its workers collected, and not which of it is ours: it takes it for what may be."""
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=DIES_FIRST)
    seen = run(*PARALLEL, "--max-worker-restart=0")
    assert seen.status == 1
    assert_red(seen, "worker gw0 died", "2 tests not run", errors=2)
    assert seen.outcomes == {"failed": 1, "not run": 2}
    assert_named(seen, "test_second", "test_third")
    assert seen.errors[1].endswith("%0Anot run: test_it.py::test_second%0Anot run: test_it.py::test_third")


def test_a_long_list_of_what_never_ran_is_cut(run, pytester):
    """In reports at 50 that are not known to be ours, in marks at ten; the rest is counted."""
    many = '\n@pytest.mark.parametrize("n", range(60))\ndef test_many(n):\n    pass\n'
    pytester.makepyfile(test_it=HEAD + FAILS + many + LAST)
    seen = run("-x")
    assert_red(seen, "61 tests not run", errors=2)
    assert seen.outcomes == {"passed": 2, "failed": 1, "not run": 61}
    assert_named(seen, *(f"test_many[{n}]" for n in range(50)), "test_last")
    assert seen.records.others == {"passed": 1, "not run": 10}
    assert "2 tests not run" not in seen.markdown
    (line,) = [line for line in seen.errors if "The session is red" in line]
    assert line.count("not run: test_it.py::test_many") == 10 and line.endswith("%0Anot run: 51 more")


BODY = (
    HEAD
    + """
class TestMore:
    def test_passes(self):
        pass

    def test_fails(self, induction_model):
        assert False, "not at all"
"""
    + LAST
)
SELECTIONS = {  # what is run before, what then, and what pytest alone leaves out of five tests: not run, deselected
    "lf": ([()], ("--lf",), 0, 4),
    "ff": ([()], ("--ff",), 0, 0),
    "sw": ([], ("--sw",), 1, 0),
    "sw again": ([("--sw",)], ("--sw",), 1, 3),
    "x": ([], ("-x",), 1, 0),
    "maxfail": ([], ("--maxfail=1",), 1, 0),
    "deselect": ([], ("--deselect=test_it.py::test_first", "--deselect=test_it.py::TestMore::test_fails"), 0, 2),
    "k": ([], ("-k", "first"), 0, 4),
    "nothing": ([], ("-k", "no_such_test"), 0, 5),
}


@MOSTLY_ALONE
@pytest.mark.parametrize("kind", SELECTIONS)
def test_what_is_left_out_is_counted_as_pytest_counts_it(run, pytester, processes, kind):
    """What was to be run and was not is not run, what was not to be run is deselected; the rest are pytest's own numbers."""
    if processes:
        pytest.importorskip("xdist")
    before, options, left, deselected = SELECTIONS[kind]
    pytester.makepyfile(test_it=BODY)
    for each in before:
        run(*processes, *each, caches=True)
    seen = run(*processes, *options, caches=True)
    said = pytest.RunResult.parse_summary_nouns(seen.lines)
    assert said.pop("deselected", deselected) == deselected  # what pytest itself says without workers
    counted = seen.outcomes
    not_run = counted.pop("not run", 0)
    assert counted == said
    assert (not_run == left) if not processes else (not_run <= left)  # another worker may have run it meanwhile
    assert seen.records.deselected == deselected
    if kind == "nothing":
        assert (seen.status, result(seen.records), seen.errors) == (5, "empty", [])
    elif "failed" in said:
        assert_red(seen, "not at all", errors=1 + bool(seen.records.stopped))
    else:
        assert_green(seen)
    for name, count in {"deselected": deselected, "not run": not_run, **counted}.items():
        assert tile(seen, name) == count
        heads = [view.partition("\n")[0] for view in (seen.markdown, seen.summary)]
        assert all((f" {count} {name}" in head) if count else (name not in head) for head in heads)


ONE_OF_TWO = """
def test_one():
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw{place}", "in the other"
"""


@pytest.mark.parametrize("place", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
def test_a_test_that_fails_in_one_of_the_workers_that_run_it(run, pytester, place):
    """Whichever worker that is, and whichever ends last."""
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=HEAD + ONE_OF_TWO.format(place=place) + LAST)
    seen = run("--dist=each", "--tx=2*popen")
    assert seen.status == 1
    assert pytest.RunResult.parse_summary_nouns(seen.lines) == {"failed": 1, "passed": 7}
    assert_red(seen, "in the other")
    assert seen.outcomes == {"failed": 1, "passed": 3}
    assert seen.heading == ("failed", "1 of 4 tests failed")


@pytest.mark.parametrize(
    "how",
    ["loadgroup", *(pytest.param(how, marks=pytest.mark.exhaustive) for how in ("load", "loadscope", "loadfile", "worksteal"))],
)
@pytest.mark.exhaustive
def test_however_tests_are_shared_out(run, pytester, how):
    """The ids that pytest-xdist adds a group to are those of one test, too."""
    pytest.importorskip("xdist")
    grouped = '\n@pytest.mark.xdist_group("a")\ndef test_grouped(induction_model):\n    assert False, "not at all"\n'
    pytester.makepyfile(test_it=HEAD + grouped + LAST)
    seen = run(*TWO, f"--dist={how}")
    assert seen.status == 1
    assert pytest.RunResult.parse_summary_nouns(seen.lines) == {"failed": 1, "passed": 3}
    assert_red(seen, "not at all")
    assert seen.outcomes == {"failed": 1, "passed": 3}


def reports(words: str, worker: str = "") -> list[pytest.TestReport]:
    """Reports by hand: `setup:passed call:failed`."""
    made = []
    for when, _, outcome in (word.partition(":") for word in words.split()):
        report = pytest.TestReport("t.py::test", ("t.py", 1, "test"), {}, "passed", None, "call")
        report.when, report.outcome = when, outcome
        if worker:
            report.node = SimpleNamespace(gateway=SimpleNamespace(id=worker))
        made.append(report)
    return made


WHOLE = "setup:passed call:passed teardown:passed"
RERUN = "setup:passed call:rerun"


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ([WHOLE], "passed"),
        ([RERUN, WHOLE], "passed"),
        ([f"{RERUN} teardown:passed", f"{RERUN} teardown:passed", WHOLE], "passed"),
        ([RERUN, WHOLE.replace("call:passed", "call:failed")], "failed"),
        (["setup:rerun", "setup:failed teardown:passed"], "error"),
        ([f"{RERUN} call:passed teardown:passed"], "passed"),  # tried again without another setup
        ([f"{RERUN} call:rerun call:passed teardown:failed"], "error"),
        ([f"{RERUN} call:skipped teardown:passed"], "skipped"),
        ([RERUN], "failed"),  # and nothing came after it
        ([f"{RERUN} teardown:failed", WHOLE], "error"),  # which nothing takes back
        (["setup:passed call:failed call:passed teardown:passed"], "failed"),
        (["setup:passed call:passed call:failed teardown:passed"], "failed"),
        ([WHOLE.replace("call:passed", "call:failed"), WHOLE], "failed"),
        ([WHOLE, WHOLE.replace("teardown:passed", "teardown:failed")], "error"),
        (["setup:passed call:passed call:passed teardown:passed"], "passed"),
        (["setup:passed"], "error"),  # broken off
        (["setup:passed", WHOLE], "passed"),
        (["setup:passed teardown:passed"], "not run"),
        ([], "not run"),
    ],
)
def test_several_reports_on_one_test(told, outcome):
    """The last word of a plugin that runs it again; without one, whatever fails."""
    outcomes = SessionOutcomes()
    outcomes.collected(["t.py::test"])
    for report in (report for words in told for report in reports(words)):
        outcomes.pytest_runtest_logreport(report)
    ((_, attempts),) = outcomes.tests()
    assert worst(attempts) == outcome


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ({"gw0": WHOLE, "gw1": WHOLE}, "passed"),
        ({"gw0": WHOLE, "gw1": "setup:passed call:failed teardown:passed"}, "failed"),
        ({"gw0": "setup:passed call:failed teardown:passed", "gw1": WHOLE}, "failed"),
        ({"gw0": "setup:passed ???:rerun", "gw1": WHOLE}, "passed"),  # a crash after which a plugin has it run again
        ({"gw0": f"{RERUN} ???:failed", "gw1": WHOLE}, "failed"),  # its next attempt crashed, and counts
        ({"gw0": WHOLE, "gw1": "setup:failed teardown:passed"}, "error"),
    ],
)
def test_reports_of_several_workers_on_one_test(told, outcome):
    """In any order; none of them hides the other's failure."""
    for workers in (list(told), list(reversed(told))):
        outcomes = SessionOutcomes()
        for worker in workers:
            for report in reports(told[worker], worker):
                outcomes.pytest_runtest_logreport(report)
        ((_, attempts),) = outcomes.tests()
        assert worst(attempts) == outcome


SLOW = "\ndef test_slow(induction_model):\n    open('began', 'w').close()\n    time.sleep(60)\n"
OVER = """
def pytest_configure(config):
    global controls
    controls = not hasattr(config, "workerinput")

def pytest_runtest_logfinish(nodeid):
    if controls and nodeid.endswith("test_other"):
        open("over", "w").close()
"""
LINGERS = "import time\n\ndef pytest_sessionfinish():\n    open('ends', 'w').close()\n    time.sleep(60)\n"


def interrupted(pytester, *arguments, files=("began",), twice=False) -> Seen:
    """What a session leaves to which Ctrl-C is pressed once these files are there, in all of its processes; again while it ends."""
    (pytester.path / "summary.md").write_text("of others\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *REPORTS, *arguments]
    process = pytester.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        for names in (files, *([("ends",)] if twice else [])):
            until = time.monotonic() + 120
            while not all((pytester.path / name).exists() for name in names):
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
        lines = process.communicate(timeout=120)[0].decode().splitlines()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return seen_of(pytester, process.returncode, lines)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@PROCESSES
def test_ctrl_c(run, pytester, processes):
    """The report says what was interrupted, and what was not run.

    A worker may be gone before it says what it was at. The other one has ended its last test before: else it is interrupted too.
    """
    if processes:
        pytest.importorskip("xdist")
    pytester.makepyfile(test_it=HEAD + SLOW + LAST + "\ndef test_other():\n    pass\n")
    pytester.makeconftest(OVER)
    seen = interrupted(pytester, *processes, files=("began", "over") if processes else ("began",))
    assert seen.status == 2
    errors = [test for test in seen.records.tests if test.outcome == "error"]
    assert len(errors) == 1 or (processes and not errors)
    assert all(test.message == "interrupted" for test in errors)
    assert sum(seen.outcomes.values()) == 5
    assert_red(seen, "interrupted", errors=1 + len(errors))
    assert (seen.records.stopped, result(seen.records), seen.heading[0]) == ("interrupted", "stopped", "stopped")
    if not processes:
        assert_named(seen, "test_last", "test_other")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_ctrl_c_twice(run, pytester):
    """The second goes through pytest while the session ends, before or after reports are written."""
    pytester.makepyfile(test_it=HEAD + SLOW + LAST)
    pytester.makeconftest(LINGERS)
    seen = interrupted(pytester, twice=True)
    assert seen.status == -signal.SIGINT
    assert_red(seen, "interrupted", errors=2)
    assert (result(seen.records), seen.heading[0]) == ("stopped", "stopped")
    assert seen.outcomes == {"passed": 2, "error": 1, "not run": 1}


CUT = """
def test_cut(induction_model):
    from pytest_induction.report import writing
    write = writing.write_report
    def cut(*given):
        writing.write_report = write
        raise KeyboardInterrupt
    writing.write_report = cut
"""


def test_ctrl_c_while_reports_are_written(run, pytester):
    """They are written again: all that was measured is in them."""
    pytester.makepyfile(test_it=HEAD + CUT)
    seen = run(fresh=True)
    assert seen.status == -signal.SIGINT
    assert_red(seen, "interrupted")
    assert seen.outcomes == {"passed": 3}


def test_a_session_that_another_plugin_keeps_from_beginning(run, pytester):
    """The report of the session before, which was green, is not left."""
    pytester.makepyfile(test_it=HEAD)
    assert_green(run())
    pytester.makeconftest("def pytest_sessionstart():\n    raise ValueError('a mistake')\n")
    seen = run("--induction-model=os:path")
    assert seen.status == 3
    assert_red(seen, "an internal error of pytest: ValueError: a mistake")
    assert seen.outcomes == {}


def test_a_module_that_one_worker_skips_and_another_cannot_import(run, pytester):
    """It cannot be imported."""
    pytest.importorskip("xdist")
    differs = (
        "import os\nimport pytest\nif os.environ['PYTEST_XDIST_WORKER'] == 'gw{}':\n    pytest.skip(allow_module_level=True)\n"
    )
    pytester.makepyfile(test_it=HEAD, **{f"test_z{n}": differs.format(n) + "raise ValueError('not at all')\n" for n in range(2)})
    seen = run(*TWO, "--continue-on-collection-errors")
    assert seen.status == 1
    assert_red(seen, "test_z0.py", "test_z1.py")
    assert seen.outcomes == {"error": 2, "passed": 2}
    assert all("ValueError: not at all" in test.message for test in seen.records.tests if test.outcome == "error")


def test_what_fails_a_session_in_which_every_test_passed(run, pytester):
    """A plugin says that it is to fail, and why."""
    pytester.makepyfile(test_it=HEAD)
    pytester.makeconftest(
        "def pytest_runtest_teardown(item, nextitem):\n    if nextitem is None:\n        item.session.shouldfail = 'too much'\n"
    )
    seen = run()
    assert seen.status == 1
    assert_red(seen, "too much")
    assert seen.heading == ("failed", "2 tests passed: the session failed")


FORKS = """
def test_forks(induction_model):
    import conftest
    conftest.child = os.fork()
    assert not conftest.child, "in the parent"
"""
WAITS = """
import os, time

child = None

def pytest_sessionfinish():
    if child == 0:
        time.sleep(1)

def pytest_unconfigure():
    if child:
        os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_that_a_test_forked_and_that_runs_on(run, pytester):
    """It ends later, and well; the report is that of the session that was started."""
    pytester.makepyfile(test_it=HEAD + FORKS)
    pytester.makeconftest(WAITS)
    seen = run(fresh=True)
    assert seen.status == 1
    assert_red(seen, "in the parent", errors=len(seen.errors))
