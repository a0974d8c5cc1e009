"""Other threads: what they run while a model is measured is theirs, and several may measure at once."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_ablations, measure_heads
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import EditingCapture
from pytest_induction.attention.interceptor import InterceptingMode, Interceptor, intercepted
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.forward import calling, changing
from pytest_induction.forward.calling import LONGEST_SHORT, as_found, in_one_thread
from pytest_induction.forward.changing import beneath, take_over
from pytest_induction.interventions import ablate, run_with
from pytest_induction.interventions.passes import blocks_of
from pytest_induction.model.adapt import adapt
from pytest_induction.model.remote_code import never_asking
from pytest_induction.undoing import Changes
from tests.attention.recorded import Positioned, probe
from tests.attention.test_hand_written import Attention, by_function, fused
from tests.forward.left_behind import changed, everything, of_process
from tests.forward.test_interrupts import MODELS, small
from tests.model.zoo import build

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
LONG = 120  # seconds, after which threads are taken to wait for each other


def in_another_thread(run):
    """What it gives there, while this thread waits."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(timeout=LONG)


class Meanwhile:
    """In each of the first passes of a model, when its second block or layer is reached, something runs in another thread."""

    def __init__(self, model, run, times):
        self._run, self._left, self.gave = run, times, []
        self._part = next(part for name, part in model.named_modules() if name.endswith(("blocks.1.mixer", "h.1", "layers.1")))
        self._here = threading.get_ident()

    def __enter__(self):
        self._handle = self._part.register_forward_pre_hook(self._wait)
        return self

    def __exit__(self, *error):
        self._handle.remove()

    def _wait(self, part, given):
        if self._left and threading.get_ident() == self._here:
            self._left -= 1
            self.gave.append(in_another_thread(self._run))


def model_of(name):
    return MODELS[name]().eval()


WAITED_IN = [name for name in MODELS if name != "TransformerLens hook_pattern"]
SCORES = ("prefix_matching", "previous_token", "duplicate_token")


def scores(found):
    return [getattr(found, name) for name in SCORES]


