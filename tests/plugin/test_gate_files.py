"""Gates without Python: gate files and the gates of a pyproject.toml, collected, run, selected, and what is wrong with them."""

import re
import shlex
import shutil
import xml.etree.ElementTree as ET

import pytest

from pytest_induction.plugin.gates import signatures
from pytest_induction.plugin.gates.table import KEYS
from tests.conftest import FIXTURES, SHIPPED

ROOT = FIXTURES.parent
RUNS = FIXTURES / "runs"
GATES = f"""
[small]
model = "{SHIPPED["llama"]}"
seed = 7
dtype = "bfloat16"
[small.expect]
has_induction_head = {{ min_prefix_matching = 0.5 }}
copies_repeats = [true, {{ min_accuracy = 0.9 }}]
[control]
model = "{SHIPPED["one-layer"]}"
expect = ["copies_repeats"]
[training]
run = "{RUNS / "two-layers"}"
expect = ["log_is_sane", "heads_kept"]
"""
OF_A_RUN = f'run = "{RUNS / "two-layers"}"\nexpect = ["log_is_sane"]\n'
PYPROJECT = f'[tool.pytest.ini_options]\ntestpaths = ["tests"]\n[tool.pytest_induction.gates.training]\n{OF_A_RUN}'
MINE = """
import weakref
from tests.model.plain import Plain

alive = weakref.WeakSet()
seen = []

def make():
    seen.append(len(alive))
    model = Plain()
    model.circle = [model]
    alive.add(model)
    return model
"""


@pytest.fixture
def write(pytester):
    """Write files, the directories of which are made."""

    def write(**files):
        for name, content in files.items():
            path = pytester.path / name.replace("__", "/").replace("_toml", ".toml").replace("_py", ".py").replace(
                "_gates", ".gates"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


@pytest.fixture
def run(pytester):
    """Run pytest with warnings as errors."""
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "error", *arguments)


def ids_of(result):
    """The tests that a session lists."""
    return [line for line in result.outlines if "::" in line and not line.startswith(("ERROR", "FAILED"))]


