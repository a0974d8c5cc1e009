"""What a pass that is watched, or cut off after its last layer, must not leave half done: a user's modules, hooks and states."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import as_written
from pytest_induction.interventions import ablate, run_with
from tests.attention.recorded import Positioned, assert_right, probe
from tests.attention.test_hand_written import Attention, by_function, fused
from tests.forward.test_as_found import everything, same


def attends_twice(kind=Positioned, attend=fused):
    return kind(Attention(attend), Attention(attend))


class Merging(nn.Linear):
    """A linear layer that merges what it learns into its weights for evaluation, as loralib's does."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs) / 4), nn.Parameter(torch.randn(outputs, 2) / 4)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            self.weight.data += (self.up @ self.down) * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        fixed = F.linear(x, self.weight, self.bias)
        return fixed if self.merged else fixed + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_merges_what_it_learns_is_left_as_it_was(training):
    """Its weights, to the bit, its mode and its gradients afterwards: evaluating it is no reason to call its `train`."""
    model = attends_twice()
    layer = model.blocks[0]["mixer"].qkv = Merging(16, 48)
    model.train(training)
    before = everything(model)
    measure_heads(model, n_sequences=6)
    assert same(everything(model), before)
    assert layer.merged is not training
    model.train()(probe()).sum().backward()
    assert layer.down.grad.abs().max() > 0


def test_a_layer_that_merges_what_it_learns_scores_the_same_in_either_mode():
    """Merged or not it computes the same, and what it has learned takes part."""
    model = attends_twice()
    model.blocks[0]["mixer"].qkv = Merging(16, 48)
    assert_right(model.eval())
    merged = measure_heads(model, tokens=probe()).prefix_matching
    np.testing.assert_allclose(measure_heads(model.train(), tokens=probe()).prefix_matching, merged, atol=1e-5)


@pytest.mark.parametrize("attend", [fused, by_function])
def test_hooks_that_wait_for_the_end_of_a_module_are_called(attend):
    """A user's stack of the modules that run, pushed and popped by hooks, is empty afterwards."""
    model, stack, seen = attends_twice(attend=attend), [], []

    def popped(part, inputs, output):
        seen.append(stack.pop())

    for part in model.modules():
        part.register_forward_pre_hook(lambda part, inputs: stack.append(part))
        part.register_forward_hook(popped)
    subject = load_model(model)
    assert not stack
    assert_right(subject)
    assert not stack and model.out in seen


def test_hooks_that_come_later_are_called_too():
    """A model that was tried out without them is run to its end from then on, and no longer when they are gone."""
    model, ended = attends_twice(), []
    subject = load_model(model)
    assert subject.backend.can_stop
    handle = model.register_forward_hook(lambda *_: ended.append(True))
    measure_heads(subject, tokens=probe())
    assert ended
    handle.remove()
    ended.clear()
    model.out.register_forward_pre_hook(lambda *_: ended.append(True))
    measure_heads(subject, tokens=probe())
    assert not ended


class Busy(Positioned):
    """Says that it runs while it does."""

    busy = False

    def through(self, x):
        self.busy = True
        x = super().through(x)
        self.busy = False
        return x


class Locked(Positioned):
    """Keeps others from running it at the same time."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.lock = threading.Lock()

    @property
    def busy(self):
        return self.lock.locked()

    def through(self, x):
        if not self.lock.acquire(timeout=5):
            raise RuntimeError("it would wait for ever")
        try:
            return super().through(x)
        finally:
            self.lock.release()


class LockedPlainly(Locked):
    """The same, without a thought for what may be raised between."""

    def through(self, x):
        if not self.lock.acquire(timeout=5):
            raise RuntimeError("it would wait for ever")
        x = Positioned.through(self, x)
        self.lock.release()
        return x


class Listing(Positioned):
    """Keeps a list of what is under way."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.busy = []

    def through(self, x):
        self.busy.append(len(x))
        x = super().through(x)
        self.busy.pop()
        return x


