"""All heads in few passes: exactly what one forward pass for each set gives."""

import math

import numpy as np
import pytest
import torch
from fixtures import attention_only
from transformers import GPT2Config, GPT2LMHeadModel

from pytest_induction import load_model, measure_ablations, measure_heads
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.interventions import ablate, freeze_patterns, intervene, passes, paths, run_with
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import Ablating, Blocks, Passes, _like, _stream, blocks_of, losses_at
from pytest_induction.interventions.paths import losses_by_order, losses_with_pattern, path_effects
from pytest_induction.measuring.observing import probes_of
from pytest_induction.planted import induction_head, pointer_induction_head
from pytest_induction.records import HeadId
from tests.heads.test_copying import tiny

ROWS, OTHERS = (torch.randint(1, 60, (3, 21), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
QUERIES = torch.arange(8, 20)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_head=2, n_embd=32, n_positions=64, vocab_size=64, bos_token_id=0, eos_token_id=0, initializer_range=0.2
    )
    return GPT2LMHeadModel(config).eval()


class Skipping(torch.nn.Module):
    """Every block is given the embedding too, so that a pass cannot begin at a later one by its stream alone."""

    def __init__(self, keeps=False):
        super().__init__()
        self.inner, self.keeps = gpt2(), keeps
        self.first = None
        for block in self.inner.transformer.h:
            block.register_forward_hook(self._add)

    def _add(self, block, inputs, output):
        if block is self.inner.transformer.h[0]:
            self.first = inputs[0]
        return output + 0.5 * self.first if torch.is_tensor(output) else (output[0] + 0.5 * self.first, *output[1:])

    def forward(self, tokens):
        return self.inner(tokens, use_cache=False).logits


MODELS = {
    "gpt2": (gpt2, True),
    "planted": (induction_head, True),
    "attention only": (attention_only.two_layers, True),
    "layers that leave the sum to the model": (attention_only.three_layers_text, False),
}


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "planted"])
def test_equal_to_one_pass_for_each_set(kind, how, frozen):
    """Single heads, sets over layers, none, and all."""
    build, begun_later = MODELS[kind]
    subject = load_model(build())
    assert blocks_of(subject).any == begun_later
    heads = all_heads(subject)
    last = heads[-1]
    sets = [*([head] for head in heads), [HeadId(0, 1), HeadId(last.layer, 0)], [], list(heads)]
    other = OTHERS if how == "resample" else None
    found = Passes(subject, ROWS, QUERIES, Ablating(how, frozen), other).losses(sets)
    for number, chosen in enumerate(sets):
        edits = [ablate(chosen, how, source=other), *([freeze_patterns()] if frozen else [])]
        expected = losses_at(run_with(subject, ROWS, *edits)[:, QUERIES], ROWS, QUERIES).numpy()
        gap = np.abs(found.ablated[number] - expected).max()
        assert gap <= (2e-5 if how == "mean" else 5e-6), (chosen, gap)
    np.testing.assert_array_equal(found.ablated[-2], found.clean)
    if kind == "gpt2":
        assert np.abs(found.ablated[:6] - found.clean).max(axis=(1, 2)).min() > 1e-3
    assert np.abs(found.ablated[-1] - found.clean).max() > 1e-2


@pytest.mark.parametrize("how", ["zero", "resample"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "gpt2"])
def test_equal_bit_by_bit_where_a_pass_holds_one_set(kind, how, frozen, monkeypatch):
    """In passes of the same shape nothing is rounded otherwise: layers that are not run again change no bit."""
    monkeypatch.setitem(passes.POSITIONS_AT_ONCE, "cpu", ROWS.numel())
    subject = load_model(MODELS[kind][0]())
    sets = [*([head] for head in all_heads(subject)), [HeadId(0, 1), HeadId(1, 0)], [], list(all_heads(subject))]
    other = OTHERS if how == "resample" else None
    found = Passes(subject, ROWS, QUERIES, Ablating(how, frozen), other).losses(sets)
    for number, chosen in enumerate(sets):
        with intervene(subject, ablate(chosen, how, source=other), *([freeze_patterns()] if frozen else [])) as changed:
            expected = losses_at(changed.logits(ROWS, positions=QUERIES), ROWS, QUERIES)
        np.testing.assert_array_equal(found.ablated[number], expected.numpy())


