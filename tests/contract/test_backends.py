"""What every backend of `backends.BACKENDS` promises, on a sample model of each; and that each promise can be broken."""

import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model
from pytest_induction.attention.backend import AttentionBackend, VerificationInputs
from pytest_induction.attention.backends import BACKENDS
from pytest_induction.attention.backends.sdpa import SdpaBackend
from pytest_induction.attention.edits import Edit, Replace
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import as_found
from tests.attention.eager import spread
from tests.attention.patterns import TOLERANCE, repeated, worst_difference
from tests.contract import samples
from tests.contract.samples import without_what_heads_found
from tests.contract.stating import check_list, check_one_line
from tests.model.plain import unreadable

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch's compiler and TransformerLens warn of
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BY_NAME = {kind.name: kind for kind in BACKENDS}
NAMES = list(BY_NAME)
FAR_FROM_UNIFORM = 0.05
CLOSE = 1e-5


def tokens_of(rows=2):
    """Token ids that every sample takes."""
    return repeated(rows, d_vocab=40)


def subject_of(name, kind=None):
    """The sample of a backend as a model under test, read by that backend, or by another class."""
    subject = load_model(samples.BACKENDS[name].make())
    if kind is not None:
        with as_found(subject.module):
            subject.backend = kind(subject.caller, VerificationInputs(repeated(2, 5, 11, 40), repeated(2, 9, 24, 40)))
    return subject


def last_module(subject):
    """The module that gives the logits: what an early end leaves out."""
    head = getattr(subject.module, "get_output_embeddings", lambda: None)()
    return head or getattr(subject.module, "unembed", None) or subject.module.out


class State:
    """What a measurement must leave as it was: hooks, attributes and weights of all modules, and the functions of torch."""

    def __init__(self, module):
        self.parts = {}
        for name, part in module.named_modules():
            hooks = [len(vars(part).get(each, ())) for each in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            plain = {key: value for key, value in vars(part).items() if not key.startswith("_") or key == "_attn_implementation"}
            config = getattr(part, "config", None)
            self.parts[name] = (
                hooks,
                sorted(vars(part)),
                {key: id(value) for key, value in plain.items()},
                part.training,
                getattr(config, "_attn_implementation_internal", None),
                vars(part).get("forward"),
            )
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}
        self.functions = F.scaled_dot_product_attention, F.multi_head_attention_forward, torch.softmax, F.softmax
        interface = getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
        self.functions += (None if interface is None else vars(interface).get("get_interface"),)

    def check(self, module):
        """Raise `AssertionError` for what is another."""
        now = State(module)
        assert now.functions == self.functions, "a function of torch or transformers is another one"
        for name, part in self.parts.items():
            assert now.parts[name] == part, f"the module `{name}` is not as it was"
        assert all(torch.equal(now.weights[name], value) for name, value in self.weights.items()), "a weight is another one"


def check_numbers(subject, sample):
    """Raise `AssertionError` unless every layer is seen, with the scores of the patterns that another account gives."""
    tokens = tokens_of()
    patterns = sample.patterns(subject.module, tokens)
    assert subject.n_layers == len(patterns) and spread(patterns) > FAR_FROM_UNIFORM
    assert list(subject.backend.heads) == [pattern.shape[1] for pattern in patterns]
    difference = worst_difference(subject, tokens, patterns)
    assert difference < TOLERANCE, f"scores differ by {difference:.2g}"


def check_left_alone(subject):
    """Raise `AssertionError` unless the model is as it was after it was read, also where what reads it fails midway."""
    tokens, module = tokens_of(), subject.module
    logits = subject.logits(tokens)  # what a model itself keeps of a pass is there by now
    before = State(module)
    during = subject.observe(tokens, lambda layer, reader: reader.diagonals([0, 1]), logits=True)
    before.check(module)
    assert torch.equal(during, logits), "the logits are others while the model is read"

    def fails(layer, reader):
        raise ZeroDivisionError

    with pytest.raises(ModelError, match="ZeroDivisionError"):
        subject.observe(tokens, fails)
    before.check(module)
    subject.observe(tokens, lambda *_: None)
    before.check(module)
    assert torch.equal(subject.logits(tokens), logits), "the logits are others after the model was read"


