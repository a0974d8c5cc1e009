"""GGUF files are models: read alone, as plain numbers, and with what they are quantised to."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from pytest_induction import assert_heads_preserved, load_model
from pytest_induction.errors import ModelError
from pytest_induction.model import bounds
from tests.conftest import SHIPPED
from tests.runs.written_layouts import llama, write_gguf

pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(SHIPPED["llama"])


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The shipped Llama in three types, and each by itself in a directory."""
    place = tmp_path_factory.mktemp("files")
    for kind in ("F32", "Q8_0", "Q4_0"):
        (place / kind).mkdir()
        write_gguf(place / kind / f"model.{kind}.gguf", model, kind)
    return {path.parent.name: path for path in place.rglob("*.gguf")}


def refusal(place):
    with pytest.raises(ModelError) as raised:
        load_model(str(place))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_numbers_that_are_stored_as_they_are_give_the_same_model(files, capfd):
    """By its path or by its directory, in float32, and nothing is printed."""
    original = load_model(SHIPPED["llama"])
    for place in (files["F32"], files["F32"].parent):
        found = load_model(str(place))
        assert found.fingerprint() == original.fingerprint() and found.dtype == torch.float32
    assert found.notes[-1] == "weights F32 in a GGUF file (100.0% F32), widened to float32"
    assert ("note", found.notes[-1]) in found.diagnosis()
    assert capfd.readouterr() == ("", "")


def test_a_quantised_file_is_what_another_model_is_held_against(files):
    """In one line; the evidence says what it is. tests/plugin/test_examples.py has files as what is held against."""
    found = assert_heads_preserved(files["Q8_0"], SHIPPED["llama"])
    assert "before: weights Q8_0 in a GGUF file (99.7% Q8_0, 0.3% F32), widened to float32" in found.provenance.notes


def test_weights_are_widened_to_the_type_that_is_asked_for(files):
    subject = load_model(str(files["Q4_0"]), dtype="bfloat16")
    assert subject.dtype == torch.bfloat16 and "widened to bfloat16" in subject.notes[-1]


def test_what_lies_beside_a_file_has_no_say(files, tmp_path):
    """No adapter, no tokenizer and no code of another model."""
    shutil.copy(files["Q4_0"], tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere", "peft_type": "LORA"}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["its.Own", null]}}')
    (tmp_path / "tokenizer.json").write_text("{}")
    alone, beside = load_model(str(files["Q4_0"])), load_model(str(tmp_path / "model.gguf"))
    assert beside.fingerprint() == alone.fingerprint()
    assert beside.encode("w1w") == alone.encode("w1w") == [0, 1, 0]


def test_a_directory_is_that_of_its_only_weights(files, tmp_path):
    """A config beside a GGUF file says nothing; other weights are the model."""
    place = tmp_path / "model"
    place.mkdir()
    shutil.copy(files["Q4_0"], place / "any.gguf")
    (place / "config.json").write_text("{}")
    assert "weights Q4_0" in load_model(str(place)).notes[-1]
    for each in Path(SHIPPED["llama"]).glob("*.*"):
        shutil.copy(each, place)
    assert not any("GGUF" in note for note in load_model(str(place)).notes)


def test_of_several_files_one_must_be_named(files, tmp_path):
    for kind in ("Q4_0", "Q8_0"):
        shutil.copy(files[kind], tmp_path)
    assert refusal(tmp_path).endswith("has 2 GGUF files (model.Q4_0.gguf, model.Q8_0.gguf): name the one that is meant")


def test_parts_of_a_file_are_to_be_put_together(model, tmp_path):
    """By their names, and by what one says of itself under another name."""
    names = [f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for name in names:
        write_gguf(tmp_path / name, model, parts=2)
    wanted = "2 parts of a GGUF file: put them together with `llama-gguf-split --merge big-00001-of-00002.gguf big.gguf`"
    for place in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        assert wanted in refusal(place)
    (tmp_path / names[1]).rename(tmp_path / "renamed.gguf")
    assert "renamed.gguf' is one of the 2 parts of a GGUF file" in refusal(tmp_path / "renamed.gguf")


def test_an_architecture_that_transformers_does_not_read_is_refused_with_those_that_it_does(model, tmp_path):
    write_gguf(tmp_path / "model.gguf", model, architecture="rwkv7")
    said = refusal(tmp_path / "model.gguf")
    assert "architecture rwkv7 is not supported yet" in said and " reads " in said and "llama" in said and "qwen2" in said


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(files, tmp_path, share):
    """Within its metadata, within its table, or within its numbers."""
    content = files["Q4_0"].read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[: int(share * len(content))])
    assert "model.gguf of" in (said := refusal(tmp_path / "model.gguf"))
    assert "ends early" in said or "cut off" in said or "beyond its" in said or "the file has" in said


def test_a_type_of_numbers_that_is_not_known_is_refused_by_name(files, tmp_path):
    content = files["F32"].read_bytes()
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    (tmp_path / "model.gguf").write_bytes(content[:at] + (999).to_bytes(4, "little") + content[at + 4 :])
    assert "`output_norm.weight` has the type 999, which the installed package gguf does not know" in refusal(
        tmp_path / "model.gguf"
    )


def test_what_transformers_leaves_out_is_noted(model, tmp_path):
    """Without the scales of its rotary positions a model is another one in long contexts."""
    write_gguf(tmp_path / "model.gguf", model, more=["rope_freqs.weight"])
    wanted = "transformers leaves out rope_freqs.weight, which scales rotary positions for long contexts"
    assert wanted in load_model(str(tmp_path / "model.gguf")).notes


def test_a_file_whose_model_is_larger_than_memory_is_refused(files, monkeypatch):
    monkeypatch.setattr(bounds, "_memory", lambda: 1000)
    assert "and this machine has 1000" in refusal(files["Q4_0"])


def test_metadata_that_ask_for_more_than_the_file_has_are_refused(tmp_path):
    """The loader would make up what is missing, and take the memory for it."""
    small = llama(None)
    small.config.intermediate_size = 10**9
    write_gguf(tmp_path / "model.gguf", small)
    assert "weights, and what is stored has" in refusal(tmp_path / "model.gguf")


def test_a_file_is_gated_from_the_command_line(files, pytester):
    """With its notes in the section of the terminal."""
    result = pytester.runpytest_inprocess(f"--induction-model={files['Q8_0']}", "-k", "copies_repeats")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*weights Q8_0 in a GGUF file*"])