def test_gates_of_models_and_runs_are_tests_with_readable_ids(write, run, pytester):
    """Each with its verdict, in the section, in JUnit, and with where it stands."""
    write(models_gates_toml=GATES)
    result = run("-v", "--junit-xml=report.xml")
    result.assert_outcomes(passed=5, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "models.gates.toml::small::has_induction_head PASSED*",
            "models.gates.toml::small::copies_repeats-0 PASSED*",
            "models.gates.toml::small::copies_repeats-1 PASSED*",
            "models.gates.toml::control::copies_repeats FAILED*",
            "models.gates.toml::training::log_is_sane PASSED*",
            "models.gates.toml::training::heads_kept PASSED*",
            "*_ control::copies_repeats _*",
            "copies_repeats is REFUTED, expected SHOWN*",
        ]
    )
    result.stdout.fnmatch_lines(["*llama-2l: 2 layers x 4 heads by sdpa, bfloat16 on cpu*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "report.xml").getroot().iter("testcase")}
    told = {each.get("name"): each.get("value") for each in cases["copies_repeats-1"].iter("property")}
    assert told["induction.copies_repeats.verdict"] == "SHOWN"
    assert told["induction.copies_repeats.seed"] == "7"


def test_the_command_that_is_printed_runs_the_test_alone_and_finds_the_same(write, pytester, run, monkeypatch):
    """From where pytest was started, with what the gate leaves to the command line."""
    write(sub__models_gates_toml=f'[control]\nmodel = "{SHIPPED["one-layer"]}"\nexpect = ["copies_repeats"]', pytest_ini="")
    (pytester.path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(pytester.path / "sub")
    first = run("--induction-seed=5", "models.gates.toml")
    command = next(line for line in first.outlines if line.startswith("pytest "))
    assert command == "pytest --induction-seed=5 models.gates.toml::control::copies_repeats"
    second = run(*shlex.split(command)[1:])
    second.assert_outcomes(failed=1)
    measured = [next(line for line in each.outlines if "measured: " in line) for each in (first, second)]
    assert measured[0] == measured[1]


LOADED = """
import sys

def pytest_unconfigure():
    print("LOADED", *(name for name in ("torch", "numpy", "hypothesis", "transformers") if name in sys.modules))
"""
SCATTERED = """
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.name, reverse=True)  # what one gate expects is far apart; what fails is last

def pytest_sessionfinish(session):
    mine = next(module for name, module in sys.modules.items() if name.startswith("_induction_mine_"))
    print("ALIVE", *mine.seen, len(mine.alive))
"""


@pytest.fixture
def fresh(pytester, monkeypatch):
    """Run pytest in a process of its own, with this plugin, and others only if they are named."""

    def fresh(*arguments):
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("PYTEST_ADDOPTS")
        return pytester.runpytest_subprocess("-p", "pytest_induction.plugin.hooks", *arguments)

    return fresh


def test_a_model_is_loaded_once_for_its_gate_and_let_go_after_it(write, fresh):
    """Also where a test of it fails, and tests were shuffled: the second gate finds nothing of the first one's model."""
    gates = (f'[{name}]\nmodel = "mine.py:make"\nexpect = ["no_induction_head", "has_induction_head"]\n' for name in "ab")
    write(mine_py=MINE, models_gates_toml="".join(gates), conftest_py=LOADED + SCATTERED)
    result = fresh("-s")  # pytester in this process would keep the model itself
    result.assert_outcomes(passed=2, failed=2)
    assert "ALIVE 0 0 0" in result.stdout.str()
    assert "LOADED torch numpy" in result.stdout.str()  # the test below can fail


def test_listing_gates_loads_nothing_heavy(write, fresh):
    """Names and arguments are checked without the assertions."""
    write(conftest_py=LOADED, all_gates_toml=GATES)
    result = fresh("--collect-only", "-q")
    assert len(ids_of(result)) == 6
    assert "LOADED" in result.outlines


def test_a_test_that_is_run_again_tries_again_to_have_its_model(write, run):
    """As pytest-rerunfailures does; the others of its gate do not, where it cannot be had."""
    pytest.importorskip("pytest_rerunfailures")
    flaky = MINE.replace(
        "    seen.append(len(alive))", "    seen.append(0)\n    if len(seen) in (1, 3, 4): raise OSError('busy')"
    )
    write(mine_py=flaky, models_gates_toml='[a]\nmodel = "mine.py:make"\nexpect = ["no_induction_head"]')
    run("--reruns=1").assert_outcomes(passed=1)


@pytest.fixture
def project(write):
    """Gates in pyproject.toml beside a directory of tests, and a project inside that has gates of its own."""
    write(pyproject_toml=PYPROJECT, tests__test_it_py="def test_it(): pass", tests__inner__pyproject_toml=PYPROJECT)
    write(tests__more_gates_toml=f"[more]\n{OF_A_RUN}")


OWN, MORE, TEST = "pyproject.toml::training::log_is_sane", "tests/more.gates.toml::more::log_is_sane", "tests/test_it.py::test_it"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [MORE, TEST, OWN]),
        (["."], [OWN, MORE, TEST]),
        (["tests"], [MORE, TEST]),
        (["pyproject.toml"], [OWN]),
        (["--rootdir=.", "tests/inner/pyproject.toml"], ["tests/inner/pyproject.toml::training::log_is_sane"]),
        (["-otestpaths=."], [MORE, TEST, OWN]),
        (["-otestpaths="], [OWN, MORE, TEST]),
        (["-k", "log_is_sane and not more"], [OWN]),
        ([OWN, TEST], [OWN, TEST]),
        ([f"--induction-run={RUNS / 'truncated'}", "-k", "log"], [f"{RUNS / 'truncated'}::log_is_sane"]),
    ],
)
def test_what_is_collected(arguments, expected, project, run):
    """A bare session has the gates of its own pyproject beside the tests, once; what is named is all that there is."""
    result = run("--collect-only", "-q", *arguments)
    assert result.ret == 0
    assert sorted(ids_of(result)) == sorted(expected)


def test_a_pyproject_without_gates_is_none_of_ours(write, run):
    """Though it mentions the package."""
    write(pyproject_toml='[tool.pytest.ini_options]\ntestpaths = "tests"  # pytest_induction')
    write(tests__test_it_py="def test_it(): pass")
    assert ids_of(run("--collect-only", "-q")) == [TEST]


def test_tests_are_selected_by_mark_and_run_again_where_they_failed(write, pytester):
    """-m and --lf, as of any other tests."""
    failing = f'[bad]\nmarks = ["slow"]\nrun = "{RUNS / "diverged"}"\nexpect = ["log_is_sane"]'
    write(all_gates_toml=f"[good]\n{OF_A_RUN}{failing}", pytest_ini="")
    pytester.makeini("[pytest]\nmarkers = slow: takes long\naddopts = --strict-markers")
    pytester.runpytest_inprocess("-m", "slow").assert_outcomes(failed=1, deselected=1)
    again = pytester.runpytest_inprocess("--lf", "-v")
    again.assert_outcomes(failed=1, deselected=1)
    again.stdout.fnmatch_lines(["all.gates.toml::bad::log_is_sane FAILED*"])


BROKEN = f'[bad]\nmodle = "x"\nexpect = ["copies_repeats"]\n[good]\n{OF_A_RUN}[marked]\nmarks = ["slwo"]\n{OF_A_RUN}'
SAID = [
    "all.gates.toml, gate `bad`: there is no key `modle`; did you mean `model`?",
    "all.gates.toml, gate `marked`, `marks`: 'slwo' not found in `markers` configuration option",
]


