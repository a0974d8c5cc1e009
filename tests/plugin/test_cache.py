"""--induction-cache: what nothing has changed of is not measured again, and whatever has is."""

import json
import shutil
import threading
from datetime import datetime
from xml.etree import ElementTree as ET

import pytest

from pytest_induction import assert_copies_repeats, load_model
from pytest_induction.claims import claim_named
from pytest_induction.plugin import cache as module
from pytest_induction.plugin.cache import MARK, VerdictCache
from pytest_induction.plugin.reports import _better_of
from pytest_induction.records import ChartData
from tests.conftest import FIXTURES

LLAMA = FIXTURES / "models" / "llama-2l"
GATE = '[a]\nmodel = "model"\nexpect.copies_repeats = { min_accuracy = 0.9 }\n'
SETTINGS = {"seed": 0, "device": None, "dtype": None, "memory": None, "budget": None, "trust_remote_code": False}
KEPT = "note  * kept by --induction-cache: measured on 20??-??-??"


@pytest.fixture(scope="module")
def evidence():
    return assert_copies_repeats(load_model(str(LLAMA)))


@pytest.fixture
def place(pytester):
    shutil.copytree(LLAMA, pytester.path / "model")
    return pytester.path


@pytest.fixture
def cache(place, pytester):
    return VerdictCache(pytester.parseconfig("--induction-cache=kept"))


def entry_of(cache, *, spec="model", claim="copies_repeats", arguments=None, **settings):
    return cache.entry(spec, claim_named(claim), arguments or {}, {**SETTINGS, **settings})


def flip(path, at=-1):
    """Change one bit of a file, in place and without a trace in its size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded."""
    seen, load = [], load_model

    def counted(model, **options):
        seen.append(str(model))
        return load(model, **options)

    monkeypatch.setattr("pytest_induction.model.load.load_model", counted)
    return seen


def test_a_second_session_loads_nothing_until_a_byte_changes(place, pytester, loads):
    """It says when it was measured, and fails as before what failed; one bit of the weights, and it is measured again."""
    (place / "a.gates.toml").write_text(f"{GATE}expect.no_induction_head = true\n")
    run = ("--induction-cache=kept", "-p", "no:randomly", "-v")
    first = pytester.runpytest_inprocess(*run)
    first.assert_outcomes(passed=1, failed=1)
    first.stdout.no_fnmatch_line("*kept by --induction-cache*")
    assert loads == ["model"]
    second = pytester.runpytest_inprocess(*run)
    second.assert_outcomes(passed=1, failed=1)
    second.stdout.fnmatch_lines([f" *{KEPT}", "FAILED a.gates.toml::a::no_induction_head - no_induction_head is REFUTED*"])
    assert loads == ["model"]
    flip(place / "model" / "model.safetensors")
    third = pytester.runpytest_inprocess(*run)
    third.assert_outcomes(passed=1, failed=1)
    third.stdout.no_fnmatch_line("*kept by --induction-cache*")
    assert loads == ["model", "model"]


REPORTS = ("junit.xml", "--induction-report=r.json", "--induction-report=r.html", "--induction-report=r.md")


def reported(pytester, *more):
    """What a session with the cache says of itself: properties, records, page, Markdown, and the last lines where it is quiet."""
    run = pytester.runpytest_inprocess("--induction-cache=kept", f"--junitxml={REPORTS[0]}", *REPORTS[1:], *more)
    cases = ET.parse(pytester.path / REPORTS[0]).iter("testcase")
    found = {name: (pytester.path / f"r.{name}").read_text() for name in ("json", "html", "md")}
    properties = [{each.get("name"): each.get("value") for each in case.iter("property")} for case in cases]
    return properties, json.loads(found["json"]), found["html"], found["md"], run.stdout.str()


def test_every_report_says_that_a_verdict_came_from_the_cache(place, pytester):
    """JUnit, the records, the page, Markdown and the terminal; where charts are is said in one line, not in one for each."""
    (place / "a.gates.toml").write_text(GATE)
    properties, records, page, markdown, said = reported(pytester, "-q", "--induction-charts=heads,repeats")
    (of_test,) = records["tests"]
    assert "induction.copies_repeats.cached_from" not in properties[0]
    assert of_test["evidence"][0]["provenance"]["cached_from"] == ""
    assert not any("cached" in text or "the cache" in text for text in (markdown, said.replace("--induction-cache", "")))
    assert [(chart["kind"], chart["missing"]) for chart in records["charts"]] == [("heads", ""), ("repeats", "")]

    properties, records, page, markdown, said = reported(pytester, "-q", "--induction-charts=heads,repeats")
    (of_test,) = records["tests"]
    measured = of_test["evidence"][0]["provenance"]["cached_from"]
    assert datetime.fromisoformat(measured).tzinfo is not None
    assert properties[0]["induction.copies_repeats.cached_from"] == measured
    assert properties[0]["induction.copies_repeats.verdict"] == "SHOWN"
    assert "induction: 1 SHOWN, 0 REFUTED, 0 UNDETERMINED, 1 from the cache" in said
    assert "SHOWN, passed, cached" in page and "SHOWN, passed, cached" in markdown
    assert "1 verdict: 1 SHOWN, 1 from the cache" in markdown
    why = f"the verdict is from --induction-cache, measured on {measured[:10]}; run without --induction-cache to draw it"
    assert [(chart["kind"], chart["missing"]) for chart in records["charts"]] == [("heads", why), ("repeats", why)]
    assert (page.count(why), markdown.count(why)) == (1, 1)


