"""Attention by `flex_attention`: read and changed whatever it is called, masked and modified by, as its twins by other functions are."""

import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pytest_induction import load_model, measure_heads
from pytest_induction.attention import verification
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import Edit
from pytest_induction.attention.interceptor import InterceptingMode, Interceptor, intercepted
from pytest_induction.errors import ModelError, UnsupportedModel
from pytest_induction.forward.calling import as_written
from pytest_induction.interventions import (
    ablate,
    freeze_patterns,
    knock_out,
    leave_in,
    run_with,
    scale,
    smear,
    substitute_pattern,
)
from pytest_induction.model.query_key import queries_keys_of
from tests.attention.recorded import Positioned, assert_right, causal, probe, true_patterns
from tests.attention.test_hand_written import Attention, by_function, fused, plain
from tests.attention.test_softmax_edits import POSITIONS, acted, ids, numbers

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # what torch.compile imports
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask"),  # transformers' own masks
]
AuxRequest = getattr(module, "AuxRequest", None)
NEWER = pytest.mark.skipif(AuxRequest is None, reason="this torch has no log-sum-exp on a CPU")
CLOSE = 1e-5
TABLE = torch.randn(2, 200, generator=torch.Generator().manual_seed(5))
WINDOW = 7
COMPILED = []


def compiled(*parts, **options):
    """As models hold it: compiled once, when a module is imported."""
    if not COMPILED:
        COMPILED.append(torch.compile(flex_attention))
    return COMPILED[0](*parts, **options)


def before(row, head, query, key):
    return query >= key


def within(row, head, query, key):
    return (query >= key) & (query - key < WINDOW)


def blocks(mask, positions, rows=None, heads=None, keys=None, **options):
    return create_block_mask(mask, rows, heads, positions, keys or positions, device="cpu", **options)


def masked(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2]))


def uncompiled(query, key, value):
    return flex_attention(query, key, value, block_mask=blocks(before, query.shape[2]))


def of_each_row_and_head(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2], *query.shape[:2]))


def small_blocks(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2], BLOCK_SIZE=16))


def compiled_masks(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2], _compile=True))


def by_scores(query, key, value):
    return compiled(query, key, value, score_mod=lambda score, b, h, q, k: torch.where(q >= k, score, -torch.inf))


def by_low_scores(query, key, value):
    return flex_attention(query, key, value, lambda score, b, h, q, k: torch.where(q >= k, score, -1e9))


def in_a_window(query, key, value):
    return compiled(query, key, value, block_mask=blocks(within, query.shape[2]))


def windows(query, key):
    places = torch.arange(query.shape[2])
    return causal(query, key, allowed=places[:, None] - places < WINDOW)


def looked_up(query, key, value):
    def biased(score, row, head, at, of):
        return score + TABLE[head, (at - of).clamp_min(0)]

    return compiled(query, key, value, score_mod=biased, block_mask=blocks(before, query.shape[2]))


def biases(query, key):
    places = torch.arange(query.shape[2])
    return causal(query, key, added=TABLE[:, (places[:, None] - places).clamp_min(0)].double())


def of_this_pass(query, key, value):
    """What is captured is made in the pass, and looked up one index after the other."""
    made = key.sum(-1)[:, :, None, :].expand(-1, -1, query.shape[2], -1)

    def biased(score, row, head, at, of):
        return score + made[row][head][at][of]

    return compiled(query, key, value, score_mod=biased, block_mask=blocks(before, query.shape[2]))


def key_sums(query, key):
    return causal(query, key, added=key.double().sum(-1)[:, :, None, :])


def capped(query, key, value):
    def cap(score, row, head, at, of):
        return 1.5 * torch.tanh(score / 1.5)

    return compiled(query, key, value, score_mod=cap, block_mask=blocks(before, query.shape[2]))


def caps(query, key):
    scores = 1.5 * torch.tanh(query.double() @ key.double().mT * query.shape[-1] ** -0.5 / 1.5)
    return scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf).softmax(-1)


def scaled(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2]), scale=0.7)