@pytest.mark.parametrize(("kind", "stops"), [(Busy, False), (Locked, True), (LockedPlainly, False), (Listing, False)])
def test_a_model_that_is_in_the_middle_of_something_is_not_left_there(kind, stops):
    """A flag, and a lock: a pass is cut off only where nothing stays half done."""
    model = attends_twice(kind)
    subject = load_model(model)
    assert subject.backend.can_stop is stops
    assert not model.busy
    assert_right(subject)
    assert not model.busy


class Drawing(Positioned):
    """Draws random numbers, of which nothing depends."""

    def forward(self, tokens):
        self.drawn = (random.random(), np.random.rand(), float(torch.rand(())))
        return super().forward(tokens)


def test_random_states_are_kept_where_a_model_draws_numbers():
    """Python's, numpy's and torch's own: trying the model out, measuring it, and asking for logits."""
    model = attends_twice(Drawing)

    def states():
        return random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()

    def kept(before):
        (python, numbers, own), (now, numbers_now, own_now) = before, states()
        return python == now and same(numbers, numbers_now) and torch.equal(own, own_now)

    before = states()
    subject = load_model(model)
    assert kept(before)
    for run in (lambda: measure_heads(subject, tokens=probe()), lambda: subject.logits(probe())):
        model.drawn = None
        run()
        assert model.drawn is not None
        assert kept(before)
    model(probe())
    assert not kept(before)


def test_what_is_compiled_runs_compiled_again_after_threads_that_leave_in_the_order_they_came():
    """Torch has one setting for all threads, and each of them would put back what it found."""
    runs = []

    def backend(graph, inputs):
        return lambda *given: (runs.append(1), graph.forward(*given))[1]

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    first, second = as_written(), as_written()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert compiled(torch.ones(3)).sum() == 6 and not runs
    second.__exit__(None, None, None)
    assert compiled(torch.ones(3)).sum() == 6 and runs


@pytest.mark.parametrize("attend", [fused, by_function])
def test_two_threads_may_measure_at_once(attend):
    """Each gets the scores of its own model, and torch's functions are its own afterwards."""
    functions = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
    settings = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled())
    models = [attends_twice(attend=attend) for _ in range(2)]
    wanted = [measure_heads(model, n_sequences=6).prefix_matching for model in models]
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    together = threading.Barrier(2)

    def measured(model):
        together.wait(timeout=30)
        return [measure_heads(model, n_sequences=6).prefix_matching for _ in range(5)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(measured, models))
    for each, alone in zip(found, wanted, strict=True):
        np.testing.assert_allclose(each, [alone] * 5, atol=1e-6)
    assert (F.scaled_dot_product_attention, F.multi_head_attention_forward) == functions
    assert (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()) == settings
    assert_right(models[0])


# What a model keeps in tensors


class Caching(Attention):
    """Keeps keys and values in buffers that its forward writes to, as models that generate do."""

    def __init__(self, attend):
        super().__init__(attend)
        for name in ("cache_k", "cache_v"):
            self.register_buffer(name, torch.full((4, 2, 160, 8), 0.5))

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        self.cache_k[: len(x), :, : x.shape[1]] = key[:4]
        self.cache_v[: len(x), :, : x.shape[1]] = value[:4]
        return self.attend(query, key, value).transpose(1, 2).flatten(-2)


class CachingPlainly(Caching):
    """The same in plain attributes."""

    def __init__(self, attend):
        super().__init__(attend)
        for name in ("cache_k", "cache_v"):
            kept = self._buffers.pop(name)
            setattr(self, name, kept)


class Counting(Attention):
    """Counts its passes in a buffer that is another one each time, and in a plain attribute."""

    def __init__(self, attend):
        super().__init__(attend)
        self.register_buffer("passes", torch.zeros(()))
        self.number = 0

    def forward(self, x):
        self.passes = self.passes + 1
        self.number += 1
        return super().forward(x)


