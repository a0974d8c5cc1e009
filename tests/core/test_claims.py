"""The registry: one record for each claim, from which everything else follows, and which loads nothing."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_induction
from pytest_induction import Claim, Evidence, Verdict, claims, register_claim
from pytest_induction import fixture as fixtures
from pytest_induction.charts.data import KINDS
from pytest_induction.errors import ArgumentError
from pytest_induction.expectations import next_step, with_thresholds
from pytest_induction.plugin.baselines import GATE
from pytest_induction.records import Estimate, Provenance
from pytest_induction.report.verdict_rows import HEAD_COLUMNS
from pytest_induction.runs.phase_change.finding import wanting
from pytest_induction.runs.record import TrainingRun

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pytest_induction"
EVERY = claims.claims()
HERE = Provenance("model", "1", "sdpa", 2, 4, "float32", "cpu")


def mine(model, *, min_share: float = 0.5) -> Evidence: ...


def own(**fields):
    return Claim(**{"name": "mine", "asserts": "it is mine", "assertion": mine, **fields})


def test_every_public_assertion_is_of_one_claim():
    """Of the name that its record gives it; there is no other, and none is missing."""
    public = [name for name in pytest_induction.__all__ if name.startswith("assert_")]
    assert sorted(claim.method for claim in EVERY) == sorted(public)
    for claim in EVERY:
        assert claim.function() is getattr(pytest_induction, claim.method)
        parameters = list(inspect.signature(claim.function()).parameters)
        assert claim.parameter in parameters, claim.name


def test_what_an_assertion_judges_bears_the_name_of_its_claim():
    """One name everywhere: in the sources an evidence is of no claim that is not registered."""
    named = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            place = {"Evidence": 0, "denied": 1, "_evidence": 1}.get(node.func.id, len(node.args))
            given = [*node.args[place : place + 1], *(each.value for each in node.keywords if each.arg == "claim")]
            named |= {each.value for each in given if isinstance(each, ast.Constant)}
    assert {"copies_repeats", "heads_kept", "no_induction_head", "formed", "cooccurrence"} <= named
    assert named <= {claim.name for claim in EVERY}


def test_fields_of_a_record_mean_something():
    """Kinds of charts, columns, what a log must have, options that are held against: each is there."""
    lacks = set(wanting(TrainingRun("r", ())))
    assert lacks == {claim.name for claim in EVERY if claim.about == "run"}
    for claim in EVERY:
        assert claim.chart in ("", *KINDS) and set(claim.columns) <= set(HEAD_COLUMNS), claim.name
        known = inspect.signature(claim.function()).parameters
        for argument in (*claim.held_against.values(), *claim.arguments, *claim.collected_with):
            plain = argument.removeprefix(claims.BOTH_SIDES)
            assert plain in known or (plain, claim.name) in {("max_lag", "phase_change"), ("max_lag", "no_phase_change")}, (
                claim.name,
                argument,
            )
        assert not claim.denies or claims.claim_named(claim.denies) is not None
        page, _, _ = claim.more.partition("#")
        assert not page or (ROOT / "docs" / page).exists(), claim.more


def test_the_fixture_has_every_claim_about_a_model():
    """And every measure of one: what is written out for type checkers is what the registry and the face have."""
    written = {name for name, value in vars(fixtures.Induction).items() if isinstance(value, OFS)}
    wanted = {claim.method for claim in EVERY if claim.about == "model"} | {"find_induction_heads"}
    for name in pytest_induction.__all__:
        if name.startswith("measure_"):
            first = next(iter(inspect.signature(getattr(pytest_induction, name)).parameters))
            wanted |= {name} if first == "model" else set()
    assert written == wanted


OFS = (fixtures.OfModel, fixtures.OfModelAndText, fixtures.OfLaterModel)


def test_the_tables_of_the_reference_are_those_of_the_registry(tmp_path):
    """As `make lint` checks; a claim without a row is seen."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "theme" / "claims.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = tmp_path / "docs" / "reference.md"
    (tmp_path / "docs" / "theme").mkdir(parents=True)
    script = tmp_path / "docs" / "theme" / "claims.py"
    script.write_text((ROOT / "docs" / "theme" / "claims.py").read_text())
    (tmp_path / "src").symlink_to(ROOT / "src")
    page.write_text(re.sub(r"\| `assert_formed` .*\n", "", (ROOT / "docs" / "reference.md").read_text()))
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "run `python docs/theme/claims.py`" in done.stderr