def backwards(query, key, value):
    return compiled(query, key, value, block_mask=blocks(before, query.shape[2]), scale=-0.4)


def shared(query, key, value):
    mask = blocks(before, query.shape[2])
    return compiled(query, key[:, :1], value[:, :1], block_mask=mask, enable_gqa=True, kernel_options={"BLOCK_M": 32})


def telling(query, key, value):
    mask = blocks(before, query.shape[2])
    output, told = compiled(query, key, value, block_mask=mask, return_aux=AuxRequest(lse=True))
    assert told.lse.shape == query.shape[:3]
    return output


def wide(query, key, value):
    return compiled(query, key, torch.cat([value, value], -1), block_mask=blocks(before, query.shape[2]))[..., 8:]


def packed(query, key, value):
    """Rows one behind the other, as training code has them."""
    rows, _, positions, _ = query.shape

    def within_a_row(row, head, at, of):
        return (at // positions == of // positions) & (at >= of)

    parts = (part.transpose(0, 1).flatten(1, 2)[None] for part in (query, key, value))
    mask = blocks(within_a_row, rows * positions, 1)
    return compiled(*parts, block_mask=mask)[0].unflatten(1, (rows, positions)).transpose(0, 1)


def with_a_cache(query, key, value):
    """Keys in the beginning of a cache that is longer."""
    positions = query.shape[2]
    keys, values = (torch.cat([part, torch.full_like(part, 9.0).repeat(1, 1, 3, 1)], 2)[:, :, :160] for part in (key, value))
    return compiled(query, keys, values, block_mask=blocks(before, positions, keys=keys.shape[2]))


STYLES = {
    "block mask": (masked, causal),
    "uncompiled": (uncompiled, causal),
    "a block mask of each row and head": (of_each_row_and_head, causal),
    "blocks of another size": (small_blocks, causal),
    "a compiled block mask": (compiled_masks, causal),
    "score mod": (by_scores, causal),
    "low scores": (by_low_scores, causal),
    "window": (in_a_window, windows),
    "biases of heads": (looked_up, biases),
    "biases of a pass": (of_this_pass, key_sums),
    "cap": (capped, caps),
    "scale": (scaled, lambda query, key: causal(query, key, scale=0.7)),
    "negative scale": (backwards, lambda query, key: causal(query, key, scale=-0.4)),
    "shared keys": (shared, lambda query, key: causal(query, key[:, :1])),
    "log-sum-exp": (telling, causal),
    "wide values": (wide, causal),
    "packed rows": (packed, causal),
    "cache": (with_a_cache, causal),
}


if AuxRequest is None:
    del STYLES["log-sum-exp"]
FEW = ["block mask", "uncompiled", "score mod", "biases of a pass", "packed rows", "cache"]


def two(attend):
    return Positioned(Attention(attend), Attention(attend))


def assert_right_as_written(subject, tokens, truth=causal):
    with as_written():
        patterns = true_patterns(subject.module, tokens, truth)
    assert_right(subject, tokens, patterns=patterns)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read_exactly(style):
    """Against patterns in double precision, and the logits are the model's own to the bit."""
    attend, truth = STYLES[style]
    model = two(attend)
    subject = load_model(model)
    assert (subject.backend.name, subject.backend.layers) == ("flex_attention", ("blocks.0.mixer", "blocks.1.mixer"))
    for tokens in (probe(), probe(133, 38)):  # longer than a block, and no multiple of one
        assert_right_as_written(subject, tokens, truth)
    untouched = subject.logits(probe())
    assert torch.equal(subject.observe(probe(), lambda layer, reader: None, logits=True), untouched)


# Every name that models know it by


class Held(nn.Module):
    """As training libraries hold it: compiled as an attribute of a class, in a module of its own."""

    held = staticmethod(compiled)

    def forward(self, query, key, value):
        return type(self).held(query, key, value, block_mask=blocks(before, query.shape[2]))


class OfAModule(Attention):
    def __init__(self, attend):
        super().__init__(attend)
        self.inner = Held()
        self.attend = self.inner


def test_it_is_seen_in_a_module_of_its_own():
    """The layer is the innermost module that runs."""
    subject = load_model(Positioned(OfAModule(None), OfAModule(None)))
    assert subject.backend.layers == ("blocks.0.mixer.inner", "blocks.1.mixer.inner")


def test_it_is_seen_where_the_whole_model_is_compiled():
    """Which is measured as it was written."""
    model = two(uncompiled)
    one, other = measure_heads(torch.compile(model)), measure_heads(model)
    np.testing.assert_array_equal(one.prefix_matching, other.prefix_matching)


def test_what_is_compiled_is_never_compiled_for_a_measurement():
    """Neither the model's own function nor the one that torch compiles where a model did not."""

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    graphs = []
    function = torch.compile(flex_attention, backend=count)
    model = two(lambda *parts: function(*parts, block_mask=blocks(before, parts[0].shape[2])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is the user advised to compile
        measure_heads(model, n_sequences=6)
        measure_heads(two(uncompiled), n_sequences=6)
    assert not graphs
    with torch.no_grad():
        model(probe())
    assert len(graphs) >= 1


# Interventions, and twins by other functions


def eager_in_a_window(query, key, value):
    places = torch.arange(query.shape[2])
    distance = places[:, None] - places
    return (query @ key.mT / 8**0.5).masked_fill((distance < 0) | (distance >= WINDOW), -torch.inf).softmax(-1) @ value


def eager_with_biases(query, key, value):
    places = torch.arange(query.shape[2])
    scores = query @ key.mT / 8**0.5 + TABLE[:, (places[:, None] - places).clamp_min(0)]
    return scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf).softmax(-1) @ value


def eager_capped(query, key, value):
    scores = 1.5 * torch.tanh(query @ key.mT / 8**0.5 / 1.5)
    return scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf).softmax(-1) @ value


ENTRIES = [(5, 3), (7, 7), (22, 19), (0, 0), (9, 8)]
INTERVENTIONS = {
    "ablate": [ablate([(0, 1), (1, 0)])],
    "mean": [ablate((1, 0), "mean")],
    "leave in": [leave_in((0, 1))],
    "scale": [scale((1, 0), 0.5)],
    "knock out": [knock_out([(0, 1), (1, 0)], ENTRIES)],
    "substitute": [substitute_pattern((1, 1), "previous token")],
    "freeze": [freeze_patterns(), ablate((0, 0))],
}


# Beside other attention


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(("beside", "name"), [(fused, "flex_attention"), (by_function, "softmax")])
def test_layers_of_several_kinds_are_read_in_order(beside, name, order):
    """Local layers by one function, global ones by another."""
    attends = [in_a_window, beside, masked]
    truths = [windows, causal, causal]
    model = Positioned(*(Attention(attends[index]) for index in order))
    subject = load_model(model)
    assert subject.backend.name == name
    tokens, patterns = probe(), []
    handles = []
    for block, index in zip(model.blocks, order, strict=True):

        def keep(part, inputs, output, truth=truths[index]):
            query, key, _ = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in part.qkv(inputs[0]).chunk(3, -1))
            patterns.append(truth(query, key))

        handles.append(block["mixer"].register_forward_hook(keep))
    with torch.no_grad():
        subject.logits(tokens)
    [handle.remove() for handle in handles]
    assert_right(subject, tokens, patterns=patterns)
    twin = Positioned(*(Attention([eager_in_a_window, fused, fused][index]) for index in order))
    twin.load_state_dict(model.state_dict())
    for layer in range(3):
        changed = knock_out((layer, 1), ENTRIES)
        one, other = run_with(subject, tokens, changed), run_with(twin, tokens, changed)
        assert (one - other).abs().max() < 5 * CLOSE


