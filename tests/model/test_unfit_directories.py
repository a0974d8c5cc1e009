"""Model directories that hold what no library writes: one line, within seconds, before anything is made or waited for."""

import json
import shutil
import struct

import pytest
import torch

import pytest_induction as induction
from pytest_induction.errors import ArgumentError, ModelError, TextError
from pytest_induction.model import bounds
from pytest_induction.model.factories import function_named
from pytest_induction.model.load import module_of_config
from pytest_induction.model.specs import check_spec, check_text
from tests import unfit
from tests.conftest import SHIPPED
from tests.unfit import UNFIT, in_time, open_files, put

LINKED = [kind for kind in UNFIT if kind != "directory"]


def refusal(call, kind=ModelError):
    return unfit.refusal(call, kind)


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(SHIPPED["llama"], tmp_path / "model")


def with_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    return model


@pytest.mark.parametrize("kind", LINKED)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "pytorch_model.bin"]
)
def test_a_part_of_a_model_that_is_no_file_is_refused_by_name(model, name, kind):
    (model / name).unlink(missing_ok=True)
    put(model / name, kind)
    said = refusal(lambda: induction.load_model(str(model)))
    assert f"{name} of" in said and (f"it is a {kind}" in said or "leads out of" in said)


@pytest.mark.parametrize("kind", LINKED)
def test_a_model_that_is_no_file_is_refused_by_name(tmp_path, kind):
    for name in ("model", "model.gguf"):
        place = put(tmp_path / name, kind)
        assert f"is a {kind}" in refusal(lambda place=place: check_spec(str(place)))
    place = put(tmp_path / "mine.py", kind)
    for call in (lambda: check_spec(f"{place}:make"), lambda: function_named(f"{place}:make")):
        assert f"is a {kind}" in refusal(call)
    assert f"is not a file, it is a {kind}" in refusal(lambda: check_text(put(tmp_path / "text.txt", kind)), ArgumentError)


def test_a_model_whose_weights_lie_elsewhere_is_refused_and_one_of_the_hub_is_read(model, tmp_path):
    """A snapshot of the hub's cache consists of links."""
    (model / "model.safetensors").rename(tmp_path / "weights")
    (model / "model.safetensors").symlink_to("../weights")
    assert "it is a link that leads out of" in refusal(lambda: induction.load_model(str(model)))
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    (tmp_path / "weights").rename(hub / "blobs" / "abc")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("../../blobs/abc")
    (hub / "snapshots").mkdir()
    model.rename(hub / "snapshots" / "123")
    assert induction.load_model(str(hub / "snapshots" / "123")).n_layers == 2
    (tmp_path / "link").symlink_to("models--a--b/snapshots/123")
    assert induction.load_model(str(tmp_path / "link")).n_layers == 2


COUNTS = {
    "num_hidden_layers": (10**9, "asks for 1000000000 by `num_hidden_layers`, expected at most 10000"),
    "num_attention_heads": (10**12, "by `num_attention_heads`"),
    "num_labels": (10**9, "by `num_labels`"),
    "num_key_value_heads": (1e300, "by `num_key_value_heads`"),
    "text_config": ({"num_hidden_layers": 10**9}, "by `num_hidden_layers`"),
}


@pytest.mark.parametrize("key", COUNTS)
def test_a_config_that_asks_for_more_modules_than_can_be_made_is_refused(model, key):
    value, expected = COUNTS[key]
    with_config(model, **{key: value})
    assert expected in refusal(lambda: induction.load_model(str(model)))
    assert expected in refusal(lambda: module_of_config(model, "it", trust_remote_code=False))


@pytest.mark.parametrize("changes", [{"vocab_size": 10**9}, {"hidden_size": 2**20}, {"intermediate_size": 10**9}])
def test_a_config_that_asks_for_more_weights_than_are_stored_is_refused(model, changes):
    with_config(model, **changes)
    said = refusal(lambda: induction.load_model(str(model)))
    assert "weights, and what is stored has" in said and said.endswith("bytes: is it the right config?")


def test_a_config_of_a_model_beyond_memory_is_refused(model, monkeypatch):
    """Where nothing is known of what is stored; and one that fits is made."""
    with_config(model, vocab_size=10**9)
    assert "and this machine has" in refusal(lambda: module_of_config(model, "it", trust_remote_code=False))
    with_config(model, vocab_size=128)
    assert isinstance(module_of_config(model, "it", trust_remote_code=False), torch.nn.Module)
    monkeypatch.setattr(bounds, "_memory", lambda: 1000)
    assert "this machine has 1000" in refusal(lambda: induction.load_model(str(model)))
    with_config(model, quantization_config={"quant_method": "none"})
    made = []
    bounds.check_size(
        lambda: made.append(1) or torch.nn.Linear(9, 9), "it", stored=None, config={"quantization_config": {"a": 1}}
    )
    assert made