def other_model(implementation):
    """A GPT-2 that another thread runs, and what it gives by itself."""
    model = build("gpt2", implementation)
    tokens = torch.arange(40)[None] % 61

    def run():
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    return run, run()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", WAITED_IN)
def test_what_another_thread_runs_is_neither_heard_nor_changed(name, implementation):
    """Its GPT-2 in the middle of each pass: of a verification, of measured ones, of changed ones."""
    model, (run, expected) = model_of(name), other_model(implementation)
    tokens = probe(24, 12, rows=2)
    alone = measure_heads(adapt(model), tokens=tokens)
    before = everything(model)
    with Meanwhile(model, run, times=1000) as meanwhile:
        subject = adapt(model)
        assert subject.backend.name == name
        found = measure_heads(subject, tokens=tokens)
    assert len(meanwhile.gave) > 5
    for logits in meanwhile.gave:
        assert torch.equal(logits, expected)
    for one, other in zip(scores(found), scores(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert changed(before, everything(model)) == []


@pytest.mark.parametrize("name", [name for name in WAITED_IN if name != "expose_attention"])
def test_another_thread_is_not_intervened_on(name):
    """Where the model that it runs is another one."""
    model, (run, expected) = model_of(name), other_model("eager")
    tokens = probe(24, 12, rows=2)
    subject = adapt(model)
    alone = run_with(subject, tokens, ablate("L0H0"), ablate("L1H1", "mean"))
    with Meanwhile(model, run, times=1000) as meanwhile:
        found = run_with(subject, tokens, ablate("L0H0"), ablate("L1H1", "mean"))
    assert meanwhile.gave and all(torch.equal(logits, expected) for logits in meanwhile.gave)
    assert torch.equal(found, alone)


@pytest.mark.parametrize("other", ["sdpa", "softmax", "transformers attention interface", "eager output_attentions"])
@pytest.mark.parametrize("name", WAITED_IN)
def test_a_thread_may_measure_while_another_is_in_the_middle_of_a_pass(name, other):
    """From loading on, and the pass that waits for it goes on as if nothing was: neither waits for the other to end."""
    models = [model_of(name), model_of(other)]
    tokens = probe(24, 12, rows=2)
    alone = [measure_heads(adapt(model), tokens=tokens) for model in models]
    before = everything(models[0]), everything(models[1])
    with Meanwhile(models[0], lambda: measure_heads(adapt(models[1]), tokens=tokens), times=2) as meanwhile:
        subject = adapt(models[0])
        found = measure_heads(subject, tokens=tokens)
    assert (subject.backend.name, meanwhile.gave[0].provenance.backend) == (name, other)
    for each, wanted in [(found, alone[0]), *((each, alone[1]) for each in meanwhile.gave)]:
        for one, one_alone in zip(scores(each), scores(wanted), strict=True):
            np.testing.assert_array_equal(one, one_alone)
    assert [changed(*each) for each in zip(before, map(everything, models), strict=True)] == [[], []]


def test_a_backward_pass_of_another_thread_is_its_own():
    """With gradients, and layers that run again for them."""
    trained = build("gpt2", "sdpa").train()
    trained.config.resid_pdrop = trained.config.embd_pdrop = trained.config.attn_pdrop = 0.0
    for part in trained.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer ones have another name for it
        trained.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = torch.arange(40)[None] % 61

    def train():
        trained.zero_grad()
        loss = trained(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return [weight.grad.clone() for weight in trained.parameters()]

    expected, model = train(), model_of("sdpa")
    with Meanwhile(model, train, times=3) as meanwhile:
        measure_heads(adapt(model), tokens=probe(24, 12, rows=2))
    assert len(meanwhile.gave) == 3
    for gradients in meanwhile.gave:
        assert all(map(torch.equal, gradients, expected))


# One module in two threads


@pytest.mark.parametrize("name", ["sdpa", "softmax", "transformers attention interface", "eager output_attentions"])
def test_two_threads_may_measure_one_module(name):
    """One pass at a time, as a pass needs its mode to itself; the scores are those of one thread, and its mode is put back."""
    model = model_of(name).train()
    tokens = probe(24, 12, rows=2)
    alone = measure_heads(adapt(model), tokens=tokens)
    before, running, at_once = everything(model), [], []

    def entered(part, given):
        running.append(threading.get_ident())
        at_once.append(len({*running}))
        assert not model.training

    def left(part, given, output):
        running.remove(threading.get_ident())

    handles = [model.register_forward_pre_hook(entered), model.register_forward_hook(left, always_call=True)]
    both = threading.Barrier(2)

    def measured():
        both.wait(LONG)
        return [measure_heads(adapt(model), tokens=tokens) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        found = [each for future in [pool.submit(measured) for _ in range(2)] for each in future.result(LONG)]
    for handle in handles:
        handle.remove()
    for each in found:
        for one, other in zip(scores(each), scores(alone), strict=True):
            np.testing.assert_array_equal(one, other)
    assert {*at_once} == {1}
    assert changed(before, everything(model)) == []


def test_two_threads_may_ablate_heads_of_one_module():
    """Whose passes begin at later layers, so that what runs in place of the earlier ones is each thread's own."""
    subject = adapt(model_of("transformers attention interface"))
    assert blocks_of(subject).any
    before = everything(subject.module)

    def ablated(seed):
        return measure_ablations(subject, n_sequences=4, seed=seed).effect

    alone = [ablated(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(ablated, [0, 1] * 4)]
    for number, each in enumerate(found):
        np.testing.assert_array_equal(each, alone[number % 2])
    assert changed(before, everything(subject.module)) == []


def test_a_process_that_was_forked_waits_for_no_thread_of_the_other():
    """None of them goes on there."""
    turn = changing.Turn()
    in_another_thread(turn.take)
    assert not turn.take(longest=0.01)
    holder = nn.Linear(1, 1)
    changing._measuring[holder] = turn
    changing._forget_turns()
    assert turn.take(longest=0.01)
    turn.leave()


def test_a_module_and_what_is_around_it_are_measured_one_at_a_time():
    """They are told to be one by the weights that they share."""

    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens)

    model = model_of("sdpa").train()
    inside, order = threading.Event(), []

    def second():
        inside.wait(LONG)
        with as_found(Around(model)):
            order.append("second")

    with ThreadPoolExecutor(1) as pool, as_found(model):
        done = pool.submit(second)
        inside.set()
        with pytest.raises(TimeoutError):
            done.result(timeout=0.3)
        order.append("first")
    done.result(LONG)
    assert order == ["first", "second"]


def test_a_thread_that_would_wait_for_ever_says_so(monkeypatch):
    """A pass that waits for another thread, which is to measure the same model."""
    monkeypatch.setattr(changing, "LONGEST_WAIT", 0.05)
    model = model_of("sdpa")
    why = "`Positioned` is measured in another thread, for 0 seconds in one go: give each"
    with as_found(model), pytest.raises(ModelError, match=why):
        in_another_thread(lambda: measure_heads(model))
    measure_heads(model)


# In any order


@pytest.mark.parametrize("order", ["the first leaves first", "the last leaves first"])
def test_what_threads_put_in_the_place_of_functions_is_gone_when_both_have_left(order):
    """Each hears its own calls in between; what only one of them has put there, too."""
    before, heard = of_process(), {"one": Capture(), "other": Capture(layers=(), groups=None)}
    heard["other"] = EditingCapture({}, layers=(0, 1, 2, 3), groups=None)
    turns = {name: threading.Event() for name in ("other is in", "one is out", "other is out")}
    parts = torch.ones(1, 1, 7, 4)

    def attend():
        F.scaled_dot_product_attention(parts, parts, parts, is_causal=True)

    def other():
        with intercepted(Interceptor(torch.zeros(1, 7), heard["other"]), InterceptingMode):
            turns["other is in"].set()
            attend()
            attend()
            if order == "the first leaves first":
                assert turns["one is out"].wait(LONG)
            attend()
        turns["other is out"].set()

    with ThreadPoolExecutor(1) as pool:
        with intercepted(Interceptor(torch.zeros(1, 7), heard["one"]), InterceptingMode):
            done = pool.submit(other)
            assert turns["other is in"].wait(LONG)
            attend()
            if order == "the last leaves first":
                assert turns["other is out"].wait(LONG)
            attend()
        turns["one is out"].set()
        done.result(LONG)
    assert (heard["one"].n_events, heard["other"].n_events) == (2, 3)
    assert changed(before, of_process()) == []


def test_settings_of_libraries_are_put_back_when_the_last_thread_has_loaded():
    """Threads that leave in the order in which they came would each put back what it found."""
    asking = pytest.importorskip("transformers").dynamic_module_utils
    before = asking.TIME_OUT_REMOTE_CODE
    first, second = never_asking(), never_asking()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert asking.TIME_OUT_REMOTE_CODE == 0 != before
    second.__exit__(None, None, None)
    assert before == asking.TIME_OUT_REMOTE_CODE


class Counted(Positioned):
    """A model that notes in `seen` how many threads its passes have, and fails on rows of one length."""

    seen: ClassVar[list[int]] = []
    failing = 0

    def forward(self, tokens):
        self.seen.append(torch.get_num_threads())
        if tokens.shape[1] == self.failing:
            raise ValueError("no such length")
        return super().forward(tokens)


@pytest.fixture
def counted():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    Counted.seen.clear()
    yield Counted(Attention(fused))
    torch.set_num_threads(before)


def test_short_passes_run_in_one_thread(counted):
    """Those in which a module is tried out and those that are measured; afterwards there are as many as before."""
    subject = load_model(counted)
    tried_in = len(counted.seen)
    subject.logits(torch.zeros(1, 24, dtype=torch.long))
    measure_heads(subject, n_sequences=1)
    assert len(counted.seen) >= tried_in + 2 > 2
    assert set(counted.seen) == {1}
    assert torch.get_num_threads() == 2


def test_passes_that_are_not_short_run_in_all_threads(counted, monkeypatch):
    """For their numbers, or for their positions."""
    with Changes() as changes:
        in_one_thread(changes, counted, 1, LONGEST_SHORT + 1)
        assert torch.get_num_threads() == 2
    subject = load_model(counted)
    counted.seen.clear()
    monkeypatch.setattr(calling, "in_one_thread", partial(in_one_thread, most=1))
    subject.logits(torch.zeros(1, 24, dtype=torch.long))
    assert counted.seen == [2]


def test_threads_are_as_many_as_before_where_a_short_pass_fails(counted):
    subject = load_model(counted)
    counted.failing = 24
    counted.seen.clear()
    with pytest.raises(ModelError, match="no such length"):
        subject.logits(torch.zeros(1, 24, dtype=torch.long))
    assert counted.seen == [1]
    assert torch.get_num_threads() == 2


def test_a_name_that_threads_share_is_each_ones_own():
    """Many threads at once, in whatever order they come and leave."""
    home = nn.Module()
    home.__dict__["name"] = original = lambda: 0
    together = threading.Barrier(8)

    def run(number):
        together.wait(LONG)
        wrong = 0
        for _ in range(300):
            with Changes() as changes:
                take_over(changes, (home, "name", lambda: number))
                wrong += home.name() != number
                wrong += beneath(home, "name")() != number
            wrong += home.name() != 0
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(run, range(1, 9))] == [0] * 8
    assert home.name is original


# What runs in threads of its own


class Apart(nn.Module):
    """Runs a model in a thread of its own, as replicas on several devices are run."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        gradients = torch.is_grad_enabled()

        def run():
            with torch.set_grad_enabled(gradients):
                return self.model(tokens)

        return in_another_thread(run)


def test_a_model_whose_layers_run_in_another_thread_is_refused_by_name():
    """Its calls are not heard: nothing tells them from those of any other model there."""
    with pytest.raises(UnsupportedModel, match="0 calls of scaled_dot_product_attention seen"):
        measure_heads(Apart(model_of("sdpa")))
    assert load_model(Apart(model_of("sdpa")).model).backend.name == "sdpa"


@pytest.mark.parametrize("attend", [fused, by_function])
def test_replicas_on_one_device_are_measured_as_the_module(attend):
    """`DataParallel` runs no thread there."""
    model = small(attend).eval()
    tokens = probe(24, 12, rows=2)
    found, alone = measure_heads(nn.DataParallel(model), tokens=tokens), measure_heads(model, tokens=tokens)
    np.testing.assert_allclose(found.prefix_matching, alone.prefix_matching, atol=1e-6)