class WithAMemory(Positioned):
    """Cross-attention to something fixed, between its layers."""

    def __init__(self, length):
        super().__init__(Attention(masked), Attention(masked))
        self.memory = nn.Parameter(torch.randn(1, 2, length, 8))

    def through(self, x):
        for block in self.blocks:
            x = x + block["mixer"](x)
            query = x.unflatten(-1, (2, 8)).transpose(1, 2)
            memory = self.memory.detach().expand(len(x), -1, -1, -1)
            x = x + flex_attention(query, memory, memory).transpose(1, 2).flatten(-2)
        return x


@pytest.mark.parametrize("length", [9, 48, 100])
def test_cross_attention_is_no_layer(length):
    """However long its memory is, also as long as the probe."""
    subject = load_model(WithAMemory(length))
    assert subject.backend.layers == ("blocks.0.mixer", "blocks.1.mixer")
    assert_right_as_written(subject, probe())


# Models of transformers


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mistral", "gemma3"])
def test_models_of_transformers_are_read_as_by_eager_attention(kind):
    """Grouped queries, soft caps, windows; padding on the left; and every intervention."""
    zoo = pytest.importorskip("tests.model.zoo")
    model, twin = zoo.build(kind, "flex_attention"), zoo.build(kind, "eager")
    here, there = load_model(model), load_model(twin)
    assert (here.backend.name, here.n_layers) == ("flex_attention", 3)
    tokens = torch.randint(4, 61, (3, 24), generator=torch.Generator().manual_seed(3))
    real = torch.ones_like(tokens)
    real[1, :4] = 0
    for mask in (None, real):
        one, other = (
            measure_heads(subject, tokens=tokens.repeat(1, 2), attention_mask=None if mask is None else mask.repeat(1, 2))
            for subject in (here, there)
        )
        for name in ("prefix_matching", "previous_token", "first_token"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=CLOSE)
    untouched = here.logits(tokens)
    assert torch.equal(here.observe(tokens, lambda layer, reader: None, logits=True), untouched)
    for name, interventions in INTERVENTIONS.items():
        changed = [run_with(subject, tokens[:, :24], *interventions) for subject in (here, there)]
        assert (changed[0] - changed[1]).abs().max() < 1e-4 * untouched.abs().max(), name
        assert (changed[0] - untouched).abs().max() > 0.01, name
    changed = [run_with(subject, tokens, smear(0.3)) for subject in (here, there)]
    assert (changed[0] - changed[1]).abs().max() < 1e-4 * untouched.abs().max()


