"""Where no logits are asked for, a pass ends after the last attention layer; nothing else may show."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.scores import PeriodicScores
from pytest_induction.errors import ModelError
from pytest_induction.measuring.observing import observe
from tests.model.plain import Plain, by_hand
from tests.model.zoo import ZOO, build


def what_ran(model, run):
    ran, handles = [], []
    for name, part in model.named_modules():
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: ran.append(name)))
    run()
    for handle in handles:
        handle.remove()
    return ran


@pytest.mark.parametrize("kind", ZOO)
def test_nothing_after_the_last_attention_runs_and_the_scores_are_the_same(kind):
    """To the bit; and the pass can be told to go on to the end."""
    model = build(kind)
    subject, scores = load_model(model), PeriodicScores(9, 1, 28)
    tokens = torch.cat([torch.tensor([[2]]), torch.arange(10, 19).repeat(3)[None]], dim=1)
    stopped, whole = (observe(subject, tokens, scores, early_stop=stop)[0] for stop in (True, False))
    for name, values in whole.items():
        np.testing.assert_array_equal(stopped[name], values)
    short, long = (
        what_ran(model, lambda stop=stop: subject.observe(tokens, lambda *_: None, early_stop=stop)) for stop in (True, False)
    )
    assert subject.backend.can_stop is (kind != "bloom")  # which returns its patterns when it is done
    assert (len(short) < len(long)) is subject.backend.can_stop


@pytest.mark.parametrize("kind", ZOO)
def test_a_pass_may_end_after_so_many_layers(kind):
    """What is seen of them is the same, of the others nothing; where a pass cannot end early, all layers run."""
    model = build(kind)
    subject, scores = load_model(model), PeriodicScores(9, 1, 28)
    tokens = torch.cat([torch.tensor([[2]]), torch.arange(10, 19).repeat(3)[None]], dim=1)
    whole, first = observe(subject, tokens, scores)[0], observe(subject, tokens, scores, depth=1)[0]
    for name, values in first.items():
        np.testing.assert_allclose(values[:, :1], whole[name][:, :1], atol=1e-6)
        assert subject.n_layers > 1 and np.isnan(values[:, 1:]).all()
    ran, all_ran = (
        what_ran(model, lambda depth=depth: subject.observe(tokens, lambda *_: None, n_layers=depth)) for depth in (1, None)
    )
    assert (len(ran) < len(all_ran)) is subject.backend.can_stop


@pytest.mark.parametrize("attend", [None, by_hand])
def test_plain_modules_stop_too(attend):
    """Whichever backend: the unembedding is not computed."""
    model = Plain(attend)
    subject = load_model(model)
    assert subject.backend.can_stop
    ran = what_ran(model, lambda: subject.observe(torch.zeros(1, 9, dtype=torch.long), lambda *_: None))
    assert "out" not in ran
    with_logits = what_ran(model, lambda: subject.observe(torch.zeros(1, 9, dtype=torch.long), lambda *_: None, logits=True))
    assert "out" in with_logits


class Guarded(Plain):
    """Catches what it can and goes on, as some models do around optional kernels."""

    def forward(self, tokens):
        try:
            return super().forward(tokens)
        except Exception:  # noqa: BLE001
            return torch.zeros(*tokens.shape, 40)


def test_a_model_that_catches_exceptions_does_not_catch_the_end():
    """What ends the pass is no `Exception`."""
    assert load_model(Guarded()).backend.can_stop


class Counting(Plain):
    """Computes something else after a pass that did not reach its end."""

    def __init__(self):
        super().__init__()
        self.open = 0

    def forward(self, tokens):
        self.open += 1
        logits = super().forward(tokens) + (self.open > 1)
        self.open = 0
        return logits


def test_a_model_that_minds_is_left_to_finish():
    """Found out by verification: its logits after a stopped pass are not what they were."""
    subject = load_model(Counting())
    assert not subject.backend.can_stop
    assert measure_heads(subject).prefix_matching.shape == (2, 2)


def test_a_layer_less_is_noticed_though_nothing_comes_after():
    """A pass that ends before the last expected layer has not ended early."""
    model = build("gpt2")
    subject = load_model(model)
    model.transformer.h = nn.ModuleList(list(model.transformer.h)[:2])
    with pytest.raises(ModelError, match="3 attention layers were expected in this forward pass, 2 were seen by sdpa"):
        measure_heads(subject)
