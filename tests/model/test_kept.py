"""A module is tried out once, as long as it is what it was; what it does is measured each time."""

import copy
import gc
from weakref import ref

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import ModelError
from pytest_induction.model import kept
from pytest_induction.planted import induction_head

SEQUENCES = {"n_sequences": 3}


class Counted(nn.Module):
    """A model that counts its passes, in what is no attribute of a module."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.factor = inner, 1.0
        self.vocab_size = inner.vocab_size

    def forward(self, tokens):
        passes.append(tuple(tokens.shape))
        return self.inner(tokens) * self.factor


passes = []


@pytest.fixture
def model():
    """Of two layers, with an induction head."""
    passes.clear()
    return Counted(induction_head())


def passes_of(call):
    """How many passes a call makes."""
    passes.clear()
    call()
    return len(passes)


def test_a_module_is_tried_out_once(model):
    """A call on it makes as many passes as on what was loaded, from the second on; the numbers are the same."""
    first = passes_of(lambda: load_model(model))
    subject = load_model(model)
    on_loaded = passes_of(lambda: measure_heads(subject, **SEQUENCES))
    found = measure_heads(model, **SEQUENCES)
    assert first > 10
    assert passes_of(lambda: measure_heads(model, **SEQUENCES)) == on_loaded > 0
    assert passes_of(lambda: load_model(model)) == 0
    assert np.array_equal(found.prefix_matching, measure_heads(load_model(model), **SEQUENCES).prefix_matching)


def test_what_measurements_need_is_no_reason_to_try_out_again(model):
    """The seed and the memory are those of each call."""
    load_model(model, seed=1)
    assert passes_of(lambda: load_model(model, seed=2, memory="1GB")) == 0
    subject = load_model(model, seed=2, memory="1GB")
    assert (subject.seed, subject.memory) == (2, 10**9)
    assert load_model(model).memory is None


def step(model):
    """A step of training."""
    weight = model.inner.get_parameter(next(name for name, _ in model.inner.named_parameters()))
    with torch.no_grad():
        weight.add_(1e-3)


def hooked(model):
    """Somebody's hook, which waits for the end of a part."""
    model.inner.register_forward_hook(lambda *given: None)


def replaced(model):
    """Another forward of one module."""
    forward = model.inner.forward
    model.inner.forward = lambda tokens: forward(tokens)


def set_otherwise(model):
    """Another plain setting."""
    model.factor = 2.0


def retyped(model):
    """Weights of another type."""
    model.double()


def exchanged(model):
    """Another weight in place of one."""
    name, weight = next(model.inner.named_parameters())
    owner = model.inner.get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], nn.Parameter(weight.detach().clone()))


def grown(model):
    """One more module."""
    model.inner.more = nn.Dropout()


def trained(model):
    """In training mode."""
    model.train()


def named(model):
    """Another setting of its config."""
    model.config.attention = "other"


@pytest.mark.parametrize(
    "change",
    [step, hooked, replaced, set_otherwise, retyped, exchanged, grown, trained, named],
    ids=lambda change: change.__name__,
)
def test_a_module_that_has_changed_is_tried_out_again(model, change):
    """And once it has been, no more."""
    model.config = type("Config", (), {})()
    load_model(model)
    assert passes_of(lambda: load_model(model)) == 0
    change(model)
    assert passes_of(lambda: load_model(model)) > 10
    assert passes_of(lambda: load_model(model)) == 0


def test_new_weights_have_new_results(model):
    """Also where torch does not count that they were written to."""
    before = measure_heads(model, **SEQUENCES).prefix_matching
    for weight in model.inner.parameters():
        weight.data.mul_(0.0)
    assert not np.allclose(measure_heads(model, **SEQUENCES).prefix_matching, before)
    with torch.no_grad():
        next(model.inner.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        measure_heads(model, **SEQUENCES)


def test_nothing_is_left_on_the_module(model):
    """No attribute; a copy is a module of its own."""
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    measure_heads(model, **SEQUENCES)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    other = copy.deepcopy(model)
    assert passes_of(lambda: load_model(other)) > 10
    assert passes_of(lambda: load_model(model)) == 0


def test_a_module_is_collected_when_its_user_lets_go_of_it():
    """As what is kept goes with it; a function that was made with it in hand would hold it, and is not kept."""
    model = Counted(induction_head())
    for _ in range(2):
        kept.taken_in(model)
    kept.taken_in(model, attach=[stranger_of(model)])
    held = ref(model)
    assert held() in kept._kept
    del model
    gc.collect()
    assert held() is None


def test_a_subject_keeps_its_module_alive():
    """The one that was loaded last of a module that nobody else holds."""
    subject = load_model(load_model(induction_head()).given)
    gc.collect()
    assert measure_heads(subject, **SEQUENCES).prefix_matching.shape == (subject.n_layers, subject.n_heads)


def test_what_passes_change_by_themselves_does_not_count(model):
    """A module that counts its passes in an attribute is tried out once too."""
    model.inner.register_buffer("calls", torch.zeros(()))
    forward = type(model).forward

    class Counting(Counted):
        def forward(self, tokens):
            self.seen = getattr(self, "seen", 0) + 1
            return forward(self, tokens)

    model.__class__ = Counting
    model.seen = 0
    load_model(model)
    measure_heads(model, **SEQUENCES)
    assert passes_of(lambda: load_model(model)) == 0


def test_other_modules_declared_or_attached_are_other_arguments(model):
    """A model is tried out for each; what is attached with the model in hand is not kept, as it holds it."""
    load_model(model)
    assert passes_of(lambda: load_model(model, without_pattern="PlantedLayer")) > 10
    assert passes_of(lambda: load_model(model, without_pattern="PlantedLayer")) == 0
    assert passes_of(lambda: load_model(model, attach=stranger)) > 10
    assert passes_of(lambda: load_model(model, attach=stranger)) == 0
    assert passes_of(lambda: load_model(model, attach=stranger_of(model))) > 10
    assert passes_of(lambda: load_model(model, attach=stranger_of(model))) > 10
    assert passes_of(lambda: load_model(model)) == 0


def stranger_of(model):
    """One that holds the model."""

    def attach(given):
        assert given is model

    return attach


def stranger(model):
    """Attaches to nothing."""


def test_a_directory_and_the_module_of_it_are_measured_on_the_same_probes(tmp_path):
    """Special ids that only the tokenizer beside the weights names are left out for both; a text needs a tokenizer of one's own."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = {f"w{number}": number for number in range(40)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w7"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w7", pad_token="w9").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=48, **sizes)).save_pretrained(tmp_path)
    loaded, module = load_model(tmp_path), transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert load_model(module).space == loaded.space
    assert {7, 9, 40, 47} <= loaded.space.excluded
    assert load_model(module).tokenizer is None
    module.config._name_or_path = ""
    assert load_model(module).space != loaded.space
