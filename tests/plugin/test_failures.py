"""What a user sees where their own code, or what they typed, is wrong: the line at fault, once, and the name that was meant."""

import re

import pytest

from tests.conftest import FIXTURES, SHIPPED

BROKEN = """
def weights_of(state):
    return state["weights"]

def make():
    large = "in the middle of the factory"
    return weights_of({})

def make_other():
    ...
"""
FORWARD = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 8), nn.Linear(9, 50)

    def forward(self, tokens):
        return self.out(self.embed(tokens))
"""
TWO = 'expect = ["has_induction_head", "copies_repeats"]\n'


@pytest.fixture
def run(pytester):
    def run(*arguments, **files):
        for name, content in files.items():
            (pytester.path / name.replace("_toml", ".gates.toml").replace("_py", ".py")).write_text(content)
        return pytester.runpytest_inprocess("-p", "no:randomly", *arguments)

    return run


def lines_of(result):
    return [line.strip() for line in result.outlines]


def test_a_factory_that_raises_shows_the_users_lines_once(run):
    """Each of theirs, from their first one on, and none of ours; the second test names the one that has it."""
    result = run(own_toml=f'[a]\nmodel = "own.py:make"\n{TWO}', own_py=BROKEN)
    result.assert_outcomes(errors=2)
    lines = lines_of(result)
    assert lines.count("'own.py:make' cannot be made: KeyError: 'weights'") == 1
    assert lines.count("own.py:3: KeyError") == 1
    pointed = [re.sub(r"\s+", " ", line) for line in lines if line.startswith(">")]
    assert pointed == ["> return weights_of({})", '> return state["weights"]']
    assert lines.count("shown whole for own.gates.toml::a::has_induction_head") == 1
    result.stdout.no_fnmatch_line("*pytest_induction*")
    result.stdout.fnmatch_lines(["ERROR own.gates.toml::a::copies_repeats - 'own.py:make' cannot*"])


@pytest.mark.parametrize(
    ("style", "shown", "hidden"),
    [
        ("short", ["own.py:3: in weights_of", 'return state["weights"]'], "def weights_of(state):"),
        ("long", ["def weights_of(state):", '>       return state["weights"]'], "*pytest_induction*"),
        ("native", ["Traceback (most recent call last):", '  File "*own.py", line 3, in weights_of'], "*pytest_induction*"),
        ("line", ["*own.py:3: 'own.py:make' cannot be made: KeyError: 'weights'"], "*def weights_of*"),
        ("no", [], "*weights_of*"),
    ],
)
def test_the_style_of_tracebacks_is_pytests(style, shown, hidden, run):
    """As of any other test."""
    result = run(f"--tb={style}", "--induction-model=own.py:make", "-k", "copies_repeats", own_py=BROKEN)
    result.assert_outcomes(errors=1)
    for line in shown:
        result.stdout.fnmatch_lines([f"*{line.strip().replace('[', '[[]')}"])
    result.stdout.no_fnmatch_line(hidden)


def test_locals_are_shown_where_they_are_asked_for(run):
    """`-l` of pytest."""
    result = run("-l", "--induction-model=own.py:make", "-k", "copies_repeats", own_py=BROKEN)
    result.stdout.fnmatch_lines(["large*= 'in the middle of the factory'"])


def test_a_forward_that_raises_shows_the_users_line_alone(run):
    """Not those of torch, unless a style is asked for."""
    files = {"own_py": f"{FORWARD}\ndef make():\n    return Own()\n"}
    result = run("--induction-model=own.py:make", "-k", "copies_repeats", **files)
    result.stdout.fnmatch_lines(["*given (3, 11) it raised RuntimeError: mat1 and mat2*", "own.py:11: RuntimeError"])
    result.stdout.no_fnmatch_line("*torch/nn/modules*")
    run("--tb=long", "--induction-model=own.py:make", "-k", "copies_repeats").stdout.fnmatch_lines(["*torch/nn/modules*"])


@pytest.mark.parametrize(
    ("source", "line"),
    [("import nothing_of_that_name\n", "own.py:1: ModuleNotFoundError"), ("def make(:\n", "SyntaxError: invalid syntax")],
)
def test_a_file_that_cannot_be_imported_shows_where(source, line, run):
    """Its own line, and none of importlib's."""
    result = run("--induction-model=own.py:make", "-k", "copies_repeats", own_py=source)
    assert lines_of(result).count(line) == 1
    result.stdout.no_fnmatch_line("*importlib*")


