"""What a gate file says, and one line for whatever is wrong with it; nothing is loaded."""

import ast
import collections.abc
import inspect
import re
from pathlib import Path
from typing import Optional, Union

import pytest

import pytest_induction
from pytest_induction.claims import claims, source_of
from pytest_induction.errors import ArgumentError
from pytest_induction.plugin.gates import signatures
from pytest_induction.plugin.gates.signatures import Parameter
from pytest_induction.plugin.gates.table import holds_gates, read_gates
from pytest_induction.plugin.gates.values import READERS, ModelNamed, RunNamed, kinds_of, read_argument

NOT_WRITTEN = {"classes", "pairs", "tokenizer"}  # arguments of which only the assertion knows what they may be


@pytest.fixture
def place(tmp_path):
    """A directory with a model, a factory, a run and a text."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "kept.json").write_text("{}")
    return tmp_path


def read(place, content, name="a.gates.toml"):
    (place / name).write_text(content, encoding="utf-8")
    return read_gates(place / name)


def test_gates_are_read_in_order_with_paths_beside_the_file(place):
    """And what the assertions are called with, none of which is loaded."""
    small, other, run = read(
        place,
        """
[small]
model = "model"
text = "text.txt"
seed = 7
marks = ["slow"]
[small.expect]
has_induction_head = [{}, { min_prefix_matching = 1, allow_virtual = true }]
assert_learns_in_context = { max_score = -0.2 }
ablation_removes_icl = { text = false, how = ["zero", "mean"] }
heads_preserved = { before = "kept.json", margins = { prefix_matching = 0.2, repeat_loss = false } }
heads_generalize = { heads = ["L1H0"] }
[other]
model = "mine.py:make"
expect = ["no_induction_head"]
[run]
run = "run"
reference = "s3://bucket/run"
factory = "mine.py:make"
[run.expect]
onset_not_later = {}
formation_order = { at_onsets = true }
""",
    )
    assert (small.name, small.line, [each.name for each in small.marks], small.subject) == (
        "small",
        1,
        ["slow"],
        ModelNamed(str(place / "model")),
    )
    assert small.settings == {"text": place / "text.txt", "seed": 7}
    assert {each.name: each.arguments for each in small.expectations} == {
        "has_induction_head-0": {},
        "has_induction_head-1": {"min_prefix_matching": 1.0, "allow_virtual": True},
        "learns_in_context": {"text": place / "text.txt", "max_score": -0.2},
        "ablation_removes_icl": {"how": ["zero", "mean"]},
        "heads_preserved": {
            "text": place / "text.txt",
            "before": ModelNamed(str(place / "kept.json")),
            "margins": {"prefix_matching": 0.2, "repeat_loss": None},
        },
        "heads_generalize": {"heads": ["L1H0"]},
    }
    assert other.subject == ModelNamed(f"{place / 'mine.py'}:make")
    assert run.line == 15
    assert [each.arguments for each in run.expectations] == [{"reference": RunNamed("s3://bucket/run")}, {"at_onsets": True}]
    assert not [each.problem for gate in (small, other, run) for each in gate.expectations if each.problem]


def test_a_pyproject_has_the_same_tables_in_a_section(place):
    """Whatever else it has."""
    content = (
        '[project]\nname = "mine"\n[tool.pytest_induction.gates.small]\nmodel = "hf:some/model@main"\nexpect = ["copies_repeats"]'
    )
    (gate,) = read(place, content, "pyproject.toml")
    assert (gate.name, gate.line, gate.subject) == ("small", 2, ModelNamed("hf:some/model@main"))


FILES = {
    "no TOML": ('[small]\nmodel "model"\n', r"is not TOML: .*\(at line 2, column 7\): model \"model\"$"),
    "a table twice": ("[a]\n[a]\n", r"is not TOML: .*\(at line 2, column 3\): \[a\]$"),
    "torn": ('[a]\nmodel = "', r"is not TOML: "),
    "empty": ("", r"a.gates.toml has no gates: a gate is a table such as \[small\]$"),
}
GATES = {
    "an unknown key": ('modle = "model"', "there is no key `modle`; did you mean `model`?"),
    "a key like none": ('model = "model"\nzzz = 1', "there is no key `zzz`; known are model, run, text, seed, budget, device, "),
    "no subject": ('text = "text.txt"', "a gate is about one `model` or one `run`, this has neither"),
    "two subjects": ('model = "model"\nrun = "run"', "a gate is about one `model` or one `run`, this has both"),
    "a key of runs": ('model = "model"\nfactory = "mine.py:make"', "`factory` is for a `run`, this is about a `model`"),
    "no such model": ('model = "nope"', "`model`: no model at '.*nope': expected .*; to download it from the hub write hf:nope$"),
    "no such file": ('model = "nope.py:make"', "`model`: no file .*nope.py.*: the model '.*' is to come from a factory in it"),
    "an empty model": ('model = ""', "`model`: no model is named: expected a local directory"),
    "a model that is no string": ("model = 3", "`model` must be a string, got 3"),
    "no such run": ('run = "nope"', "`run`: there is no run at '.*nope': expected a run, a log or a directory of checkpoints"),
    "no such text": ('model = "model"\ntext = "nope.txt"', "`text`: the text '.*nope.txt' is not a file"),
    "an empty text": ('model = "model"\ntext = "empty.txt"', "`text`: the text '.*empty.txt' is empty"),
    "a seed below 0": ('model = "model"\nseed = -1', "`seed` must be a whole number from 0 up, got -1"),
    "a budget of nothing": ('model = "model"\nbudget = "much"', "`budget`: `budget` must be bare passes such as"),
    "a budget that is true": ('model = "model"\nbudget = true', "`budget` must be bare passes such as .*, got True"),
    "a budget of a run": ('run = "run"\nbudget = 60', "`budget` is for a `model`, this is about a `run`"),
    "a seed that is true": ('model = "model"\nseed = true', "`seed` must be a whole number from 0 up, got True"),
    "a device": (
        'model = "model"\ndevice = "warp9"',
        "`device`: device must be like cpu, cuda, cuda:1, mps or auto, got 'warp9'",
    ),
    "a dtype": ('model = "model"\ndtype = "int8"', "`dtype`: dtype must be float32, float64, bfloat16 or float16, got 'int8'"),
    "a memory": ('model = "model"\nmemory = "lots"', "`memory`: memory must be a size like 4GB or 512MB, got 'lots'"),
    "no memory": ('model = "model"\nmemory = 4', "`memory` must be a string, got 4"),
    "consent in quotes": (
        'model = "model"\ntrust_remote_code = "yes"',
        "`trust_remote_code` must be true or false, without quotes",
    ),
    "a factory": (
        'run = "run"\nfactory = "mine.py"',
        "`factory`: a factory is named module.path:function or path/file.py:function",
    ),
    "marks": (
        'model = "model"\nmarks = "slow"',
        r"`marks` must be a list of markers, such as .*, whose arguments are plain values, got 'slow'",
    ),
}
EXPECTATIONS = {
    "nothing": ("", "it must say what it expects: .*, got nothing"),
    "an empty list": ("expect = []", r"it must say what it expects: .*, got \[\]"),
    "one name": ('expect = "copies_repeats"', "it must say what it expects: .*, got 'copies_repeats'"),
    "a name twice": ('expect = ["copies_repeats", "assert_copies_repeats"]', "`expect` names `copies_repeats` twice: "),
    "an unknown name": ('expect = ["copies_repeat"]', "there is no assertion `copies_repeat`; did you mean `copies_repeats`?"),
    "of runs": ('expect = ["phase_change"]', "phase_change: it is about a `run`, the gate has a `model`"),
    "of families": ('expect = ["continuity"]', "`continuity` is about several models or runs: assert it in a test"),
    "an unknown argument": (
        "expect.copies_repeats.min_acuracy = 1",
        "copies_repeats: it has no argument `min_acuracy`; did you mean `min_accuracy`?",
    ),
    "a string for a number": (
        'expect.copies_repeats.min_accuracy = "0.9"',
        "copies_repeats: `min_accuracy` must be a number, got '0.9'",
    ),
    "true for a number": ("expect.copies_repeats.min_accuracy = true", "`min_accuracy` must be a number, got True"),
    "not a number": ("expect.copies_repeats.min_accuracy = nan", "`min_accuracy` must be a number, got nan"),
    "a broken count": ("expect.copies_repeats.max_sequences = 9.5", "`max_sequences` must be a whole number, got 9.5"),
    "a number for a choice": ("expect.ablation_removes_icl.how = 1", "`how` must be a string or a list of strings, got 1"),
    "false": (
        "expect.copies_repeats = false",
        "it must be true, a table of arguments or a list of these, got False: leave it out",
    ),
    "no text": ('expect = ["learns_in_context"]', 'learns_in_context: it needs `text`: give the gate text = "PATH"'),
    "no heads": ('expect = ["heads_generalize"]', "it needs `heads`: write heads_generalize = { heads = ... } under `expect`"),
    "a head": ('expect.heads_generalize.heads = ["1.0"]', '`heads` must be heads such as "L1H0", in a list if several, got'),
    "a number for a path": ("expect.heads_preserved.before = 1", "`before` must be a model, or a file of measurements, got 1"),
    "no such model": ('expect.heads_preserved.before = "nope"', "heads_preserved: no model at '.*nope'"),
    "margins": ('expect.heads_preserved.margins.loss = "1"', "`margins` must be a table of numbers, or of false where"),
    "a text for nothing": (
        'text = "text.txt"\nexpect = ["copies_repeats"]',
        "none of the claims it expects takes `text`: leave `text` out, or expect a claim that takes it",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_read_is_one_line(kind, place):
    """With the line, where there is one."""
    content, message = FILES[kind]
    with pytest.raises(ArgumentError, match=message) as caught:
        read(place, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.gates.toml", "[small]\n# \udce9", "latin.gates.toml cannot be read: it is not UTF-8"),
        (
            "pyproject.toml",
            "[tool.pytest_induction.gate.a]",
            r"\[tool.pytest_induction\] has no key `gate`; did you mean `gates`?",
        ),
        (
            "pyproject.toml",
            "[tool.pytest-induction.gates.a]",
            r"is written \[tool.pytest_induction.gates.NAME\], with an underscore",
        ),
        ("pyproject.toml", "[tool.pytest_induction]\ngates = 1", "gates are tables such as "),
        ("pyproject.toml", "[tool.pytest_induction.gates]", r"such as \[tool.pytest_induction.gates.small\]"),
    ],
)
def test_what_is_meant_to_hold_gates_and_does_not_is_one_line(name, content, message, place):
    """A mistake in a name of a section would otherwise gate nothing, and say nothing."""
    (place / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ArgumentError, match=re.escape(message) if "[" not in message else message):
        read_gates(place / name)


@pytest.mark.parametrize("kind", GATES)
def test_what_is_wrong_with_a_gate_fails_all_that_it_expects_and_no_other_gate(kind, place):
    """Under the ids that they would have; one line, with the file and the gate."""
    keys, message = GATES[kind]
    broken, good = read(
        place, f'[small]\n{keys}\nexpect = ["copies_repeats", "nope"]\n[good]\nmodel="model"\nexpect=["copies_repeats"]'
    )
    assert [each.name for each in broken.expectations] == ["copies_repeats", "nope"]
    for each in broken.expectations:
        assert re.match(rf".*a.gates.toml, gate `small`: {message}", each.problem), each.problem
        assert "\n" not in each.problem
    assert [each.problem for each in good.expectations] == [""]


@pytest.mark.parametrize("kind", EXPECTATIONS)
def test_what_is_wrong_with_an_expectation_is_one_line(kind, place):
    """With the file, the gate and the assertion."""
    keys, message = EXPECTATIONS[kind]
    (gate,) = read(place, f'[small]\nmodel = "model"\n{keys}')
    assert any(re.search(rf"a.gates.toml, gate `small`.*{message}", each.problem) for each in gate.expectations), (
        gate.expectations
    )


def test_one_wrong_expectation_leaves_the_others(place):
    """Of the same gate."""
    (gate,) = read(place, '[small]\nmodel = "model"\nexpect = ["copies_repeat", "has_induction_head"]')
    assert [bool(each.problem) for each in gate.expectations] == [True, False]


@pytest.mark.parametrize("name", ["a::b", "a[0]", "a/b", " ", ""])
def test_a_name_that_no_test_can_be_selected_by_is_refused(name, place):
    """For the name is part of the ids of tests."""
    (gate,) = read(place, f'["{name}"]\nmodel = "model"\nexpect = ["copies_repeats"]')
    assert "its name must be letters, digits, `_`, `-` and `.`" in gate.expectations[0].problem
    assert re.fullmatch(r"[\w.]+", gate.name)


def test_a_key_outside_of_every_table_is_one_line(place):
    """The usual mistake: no header."""
    first, _ = read(place, 'model = "model"\nexpect = ["copies_repeats"]')
    assert "gate `model`: it must be a table, got 'model': write [NAME] above its keys" in first.expectations[0].problem


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'dependencies = ["pytest-induction"]', False),
        (b'[tool.pytest.ini_options]\naddopts = "-p pytest_induction.plugin.hooks"', False),
        (b"[tool.pytest_induction.gates.a]", True),
        (b"[tool.pytest-induction.gates.a]", True),
        (b'[tool.pytest_induction.gates.a]\nmodel = "', True),
        (b"# pytest_induction\n[project", False),
        (b"tool = 1 # pytest_induction", False),
    ],
)
def test_a_pyproject_is_ours_if_it_has_a_table_of_ours(content, found):
    """Also where that is misspelt or broken, so that it is said; mentioning the package is not enough."""
    assert holds_gates(content) is found


def test_a_signature_is_the_same_from_the_source_and_from_the_function():
    """What is read where an assertion is not loaded is what it takes once it is."""
    for claim in claims():
        module, _, name = claim.path.partition(":")
        (node,) = [each for each in ast.parse(source_of(module)).body if isinstance(each, ast.FunctionDef) and each.name == name]
        assert list(signatures._of_source(node)) == list(signatures._of_function(claim.function())), claim.name


def test_annotations_are_read_however_they_are_written():
    """As text or as types, of any module; what stands in a union is a kind each."""

    def asserted(
        model,
        a: Optional[float],  # noqa: UP045 - as others write it
        b: Union[int, str, None],  # noqa: UP007 - as above
        c: "float | None" = None,
        d: collections.abc.Mapping[str, float] | None = None,
        *,
        e: list[str] = (),
        **rest,
    ): ...

    found = dict(signatures._of_function(asserted))
    assert {name: {*each.kinds} for name, each in found.items()} == {
        "model": set(),
        "a": {"float", "None"},
        "b": {"int", "str", "None"},
        "c": {"float", "None"},
        "d": {"Mapping[str, float]", "None"},
        "e": {"list[str]"},
    }
    assert [name for name, each in found.items() if each.required] == ["model", "a", "b"]


def test_signatures_are_those_of_the_assertions():
    """Names, order, and what must be given, of every public assertion."""
    for name in signatures.names():
        parameters = dict(inspect.signature(getattr(pytest_induction, f"assert_{name}")).parameters)
        found = signatures.signature(name)
        if found is None:
            assert name == "continuity"
            continue
        parameters.pop(found.subject)
        assert list(found.parameters) == list(parameters)
        assert [each.required for each in found.parameters.values()] == [
            each.default is inspect.Parameter.empty for each in parameters.values()
        ]


def test_every_argument_can_be_written_in_a_gate_file():
    """A new kind of annotation needs a reader; what is read as anything is known by name."""
    for name in signatures.names():
        found = signatures.signature(name)
        for argument, parameter in found.parameters.items() if found else ():
            kinds = [kind for kind in kinds_of(argument, parameter) if kind in READERS]
            assert kinds, f"{name}: {argument}"
            assert kinds != ["Any"] or argument in NOT_WRITTEN, f"{name}: {argument}"


def test_an_argument_that_cannot_be_written_is_refused():
    """And the guard above would see it."""
    parameter = Parameter(("torch.Tensor",), required=False)
    with pytest.raises(ArgumentError, match="`rows` cannot be written in a gate file: assert it in a test"):
        read_argument("rows", [1], parameter, Path())