def test_charts_are_missing_only_where_they_were_asked_for_and_nothing_loaded_the_model(place, pytester):
    """Whichever of its gates came first; and only the verdict that was kept is said to be."""
    (place / "a.gates.toml").write_text(GATE)
    pytester.runpytest_inprocess("--induction-cache=kept").assert_outcomes(passed=1)
    assert reported(pytester, "--induction-charts=none")[1]["charts"] == []
    assert {chart["kind"] for chart in reported(pytester, "--induction-charts=text,repeats")[1]["charts"]} == {"repeats"}
    (place / "a.gates.toml").write_text(f"{GATE}expect.has_induction_head = true\n")
    properties, records, *_ = reported(pytester, "--induction-charts=heads,repeats")
    assert sorted(any(name.endswith("cached_from") for name in each) for each in properties) == [False, True]
    assert {chart["kind"]: chart["missing"] for chart in records["charts"]} == {"heads": "", "repeats": ""}


@pytest.mark.parametrize("is_drawn_first", [True, False])
def test_a_chart_that_another_process_drew_is_the_one(is_drawn_first):
    """In either order."""
    drawn = ChartData("heads", "model", "0", {"scores": []})
    undrawn = ChartData("heads", "model", "0", missing="why")
    pair = (drawn, undrawn) if is_drawn_first else (undrawn, drawn)
    assert _better_of(*pair) is drawn
    assert _better_of(undrawn, ChartData("heads", "model", "0", missing="another")) is undrawn


def test_nothing_is_kept_unless_it_is_asked_for(place, pytester):
    """Off by default."""
    config = pytester.parseconfig()
    assert not VerdictCache(config).is_on
    assert entry_of(VerdictCache(config)) is None


def test_what_is_kept_is_the_evidence(cache, evidence):
    """All of it, with one note more; and a second time the same."""
    entry_of(cache).write(evidence)
    found, problem = entry_of(cache).read()
    assert problem == ""
    assert found.provenance.notes[-1].startswith("kept by --induction-cache: measured on 2")
    assert found.provenance.fingerprint == evidence.provenance.fingerprint
    assert json.dumps(found.to_dict()["estimates"]) == json.dumps(evidence.to_dict()["estimates"])
    assert (found.verdict, found.thresholds, found.is_asserted) == (evidence.verdict, dict(evidence.thresholds), False)


