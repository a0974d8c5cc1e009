"""What the study of pretrained models does to copies of them, and the tables of its verdicts."""

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
NAMES = ("pretrained_causes", "bare", "pretrained_page", "pretrained_fetch", "pages")


@pytest.fixture(scope="module")
def causes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("pretrained_causes")
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, **shape)).eval()


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_weights_are_rounded_to_so_many_values(causes, llama, bits):
    """By row and group; the embedding and the map to the vocabulary are left alone, and fewer bits are further off."""
    changed = copy.deepcopy(llama)
    causes.quantise(changed, bits)
    before, after = (module.model.layers[1].mlp.down_proj.weight for module in (llama, changed))  # 80 wide: a group and a part
    assert max(len(row[:64].unique()) for row in after) <= 2**bits - 1
    assert torch.allclose(before.abs().amax(1), after.abs().amax(1))
    step = before[:, :64].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert bool(((after - before)[:, :64].abs() <= step / 2 * 1.0001).all()) and not torch.equal(before, after)
    assert torch.equal(llama.lm_head.weight, changed.lm_head.weight)
    assert torch.equal(llama.model.embed_tokens.weight, changed.model.embed_tokens.weight)


def test_the_smallest_weights_are_pruned(causes, llama):
    """So many of each linear map."""
    changed = copy.deepcopy(llama)
    causes.prune(changed, 0.5)
    before, after = (module.model.layers[0].self_attn.q_proj.weight for module in (llama, changed))
    assert int((after == 0).sum()) == after.numel() // 2
    assert before[after == 0].abs().max() <= before[after != 0].abs().min()


def test_further_training_lowers_the_loss_of_its_text(causes, llama, monkeypatch):
    """And leaves the model as one that is measured: in evaluation mode, without gradients."""
    changed, rows = copy.deepcopy(llama), torch.arange(32).repeat(4, 1)
    monkeypatch.setattr(causes, "LEARNING_RATE", 1e-2)
    causes.train_further(changed, rows)
    before, after = (module(rows, labels=rows).loss.item() for module in (llama, changed))
    assert after < before / 2
    assert not changed.training and all(weight.grad is None for weight in changed.parameters())


def test_the_texts_are_long_enough(causes):
    """For 512 tokens in each of sixteen rows and more, and not the study's own page."""
    found = causes.texts()
    assert list(found) == ["manual", "code", "documentation"] and min(map(len, found.values())) > 100_000


def test_verdicts_become_tables(causes):
    """A row for each, and nothing where a record has none of the kind."""
    page = importlib.import_module("pretrained_page")
    row = {"verdict": "SHOWN", "summary": "a | b", "estimates": {"icl_score": [-0.5, -0.6, -0.4]}, "sequences": 32, "passes": 9.5}
    records = {"smollm2": {"evidence": {"learns_in_context manual": row, "copies_repeats": row}}, "gemma3": {}}
    headings, rows = page.verdict_table(records, "evidence", "learns_in_context", ("icl_score", "other"))
    assert headings == ("model", "on", "verdict", "icl_score", "other", "rows", "bare passes", "what was found")
    expected = ("SmolLM2-135M-Instruct", "manual", "SHOWN", "-0.500 (-0.600..-0.400)", "n/a", "32", "9.5", "a \\| b")
    assert rows == [expected]


def test_records_do_not_say_where_files_lay(causes, tmp_path):
    """Nor does what stands in them otherwise change."""
    record = tmp_path / "one.session.json"
    record.write_text(
        '{"model": "/there/it/lay/small-hf::claim", "text": "/tmp/x/manual.txt", "root": "/tmp/x"}', encoding="utf-8"
    )
    causes.without_places(record, {"/there/it/lay/small-hf": "small-hf", "/tmp/x/": "", "/tmp/x": "."})
    assert record.read_text(encoding="utf-8") == '{"model": "small-hf::claim", "text": "manual.txt", "root": "."}'