class Lazy(Attention):
    """Registers a buffer in its first pass, and another one for longer sequences."""

    longest = 0

    def forward(self, x):
        if x.shape[1] > self.longest:
            self.register_buffer("ones", torch.ones(x.shape[1], 1), persistent=False)
            self.longest = x.shape[1]
        return super().forward(x * self.ones[: x.shape[1]])


class Averaging(Attention):
    """A running mean of what it is given, as in training, in a list of what it keeps as well."""

    def __init__(self, attend):
        super().__init__(attend)
        self.register_buffer("mean", torch.zeros(16))
        self.seen = []

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.mean((0, 1)))
        self.seen.append(len(x))
        return super().forward(x)


def tensors_of(model):
    """All that its parts keep, as it is now."""
    found = {}
    for path, part in model.named_modules():
        for name, value in (*part._buffers.items(), *vars(part).items()):
            if not name.startswith("_") and not callable(value):
                found[path, name] = value.clone() if isinstance(value, torch.Tensor) else list(value) if name == "seen" else value
    return found


KEEPING = [Caching, CachingPlainly, Counting, Lazy, Averaging]


@pytest.mark.parametrize("attend", [fused, by_function])
@pytest.mark.parametrize("kind", KEEPING)
def test_what_a_pass_writes_to_buffers_is_put_back(kind, attend):
    """After it was tried out, measured, asked for logits, ended early; the buffers are the same objects."""
    model = Positioned(kind(attend), kind(attend))
    before = tensors_of(model)
    objects = {name: id(buffer) for name, buffer in model.named_buffers()}
    subject = load_model(model)
    for run in (
        lambda: None,
        lambda: measure_heads(subject, tokens=probe()),
        lambda: measure_heads(subject, n_sequences=6),
        lambda: subject.logits(probe()),
        lambda: run_with(subject, probe(), ablate(((0, 1),))),
    ):
        run()
        assert same(tensors_of(model), before)
        assert {name: id(buffer) for name, buffer in model.named_buffers()} == objects
    assert_right(subject)
    model(probe(64))
    assert not same(tensors_of(model), before)


@pytest.mark.parametrize("kind", KEEPING)
def test_what_a_pass_wrote_is_put_back_where_it_raises(kind):
    """An observer that fails after the first layer, and a model that fails while it is tried out."""
    model = Positioned(kind(fused), kind(fused))
    subject, before = load_model(model), tensors_of(model)

    def fails(layer, reader):
        raise KeyError("on purpose")

    with pytest.raises(ModelError, match="on purpose"):
        subject.observe(probe(), fails)
    assert same(tensors_of(model), before)
    broken = Positioned(kind(fused), kind(lambda query, key, value: value.flip(2)))
    before = tensors_of(broken)
    with pytest.raises(ModelError, match="not causal"):
        load_model(broken)
    assert same(tensors_of(broken), before)


def test_what_a_user_left_in_a_buffer_is_what_is_put_back():
    """Not what it held when the model was tried out."""
    model = Positioned(Caching(fused), Caching(fused))
    subject = load_model(model)
    model(probe())
    before = tensors_of(model)
    measure_heads(subject, tokens=probe().flip(0))
    assert same(tensors_of(model), before)


def test_buffers_that_nothing_writes_to_are_not_kept_with_every_pass(monkeypatch):
    """Only what the verification saw to change is worth a copy."""
    from pytest_induction.forward import calling

    made = []

    class Noted(calling.Memory):
        def __init__(self, module, names=None):
            super().__init__(module, names)
            made.append(names)

    monkeypatch.setattr(calling, "Memory", Noted)
    for kind, names in ((Attention, None), (Counting, {"passes"})):
        made.clear()
        model = Positioned(kind(fused), kind(fused))
        model.register_buffer("fixed", torch.ones(100))
        measure_heads(load_model(model), tokens=probe())
        assert made == [] if names is None else made and set(map(frozenset, made)) == {frozenset(names)}