def test_a_broken_gate_fails_and_the_others_of_its_file_run(write, run):
    """One line, no traceback, exit code 1; a mark that --strict-markers does not know is broken too."""
    write(all_gates_toml=BROKEN)
    result = run("--tb=long", "--strict-markers")
    result.assert_outcomes(passed=1, errors=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [line for line in result.outlines if line in SAID] == SAID
    result.stdout.no_fnmatch_line("*.py:*: in *")


def test_a_broken_gate_is_an_error_where_tests_are_only_listed(write, run):
    """So that a gate file can be checked in no time."""
    write(all_gates_toml=BROKEN)
    result = run("--collect-only", "-q", "--strict-markers")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [line for line in result.outlines if line in SAID] == SAID
    assert ids_of(result) == ["all.gates.toml::good::log_is_sane"]


def test_a_file_that_is_no_toml_is_one_error_of_collection(write, run):
    """With the line."""
    write(all_gates_toml='[small]\nmodel "x"\n')
    result = run("--tb=long")
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [line for line in result.outlines if "is not TOML" in line and not line.startswith("ERROR")] == [
        "all.gates.toml is not TOML: Expected '=' after a key in a key/value pair (at line 2, column 7): model \"x\""
    ]
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*.py:*: in *")


def test_a_model_that_cannot_be_loaded_is_told_once(write, run):
    """And loading it is tried once."""
    write(mine_py="tried = []\ndef make():\n    tried.append(1)\n    raise OSError(f'try {len(tried)}')\n")
    write(all_gates_toml='[a]\nmodel = "mine.py:make"\nexpect = ["has_induction_head", "copies_repeats"]')
    result = run()
    result.assert_outcomes(errors=2)
    assert result.outlines.count("'mine.py:make' cannot be made: OSError: try 1") == 1
    assert result.outlines.count("shown whole for all.gates.toml::a::has_induction_head") == 1
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.exhaustive
def test_checkpoints_are_swept_with_what_the_gate_says(write, pytester):
    """The factory of the gate; kept for the next session, as for --induction-run."""
    checkpoints = pytester.mkdir("checkpoints")
    for step in ("000", "400"):
        shutil.copy(RUNS / "two-layers-checkpoints" / f"step-{step}.safetensors", checkpoints)
    factory = f'factory = "{FIXTURES / "attention_only.py"}:two_layers"'
    write(all_gates_toml=f'[swept]\nrun = "checkpoints"\n{factory}\nexpect = ["final_has_induction_head"]')
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["checkpoints: 2 snapshots, steps 0 to 400, from a sweep"])
    assert [*(pytester.path / ".pytest_cache").rglob("snapshots.jsonl")]


def test_workers_give_the_same_verdicts(project, pytester, fresh):
    """The same ids and outcomes, in a bare session with gates of pyproject.toml."""
    alone = pytester.runpytest_inprocess("-v")
    result = fresh("-p", "xdist", "-n", "2", "-v")
    alone.assert_outcomes(passed=3)
    result.assert_outcomes(passed=3)
    found = {re.sub(r".* PASSED +", "", line).strip() for line in result.outlines if "PASSED" in line}
    assert found == {re.sub(r" +PASSED.*", "", line) for line in alone.outlines if "PASSED" in line}


PAGE = (ROOT / "docs" / "gates.md").read_text()
BLOCKS = dict(re.findall(r'```toml title="(.*?)"\n(.*?)```', PAGE, re.DOTALL))
MISTAKES = f"""
[small]
model = "{SHIPPED["llama"]}"
expect = {{ has_inductoin_head = true, copies_repeats = {{ min_acuracy = 1 }} }}
[small2]
model = "{SHIPPED["llama"]}"
expect.copies_repeats = {{ min_accuracy = "0.9" }}
[small3]
modle = "x"
[reader]
model = "{SHIPPED["llama"]}"
text = "models.gates.toml"
expect = ["copies_repeats"]
"""


@pytest.mark.parametrize("name", BLOCKS)
def test_a_gate_file_of_the_documentation_passes(name, pytester):
    """As it stands there, in a directory with the shipped models and runs."""
    (pytester.path / "fixtures").symlink_to(FIXTURES)
    (pytester.path / name).write_text(BLOCKS[name])
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "error", name)
    assert result.ret == 0
    assert result.parseoutcomes().keys() == {"passed"}


def test_the_page_lists_every_assertion_with_its_arguments():
    """And no other argument."""
    cells = [[re.findall(r"`(\w+)`", cell) for cell in row.split("|")[1:3]] for row in PAGE.splitlines() if row.startswith("| `")]
    rows = {name: arguments for names, arguments in cells for name in names}
    for name in signatures.names():
        found = signatures.signature(name)
        assert found is None or list(found.parameters) == rows[name], name


def test_the_page_lists_every_key():
    """Of a gate."""
    rows = PAGE.partition("## Keys of a gate")[2].partition("\n## ")[0].splitlines()
    listed = [key for row in rows if row.startswith("| `") for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(KEYS)


def test_the_mistakes_on_the_page_are_what_is_said(write, run):
    """Line by line."""
    write(models_gates_toml=MISTAKES, broken_gates_toml='[small]\nmodel "x"\n')
    said = run("--collect-only", "-q").stdout.str().replace("broken.gates", "models.gates")
    shown = PAGE.partition("```text\n")[2].partition("```")[0].splitlines()
    assert len(shown) == 6
    assert set(shown) <= set(re.sub(r"small\d", "small", said).splitlines())
