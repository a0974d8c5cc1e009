"""Modules without a pattern, declared by the command line, the ini file, gate files and the doctor; the refusal says how."""

import os
import re
import shlex

import pytest
import torch

from pytest_induction.__main__ import main

OPTION = "--induction-without-pattern"
MINE = """
import torch
from torch import nn
from tests.attention.recorded import Positioned
from tests.attention.test_hand_written import Attention, fused
from tests.model.test_names import Linear, Scanned

class OwnLinear(Linear):
    pass

class OwnScan(Scanned):
    pass

def seeded(*mixers):
    torch.manual_seed(0)
    model = Positioned(Attention(fused), *(kind() for kind in mixers))
    model.n_ctx = 64  # where none is declared, a claim of absence goes up to 1,024 positions
    return model

def hybrid():
    return seeded(OwnLinear)

def several():
    return seeded(OwnLinear, OwnScan, OwnLinear)

def attention_only():
    return seeded()
"""
REFUSED = "*information moves between positions in `blocks.1.mixer` (OwnLinear)* too, where no attention is seen*"
UNKNOWN = (
    "*`without_pattern` must name modules by path or class, and 'OwnLinaer' is none in this model; did you mean `OwnLinear`?"
)


@pytest.fixture
def mine(pytester, monkeypatch):
    monkeypatch.syspath_prepend(str(pytester.path))
    path = pytester.path / "mine.py"
    path.write_text(MINE)
    return lambda factory: f"{path}:{factory}"


@pytest.fixture
def run(pytester):
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "error", *arguments)


def gate(pytester, *lines, about='model = "mine.py:several"', expect="no_induction_head"):
    pytester.path.joinpath("a.gates.toml").write_text("\n".join(["[mine]", about, *lines, f'expect = ["{expect}"]', ""]))


def test_the_option_of_the_refusal_to_the_letter_mends_it(run, mine):
    """What the message says is appended to the command that was refused; the verdict is then one on the heads."""
    command = ("--induction-model", mine("several"), "-k", "has_induction_head")
    refused = run(*command)
    refused.assert_outcomes(failed=1, deselected=1)
    refused.stdout.fnmatch_lines([REFUSED])
    option = re.search(rf"declare it by path or class: ({OPTION}=\S+),", refused.stdout.str())[1]
    assert option == f"{OPTION}=OwnLinear,OwnScan"
    run(*command, option).stdout.fnmatch_lines(["has_induction_head is REFUTED, expected SHOWN: no head matches prefixes*"])


def test_the_gate_file_of_the_refusal_to_the_letter_mends_it(run, mine, pytester):
    """The line that the message says is added to the gate."""
    mine("several")
    gate(pytester)
    refused = run()
    refused.assert_outcomes(failed=1)
    gate(pytester, re.search(r"`(without_pattern = \[[^`]*\])` in a gate file", refused.stdout.str())[1])
    run().assert_outcomes(passed=1)


@pytest.mark.parametrize("written", ["(OPTION)", "(OPTION) doctor"])
def test_the_doctor_takes_it_as_it_says(mine, capsys, written):
    """Under the name that it says, and under that of pytest."""
    assert main(["doctor", mine("several")]) == 1
    said = capsys.readouterr().out
    option = re.search(r"`(--without-pattern=\S+)` of doctor and sweep", said)[1]
    assert main(["doctor", mine("several"), option if "doctor" in written else option.replace("--", "--induction-")]) == 0
    assert (
        "note       declared to mix positions without a pattern, which nothing checked: what runs in" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "options",
    [
        [OPTION, "OwnLinear", OPTION, "OwnScan"],
        [f"{OPTION}=blocks.1,blocks.2.mixer,blocks.3.mixer"],
        ["-oinduction_without_pattern=OwnLinear,OwnScan"],
    ],
    ids=["repeated", "paths", "ini, commas"],
)
def test_several_names_are_given_in_any_of_the_usual_ways(run, mine, pytester, options):
    """To what is gated, to the fixtures of tests, and to a model that a fixture of the user's loaded without it."""
    pytester.makepyfile(
        test_named="def test_it(induction):\n    induction.assert_no_induction_head()\n",
        test_own="""
            import mine, pytest
            from pytest_induction import load_model
            @pytest.fixture(scope="session", params=[mine.several, lambda: load_model(mine.several())])
            def induction_model(request):
                return request.param()
            def test_it(induction):
                induction.assert_no_induction_head()
        """,
    )
    gate(pytester)
    run(f"-oinduction_model={mine('several')}", *options).assert_outcomes(passed=4)
    if "ini" in options[0]:
        run(f"-oinduction_model={mine('several')}").assert_outcomes(failed=4)


def test_the_ini_file_has_a_line_for_each(run, mine, pytester):
    """And a table in pyproject.toml has a list; paths of models are relative to it, names of modules are names."""
    mine("several")
    pytester.makepyfile(test_it="def test_it(induction):\n    induction.assert_no_induction_head()\n")
    pytester.makeini("[pytest]\ninduction_model = mine.py:several\ninduction_without_pattern =\n    OwnLinear\n    OwnScan\n")
    run().assert_outcomes(passed=1)
    pytester.path.joinpath("tox.ini").unlink()
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\ninduction_model = "mine.py:several"\ninduction_without_pattern = ["OwnLinear", "OwnScan"]\n'
    )
    run().assert_outcomes(passed=1)


