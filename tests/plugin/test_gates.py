"""The command line alone: gates, exit codes, and one clear line for whatever is wrong."""

import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conftest import FIXTURES, SHIPPED

TEXT = str(FIXTURES / "models" / "attn-only-3l-text" / "held_out.txt")


@pytest.fixture
def run(pytester):
    """Run pytest in a directory with one ordinary test, with warnings as errors."""
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(test_other="def test_other(): pass")
    return lambda *arguments: pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def test_a_named_model_is_gated_and_nothing_else_is_collected(run):
    """With no path, the gates are all there is; a good model passes, and its heads are shown."""
    result = run("--induction-model", SHIPPED["llama"])
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "collected 2 items",
            "*= induction =*",
            "*llama-2l: 2 layers x 4 heads by sdpa, float32 on cpu, weights *",
            "  SHOWN, passed  has_induction_head  4 heads with prefix matching above 0.300; the strongest, L1H*",
            "  SHOWN, passed  copies_repeats      repeated tokens are completed: top-1 accuracy 1.000 on later copies*",
            "    head  prefix matching *interval  copy (nats)     kind",
            "  [*] L1H0 *0.9*",
            "  [*] induction head",
        ]
    )


def test_a_path_beside_the_option_is_collected_too(run):
    """The gates are added to what was asked for."""
    run("test_other.py", "--induction-model", SHIPPED["two-layers"]).assert_outcomes(passed=3)


def test_in_context_learning_is_gated_where_there_is_a_text(run):
    """The third gate needs a text."""
    result = run("--induction-model", SHIPPED["three-layers-text"], "--induction-text", TEXT, "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*attention_only.py:three_layers_text::has_induction_head PASSED*",
            "*::copies_repeats FAILED*",
            "*::learns_in_context PASSED*",
        ]
    )