def test_a_model_that_cannot_be_begun_later_is_run_from_its_beginning():
    """The verification finds out, and the numbers are right all the same."""
    subject = load_model(Skipping())
    assert not blocks_of(subject).any
    sets = [[head] for head in all_heads(subject)]
    found = Passes(subject, ROWS, QUERIES).losses(sets)
    for number, chosen in enumerate(sets):
        expected = losses_at(run_with(subject, ROWS, ablate(chosen))[:, QUERIES], ROWS, QUERIES).numpy()
        assert np.abs(found.ablated[number] - expected).max() <= 2e-6


@pytest.mark.parametrize("shift", [0.0, 1e-3])
def test_a_wrong_beginning_is_refused(shift, monkeypatch):
    """The guard can fail: what is given for the blocks before is shifted a little, or by nothing."""
    begun_at = Blocks.begun_at

    def shifted(blocks, layer, gave, rows=None):
        return begun_at(blocks, layer, [_like(each, _stream(each) + shift) for each in gave], rows)

    monkeypatch.setattr(Blocks, "begun_at", shifted)
    assert blocks_of(load_model(gpt2())).any == (shift == 0)


def test_less_memory_gives_the_same():
    """Batches of one row and one set."""
    sets = [[head] for head in all_heads(load_model(gpt2()))]
    whole, small = (Passes(load_model(gpt2(), memory=memory), ROWS, QUERIES).losses(sets) for memory in (None, "1MB"))
    np.testing.assert_allclose(whole.ablated, small.ablated, atol=2e-6)


def test_losses_that_are_not_finite_are_an_error():
    """In words, also where it is one head that is broken, which is the one ablated."""
    subject = load_model(gpt2())
    ready = Passes(subject, ROWS, QUERIES)
    with torch.no_grad():
        subject.module.transformer.h[1].attn.c_attn.weight[:, 64:80] = torch.nan  # the values of L1H0
    with pytest.raises(ModelError, match="not finite"):
        ready.losses([[HeadId(1, 0)]])


def test_effects_of_planted_heads():
    """Without either head nothing is known: the loss is that of a uniform guess. Frozen patterns hide the previous-token head."""
    model = induction_head()
    scores = measure_ablations(model)
    expected = np.zeros((2, 4))
    expected[:, 0] = math.log(64)
    np.testing.assert_allclose(scores.effect, expected, atol=1e-3)
    assert scores.of_all == pytest.approx(math.log(64), abs=1e-3)
    expected[0, 0] = 0
    np.testing.assert_allclose(measure_ablations(model, pattern_preserving=True).effect, expected, atol=1e-3)


def test_screening_measures_the_best_only():
    """The attribution of a head that writes the right token is what it adds to its logit, less what it adds to the mean."""
    scores = measure_ablations(induction_head(sharpness=64), screen=2)
    assert scores.attribution is not None
    assert scores.attribution[1, 0] == pytest.approx(16 - 16 / 64, abs=0.01)
    assert np.isfinite(scores.effect).sum() == 2
    assert scores.effect[1, 0] == pytest.approx(math.log(64), abs=1e-3)


def test_arguments_of_measure_ablations():
    """One line each."""
    for options, said in (({"heads": []}, "names no head"), ({"how": "half"}, "`how` must"), ({"screen": -1}, "`screen`")):
        with pytest.raises(ArgumentError, match=said):
            measure_ablations(induction_head(), **options)


def _probe(subject):
    return next(iter(probes_of(subject, 4, np.random.default_rng(0), 4, 12)))


def test_paths_of_planted_heads():
    """A head that composes by keys loses all without them, one that does pointer arithmetic all without its queries."""
    for build, by_keys, by_queries in ((induction_head, 0, 1), (pointer_induction_head, 1, 0)):
        subject = load_model(build())
        effects = path_effects(subject, _probe(subject), HeadId(1, 0), [[HeadId(0, 0)], [HeadId(0, 1)]])
        np.testing.assert_allclose(effects.clean, 1, atol=1e-3)
        np.testing.assert_allclose(effects.keys[0], by_keys, atol=1e-3)
        np.testing.assert_allclose(effects.queries[0], by_queries, atol=1e-3)
        np.testing.assert_allclose([effects.keys[1], effects.queries[1]], 1, atol=1e-3)


SETS = [[HeadId(0, 0)], [HeadId(0, 1)], []]


