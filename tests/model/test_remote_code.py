"""Code that came with weights: it does not run, and nobody is asked whether it may, unless the user says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pytest_induction as induction
from pytest_induction.errors import ModelError, RunError
from pytest_induction.model import remote_code
from pytest_induction.runs.sweep import sweep
from tests.conftest import SHIPPED
from tests.model.custom_code import AUTO_MAP, IN_CONFIG, IN_TOKENIZER, has_run, with_code
from tests.runs.small_models import Evil

pytest.importorskip("transformers")

PLACES = {"config.json": IN_CONFIG, "tokenizer_config.json": IN_TOKENIZER}
KERNELS = {
    "plain": {"attn_implementation": "someone/kernel"},
    "as it is kept": {"_attn_implementation": "someone/kernel"},
    "with a revision and a function": {"attn_implementation": "someone/kernel@v1:attend"},
    "paged": {"_attn_implementation": "paged|someone/kernel"},
    "for a part": {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}},
    "in a config inside": {"text_config": {"_attn_implementation": "someone/kernel"}},
    "in a list of configs": {"parts": [{"attn_implementation": "someone/kernel"}]},
    "of experts": {"experts_implementation": "someone/kernel"},
}
DOCTOR = "import sys; from pytest_induction.__main__ import main; sys.exit(max(main(['doctor', each]) for each in sys.argv[1:]))"


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch):
    """A question fails the test; in a process of its own it would be seen in what is printed."""

    def asked(prompt=""):
        pytest.fail(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)


@pytest.mark.parametrize("file", PLACES)
def test_a_directory_that_brings_code_is_refused_by_name(tmp_path, file):
    """Which file asks, for what, and what to say if it is trusted."""
    place = with_code(tmp_path / "model", **PLACES[file])
    with pytest.raises(ModelError) as caught:
        induction.load_model(place)
    said = str(caught.value)
    assert said.startswith(f"{file} of '{place}' asks to run code that came with it (`auto_map`: mine.")
    assert "--induction-trust-remote-code" in said and "load_model(..., trust_remote_code=True)" in said and "\n" not in said
    assert not has_run(place)


@pytest.mark.parametrize(
    "auto_map",
    [["mine.Tokens", None], [None, "mine.Tokens"], {"AutoTokenizer": [None, "mine.Tokens"]}, {"AutoTokenizer": "mine.Tokens"}],
)
def test_every_way_to_name_a_tokenizer_is_known(tmp_path, auto_map):
    """Also beside a class that transformers has itself."""
    settings = {"auto_map": auto_map, "tokenizer_class": "PreTrainedTokenizerFast"}
    place = with_code(tmp_path / "model", tokenizer=settings)
    with pytest.raises(ModelError, match=r"tokenizer_config.json of .* \(`auto_map`: mine.Tokens\)"):
        induction.load_model(place)
    assert not has_run(place)


def test_a_model_type_that_transformers_has_is_measured_with_its_own_class_and_says_so(tmp_path):
    """The code beside it is not needed."""
    place = with_code(tmp_path / "model", config={"auto_map": AUTO_MAP})
    model = induction.load_model(place)
    assert type(model.module).__module__.startswith("transformers.") and not has_run(place)
    found = induction.measure_heads(model)
    assert any("it was not run" in note for note in found.provenance.notes)
    shipped = induction.measure_heads(SHIPPED["llama"])
    assert (found.prefix_matching == shipped.prefix_matching).all()
    assert not any("it was not run" in note for note in shipped.provenance.notes)


@pytest.mark.parametrize("stdin", ["yes", pytest.param("closed", marks=pytest.mark.exhaustive)])
def test_neither_a_yes_nor_a_closed_terminal_makes_it_run(tmp_path, stdin):
    """In a process of its own, by the command line: one line each, no question, no file."""
    places = [with_code(tmp_path / file, **PLACES[file]) for file in PLACES]
    command = [sys.executable, "-W", "ignore", "-c", DOCTOR, *map(str, places)]
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *command] if stdin == "closed" else command
    done = subprocess.run(
        shell, check=False, capture_output=True, text=True, timeout=300, input="y\n" * 1000 if stdin == "yes" else None
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(" of ")[0] for line in done.stderr.splitlines()] == [f"error: {file}" for file in PLACES]
    assert not any(map(has_run, places))


def test_with_consent_it_runs(tmp_path):
    """Both places: what is kept back above does run here, and is measured. In a process of its own, for classes stay registered."""
    places = [with_code(tmp_path / file, **PLACES[file]) for file in PLACES]
    program = (
        "import sys, pytest_induction as p\n"
        "for place in sys.argv[1:]:\n"
        "    model = p.load_model(place, trust_remote_code=True)\n"
        "    print(type(model.module).__name__, p.measure_heads(model).prefix_matching.max())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, places)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    expected = f"{induction.measure_heads(SHIPPED['llama']).prefix_matching.max()}"
    assert done.stdout.split() == ["Model", expected, "LlamaForCausalLM", expected]
    assert all(map(has_run, places))


def test_transformers_asks_nobody_while_a_model_is_loaded(tmp_path, monkeypatch):
    """Not even where its own code forgets to pass on that no code may run; outside of a load it asks as ever."""
    import transformers

    place = with_code(tmp_path / "model", **IN_CONFIG)
    with remote_code.never_asking(), pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoConfig.from_pretrained(place)
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoConfig.from_pretrained(place)
    assert len(asked) == 1 and not has_run(place)


def test_a_sweep_keeps_what_asks_for_code_as_a_problem(tmp_path):
    """The others are measured; with another word for the same run, nothing but what was not measured is."""
    with_code(tmp_path / "t" / "checkpoint-1", **IN_CONFIG)
    with_code(tmp_path / "t" / "checkpoint-2")
    run = sweep(tmp_path / "t", tmp_path / "run", n_sequences=6)
    assert run.snapshots[0].problem.startswith("config.json of checkpoint-1 asks to run code that came with it")
    assert not run.snapshots[1].problem and not has_run(tmp_path / "t" / "checkpoint-1")
    with pytest.raises(RunError, match="`trust_remote_code` None and now True: choose another place"):
        sweep(tmp_path / "t", tmp_path / "run", n_sequences=6, trust_remote_code=True)


def test_a_sweep_that_measured_nothing_yet_may_go_on_with_consent(tmp_path, monkeypatch):
    """The same place serves: there is no curve that could break."""
    from pytest_induction.model import load

    with_code(tmp_path / "t" / "checkpoint-1", **IN_CONFIG)
    assert sweep(tmp_path / "t", tmp_path / "run", n_sequences=6).snapshots[0].problem
    trusted = []
    monkeypatch.setattr(load, "_load", lambda spec, dtype, *, trust: trusted.append(trust) or load.Loaded(_shipped()))
    run = sweep(tmp_path / "t", tmp_path / "run", n_sequences=6, trust_remote_code=True)
    assert trusted == [True] and not run.snapshots[0].problem


def _shipped():
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(SHIPPED["llama"])


@pytest.mark.parametrize("named", KERNELS)
def test_a_kernel_that_a_config_names_is_refused_before_anything_is_fetched(tmp_path, monkeypatch, named):
    """Wherever it stands in the config."""
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    place = with_code(tmp_path / "model", config=KERNELS[named])
    with pytest.raises(ModelError, match=r"config.json of .* names a kernel, `\w+` '.*someone/kernel.*', which would"):
        induction.load_model(place)


def test_flash_attention_is_refused_where_it_would_be_fetched(tmp_path, monkeypatch):
    """It is not installed, and the package that fetches kernels is."""
    monkeypatch.setattr(remote_code.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("transformers.utils.import_utils.is_flash_attn_2_available", lambda: False)
    place = with_code(tmp_path / "model", config={"attn_implementation": "flash_attention_2"})
    with pytest.raises(ModelError, match="names a kernel, `attn_implementation` 'flash_attention_2'"):
        induction.load_model(place)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_implementation_of_transformers_own_is_none(tmp_path, name):
    """What is named here is measured by it."""
    model = induction.load_model(with_code(tmp_path / "model", config={"attn_implementation": name}))
    assert (
        induction.measure_heads(model, n_sequences=6).provenance.backend
        == {
            "eager": "transformers attention interface",
            "sdpa": "sdpa",
        }[name]
    )


def test_a_pickle_beside_a_config_runs_nothing(tmp_path):
    """Weights as `.bin` are read as weights alone."""
    place = with_code(tmp_path / "model")
    (place / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil(place / "ran")}, place / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        induction.load_model(place)
    assert not has_run(place)


def test_no_call_leaves_it_to_transformers_whether_code_may_run():
    """Each `from_pretrained` of ours on an auto class says whether code is trusted."""
    source = Path(induction.__file__).parent
    calls = [
        call
        for path in source.rglob("*.py")
        for call in re.findall(r"(?:Auto\w+|loader)\.from_pretrained\([^)]*\)", path.read_text())
        if "path/to" not in call  # what a docstring shows
    ]
    assert len(calls) == 4
    assert all("trust_remote_code" in call or "**wanted" in call for call in calls)