def test_the_control_fails_and_says_why_in_five_lines(run, monkeypatch):
    """Exit code 1, no traceback, and the reason again in the short summary."""
    monkeypatch.setenv("COLUMNS", "300")
    result = run("--induction-model", SHIPPED["one-layer"], "-k", "has_induction_head")
    assert result.ret == 1
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if line.startswith("has_induction_head is REFUTED, expected SHOWN"))
    assert [line.split(":")[0] for line in lines[start + 1 : start + 5]] == ["  heads", "  behaviour", "  measured", "  next"]
    assert lines[start + 5].strip("- ") == "induction: again, alone"
    assert lines[start + 6] == f"pytest --induction-model={SHIPPED['one-layer']} --induction-seed=0 -k has_induction_head"
    assert lines[start + 7].startswith("=")
    result.stdout.fnmatch_lines(["FAILED *one_layer::has_induction_head - has_induction_head is*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_failed_test_says_how_to_run_it_alone(pytester):
    """With the seed that it had, and the model of the command line; and that does run it, and finds the same."""
    pytester.makepyfile(
        """
        import pytest

        class TestModel:
            @pytest.mark.parametrize("bar", ["a b"])
            def test_it(self, induction, bar):
                induction.assert_has_induction_head()

        def test_other():
            pass
        """
    )
    result = pytester.runpytest_inprocess(f"--induction-model={SHIPPED['one-layer']}", "--induction-seed=5", pytester.path)
    line = next(line for line in result.outlines if line.startswith("pytest -oinduction_model"))
    command = shlex.split(line)
    assert "--induction-seed=5" in command and command[-1].endswith("::TestModel::test_it[a b]")
    again = pytester.runpytest_inprocess(*command[1:])
    again.assert_outcomes(failed=1)
    first, second = (next(line for line in each.outlines if "measured: " in line) for each in (result, again))
    assert first == second


def test_ini_keys_feed_the_fixtures_and_collect_no_gates(pytester):
    """What is written down once is not gated in every run."""
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['two-layers']}\ninduction_seed = 4\n")
    pytester.makepyfile(
        """
        def test_model(induction, induction_model):
            assert induction.model is induction_model
            assert induction.seed == 4
            assert induction.assert_has_induction_head().heads[0].layer == 1
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_ini_paths_are_relative_to_the_ini_file(pytester):
    """Wherever pytest is started from."""
    pytester.makeini("[pytest]\ninduction_model = models/mine.py:make\ninduction_text = models/text.txt\n")
    models = pytester.mkdir("models")
    (models / "mine.py").write_text(
        f"import sys; sys.path.insert(0, {str(FIXTURES)!r})\nfrom attention_only import two_layers as make\n"
    )
    (models / "text.txt").write_text("text")
    inside = pytester.mkdir("inside")
    (inside / "test_it.py").write_text(
        "def test_it(induction):\n    assert induction.model.n_layers == 2\n    assert induction.text.is_file()"
    )
    pytester.chdir()
    import os

    os.chdir(inside)
    pytester.runpytest_inprocess("test_it.py").assert_outcomes(passed=1)


def test_gates_can_be_selected_and_listed(run):
    """As any other test; listing loads no model."""
    run("--induction-model", SHIPPED["two-layers"], "-k", "copies").assert_outcomes(passed=1, deselected=1)
    result = run("--induction-model", "no.such.module:factory", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["no.such.module:factory::has_induction_head", "no.such.module:factory::copies_repeats"])
    assert result.ret == 0


def test_gates_can_be_skipped_by_a_plugin(run, pytester):
    """As --benchmark-only does with whatever is no benchmark: a marker skips them, and no model is loaded."""
    pytester.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.skip(reason="not today"))
        """
    )
    result = run("--induction-model", "no.such.module:factory", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED [[]2[]] *: not today"])


def test_junit_carries_the_verdict(run, pytester):
    """Each gate is a test case with what was found as its properties."""
    run("--induction-model", SHIPPED["llama"], "--junit-xml=report.xml", "-o", "junit_family=xunit2")
    cases = ET.parse(pytester.path / "report.xml").getroot().iter("testcase")
    found = {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}
    assert found["has_induction_head"]["induction.has_induction_head.verdict"] == "SHOWN"
    assert found["has_induction_head"]["induction.has_induction_head.heads"].split()[0] == "L1H0"
    assert float(found["copies_repeats"]["induction.copies_repeats.repeat_accuracy"]) == 1.0
    assert found["copies_repeats"]["induction.copies_repeats.seed"] == "0"


def test_quiet_leaves_out_the_section(run):
    """-q: how many verdicts of each kind there are, and no more."""
    result = run("--induction-model", SHIPPED["two-layers"], "-q")
    result.stdout.fnmatch_lines(["induction: 2 SHOWN, 0 REFUTED, 0 UNDETERMINED"])
    result.stdout.no_fnmatch_line("*prefix matching*")


def test_the_seed_changes_the_probes(run):
    """And is printed with a failure, so that the failure can be had again."""
    result = run("--induction-model", SHIPPED["one-layer"], "--induction-seed", "11")
    result.stdout.fnmatch_lines(["*--induction-seed=11"])


def test_a_dtype_is_loaded_as_asked(run):
    """The named model is measured in the type that was asked for."""
    result = run("--induction-model", SHIPPED["llama"], "--induction-dtype", "bfloat16")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*llama-2l: 2 layers x 4 heads by sdpa, bfloat16 on cpu*"])


USAGE = {
    "missing path": (["--induction-model", "nope"], "no model at 'nope': expected a local directory, hf:NAME"),
    "hub name": (["--induction-model", "openai-community/gpt2"], "to download it from the hub write hf:openai-community/gpt2"),
    "no config": (["--induction-model", "."], "'.' has no config.json: expected a directory as `save_pretrained` writes it"),
    "a file": (["--induction-model", "test_other.py"], "'test_other.py' is a file: expected a local directory"),
    "missing file": (
        ["--induction-model", "nope.py:make"],
        "no file nope.py: the model 'nope.py:make' is to come from a factory in it",
    ),
    "empty": (["--induction-model", ""], "expected a local directory"),
    "seed": (
        ["--induction-model", SHIPPED["llama"], "--induction-seed", "-1"],
        "--induction-seed: it must be a whole number from 0 up, got '-1'",
    ),
    "missing text": (
        ["--induction-model", SHIPPED["llama"], "--induction-text", "nope.txt"],
        "--induction-text: 'nope.txt' is not a file",
    ),
    "empty text": (
        ["--induction-model", SHIPPED["llama"], "--induction-text", "empty.txt"],
        "--induction-text: 'empty.txt' is empty",
    ),
}


@pytest.mark.parametrize("kind", USAGE)
def test_what_is_wrong_on_the_command_line_is_a_usage_error(kind, run, pytester):
    """Exit code 4 and one line, before anything is loaded."""
    arguments, message = USAGE[kind]
    pytester.path.joinpath("empty.txt").touch()
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in [*result.outlines, *result.errlines] if line.startswith("ERROR")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.fixture
def broken(tmp_path):
    """A copy of the shipped Llama, to break."""
    import shutil

    return Path(shutil.copytree(SHIPPED["llama"], tmp_path / "broken"))


def truncate(place):
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def put_nan(place):
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def drop_tensor(place):
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def change_config(**values):
    def change(place):
        settings = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**settings, **values}))

    return change