def test_the_option_counts_before_the_ini_file(run, mine, pytester):
    """Also where it takes back what that says; a gate's own key counts before both."""
    mine("hybrid")
    pytester.makeini("[pytest]\ninduction_without_pattern = OwnLinear\n")
    gate(pytester, about='model = "mine.py:hybrid"')
    run().assert_outcomes(passed=1)
    run(f"{OPTION}=").assert_outcomes(failed=1)
    gate(pytester, "without_pattern = []", about='model = "mine.py:hybrid"')
    run().assert_outcomes(failed=1)
    gate(pytester, 'without_pattern = "blocks.1.mixer"', about='model = "mine.py:hybrid"')
    run(f"{OPTION}=").assert_outcomes(passed=1)


def test_gates_of_a_pyproject_have_the_key(run, mine, pytester):
    mine("hybrid")
    pytester.makepyprojecttoml(
        '[tool.pytest_induction.gates.mine]\nmodel = "mine.py:hybrid"\nwithout_pattern = ["OwnLinear"]\nexpect = ["no_induction_head"]\n'
    )
    run().assert_outcomes(passed=1)


def test_a_name_that_is_none_is_one_line(run, mine, pytester, capsys):
    """Wherever it is said, and with the name that was meant."""
    result = run("--induction-model", mine("hybrid"), f"{OPTION}=OwnLinaer", "--tb=line")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines([UNKNOWN])
    gate(pytester, 'without_pattern = ["OwnLinear", "OwnLinaer"]', about='model = "mine.py:hybrid"')
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([UNKNOWN])
    capsys.readouterr()
    assert main(["doctor", mine("hybrid"), "--without-pattern=Mamba"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'Mamba' is none in this model; its classes are Attention, OwnLinear\n" in said


@pytest.mark.parametrize("value", ["3", "true", "[1]", '{ a = "b" }'])
def test_a_key_of_another_kind_is_refused(run, mine, pytester, value):
    mine("hybrid")
    gate(pytester, f"without_pattern = {value}", about='model = "mine.py:hybrid"')
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ['*`without_pattern` must be paths or classes of modules, such as "Scan", in a list if several, got *']
    )


def test_what_a_gate_compares_with_may_lack_the_module(run, mine, pytester):
    """A hybrid that was made of a transformer is compared with that; and with itself, which needs the name as well."""
    mine("hybrid")
    pytester.path.joinpath("a.gates.toml").write_text(
        """
[mine]
model = "mine.py:hybrid"
without_pattern = ["OwnLinear"]
[mine.expect]
heads_preserved = [{ before = "mine.py:attention_only" }, { before = "mine.py:hybrid" }]
"""
    )
    result = run()
    result.assert_outcomes(failed=2)  # neither has a head that could be lost, which is told of models that were measured
    result.stdout.fnmatch_lines(
        [
            "*heads_preserved is UNDETERMINED*",
            "*before is mine.py:attention_only: 1 layer *",
            "*before is mine.py:hybrid: 1 layer *",
        ]
    )


def test_the_command_that_repeats_a_test_declares_it_too(run, mine, pytester):
    """It is run, and fails as the test did; of a gate file, and of a test of the user's."""
    command = ("--induction-model", mine("several"), OPTION, "OwnLinear", OPTION, "OwnScan", "-k", "has_induction_head")
    result = run(*command)
    again = next(line for line in result.outlines if line.startswith("pytest "))
    assert f"{OPTION}=OwnLinear,OwnScan" in again
    repeated = run(*shlex.split(again)[1:])
    repeated.stdout.fnmatch_lines(["has_induction_head is REFUTED, expected SHOWN: no head matches prefixes*"])
    gate(pytester, expect="has_induction_head")
    result = run("a.gates.toml", f"{OPTION}=OwnLinear,OwnScan")
    result.stdout.fnmatch_lines([f"pytest {OPTION}=OwnLinear,OwnScan a.gates.toml::mine::has_induction_head"])


@pytest.mark.exhaustive
def test_checkpoints_are_swept_with_it(mine, pytester):
    """Those of --induction-run and of a gate; what was swept without it is not taken for it."""
    import mine as module

    place = pytester.path / "t"
    place.mkdir()
    for step in (1, 2):
        torch.save({"state_dict": module.hybrid().state_dict(), "global_step": step}, place / f"step_{step}.pt")
    swept = ("--induction-run", str(place), "--induction-factory", mine("hybrid"), "-k", "log_is_sane")
    before = pytester.runpytest_inprocess(*swept)
    before.stdout.fnmatch_lines(["*heads are not measured, as the attention of step_1.pt cannot be read: information moves*"])
    option = re.search(rf"declare it: ({OPTION}=\w+)", before.stdout.str())[1]
    after = pytester.runpytest_inprocess(*swept, option)
    assert "heads are not measured" not in after.stdout.str()
    again = next(line for line in after.outlines if line.startswith("pytest "))
    assert option in again
    about = 'run = "t"\nfactory = "mine.py:hybrid"\nwithout_pattern = ["OwnLinear"]'
    gate(pytester, about=about, expect="log_is_sane")
    result = pytester.runpytest_inprocess("a.gates.toml")
    result.stdout.fnmatch_lines(["*2 snapshots; at least 8 are needed*"])
    assert "heads are not measured" not in result.stdout.str()


@pytest.mark.exhaustive
def test_it_is_there_on_a_worker(run, mine):
    pytest.importorskip("xdist")
    result = run("--induction-model", mine("hybrid"), f"{OPTION}=OwnLinear", "-n1", "-k", "has_induction_head")
    result.stdout.fnmatch_lines(["has_induction_head is REFUTED, expected SHOWN: no head matches prefixes*"])
    assert os.fspath(mine("hybrid")) in result.stdout.str()
