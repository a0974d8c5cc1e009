"""Every score of every kind of model against the patterns that the same model returns under eager attention."""

import numpy as np
import pytest
import torch

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.scores import SCORES
from tests.measuring import slow
from tests.model.zoo import ZOO, build

PADDING = {"none": None, "left": "left", "right": "right"}


def tokens_and_mask(padding):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, 61, (3, 9), generator=generator).repeat(1, 3)[:, :24]
    real = torch.ones_like(tokens)
    if padding is not None:
        for row, width in enumerate((0, 4, 9)):
            span = slice(0, width) if padding == "left" else slice(24 - width, 24)
            tokens[row, span], real[row, span] = 1, 0
    return tokens, None if padding is None else real


def eager_patterns(kind, tokens, real):
    """Patterns (layers, batch, heads, queries, keys) of an eager twin."""
    twin = build(kind, "eager")
    with torch.no_grad():
        return torch.stack(twin(tokens, attention_mask=real, output_attentions=True, use_cache=False).attentions)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("kind", ZOO)
def test_scores_equal_those_of_eager_patterns(kind, padding):
    """Whatever the architecture and the padding, the four scores of every head lie within 1e-5."""
    tokens, real = tokens_and_mask(PADDING[padding])
    found = measure_heads(build(kind), tokens=tokens, attention_mask=real)
    patterns = eager_patterns(kind, tokens, real)
    for layer, head in np.ndindex(patterns.shape[0], patterns.shape[2]):
        for row in range(len(tokens)):
            wanted = slow.head_scores(
                patterns[layer, row, head].double().numpy(), tokens[row].tolist(), None if real is None else real[row].tolist()
            )
            for name in SCORES:
                assert found.per_sequence[name][row, layer, head] == pytest.approx(wanted[name], abs=1e-5), (
                    name,
                    layer,
                    head,
                    row,
                )


@pytest.mark.parametrize("kind", ZOO)
def test_logits_are_the_same_to_the_bit_while_measured(kind):
    """The model that is measured is the model as it runs."""
    model = build(kind)
    tokens, real = tokens_and_mask("left")
    with torch.no_grad():
        before = model(tokens, attention_mask=real, use_cache=False).logits
    seen = []
    during = load_model(model).observe(tokens, lambda layer, reader: seen.append(layer), attention_mask=real, logits=True)
    assert torch.equal(before, during)
    assert seen == list(range(model.config.num_hidden_layers))


WAY_OF = {
    "gemma2": "transformers attention interface",
    "gpt-oss": "transformers attention interface",
    "bloom": "eager output_attentions",
}


@pytest.mark.parametrize("kind", ZOO)
def test_the_first_backend_that_serves_is_taken(kind):
    """Attention by sdpa is read from its calls, soft caps and sinks by the interface, the rest from eager patterns."""
    assert load_model(build(kind)).reading.name == WAY_OF.get(kind, "sdpa")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_that_runs_eagerly_is_measured_eagerly(kind):
    """No implementation is swapped for another behind the user's back."""
    subject = load_model(build(kind, "eager"))
    assert subject.reading.name == "transformers attention interface"
    tokens, _ = tokens_and_mask(None)
    one, other = (measure_heads(model, tokens=tokens) for model in (subject, build(kind)))
    np.testing.assert_allclose(one.prefix_matching, other.prefix_matching, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_measured_as_they_run(dtype):
    """Scores in another precision are those of float32 within what its roundings of the model itself allow."""
    tokens, _ = tokens_and_mask(None)
    found = measure_heads(build("llama").to(dtype), tokens=tokens)
    wanted = measure_heads(build("llama"), tokens=tokens)
    assert found.provenance.dtype == str(dtype).removeprefix("torch.")
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    np.testing.assert_allclose(found.prefix_matching, wanted.prefix_matching, atol=tolerance)
