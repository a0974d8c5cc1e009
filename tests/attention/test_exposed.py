"""`expose_attention` and what attaches to models: the backend for what nothing else can read."""

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import expose_attention, load_model, measure_heads
from pytest_induction.attention.backends import exposed as shown
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from tests.model.plain import Plain, unreadable

pytest_plugins = ("pytester",)


def scores_of(query, key):
    scores = query @ key.transpose(-1, -2) / 8**0.5
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)


def shows_pattern(query, key, value):
    expose_attention(scores_of(query, key).softmax(-1))
    return unreadable(query, key, value)


def shows_query_and_key(query, key, value):
    expose_attention(query=query, key=key)
    return unreadable(query, key, value)


def shows_mask(query, key, value):
    expose_attention(
        query=2 * query, key=key, scale=0.5 * 8**-0.5, causal=False, mask=torch.ones(query.shape[2], key.shape[2]).tril().bool()
    )
    return unreadable(query, key, value)


def plain(attend):
    torch.manual_seed(2)
    return Plain(attend)


@pytest.mark.parametrize("attend", [shows_pattern, shows_query_and_key, shows_mask])
def test_a_model_that_shows_its_attention_is_measured(attend):
    """With a pattern, with queries and keys, or with scale and mask: one line in the model's own code."""
    found = measure_heads(plain(attend))
    assert found.provenance.backend == "expose_attention"
    np.testing.assert_allclose(found.prefix_matching, measure_heads(plain(None)).prefix_matching, atol=1e-6)


def test_outside_of_a_measurement_nothing_happens():
    """Not even a look at the arguments."""
    assert expose_attention("no tensor at all") is None


@pytest.mark.parametrize(
    ("shown_as", "message"),
    [
        (lambda q, k: expose_attention(), "takes a pattern, or both query and key"),
        (lambda q, k: expose_attention(query=q), "takes a pattern, or both query and key"),
        (
            lambda q, k: expose_attention(scores_of(q, k)[0]),
            r"takes a pattern \(batch, heads, positions, positions\).* got a pattern \(2, 11, 11\)",
        ),
        (lambda q, k: expose_attention(scores_of(q, k), query=q, key=k), "and a query"),
        (lambda q, k: expose_attention(query=q, key=k[:, :, :-1]), r"got \(3, 2, 11, 8\) and \(3, 2, 10, 8\)"),
    ],
)
def test_what_is_no_attention_is_one_line(shown_as, message):
    """What it takes, and what it got."""

    def attend(query, key, value):
        shown_as(query, key)
        return value

    with pytest.raises(ArgumentError, match=message):
        load_model(plain(attend))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (lambda q, k: scores_of(q, k), "(sums to|looks ahead)"),
        (lambda q, k: (q @ k.mT).softmax(-1), "looks ahead"),
        (lambda q, k: 2 * scores_of(q, k).softmax(-1), "sums to"),
    ],
)
def test_what_is_shown_must_be_a_causal_pattern(pattern, why):
    """Scores before softmax, patterns that look ahead and rows that sum to more than one are refused."""

    def attend(query, key, value):
        expose_attention(pattern(query, key))
        return unreadable(query, key, value)

    with pytest.raises(UnsupportedModel, match=f"expose_attention: attention of layer 0 {why}"):
        measure_heads(plain(attend))


class Reading(nn.Module):
    """A model that nothing can read, whose layers remember their queries and keys."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.layers = nn.ModuleList(Remembering() for _ in range(2))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.out(x)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        self.last = query, key
        return unreadable(query, key, value).transpose(1, 2).flatten(-2)


def attach(model):
    """The backend of a library that knows `Reading`."""
    if not isinstance(model, Reading):
        return None

    def show(module, inputs, output):
        query, key = module.last
        expose_attention(query=query, key=key)

    handles = [layer.register_forward_hook(show) for layer in model.layers]
    return lambda: [handle.remove() for handle in handles]


def test_a_function_attaches_to_a_model_that_cannot_be_edited():
    """Given to `load_model`; the hooks are there while it measures, and gone afterwards."""
    model = Reading()
    with pytest.raises(UnsupportedModel):
        measure_heads(model)
    subject = load_model(model, attach=attach)
    assert subject.backend.layers == ("layers.0", "layers.1")
    assert measure_heads(subject).prefix_matching.shape == (2, 2)
    assert not any(layer._forward_hooks for layer in model.layers)
    assert load_model(Plain(), attach=[attach]).backend.name == "sdpa"


def test_an_installed_distribution_brings_its_own_backend(monkeypatch):
    """Through the entry points of the group; what cannot be loaded is named."""

    class Entry:
        value = "library.measure:attach"

        def __init__(self, load):
            self.load = load

    def no_such_module():
        raise ModuleNotFoundError("No module named 'library'")

    for load, check in ((lambda: attach, None), (no_such_module, "the entry point library.measure:attach")):
        shown._installed.cache_clear()
        monkeypatch.setattr(shown, "entry_points", lambda group, load=load: [Entry(load)] if group == shown.GROUP else [])
        if check is None:
            assert load_model(Reading()).backend.name == "expose_attention"
        else:
            with pytest.raises(ModelError, match=check):
                load_model(Reading())
    shown._installed.cache_clear()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda model: 1 / 0, "failed to attach to `Reading`: ZeroDivisionError"),
        (lambda model: 3, "must return a function that detaches it, or None, it returned `int`"),
        (lambda model: lambda: 1 / 0, "failed to detach: ZeroDivisionError"),
    ],
)
def test_what_attaches_wrongly_is_named(broken, message):
    """In one line, with the model it was to attach to."""
    with pytest.raises(ModelError, match=message):
        load_model(Reading(), attach=broken)


@pytest.mark.exhaustive
def test_a_conftest_brings_a_backend(pytester):
    """The hook `pytest_induction_attach` serves gates, fixtures and direct calls alike."""
    pytester.makeconftest(
        """
        from tests.attention.test_exposed import attach
        def pytest_induction_attach(model):
            return attach(model)
        """
    )
    pytester.makepyfile(reading="from tests.attention.test_exposed import Reading as make")
    pytester.makepyfile(
        """
        import pytest
        from tests.attention.test_exposed import Reading
        @pytest.fixture(scope="session")
        def induction_model():
            return Reading()
        def test_it(induction):
            assert induction.measure_heads().provenance.backend == "expose_attention"
        def test_directly():
            from pytest_induction import measure_heads
            assert measure_heads(Reading()).provenance.backend == "expose_attention"
        """
    )
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=2)
    result = pytester.runpytest("--induction-model", "reading.py:make", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*no head matches prefixes*"])