# Refused


def with_a_sink(query, key, value):
    mask = blocks(before, query.shape[2])
    output, told = compiled(query, key, value, block_mask=mask, return_aux=AuxRequest(lse=True))
    return output * torch.sigmoid(told.lse - 0.5)[..., None]


def joined(query, key, value):
    """Near and far keys in a call each, put together by their log-sum-exp."""
    near, far = blocks(within, query.shape[2]), blocks(lambda b, h, q, k: (q - k >= WINDOW) | (k == q), query.shape[2])
    parts = [compiled(query, key, value, block_mask=mask, return_aux=AuxRequest(lse=True)) for mask in (near, far)]
    weights = torch.stack([told.lse for _, told in parts]).softmax(0)
    return sum(weight[..., None] * output for weight, (output, _) in zip(weights, parts, strict=True))


@NEWER
@pytest.mark.parametrize("attend", [with_a_sink, joined])
def test_a_used_log_sum_exp_is_refused(attend):
    """What weighs the values is then another pattern."""
    with pytest.raises(UnsupportedModel, match=r"log-sum-exp of flex_attention is used after the call|makes 2 attention calls"):
        measure_heads(two(attend))


def of_other_blocks(query, key, value):
    """A mask by blocks whose function of entries leaves out less: compiled it attends to fewer keys than as it is written."""
    whole = blocks(before, query.shape[2], BLOCK_SIZE=4)
    near = blocks(within, query.shape[2], BLOCK_SIZE=4)
    counts, places = near.kv_num_blocks, near.kv_indices
    mask = BlockMask.from_kv_blocks(
        counts, places, near.full_kv_num_blocks, near.full_kv_indices, BLOCK_SIZE=4, mask_mod=before,
        seq_lengths=whole.seq_lengths,
    )  # fmt: skip
    return compiled(query, key, value, block_mask=mask)