BROKEN = {
    "truncated weights": (truncate, "cannot be read: its tensors end at byte "),
    "NaN weights": (put_nan, "the weight `model.layers.0.self_attn.q_proj.weight` of"),
    "a tensor missing": (
        drop_tensor,
        "lacks weights that its config asks for, and they would be random: 1 of them, the first is `model.layers.1",
    ),
    "no weights": (lambda place: (place / "model.safetensors").unlink(), "cannot be loaded: OSError"),
    "torn config": (lambda place: (place / "config.json").write_text('{"model_type": '), "cannot be loaded: "),
    "unknown type": (change_config(model_type="nonesuch"), "cannot be loaded: ValueError"),
    "a short context": (
        change_config(max_position_embeddings=8),
        "the smallest probe has 11 positions, the model's context has 8",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_one_line(kind, run, broken):
    """Exit code 1, what is wrong, and no traceback of ours."""
    breaks, message = BROKEN[kind]
    breaks(broken)
    result = run("--induction-model", str(broken), "--tb=long")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    told = [line for line in result.outlines if message in line and not line.startswith(("ERROR ", "FAILED "))]
    assert len(told) == (2 if kind == "a short context" else 1), result.outlines  # which each gate finds by itself
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*.py:*: in *")


FACTORIES = {
    "no logits": (
        "nn.Identity()",
        "returned int64 (3, 11) for token ids (3, 11); expected next-token logits of every position, ",
    ),
    "bidirectional": ("Plain(causal=False)", "is not causal: another last token changes earlier logits"),
    "a vocabulary of 3": ("Plain(d_vocab=3)", "a probe needs at least 5 usable token ids, the model has 3"),
    "no module": ("object()", "must return a torch module, it returned `object`"),
    "raises": ("1 / 0", "cannot be made: ZeroDivisionError: division by zero"),
    "a short context": ("Plain(n_ctx=11)", None),
}


@pytest.mark.parametrize("kind", FACTORIES)
def test_a_factory_that_makes_no_usable_model_is_one_line(kind, run, pytester):
    """The same for what a user's own code returns."""
    body, message = FACTORIES[kind]
    pytester.makepyfile(mine=f"from torch import nn\nfrom tests.model.plain import Plain\ndef make():\n    return {body}\n")
    result = run("--induction-model", "mine.py:make", "-k", "has_induction")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    if message is not None:
        result.stdout.fnmatch_lines([f"*{message.replace('[', '[[]')}*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("device", "warp9", "device must be like cpu, cuda, cuda:1, mps or auto, got 'warp9'"),
        ("dtype", "int8", "dtype must be float32, float64, bfloat16 or float16, got 'int8'"),
    ],
)
def test_an_unknown_device_or_dtype_is_one_line(option, value, message, run):
    """Said before the model is loaded."""
    result = run("--induction-model", SHIPPED["llama"], f"--induction-{option}", value)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --induction-{option}: {message}*"])


def test_a_device_that_is_not_there_is_one_line(run):
    """Its name is one, so that only loading can tell."""
    result = run("--induction-model", SHIPPED["llama"], "--induction-device", "cuda:7")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*device 'cuda:7' cannot be used here*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed = x", "ini key induction_seed: it must be a whole number from 0 up, got 'x'"),
        ("memory = much", "ini key induction_memory: memory must be a size like 4GB or 512MB, got 'much'"),
        ("budget = much", "ini key induction_budget: `budget` must be bare passes such as *, got 'much'"),
        ("max_overhead = much", "ini key induction_max_overhead: it must be a number above 0, got 'much'"),
    ],
)
def test_a_wrong_setting_in_the_ini_file_is_said_to_be_there(setting, message, pytester):
    """Also where nothing uses it yet."""
    pytester.makeini(f"[pytest]\ninduction_{setting}")
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_a_text_that_is_too_short_is_one_line(run, pytester):
    """How much there is, and how much is needed."""
    pytester.path.joinpath("short.txt").write_text("def f(): pass")
    result = run("--induction-model", SHIPPED["three-layers-text"], "--induction-text", "short.txt", "-k", "learns")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["the text has * tokens: at least 254 are needed, two rows of 127"])