def check_edits(subject, sample):
    """Raise `AssertionError` unless edits do what they say, and nothing where they do nothing; or are refused by name."""
    backend, tokens = subject.backend, tokens_of()
    with as_found(subject.module):
        if not backend.can_edit:
            with pytest.raises(BackendUnavailable, match=re.escape(backend.name)), backend.apply_edits(tokens, {0: [Edit()]}):
                backend.caller.logits(tokens)
            return
        logits = backend.caller.logits(tokens)
        before = State(subject.module)
        with backend.apply_edits(tokens, {0: [Edit()]}):
            same = backend.caller.logits(tokens)
        assert torch.equal(same, logits), "an edit that does nothing changes the logits"
        every = {layer: [Replace(torch.ones(1, count, dtype=torch.bool))] for layer, count in enumerate(backend.heads)}
        with backend.apply_edits(tokens, every):
            without = backend.caller.logits(tokens)
        before.check(subject.module)
        with without_what_heads_found(subject.module, sample):
            wanted = backend.caller.logits(tokens)
    assert float((without - logits).abs().max()) > 100 * CLOSE, "edits do nothing"
    assert float((without - wanted).abs().max()) < CLOSE, "edits do something else than they say"


def check_isolation(subject):
    """Raise `AssertionError` unless positions attend to themselves only where that is said to be possible."""
    backend, tokens = subject.backend, tokens_of()
    if not backend.can_isolate:
        return
    other = tokens.clone()
    other[:, 0] = tokens[:, 0] % 35 + 4
    with as_found(subject.module):
        found = []
        for each in (tokens, other):
            with backend.self_attention_only(each):
                found.append(backend.caller.logits(each))
    assert float((found[0] - found[1])[:, 1:].abs().max()) < CLOSE, "positions attend to others"
    assert float((found[0] - found[1])[:, 0].abs().max()) > CLOSE


def check_early_stop(subject):
    """Raise `AssertionError` unless a pass without logits ends after the last layer that is wanted, where the backend says so."""
    backend, tokens, ran = subject.backend, tokens_of(), []
    assert backend.can_stop == backend.stops
    hook = last_module(subject).register_forward_pre_hook(lambda *_: ran.append(True))
    seen = []
    with as_found(subject.module):
        backend.can_stop = backend.stops
        backend.run(tokens, None, lambda layer, reader: seen.append(layer), logits=False, last=subject.n_layers)
        assert seen == list(range(subject.n_layers))
        assert bool(ran) != backend.stops, f"what comes after attention {'is' if ran else 'is not'} computed"
        if backend.stops:
            seen.clear()
            backend.run(tokens, None, lambda layer, reader: seen.append(layer), logits=False, last=1)
            assert seen == [0], f"layers {seen} are shown where one was asked for"
    hook.remove()


def check_missing_layer(subject):
    """Raise `AssertionError` unless a layer less than the model had is refused by name."""
    lists = [part for part in subject.module.modules() if isinstance(part, nn.ModuleList) and len(part) == subject.n_layers]
    for part in lists:
        del part[-1]
    assert lists, "the sample has no list of layers"
    with pytest.raises(ModelError) as caught:
        subject.observe(tokens_of(), lambda *_: None)
    check_one_line(caught.value, subject.backend.name)


def check_refusal(kind):
    """Raise `AssertionError` unless a backend refuses attention that it cannot see, in words of one line."""
    subject = load_model(samples.plain(unreadable))
    inputs = VerificationInputs(repeated(2, 5, 11, 40), repeated(2, 9, 24, 40))
    with as_found(subject.module):
        try:
            kind(subject.caller, inputs)
        except BackendUnavailable as refused:
            check_one_line(refused)
        else:
            raise AssertionError(f"{kind.name} reads attention that no function shows")


