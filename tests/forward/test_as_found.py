"""Measuring changes nothing: not the weights, modes, hooks, settings, gradients or random state, also when it fails."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError
from tests.model.zoo import build


def everything(model):
    """All of a module's state that a measurement could touch."""
    return {
        "weights": {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()},
        "training": [part.training for part in model.modules()],
        "hooks": [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()],
        "attributes": [sorted(vars(part)) for part in model.modules()],
        "settings": [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")],
        "gradients": [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "torch": (F.scaled_dot_product_attention, torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "bloom", "llama"])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_a_measured_model_is_as_it_was(kind, mode):
    """A model in training mode, with gradients, comes back in training mode, with the same gradients."""
    model = build(kind)
    model(torch.randint(4, 61, (1, 9)), use_cache=False).logits.sum().backward()
    model.train(mode == "train")
    if mode == "mixed":
        next(model.children()).train()
    model.eval() if mode == "eval" else None
    before = everything(model)
    measure_heads(model, n_sequences=6)
    assert same(everything(model), before)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "bloom"])
def test_a_model_is_as_it_was_after_an_exception_too(kind):
    """An observer that fails in the middle of a forward pass leaves nothing behind."""
    model = build(kind).train()
    subject, tokens = load_model(model), torch.randint(4, 61, (2, 9))
    before = everything(model)

    def fails(layer, reader):
        raise KeyError("on purpose")

    with pytest.raises(ModelError, match="on purpose"):
        subject.observe(tokens, fails)
    assert same(everything(model), before)


def test_the_comparison_of_states_sees_a_change():
    """The guard above can fail: each kind of change is seen."""
    model = build("gpt2")
    for change in (
        lambda: model.train(),
        lambda: model.lm_head.weight.data.add_(1),
        lambda: model.register_forward_hook(lambda *_: None),
        lambda: torch.rand(1),
        lambda: setattr(model.config, "_attn_implementation", "eager"),
    ):
        before = everything(model)
        change()
        assert not same(everything(model), before)


def test_training_goes_on_after_a_measurement():
    """No tensor made while measuring is left where autograd meets it."""
    model = build("llama").train()
    measure_heads(model, n_sequences=6)
    model(torch.randint(4, 61, (2, 9)), use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_other_threads_run_their_own_attention():
    """What another thread computes meanwhile is neither watched nor counted."""
    from concurrent.futures import ThreadPoolExecutor

    subject, other, seen = load_model(build("gpt2")), build("llama"), []
    tokens = torch.randint(4, 61, (2, 9))

    def also_runs_the_other(layer, reader):
        seen.append(layer)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: other(tokens, use_cache=False)).result()

    subject.observe(tokens, also_runs_the_other)
    assert seen == [0, 1, 2]


def test_a_layer_that_goes_unseen_is_an_error():
    """Fewer layers than expected never become fewer scores."""
    model = build("gpt2")
    subject = load_model(model)
    del model.transformer.h[2]
    with pytest.raises(ModelError, match="3 attention layers were expected in this forward pass, 2 were seen by sdpa"):
        measure_heads(subject)


def test_what_is_remembered_is_forgotten_when_the_model_changes():
    """A second question costs nothing; after a step of training, a hook or another mode it is measured again."""
    model = build("gpt2")
    subject, calls = load_model(model), []

    def ask():
        subject.remember("question", lambda: calls.append(1))
        return len(calls)

    assert (ask(), ask()) == (1, 1)
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight[3] += 1e-3
    assert (ask(), ask()) == (2, 2)
    handle = model.transformer.h[1].register_forward_hook(lambda *_: None)
    assert (ask(), ask()) == (3, 3)
    handle.remove()
    model.lm_head.weight.data[5, 5] += 1e-3
    assert (ask(), ask()) == (4, 4)


@pytest.mark.parametrize("kind", ["bloom", "gpt2"])
def test_what_transformers_hooks_in_to_return_patterns_is_taken_out(kind):
    """Its hooks would stay for good, and a model with hooks is not the one that was given."""
    model = build(kind)
    before = [(dict(part._forward_hooks), sorted(vars(part))) for part in model.modules()]
    with_patterns = load_model(build(kind, "eager")).module
    for each in (model, with_patterns):
        measure_heads(each, n_sequences=6)
        assert [(dict(part._forward_hooks), sorted(vars(part))) for part in each.modules()] == before
    assert model(torch.randint(4, 61, (1, 9)), output_attentions=True).attentions is not None
