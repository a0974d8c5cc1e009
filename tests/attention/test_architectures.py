"""A slice of `make study-architectures` that every run checks: kinds of attention, not brands; and that the check can fail."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.attention import eager
from tests.attention.architectures import padded, probes, tiny, types
from tests.measuring import slow

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
KINDS = {  # type -> the layers that have attention over positions, of four or what the config makes of it
    "axk2": 4,  # multi-head latent attention, keys chosen by an indexer
    "bert": 4,  # an encoder that runs as a decoder
    "deepseek_v3": 4,  # multi-head latent attention, grouped experts
    "diffllama": 4,  # two attention calls in each layer
    "falcon": 4,  # one key head for all
    "gemma2": 4,  # soft caps and windows
    "gemma3n_text": 4,  # layers that share keys and values
    "gpt_neo": 4,  # attention of its own, local and global
    "gpt_oss": 4,  # sinks
    "gptj": 4,  # attention of its own, no other implementation
    "jamba": 2,  # state space layers between
    "laguna": 4,  # layers with different numbers of heads
    "lfm2": 2,  # convolutions between
    "minimax": 2,  # linear attention between, whose states are returned among the patterns
    "mllama": 3,  # cross-attention to an image that is not there
    "whisper": 4,  # the decoder of a pair whose encoder has another number of layers
    "hrm_text": 8,  # layers that run more than once
    "llama4_text": 4,  # chunks
    "mixtral": 4,  # experts
    "mpt": 4,  # ALiBi
    "xlm": 4,  # attention of its own, padding among its masks
}
REFUSED = {  # type -> how many patterns it has, all the same
    "deepseek_v4": 1,  # most layers attend to compressed entries beside the positions
    "blt": 8,  # patches of bytes beside the positions
    "mamba": 0,  # no attention
}


def outcome_of(kind, batches=None):
    twin = tiny(kind, "eager")
    return eager.compare(tiny(kind), twin, batches or [*probes(), padded()])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention_is_measured_as_its_own_eager_patterns_say(kind):
    """All four scores of every head and layer, with and without padding, on patterns that are not flat."""
    outcome = outcome_of(kind)
    assert outcome.status == "measured", outcome
    assert outcome.measured == outcome.patterns == KINDS[kind]
    assert outcome.spread > 0.1


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_and_says_what_was_tried(kind):
    """Never a part of the layers, never a made-up score."""
    outcome = outcome_of(kind, probes())
    assert (outcome.status, outcome.patterns) == ("refused", REFUSED[kind])
    assert outcome.reason.startswith("sdpa: ")


def tampered(change):
    """`measure_heads` with its scores changed by a function of one array (sequences, layers, heads)."""

    def measure(*args, **options):
        found = eager_measure(*args, **options)
        return replace(found, per_sequence={name: change(values.copy()) for name, values in found.per_sequence.items()})

    eager_measure = eager.measure_heads
    return measure


def one_head_off(values):
    values[0, 1, 2] += 2e-4
    return values


def one_head_nan(values):
    values[0, 1, 2] = np.nan
    return values


@pytest.mark.parametrize(
    "change",
    [
        one_head_off,
        one_head_nan,
        lambda values: values[:, :-1],
        lambda values: values[:, ::-1],
        lambda values: values[..., ::-1],
        lambda values: values[..., :-1],
        lambda values: values[::-1],
    ],
    ids=["a score off", "a score not a number", "a layer less", "layers turned", "heads turned", "a head less", "rows turned"],
)
def test_the_comparison_can_fail(monkeypatch, change):
    """What it must find, it finds."""
    monkeypatch.setattr(eager, "measure_heads", tampered(change))
    assert outcome_of("llama").status == "wrong"


def test_a_layer_that_is_not_measured_is_wrong(monkeypatch):
    """The number of layers is compared before any score is."""
    measure = eager.measure_heads

    def all_but_one_layer(*args, **options):
        found = measure(*args, **options)
        return replace(found, prefix_matching=found.prefix_matching[1:])

    monkeypatch.setattr(eager, "measure_heads", all_but_one_layer)
    outcome = outcome_of("llama")
    assert (outcome.status, outcome.reason) == ("wrong", "3 layers measured, 4 patterns returned")


def test_a_twin_that_computes_something_else_proves_nothing():
    """A reference with other weights is no reference."""
    model, twin = tiny("llama"), tiny("llama", "eager")
    with torch.no_grad():
        twin.model.layers[0].self_attn.v_proj.weight.mul_(2)
    assert eager.compare(model, twin, probes()).status == "unchecked"


@pytest.mark.parametrize("batch", [*probes(), padded()], ids=["one period", "two periods", "padded"])
def test_scores_over_whole_patterns_are_those_of_single_entries(batch):
    """The reference of this file against the slow one, on random patterns."""
    generator = torch.Generator().manual_seed(5)
    positions = batch.tokens.shape[1]
    pattern = torch.rand(2, 3, positions, positions, generator=generator, dtype=torch.float64).tril()
    found = eager.dense_scores(pattern, batch)
    for row, head in np.ndindex(2, 3):
        wanted = slow.head_scores(pattern[row, head].numpy(), batch.tokens[row].tolist(), batch.kept[row].tolist())
        assert {name: float(values[row, head]) for name, values in found.items()} == pytest.approx(wanted)


def test_the_page_lists_every_type():
    """docs/architectures.md has a line for each type, for the version that it was made with."""
    text = PAGE.read_text(encoding="utf-8")
    made_with = re.search(r"transformers (\S+),", text)[1]
    if made_with != transformers.__version__:
        pytest.skip(f"the page was made with transformers {made_with}: `make study-architectures`")
    listed = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(types())