def test_a_model_without_tokenizer_cannot_read_a_text(run):
    """Token ids would do, from a test."""
    result = run("--induction-model", SHIPPED["two-layers"], "--induction-text", TEXT, "-k", "learns")
    result.stdout.fnmatch_lines(["*two_layers has no tokenizer: pass token ids, or give the model a `tokenizer` attribute"])


def test_hub_names_are_looked_up_only_when_asked_for(run, monkeypatch, tmp_path):
    """hf:NAME goes to the hub's loader, with the revision; offline and not cached it is one line."""
    import transformers

    asked = {}

    def from_pretrained(name, **options):
        asked.update(name=name, **options)
        raise OSError("offline\nwith more lines")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    result = run("--induction-model", "hf:someone/model@step512", "-k", "copies")
    assert (asked["name"], asked["revision"]) == ("someone/model", "step512")
    result.stdout.fnmatch_lines(
        ["'hf:someone/model@step512' cannot be loaded: OSError: offline; is the network there, and the name right?"]
    )


def test_a_cached_hub_model_is_measured(run, monkeypatch, tmp_path):
    """The real loading code, on a cache that lies here."""
    import shutil

    import huggingface_hub.constants

    home = tmp_path / "models--someone--model"
    shutil.copytree(SHIPPED["llama"], home / "snapshots" / "0" * 40 if False else home / "snapshots" / ("0" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = run("--induction-model", "hf:someone/model", "-k", "has_induction")
    result.assert_outcomes(passed=1, deselected=1)


def test_an_adapter_is_a_model_for_the_gates(run, pytester):
    """By the command line, and in a gate file beside its base; a directory with neither config is none."""
    pytest.importorskip("peft")
    from tests.model.adapting import lora, write

    write(pytester.path / "adapter", lora(lora_alpha=1))
    run("--induction-model", "adapter").assert_outcomes(passed=2)
    pytester.path.joinpath("a.gates.toml").write_text(
        f'[adapted]\nmodel = "adapter"\nexpect = {{ heads_preserved = {{ before = "{SHIPPED["llama"]}" }} }}\n'
    )
    run("a.gates.toml").assert_outcomes(passed=1)
    pytester.path.joinpath("adapter", "adapter_config.json").unlink()
    result = run("--induction-model", "adapter")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'adapter' has no config.json: expected a directory as `save_pretrained` writes it*"])