def test_the_registry_loads_nothing():
    """Nor does a claim that is added by the path of its assertion."""
    code = (
        "import sys; from pytest_induction import Claim, register_claim; "
        "register_claim(Claim(name='mine', asserts='', assertion='json.tool:main')); "
        "print(sorted({'torch', 'numpy', 'hypothesis', 'jinja2', 'pytest', 'json.tool'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_claim_of_ones_own_comes_after_the_built_in_ones():
    claim = register_claim(own())
    assert claims.claims() == (*EVERY, claim) and claims.claim_named("mine") is claim
    assert claims.place_of("mine") == len(EVERY) < claims.place_of("unknown")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "copies_repeats"}, "claim `copies_repeats`: the name is taken, by pytest_induction.behaviour.claims:"),
        ({"name": "My claim"}, "`name` must be small letters, digits and `_`"),
        ({"assertion": "nowhere.at_all:f"}, "claim `mine`: there is no module `nowhere.at_all`, which `assertion` names"),
        (
            {"assertion": "json.tool:mian"},
            "there is no function `mian` in json.tool, which `assertion` names; did you mean `main`?",
        ),
        ({"assertion": "json"}, "`assertion` is written 'package.module:function', got 'json'"),
        ({"assertion": ""}, "it needs an `assertion`, such as 'package.module:assert_mine', or a `score`"),
        ({"assertion": 3}, "`assertion` must be a function or its path, got 3"),
        ({"subject": "modell"}, "`subject` must be one of model, pair of models, run, pair of runs, family, got 'modell'"),
        (
            {"denies": "has_induction_heads"},
            "there is no claim `has_induction_heads` to deny; did you mean `has_induction_head`?",
        ),
    ],
)
def test_what_cannot_be_registered_is_one_line(fields, said):
    with pytest.raises(ArgumentError) as refused:
        register_claim(own(**fields))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert claims.claims() == EVERY


def test_only_a_claim_is_registered():
    with pytest.raises(ArgumentError, match="`register_claim` takes a `Claim`, got `dict`"):
        register_claim({"name": "mine"})


def test_an_assertion_that_is_gone_is_one_line_when_it_is_asked_for():
    with pytest.raises(ArgumentError, match=r"claim `mine`: json\.tool:gone cannot be loaded"):
        own(assertion="json.tool:gone").function()


def evidence(claim, reason="", **estimates):
    found = {name: Estimate(0.5, 0.4, 0.6) for name in estimates}
    return Evidence(claim, Verdict.REFUTED, reason, "", HERE, estimates=found, thresholds={"delay": 0.1, "min_share": 0.2})


def test_an_estimate_is_held_against_what_the_record_says():
    """To one side or both, of one estimate or of all that begin alike; else the names say it, or nothing does."""
    register_claim(own(held_against={"lag": "±delay", "late": "delay", "of *": "min_share"}))
    found = {
        name: thresholds
        for name, _, thresholds in with_thresholds(evidence("mine", **{"lag": 1, "late": 1, "of L1H0": 1, "share": 1, "else": 1}))
    }
    assert found == {"lag": (-0.1, 0.1), "late": (0.1,), "of L1H0": (0.2,), "share": (0.2,), "else": ()}
    assert [thresholds for _, _, thresholds in with_thresholds(evidence("unknown", lag=1))] == [()]


def test_a_next_step_is_that_of_the_claim_itself():
    """Where it has one; a reason that it takes over from another claim is told as that one tells it."""
    register_claim(own(next_steps={"silent": "listen"}))
    assert next_step(evidence("mine", "silent")) == "listen"
    assert next_step(evidence("mine", "dormant")) == next_step(evidence("has_induction_head", "dormant"))
    assert next_step(evidence("mine", "unheard_of")) == "see docs/metrics.md"
    assert next_step(replace(evidence("mine", "silent"), next_step="this")) == "this"


class Entry:
    name, value, group = "theirs", "package:THEIRS", claims.GROUP

    def __init__(self, load):
        self.load = load


@pytest.mark.parametrize("given", [own, lambda: [own()], lambda: lambda: [own()]], ids=["claim", "list", "function"])
def test_an_entry_point_brings_claims(monkeypatch, given):
    """One, several, or a function that gives them; a second time in one process is none too many."""
    monkeypatch.setattr("pytest_induction.registry.entry_points", lambda group: [Entry(given)] if group == claims.GROUP else [])
    claims.register_installed()
    claims.register_installed()
    assert [claim.name for claim in claims.claims()[len(EVERY) :]] == ["mine"]


def no_module():
    raise ModuleNotFoundError("No module named 'package'")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (no_module, "ModuleNotFoundError: No module named 'package'"),
        (lambda: 3, "expected a `Claim`, a list of them or a function that gives them, got int"),
        (lambda: [own(), 3], "expected a `Claim`, a list of them"),
        (lambda: own(name="formed"), "claim `formed`: the name is taken"),
    ],
)
def test_a_broken_entry_point_is_one_line_that_names_it(monkeypatch, given, said):
    monkeypatch.setattr("pytest_induction.registry.entry_points", lambda group: [Entry(given)])
    with pytest.raises(ArgumentError) as refused:
        claims.register_installed()
    assert str(refused.value).startswith("the entry point `theirs` of pytest_induction.claims (package:THEIRS) brings no claim: ")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_gate_of_a_baseline_is_that_of_the_claim_that_needs_one():
    """The plugin says its name without loading the registry."""
    assert [claim.name for claim in EVERY if "baseline" in claim.needs] == [GATE]