def test_a_library_that_raises_by_itself_is_one_line(run, pytester):
    """A broken file of weights is no code of the user's."""
    (pytester.path / "model").mkdir()
    for name, content in (("config.json", '{"model_type": "llama"}'), ("model.safetensors", "none")):
        (pytester.path / "model" / name).write_text(content)
    result = run("--induction-model=model", "-k", "copies_repeats")
    result.assert_outcomes(errors=1)
    result.stdout.no_fnmatch_line("*.py:[0-9]*")
    result.stdout.no_fnmatch_line("* def *")


def test_a_test_of_the_users_has_both_tracebacks(run):
    """Their own call, and what their factory raised."""
    source = "from pytest_induction import load_model\ndef test_one():\n    load_model('own.py:make')\n"
    result = run(own_py=BROKEN, test_own_py=source)
    result.assert_outcomes(failed=1)
    lines = lines_of(result)
    assert (lines.count("own.py:3: KeyError"), lines.count("test_own.py:3: ModelError")) == (1, 1)


def test_a_fixture_without_a_model_is_told_once(run):
    """Of whatever tests ask for it."""
    many = "".join(f"def test_{name}(induction):\n    pass\n" for name in "abcde")
    result = run(test_own_py=many)
    result.assert_outcomes(errors=5)
    assert sum(line.startswith("no model: give --induction-model") for line in lines_of(result)) == 1
    assert lines_of(result).count("shown whole for test_own.py::test_a") == 4


def test_another_error_is_not_taken_for_the_first(run):
    """Two gates that fail in two ways are told twice."""
    gates = f'[a]\nmodel = "own.py:make"\n{TWO}[b]\nmodel = "own.py:make_other"\n{TWO}'
    lines = lines_of(run(own_toml=gates, own_py=BROKEN))
    assert lines.count("the factory 'own.py:make_other' must return a torch module, it returned `NoneType`") == 1
    assert lines.count("shown whole for own.gates.toml::b::has_induction_head") == 1


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("own.py:maek", "own.py has no factory `maek` to call; did you mean `make`?"),
        ("own.py:zzz", "own.py has no factory `zzz` to call; known are weights_of, make, make_other"),
        ("sub.owned:make", "*No module named 'sub'; name the file: sub/owned.py"),
    ],
)
def test_a_wrong_name_of_a_factory_has_the_nearest(spec, line, run, pytester):
    """Of what the file defines."""
    pytester.mkdir("sub").joinpath("owned.py").write_text(BROKEN)
    pytester.path.joinpath("sub", "__init__.py").write_text("__path__ = []\n")
    run(f"--induction-model={spec}", own_py=BROKEN).stdout.fnmatch_lines([line.replace("[", "[[]")])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--induction-modle=x", "there is no option --induction-modle; did you mean `--induction-model`?"),
        ("--induction-update", "there is no option --induction-update; did you mean `--induction-update-baseline`?"),
        ("-oinduction_sed=4", "there is no ini key induction_sed; did you mean `induction_seed`?"),
        ("--induction-model=owm.py:make", "*no file owm.py (there is 'own.py')*"),
        (f"--induction-model={FIXTURES}/models/lama-2l", "*(there is '*/models/llama-2l'): expected*"),
        (f"--induction-model={FIXTURES}/runs/two-layers", "*two-layers' holds a training run: give it as a run, with *"),
        (f"--induction-model={FIXTURES}/runs/two-layers-checkpoints", "*holds checkpoints of a training: give it as a run*"),
        ("own.gates.toml::b", "own.gates.toml has no gate `b`; did you mean `bb`?"),
        (
            "own.gates.toml::bb::has_head",
            "own.gates.toml has no test of gate `bb` `has_head`; did you mean `has_induction_head`?",
        ),
    ],
)
def test_a_wrong_name_on_the_command_line_has_the_nearest(given, line, run):
    """Before anything runs."""
    result = run(given, own_py=BROKEN, own_toml=f'[bb]\nmodel = "own.py:make"\n{TWO}')
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = "\n".join([*result.outlines, *result.errlines])
    assert re.search(r"ERROR: " + re.escape(line).replace(r"\*", ".*"), told), told


def test_an_option_of_a_conftest_is_its_own(run):
    """Also where it begins as ours do."""
    added = "def pytest_addoption(parser):\n    parser.addoption('--induction-modles')\n    parser.addini('induction_sed', '')\n"
    result = run("--induction-modles=x", "-oinduction_sed=3", conftest_py=added, test_own_py="def test_one():\n    pass\n")
    result.assert_outcomes(passed=1)


def test_a_model_given_as_a_run_is_told(run):
    """By what is in the directory."""
    result = run(f"--induction-run={SHIPPED['llama']}")
    result.stdout.fnmatch_lines(["*llama-2l holds a model: give it as one, with --induction-model or as `model` of a gate"])