CHANGES = {
    "a bit at the end of the weights": lambda place, _: flip(place / "model" / "model.safetensors"),
    "a bit within": lambda place, _: flip(place / "model" / "model.safetensors", -5000),
    "the config": lambda place, _: flip(place / "model" / "config.json", -3),
    "a file more": lambda place, _: (place / "model" / "modeling_own.py").write_text(""),
    "a file less": lambda place, _: (place / "model" / "generation_config.json").unlink(),
    "a version": lambda _, patch: patch.setattr(module, "installed_versions", lambda: {"torch": "0.0"}),
    "our own source": lambda _, patch: patch.setattr(module, "code_digest", lambda: "another"),
    "the machine": lambda _, patch: patch.setattr(module.platform, "machine", lambda: "another"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_around_the_question_misses(kind, place, pytester, cache, evidence, monkeypatch):
    """In the same session, and in another."""
    entry_of(cache).write(evidence)
    assert entry_of(cache).read()[0] is not None
    CHANGES[kind](place, monkeypatch)
    assert entry_of(VerdictCache(pytester.parseconfig("--induction-cache=kept"))).read() == (None, "")
    if "version" not in kind and "source" not in kind:  # which are as they were loaded
        assert entry_of(cache).read() == (None, "")


@pytest.mark.parametrize(
    "other",
    [
        {"claim": "has_induction_head"},
        {"arguments": {"min_accuracy": 0.91}},
        {"seed": 1},
        {"dtype": "bfloat16"},
        {"memory": "1GB"},
        {"budget": "60 passes"},
        {"without_pattern": ["Scan"]},
    ],
    ids=str,
)
def test_another_question_misses(other, cache, evidence):
    """Whatever of it is another."""
    entry_of(cache).write(evidence)
    assert entry_of(cache, **other).read() == (None, "")


def test_another_text_under_the_same_name_misses(place, cache, evidence):
    """What it says is what counts."""
    (place / "text.txt").write_text("one")
    entry_of(cache, arguments={"text": place / "text.txt"}).write(evidence)
    assert entry_of(cache, arguments={"text": place / "text.txt"}).read()[0] is not None
    (place / "text.txt").write_text("two")
    assert entry_of(cache, arguments={"text": place / "text.txt"}).read() == (None, "")


BREAKS = {
    "cut off": lambda text: text[:100],
    "no JSON": lambda _: "\x00\x01",
    "empty": lambda _: "",
    "a list": lambda _: "[]",
    "of another question": lambda text: text.replace('"seed": 0', '"seed": 1', 1),
    "another verdict": lambda text: text.replace('"SHOWN"', '"REFUTED"', 1),
    "another number": lambda text: text.replace('"value": ', '"value": 1', 1),
    "no evidence": lambda text: text.replace('"evidence"', '"evidense"'),
    "nested without end": lambda _: "[" * 100_000,
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_or_foreign_file_is_a_miss_with_one_line(kind, cache, evidence):
    """Never an error, and it is put right."""
    entry = entry_of(cache)
    entry.write(evidence)
    text = entry.path.read_text()
    assert BREAKS[kind](text) != text
    entry.path.write_text(BREAKS[kind](text))
    found, problem = entry.read()
    assert found is None
    assert problem.startswith(f"{entry.path.name} of --induction-cache could not be used (")
    assert "\n" not in problem
    entry.write(evidence)
    assert entry.read()[0] is not None


def test_a_broken_file_is_said_in_the_section_and_the_gate_passes(place, pytester):
    """With what was measured anew."""
    (place / "a.gates.toml").write_text(GATE)
    pytester.runpytest_inprocess("--induction-cache=kept").assert_outcomes(passed=1)
    (kept,) = (each for each in (place / "kept").iterdir() if each.name != MARK)
    kept.write_text("{}")
    again = pytester.runpytest_inprocess("--induction-cache=kept", "-v")
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(
        [f"*note * {kept.name} of --induction-cache could not be used (it is no verdict that was kept): measured anew"]
    )


@pytest.mark.parametrize(
    "other",
    [
        {"spec": f"{FIXTURES / 'attention_only.py'}:two_layers"},
        {"spec": "hf:some/model"},
        {"spec": "nowhere"},
        {"budget": "30 s"},
        {"budget": 30},
        {"trust_remote_code": True},
        {"device": "auto"},
        {"claim": "heads_preserved", "arguments": {"before": object()}},
        {"claim": "property_holds", "arguments": {"property": "own.py:property"}},
    ],
    ids=lambda other: "-".join(other),
)
def test_what_cannot_be_told_is_not_kept(other, cache):
    """A factory, a model of the hub, a time, code of others, another model."""
    assert entry_of(cache) is not None
    assert entry_of(cache, **other) is None


def test_an_adapter_is_not_kept(place, cache):
    """Its base lies elsewhere."""
    (place / "model" / "adapter_config.json").write_text("{}")
    assert entry_of(cache) is None


def test_a_hook_of_the_users_keeps_nothing(place, pytester):
    """What it does to a model is not known."""
    pytester.makeconftest("def pytest_induction_attach(model):\n    return None\n")
    assert entry_of(VerdictCache(pytester.parseconfig("--induction-cache=kept"))) is None


def test_a_model_that_changes_while_it_is_measured_is_not_kept(place, cache, evidence):
    """The verdict may be on either."""
    entry = entry_of(cache)
    flip(place / "model" / "model.safetensors")
    entry.write(evidence)
    assert not entry.path.exists()


def test_writers_at_once_leave_a_whole_file(cache, evidence):
    """As workers of pytest-xdist do that have the same question."""
    entry, problems, writers = entry_of(cache), [], []
    entry.write(evidence)
    for _ in range(4):
        writers.append(threading.Thread(target=lambda: [entry.write(evidence) for _ in range(10)]))
        writers[-1].start()
    while any(each.is_alive() for each in writers):
        problems.append(entry.read()[1])
    assert set(problems) <= {""}
    assert {each.name for each in entry.path.parent.iterdir()} == {entry.path.name, MARK}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("-p", "no:cacheprovider", "--induction-cache"),
            "*pytest's cache, which is off: name a directory, --induction-cache=DIR",
        ),
        (("--induction-cache=model",), "*model has other files (*): name a directory of its own, --induction-cache=DIR"),
        (("--induction-cache=model/config.json",), "*--induction-cache: model/config.json cannot be used: *"),
    ],
)
def test_a_directory_that_is_none_of_ours_is_a_usage_error(arguments, line, place, pytester):
    """So that nothing is written among a user's own files."""
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])


def test_gates_of_the_command_line_are_kept_in_pytests_cache(place, pytester, loads):
    """Where no directory is named."""
    run = ("--rootdir=.", "--induction-model=model", "--induction-cache", "-k", "copies_repeats")
    pytester.runpytest_inprocess(*run).assert_outcomes(passed=1, deselected=1)
    pytester.runpytest_inprocess(*run).assert_outcomes(passed=1, deselected=1)
    assert len(loads) == 1
    assert len([*(place / ".pytest_cache" / "d" / "induction-verdicts").iterdir()]) == 2