def rows_of_the_page():
    """What docs/models.md lists of backends: name, what it reads, and which models."""
    table = DOCS.read_text(encoding="utf-8").partition("| backend |")[2].partition("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in row.strip("|").split(" | ")) for row in table]


def test_every_backend_states_what_it_is_and_has_a_sample():
    check_list(BACKENDS, samples.BACKENDS)
    for kind in BACKENDS:
        assert all(isinstance(getattr(kind, name), str) and getattr(kind, name) for name in ("reads", "models"))
        flags = ("makes_patterns", "can_isolate", "edits_outside", "stops", "learns_chunks", "can_edit")
        assert all(isinstance(getattr(kind, name), bool) for name in flags)


def test_the_table_of_the_documentation_is_the_list():
    """docs/models.md has them in the order in which they are tried, with what they say of themselves."""
    assert rows_of_the_page() == [(f"`{kind.name}`", kind.reads, kind.models) for kind in BACKENDS]


def test_a_model_that_none_reads_is_told_what_each_says():
    """In the order of the list."""
    tried = load_model(samples.plain(unreadable)).tried
    assert [each.partition(": ")[0] for each in tried] == NAMES
    for each in tried:
        check_one_line(each)


@pytest.mark.parametrize("name", NAMES)
def test_its_sample_is_read_by_it(name):
    subject = subject_of(name)
    assert type(subject.backend) is BY_NAME[name] and subject.reading.name == name


@pytest.mark.parametrize("name", NAMES)
def test_it_sees_every_layer_with_the_numbers_of_the_true_patterns(name):
    check_numbers(subject_of(name), samples.BACKENDS[name])


@pytest.mark.parametrize("name", NAMES)
def test_it_leaves_the_model_as_it_found_it(name):
    check_left_alone(subject_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_edits_act_or_are_refused(name):
    check_edits(subject_of(name), samples.BACKENDS[name])


@pytest.mark.parametrize("name", NAMES)
def test_it_isolates_positions_where_it_says_so(name):
    check_isolation(subject_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_ends_early_where_it_says_so(name):
    check_early_stop(subject_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_less_is_refused(name):
    check_missing_layer(subject_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_it_refuses_what_it_cannot_see(name):
    check_refusal(BY_NAME[name])


# That these can fail


class SeesOthers(SdpaBackend):
    """Shows every layer as the one before it."""

    def run(self, tokens, attention_mask, observer, *, logits, last=None):
        readers = []

        def keep(layer, reader):
            readers.append(reader)
            observer(layer, readers[max(0, layer - 1)])

        return super().run(tokens, attention_mask, keep, logits=logits, last=last)


class LeavesAHook(SdpaBackend):
    """Leaves something behind in every pass."""

    def run(self, tokens, attention_mask, observer, *, logits, last=None):
        self.caller.module.register_forward_hook(lambda *_: None)
        return super().run(tokens, attention_mask, observer, logits=logits, last=last)


class EditsNothing(SdpaBackend):
    """Says that it edits, and does not."""

    def apply_edits(self, tokens, edits, *, first=0):
        return nullcontext()


class IsolatesNothing(SdpaBackend):
    """Says that it isolates, and does not."""

    def self_attention_only(self, tokens):
        return nullcontext()


class GoesOn(SdpaBackend):
    """Says that it ends a pass early, and runs all of it."""

    def run(self, tokens, attention_mask, observer, *, logits, last=None):
        return super().run(tokens, attention_mask, observer, logits=logits)


class MissesNothing(SdpaBackend):
    """Takes a pass for whole in which a layer is missing."""

    def run(self, tokens, attention_mask, observer, *, logits, last=None):
        try:
            return super().run(tokens, attention_mask, observer, logits=logits, last=last)
        except BackendUnavailable:
            return None


class TakesAll(SdpaBackend):
    """Takes every model."""

    def __init__(self, caller, inputs):
        self.caller, self.layers, self.heads = caller, ("a",), (2,)


def of_sample(check):
    return lambda subject: check(subject, samples.BACKENDS["sdpa"])


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (SeesOthers, of_sample(check_numbers)),
        (LeavesAHook, check_left_alone),
        (EditsNothing, of_sample(check_edits)),
        (IsolatesNothing, check_isolation),
        (GoesOn, check_early_stop),
        (MissesNothing, check_missing_layer),
    ],
)
def test_a_backend_that_breaks_a_promise_is_noticed(kind, check):
    """The check passes for the class that it is made of, and fails for what is broken."""
    right = subject_of("sdpa", SdpaBackend)
    right.backend.can_stop = True
    check(right)
    broken = subject_of("sdpa", kind)
    broken.backend.can_stop = True
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(broken)


def test_a_backend_that_takes_every_model_is_noticed():
    with pytest.raises(AssertionError, match="sdpa reads attention that no function shows"):
        check_refusal(TakesAll)


def test_a_backend_that_does_not_state_what_it_is_cannot_be_made():
    with pytest.raises(TypeError, match=r"the class `Silent` must state `can_isolate` and .* and `stops`"):
        type("Silent", (AttentionBackend,), {"name": "silent"})


def test_a_backend_without_a_sample_is_noticed():
    kind = type("Newer", (SdpaBackend,), {"name": "newer"})
    with pytest.raises(AssertionError, match="newer"):
        check_list([*BACKENDS, kind], samples.BACKENDS)