def of_full_blocks(query, key, value):
    """The other way round: blocks that are said to be full, of which the function leaves something out."""
    near = blocks(within, query.shape[2], BLOCK_SIZE=4)
    counts, places = torch.zeros_like(near.kv_num_blocks), near.kv_indices
    return compiled(
        query, key, value,
        block_mask=BlockMask.from_kv_blocks(counts, places, near.kv_num_blocks, near.kv_indices, BLOCK_SIZE=4, mask_mod=within, seq_lengths=near.seq_lengths),
    )  # fmt: skip


@NEWER
@pytest.mark.parametrize("attend", [of_other_blocks, of_full_blocks])
def test_blocks_that_say_another_thing_than_their_function_are_refused(attend):
    """What is compiled looks at the blocks, and what is measured as it is written does not."""
    with pytest.raises(UnsupportedModel, match="attends to other keys when it is compiled"):
        measure_heads(two(attend))


def looks_ahead(query, key, value):
    """Causal but for one head, whose pattern would be wrong up to the query."""
    return compiled(query, key, value, block_mask=blocks(lambda b, h, q, k: q >= k - (h == 1) * 2, query.shape[2]))


def test_what_looks_ahead_is_refused():
    """As everywhere."""
    with pytest.raises(ModelError, match="not causal"):
        measure_heads(two(looks_ahead))


def test_a_mask_of_another_length_is_the_models_own_error():
    """Told in torch's words, with the length at which it was raised."""
    mask = blocks(before, 37)
    subject = two(
        lambda query, key, value: compiled(
            query, key, value, block_mask=mask if query.shape[2] > 64 else blocks(before, query.shape[2])
        )
    )
    with pytest.raises(ModelError, match="block_mask was created for"):
        load_model(subject).logits(probe(100, 30))


# Left alone


@NEWER
def test_what_torch_warns_of_and_checks_is_put_back():
    """After a pass, and after one that fails."""
    subject, check = load_model(plain(uncompiled)), module._validate_device
    said = set(module._WARNINGS_SHOWN)

    class Fails(Edit):
        def on_call(self, call, part):
            assert module._validate_device is not check
            raise KeyError("on purpose")

    with pytest.raises(KeyError):
        acted(subject, {0: [Fails()]})
    assert module._validate_device is check and said == module._WARNINGS_SHOWN
    measure_heads(subject)
    assert said == module._WARNINGS_SHOWN


def test_calls_of_another_thread_are_not_heard():
    """Nor changed."""
    parts = [numbers(3, 2, POSITIONS, 8, seed=seed) for seed in range(3)]
    expected, found = by_function(*parts), []
    show = Capture()
    with intercepted(Interceptor(ids(0), show), InterceptingMode), as_written():
        thread = threading.Thread(target=lambda: found.append(masked(*parts)))
        thread.start()
        thread.join()
        assert show.n_events == 0
        masked(*parts)
        assert show.n_events == 1
    assert (found[0] - expected).abs().max() < CLOSE


def test_a_model_without_it_is_taken_in_by_as_many_passes():
    """A verification by sdpa has seen whether there is any."""

    def passes(model):
        count = []
        handle = model.register_forward_hook(lambda *_: count.append(1))
        load_model(model)
        handle.remove()
        return len(count)

    backends = verification.BACKENDS
    here = passes(plain(by_function))
    try:
        verification.BACKENDS = tuple(backend for backend in backends if backend.name != "flex_attention")
        assert passes(plain(by_function)) == here
    finally:
        verification.BACKENDS = backends


# Weights of queries and keys


class Projecting(Attention):
    """With an output projection, so that its heads have weights."""

    def __init__(self, attend):
        super().__init__(attend)
        self.proj = nn.Linear(16, 16)

    def forward(self, x):
        return self.proj(super().forward(x))


def projected(attend):
    return Positioned(Projecting(attend), Projecting(attend))


def test_queries_and_keys_are_known_unless_their_products_are_changed():
    """A bias is added to a score, a cap is not."""
    found = queries_keys_of(load_model(projected(looked_up)))
    assert [layer.factor for layer in found.layers] == pytest.approx([8**-0.5] * 2)
    subject = load_model(projected(capped))
    with pytest.raises(UnsupportedModel, match="a norm or a cap"):
        queries_keys_of(subject)
