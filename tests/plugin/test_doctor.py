"""`python -m pytest_induction doctor`: what a model is, how it is read, and what to change."""

import re
import subprocess
import sys

import pytest
import torch

from pytest_induction import load_model, measure_heads
from pytest_induction.__main__ import main
from pytest_induction.errors import UnsupportedModel
from tests.conftest import SHIPPED
from tests.model.plain import Plain, unreadable
from tests.model.zoo import build


def doctor(capsys, *arguments):
    status = main(["doctor", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_model_that_can_be_read(capsys):
    """What it is, its layers by path, the backend and its cost, what can be measured, and how it is probed."""
    status, out, err = doctor(capsys, SHIPPED["llama"])
    assert (status, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["model"].endswith("LlamaForCausalLM, 98,624 parameters, float32 on cpu")
    assert lines["sequences"] == "up to 64 positions, first token 0, 127 usable of 128 token ids, padding by attention_mask"
    assert lines["backend"].startswith("sdpa: no pattern is ever made, a pass without logits ends after the last attention")
    assert lines["layers"] == "2 with attention (2 x 4 heads): L0 model.layers.0.self_attn, L1 model.layers.1.self_attn"
    assert "has_induction_head" in lines["heads"]
    assert lines["probes"].startswith("4 copies of 8 to 15 tokens; ")
    assert "not taken" not in out
    assert lines["prices"].startswith("a bare pass, 12 rows of 101 tokens with logits, takes about ")
    assert re.fullmatch(r"0\.\d to 2\d bare passes, .* to .*", lines["find_induction_heads"])
    assert "assert_ablation_removes_icl" in lines and "measure_composition" in lines


def test_a_model_that_cannot_be_read_is_told_what_to_change(capsys, tmp_path):
    """What every backend saw, what to do, and what can be measured all the same; the same lines stand in the refusal."""
    (tmp_path / "mine.py").write_text(
        "from tests.model.plain import Plain, unreadable\ndef make():\n    return Plain(unreadable)\n"
    )
    status, out, _ = doctor(capsys, f"{tmp_path}/mine.py:make")
    assert status == 1
    for line in (
        "backend    none: no head can be measured",
        "tried      sdpa: 0 calls of scaled_dot_product_attention seen",
        "to do      call `pytest_induction.expose_attention` where it attends",
        "behaviour  copies_repeats; learns_in_context, from token ids of a text",
    ):
        assert line in out
    with pytest.raises(UnsupportedModel) as caught:
        measure_heads(f"{tmp_path}/mine.py:make")
    said = [line.strip() for line in str(caught.value).splitlines()]
    assert said[0] == f"the attention of {tmp_path}/mine.py:make cannot be read"
    lines = out.splitlines()
    end = next(number for number, line in enumerate(lines) if line.startswith("probes"))
    assert said[1:] == lines[:end]
    assert [line.split()[0] for line in lines[end + 2 :]] == ["assert_copies_repeats", "assert_learns_in_context"]


def test_a_way_that_was_passed_over_is_named():
    """Where a dearer backend serves, what kept the cheaper ones from it is said."""
    labels = [label for label, text in load_model(build("bloom")).diagnosis() if label == "not taken"]
    assert len(labels) == 2


def test_many_layers_are_not_all_named():
    """The first and the last are enough."""
    layers = dict(load_model(Plain(layers=9)).diagnosis())["layers"]
    assert layers == "9 with attention (9 x 2 heads): L0 call 0, L1 call 1, L2 call 2, ..., L8 call 8"


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_script_is_told_what_it_is():
    """Its code cannot be watched; what it does can."""
    script = torch.jit.trace(Plain().eval(), torch.zeros(2, 9, dtype=torch.long))
    advice = [text for label, text in load_model(script).diagnosis() if label == "to do"]
    assert advice == ["a TorchScript module runs no code that can be watched: measure the module that it was made from"]


def test_an_implementation_that_hides_is_named():
    """The advice for a Hugging Face model is to load it otherwise."""
    model = Plain(unreadable)
    model.config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    advice = [text for label, text in load_model(model).diagnosis() if label == "to do"]
    assert advice[0] == "it was loaded with attn_implementation='flash_attention_2': load it with 'sdpa' or 'eager'"


def test_a_model_without_room_for_a_probe_says_so(capsys, tmp_path):
    """It loads, and yet nothing can be measured on it."""
    (tmp_path / "mine.py").write_text("from tests.model.plain import Plain\ndef make():\n    return Plain(d_vocab=3)\n")
    status, out, _ = doctor(capsys, f"{tmp_path}/mine.py:make")
    assert status == 1
    assert "probes     none: a probe needs at least" in out
    assert "to do      measure it on token ids of your own" in out


def test_a_context_that_is_declared_too_long_is_found_out(capsys, tmp_path):
    """A sequence as long as the longest probe is run, and what the model says to it is told."""
    (tmp_path / "mine.py").write_text(
        "from tests.model.plain import Plain\n"
        "def make():\n    model = Plain(n_ctx=60)\n    model.n_ctx = 4096\n    return model\n"
    )
    status, out, err = doctor(capsys, f"{tmp_path}/mine.py:make")
    assert (status, out) == (2, "")
    assert "failed on token ids (1, 100) (its context is said to be 4096): The size of tensor" in err


def test_a_budget_that_one_sequence_exceeds_is_said(capsys):
    """It is measured all the same, a sequence at a time."""
    status, out, _ = doctor(capsys, SHIPPED["llama"], "--memory", "1KB")
    assert status == 0
    assert "61 positions at a time, which may take 0.344 MB, more than the memory allowed" in out


def test_what_attaches_can_be_named(capsys, tmp_path):
    """A function in a conftest.py, say, which the doctor does not read by itself."""
    (tmp_path / "mine.py").write_text(
        "from tests.attention.test_exposed import Reading, attach\ndef make():\n    return Reading()\n"
    )
    spec = f"{tmp_path}/mine.py"
    assert doctor(capsys, f"{spec}:make")[0] == 1
    status, out, _ = doctor(capsys, f"{spec}:make", "--attach", f"{spec}:attach")
    assert (status, "backend    expose_attention" in out) == (0, True)
    status, _, err = doctor(capsys, f"{spec}:make", "--attach", f"{spec}:nonesuch")
    assert (status, "has no factory `nonesuch`" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "error: no model at 'nonesuch': expected a local directory"),
        ([SHIPPED["llama"], "--device", "abacus"], "error: device 'abacus' cannot be used here"),
        ([SHIPPED["llama"], "--memory", "much"], "error: memory must be a size like 4GB or 512MB, got 'much'"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(capsys, arguments, message):
    """No traceback; status 2."""
    status, out, err = doctor(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)


def test_it_runs_as_a_module():
    """As the documentation writes it."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest_induction", "doctor", SHIPPED["two-layers"]], capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("model ")
