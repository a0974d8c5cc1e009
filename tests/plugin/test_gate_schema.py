"""The JSON schema of gate files: every gate file there is fits, and what collection refuses does not."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

from pytest_induction import claims
from pytest_induction.errors import InductionError
from pytest_induction.plugin.gates import signatures, values
from pytest_induction.plugin.gates.json_schema import KINDS, OF_KEYS, argument, gates_schema
from pytest_induction.plugin.gates.signatures import Parameter
from pytest_induction.plugin.gates.table import KEYS, read_gates
from tests.conftest import FIXTURES

ROOT = FIXTURES.parent
FILES = sorted(path for place in ("fixtures", "examples", "docs") for path in (ROOT / place).rglob("*.gates.toml"))
PAGE = (ROOT / "docs" / "gates.md").read_text()
BLOCKS = dict(re.findall(r'```toml title="(\S*?gates\.toml)"\n(.*?)```', PAGE, re.DOTALL))
MODEL = f'model = "{FIXTURES / "models" / "llama-2l"}"\n'
RUN = f'run = "{FIXTURES / "runs" / "two-layers"}"\n'
WRONG = {
    "a key": f'[a]\n{MODEL}expect = ["copies_repeats"]\nsede = 1',
    "no subject": '[a]\nexpect = ["copies_repeats"]',
    "two subjects": f'[a]\n{MODEL}{RUN}expect = ["copies_repeats"]',
    "nothing expected": f"[a]\n{MODEL}",
    "an empty list": f"[a]\n{MODEL}expect = []",
    "no such claim": f'[a]\n{MODEL}expect = ["copies_repeat"]',
    "a claim about runs": f'[a]\n{MODEL}expect = ["phase_change"]',
    "a claim about models": f'[a]\n{RUN}expect = ["copies_repeats"]',
    "an argument": f"[a]\n{MODEL}expect.copies_repeats = {{ min_acuracy = 0.5 }}",
    "a text for a number": f'[a]\n{MODEL}expect.copies_repeats = {{ min_accuracy = "0.5" }}',
    "a number for a truth": f"[a]\n{MODEL}expect.has_induction_head = {{ allow_virtual = 1 }}",
    "false": f"[a]\n{MODEL}expect.copies_repeats = false",
    "a needed argument": f"[a]\n{MODEL}expect.heads_generalize = true",
    "the same, in a list": f'[a]\n{MODEL}expect = ["heads_generalize"]',
    "a head": f'[a]\n{MODEL}expect.heads_generalize = {{ heads = ["H1"] }}',
    "a type": f'[a]\n{MODEL}dtype = "int8"\nexpect = ["copies_repeats"]',
    "a seed": f'[a]\n{MODEL}seed = -1\nexpect = ["copies_repeats"]',
    "a budget of a run": f'[a]\n{RUN}budget = "3 s"\nexpect = ["log_is_sane"]',
    "a factory of a model": f'[a]\n{MODEL}factory = "a.py:make"\nexpect = ["copies_repeats"]',
    "a name of a gate": f'["a b"]\n{MODEL}expect = ["copies_repeats"]',
    "a mark": f'[a]\n{MODEL}marks = ["slow!"]\nexpect = ["copies_repeats"]',
    "no gates": "",
}
RIGHT = {
    "with the prefix": f'[a]\n{MODEL}expect = ["assert_copies_repeats"]',
    "several": f"[a]\n{MODEL}expect.copies_repeats = [true, {{ min_accuracy = 0.9 }}]",
    "a text left out": f'[a]\n{MODEL}expect.heads_preserved = {{ before = "b", text = false }}',
    "marks": f'[a]\n{MODEL}marks = ["slow", "timeout(600)", "flaky(reruns=2)"]\nexpect = ["copies_repeats"]',
    "a margin left out": f'[a]\n{MODEL}expect.heads_preserved = {{ before = "b", margins = {{ duplicate_token = false }} }}',
    "skipped": f'[a]\n{MODEL}skip_if_missing = true\nexpect = ["copies_repeats"]',
}


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = gates_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_every_gate_file_there_is_fits(validator):
    """Of the repository, its examples and its documentation."""
    assert len(FILES) >= 2
    assert len(BLOCKS) >= 3
    for source in (*(path.read_text() for path in FILES), *BLOCKS.values()):
        assert [each.message for each in validator.iter_errors(tomllib.loads(source))] == []


@pytest.mark.parametrize("kind", WRONG)
def test_what_collection_refuses_does_not_fit(kind, validator, tmp_path):
    """Both say so of the same file."""
    (tmp_path / "a.gates.toml").write_text(WRONG[kind])
    assert not validator.is_valid(tomllib.loads(WRONG[kind]))
    try:
        gates = read_gates(tmp_path / "a.gates.toml")
    except InductionError:
        return
    assert any(each.problem for gate in gates for each in gate.expectations)


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_fits(kind, validator):
    """However it is written."""
    assert [each.message for each in validator.iter_errors(tomllib.loads(RIGHT[kind]))] == []


def test_no_key_no_kind_and_no_claim_is_forgotten():
    """Each that collection knows stands in the schema."""
    assert {*OF_KEYS, "expect"} == {*KEYS}
    assert KINDS.keys() == values.READERS.keys()
    schema = gates_schema()["definitions"]
    known = {name for gate in schema.values() for name in gate["properties"]["expect"]["anyOf"][1]["properties"]}
    assert known >= {name for name in signatures.names() if signatures.signature(name) is not None}


def test_an_argument_that_no_file_can_express_fits_nothing(validator):
    """As it is refused when it is collected."""
    never = argument("model", Parameter(("nn.Module",), required=False))
    assert not type(validator)(never).is_valid("x")


def test_the_command_writes_it_without_torch(tmp_path):
    """To standard output; also claims of one's own."""
    loads = "import sys\nfrom pytest_induction.__main__ import main\ncode = main(['schema'])\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", f"{loads}sys.exit(code)"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == gates_schema()


def test_claims_of_ones_own_are_in_it(tmp_path, capsys, monkeypatch):
    """Those of a conftest.py that is named."""
    from pytest_induction.__main__ import main

    before = claims.snapshot()
    own = "from pytest_induction import Claim, register_claim\n"
    own += "def assert_own(model, *, share: float = 0.5): ...\n"
    own += "register_claim(Claim(name='own', asserts='it is our own', assertion=assert_own))\n"
    (tmp_path / "own_claims.py").write_text(own)
    try:
        assert main(["schema", "--claims", str(tmp_path / "own_claims.py"), "-o", str(tmp_path / "s.json")]) == 0
    finally:
        claims.restore(before)
    expect = json.loads((tmp_path / "s.json").read_text())["definitions"]["gate of a model"]["properties"]["expect"]
    assert expect["anyOf"][1]["properties"]["own"]["anyOf"][1]["properties"] == {"share": {"type": "number"}}