@pytest.mark.parametrize(
    ("build", "layer"), [(gpt2, 1), (gpt2, 2), (Skipping, 1), (lambda: tiny("Gemma3"), 1), (lambda: tiny("Llama"), 1)]
)
def test_paths_end_at_the_head(build, layer, monkeypatch):
    """What is computed of queries and keys is what the model makes of them, in passes begun and ended anywhere or not at all."""
    subject, head = load_model(build()), HeadId(layer, 1)
    sets = [*SETS[:2], [HeadId(layer - 1, 0), HeadId(layer - 1, 1)], []]
    probe = _probe(subject)
    found = path_effects(subject, probe, head, sets)
    monkeypatch.setattr(paths, "SAME", -1.0)  # by passes in which the model itself makes the pattern
    whole = path_effects(subject, probe, head, sets)
    clean = measure_heads(subject, tokens=probe.tokens).per_sequence["prefix_matching"][:, head.layer, head.head]
    np.testing.assert_allclose(found.clean, clean, atol=1e-6)
    for name in ("clean", "keys", "queries"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), atol=1e-6, err_msg=name)
    assert abs(found.keys[2] - clean).max() > 1e-4 and abs(found.queries[2] - clean).max() > 1e-4
    np.testing.assert_allclose([found.keys[3], found.queries[3]], [clean, clean], atol=1e-6)


def test_paths_to_a_head_with_a_soft_cap(monkeypatch):
    """Queries and keys do not tell its pattern: the model makes it, also with those of another pass."""
    subject, head = load_model(tiny("Gemma2")), HeadId(1, 1)
    probe = _probe(subject)
    capped = path_effects(subject, probe, head, SETS[:1])
    clean = measure_heads(subject, tokens=probe.tokens).per_sequence["prefix_matching"][:, 1, 1]
    np.testing.assert_allclose(capped.clean, clean, atol=1e-6)
    monkeypatch.setattr(paths, "SAME", math.inf)
    assert abs(path_effects(subject, probe, head, SETS[:1]).clean - clean).max() > 1e-3


def test_paths_do_not_depend_on_how_rows_are_split(monkeypatch):
    """Means are over all rows of the probe, however many share a pass."""
    subject = load_model(gpt2())
    whole = path_effects(subject, _probe(subject), HeadId(2, 1), SETS)
    monkeypatch.setattr("pytest_induction.model.batching.POSITIONS_AT_ONCE", {"cpu": 1})
    split = path_effects(subject, _probe(subject), HeadId(2, 1), SETS)
    np.testing.assert_allclose(split.keys, whole.keys, atol=1e-5)
    np.testing.assert_allclose(split.queries, whole.queries, atol=1e-5)


def test_terms_by_order_end_at_the_model_itself():
    """With as many heads on a path as there are layers nothing is missing."""
    subject = load_model(gpt2())
    probe = _probe(subject)
    found = losses_by_order(subject, probe)
    queries = torch.arange(probe.n_positions - probe.period, probe.n_positions - 1)
    rows = torch.from_numpy(probe.tokens)
    clean = losses_at(subject.logits(rows)[:, queries], rows, queries).mean(1)
    np.testing.assert_allclose(found[:, -1], clean, atol=2e-5)
    np.testing.assert_allclose(found[:, -2], clean, atol=2e-5)
    np.testing.assert_array_equal(losses_by_order(subject, probe, 1), found[:, [0, 1, -1]])
    none = losses_at(run_with(subject, rows, ablate(all_heads(subject)))[:, queries], rows, queries).mean(1)
    np.testing.assert_allclose(found[:, 0], none, atol=2e-5)


def test_terms_by_order_of_planted_heads():
    """No head, no knowledge; by its own pattern the induction head alone says all, so that a second on the path adds nothing."""
    for build in (induction_head, pointer_induction_head):
        subject = load_model(build())
        np.testing.assert_allclose(losses_by_order(subject, _probe(subject), 1).mean(0), [math.log(64), 0, 0], atol=1e-3)


def test_the_ideal_pattern_gives_a_planted_head_back():
    """The uniform loss without the head, none with it or with its ideal pattern."""
    subject = load_model(induction_head())
    found = losses_with_pattern(subject, _probe(subject), [HeadId(1, 0)], "induction")
    np.testing.assert_allclose(found.mean(0), [0, math.log(64), 0], atol=1e-3)
    found = losses_with_pattern(subject, _probe(subject), [HeadId(0, 0)], "previous token")
    np.testing.assert_allclose(found.mean(0), [0, math.log(64), 0], atol=1e-3)
    wrong = losses_with_pattern(subject, _probe(subject), [HeadId(1, 0)], "previous token")
    assert wrong[:, 2].min() > 1