def test_the_size_of_a_model_is_found_without_memory_or_random_numbers():
    before, made = torch.get_rng_state(), []

    def make():
        made.append(torch.nn.Linear(2**20, 2**20))
        return made[0]

    with in_time(), unfit.in_memory(100), pytest.raises(ModelError, match="asks for 1099512676352 weights"):
        bounds.check_size(make, "it", stored=None, config={})
    assert made[0].weight.is_meta and torch.equal(torch.get_rng_state(), before)


def test_weights_that_promise_more_than_they_have_are_refused(model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 3 * 2**30))
    assert (
        "model.safetensors of" in (said := refusal(lambda: induction.load_model(str(model)))) and "its header would have" in said
    )
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(50_000)}, model / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    content = (model / "pytorch_model.bin").read_bytes().replace(b"M\x50\xc3", b"J\xff\xff\xff\x2f")
    (model / "pytorch_model.bin").write_bytes(content)
    assert "its tensors would take" in refusal(lambda: induction.load_model(str(model)))


def test_a_long_config_is_refused(model):
    with (model / "config.json").open("r+") as stream:
        stream.truncate(2**33)
    assert "config.json of" in (said := refusal(lambda: induction.load_model(str(model)))) and "expected at most" in said


def gguf(tensors, values, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


def value(kind, content):
    return struct.pack("<Q", 1) + b"a" + struct.pack("<I", kind) + content


def a_tensor(shape, offset=0):
    return struct.pack("<Q", 1) + b"t" + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


GGUFS = {
    "too many tensors": (gguf(2**60, 0), "it would have 1152921504606846976 tensors"),
    "too many values": (gguf(0, 2**60), "1152921504606846976 values"),
    "a long list": (gguf(0, 1, value(9, struct.pack("<IQ", 0, 10**12))), "something in it would have 1000000000000 bytes"),
    "a long list of texts": (gguf(0, 1, value(9, struct.pack("<IQ", 8, 10**12))), "a list in it would have 1000000000000 texts"),
    "a long text": (gguf(0, 1, value(8, struct.pack("<Q", 2**40))), "something in it would have 1099511627776 bytes"),
    "lists in lists": (gguf(0, 1, value(9, struct.pack("<IQ", 9, 10**12))), "values of a type 9"),
    "a large tensor": (gguf(1, 0, a_tensor([2**40, 2**20])), "lies beyond its"),
    "many axes": (gguf(1, 0, struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31)), "would have 2147483648 axes"),
    "no GGUF": (b"text" * 20, "does not begin as a GGUF file"),
}


@pytest.mark.parametrize("case", GGUFS)
def test_a_gguf_file_that_counts_beyond_its_end_is_refused(tmp_path, case):
    pytest.importorskip("gguf")
    content, expected = GGUFS[case]
    (tmp_path / "model.gguf").write_bytes(content.ljust(64, b"\0"))
    said = refusal(lambda: induction.load_model(str(tmp_path / "model.gguf")))
    assert "model.gguf of" in said and expected in said


def test_a_text_is_read_from_a_regular_file_alone(model, tmp_path):
    subject = induction.load_model(str(model))
    for kind in UNFIT:
        place = put(tmp_path / f"text of a {kind}"[:20], kind)
        assert f"it is a {kind}" in refusal(lambda place=place: induction.assert_learns_in_context(subject, place), TextError)
    assert "it is a character device" in refusal(
        lambda: induction.assert_learns_in_context(subject, tmp_path.__class__("/dev/zero")), TextError
    )


def test_of_a_text_of_gigabytes_pieces_are_read(tmp_path):
    """From all over it, letters of several bytes whole."""
    from pytest_induction.behaviour.text import PIECE, PIECES, read_text

    place = tmp_path / "text.txt"
    with place.open("wb") as stream:
        stream.write("äöü€𝄞".encode() * 20_000)
        stream.seek(6 * 2**30)
        stream.write("the end 𝄞".encode())
    with in_time(), unfit.in_memory(300):
        text = read_text(place)
    assert text.startswith("äöü€𝄞") and text.endswith("the end 𝄞") and len(text) <= PIECE * PIECES
    short = tmp_path / "short.txt"
    short.write_text("a\r\nb" * 9, newline="")
    assert read_text(short) == short.read_text()


def test_nothing_stays_open(model):
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 3 * 2**30))
    before = open_files()
    for _ in range(3):
        refusal(lambda: induction.load_model(str(model)))
    assert open_files() == before
