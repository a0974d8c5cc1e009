"""Heads made to act otherwise where only patterns are seen: on softmaxes and products, and at the output projection."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import expose_attention, load_model, measure_ablations, measure_heads
from pytest_induction.attention.axes import AxisLayout, Operand
from pytest_induction.attention.backend import VerificationInputs
from pytest_induction.attention.backends.eager import EagerBackend
from pytest_induction.attention.capture import Capture
from pytest_induction.attention.edits import Close, Edit, Give, GivePattern, Record, Replace, Scale, Smear, Substitute
from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.interceptor import Interceptor
from pytest_induction.attention.softmax_edits import SoftmaxEditor
from pytest_induction.attention.softmaxes import SquareSoftmaxes
from pytest_induction.errors import UnsupportedModel
from pytest_induction.forward.calling import Caller, as_found, condition
from pytest_induction.interventions import ablate, freeze_patterns, intervene, knock_out, run_with, scale, smear
from pytest_induction.interventions.active import apply_edits, apply_edits_to_outputs
from pytest_induction.model.adapt import adapt
from pytest_induction.model.circuits import circuits_of
from tests.attention.layouts import LAYOUTS
from tests.attention.test_hand_written import (
    Attention,
    by_function,
    by_method,
    by_torch,
    folded,
    fused,
    grouped,
    in_double,
    plain,
    scores_of,
    with_dropout,
)
from tests.attention.test_other_calls import Heads, Positioned
from tests.model import foreign, zoo

CLOSE = 1e-5
POSITIONS = 12


def ids(seed, rows=3):
    return torch.randint(4, 40, (rows, POSITIONS), generator=torch.Generator().manual_seed(seed))


def numbers(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def acted(subject, steps, tokens=None, backend=None):
    """The logits of a pass in which layers take steps."""
    backend, tokens = backend or subject.backend, ids(0) if tokens is None else tokens
    with as_found(subject.module), backend.apply_edits(tokens, steps):
        return backend.caller.logits(tokens)


# An independent slow reference: rows and heads one by one, in double precision


def by_loop(model, tokens, score=None, pattern=None, found=None, count=2):
    """The logits of a `Plain`, its heads changed by functions of layer, row, head and scores, pattern or what was found."""
    same = lambda layer, row, head, value: value
    score, pattern, found = score or same, pattern or same, found or same
    weight = {name: value.detach().double() for name, value in model.state_dict().items()}
    x = weight["embed.weight"][tokens] + weight["positions.weight"][: tokens.shape[1]]
    future = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer in range(len(model.layers)):
        made = x @ weight[f"layers.{layer}.weight"].T + weight[f"layers.{layer}.bias"]
        query, key, value = (part.unflatten(-1, (2, 8)) for part in made.chunk(3, -1))
        rows = []
        for row in range(len(tokens)):
            heads = []
            for head in range(2):
                own = head if count == 2 else 0  # heads that share a key and value
                scores = query[row, :, head] @ key[row, :, own].T / 8**0.5
                scores = score(layer, row, head, scores.masked_fill(future, -torch.inf))
                weights = pattern(layer, row, head, scores.softmax(-1).nan_to_num(0))
                heads.append(found(layer, row, head, weights @ value[row, :, own]))
            rows.append(torch.cat(heads, -1))
        x = x + torch.stack(rows)
    return (x @ weight["out.weight"].T + weight["out.bias"]).float()


SETS = torch.tensor([[[True, False], [False, False], [True, True]], [[False, True], [True, False], [False, False]]])
VALUES = numbers(3, 2, POSITIONS, 8)
FACTORS = torch.tensor([[0.5, -1.0], [2.0, 1.0], [0.0, 0.25]])
CLOSED = torch.rand(3, 2, POSITIONS, POSITIONS, generator=torch.Generator().manual_seed(3)) < 0.4
CLOSED[:, :, 0, 0] = False
CLOSED[1, 1, 5] = True  # a query with nothing left
OTHER = numbers(3, 2, POSITIONS, POSITIONS).masked_fill(torch.ones(POSITIONS, POSITIONS).triu(1).bool(), -torch.inf).softmax(-1)


def replaced(layer, row, head, found):
    return VALUES[row, head].double() if SETS[layer, row, head] else found


def zeroed(layer, row, head, found):
    return torch.zeros_like(found) if SETS[layer, row, head] else found


def closed(layer, row, head, scores):
    return scores.masked_fill(CLOSED[row, head], -torch.inf)


STEPS = {
    "zero": (lambda layer: Replace(SETS[layer]), {"found": zeroed}),
    "values": (lambda layer: Replace(SETS[layer], VALUES), {"found": replaced}),
    "scale": (lambda layer: Scale(FACTORS), {"found": lambda layer, row, head, found: FACTORS[row, head] * found}),
    "close": (lambda layer: Close(CLOSED), {"score": closed}),
    "substitute": (
        lambda layer: Substitute(torch.tensor([False, True]), OTHER),
        {"pattern": lambda layer, row, head, pattern: OTHER[row, head].double() if head else pattern},
    ),
    "give a pattern": (
        lambda layer: GivePattern(OTHER),
        {"pattern": lambda layer, row, head, pattern: OTHER[row, head].double()},
    ),
}


def dots(query, key, value):
    return torch.einsum("...qk, ...kd -> ...qd", scores_of(query, key).softmax(-1), value)


def heads_beside(query, key, value):
    return torch.einsum("bkhd,bhqk->bqhd", value.transpose(1, 2), scores_of(query, key).softmax(-1)).transpose(1, 2)


def values_on_the_left(query, key, value):
    return (value.mT @ scores_of(query, key).softmax(-1).mT).mT


def joined(query, key, value):
    pattern = scores_of(query, key).softmax(-1).reshape(-1, *query.shape[2:3], query.shape[2])
    return pattern.bmm(value.flatten(0, 1)).view(*value.shape)


def joined_in_a_tuple(query, key, value):
    (pattern,) = scores_of(query, key).softmax(-1)[None].unbind(0)
    return pattern.permute(1, 0, 2, 3)[:, ...].matmul(value.transpose(0, 1)).swapaxes(0, 1)


STYLES = [by_function, by_method, by_torch, folded, in_double, with_dropout, grouped]
STYLES += [dots, heads_beside, values_on_the_left, joined, joined_in_a_tuple]
STYLES += LAYOUTS


@pytest.mark.parametrize("attend", STYLES)
def test_every_step_does_what_a_slow_reference_does(attend):
    """However the product is written: sets and values of rows of their own, in both layers."""
    subject, count = load_model(plain(attend)), 1 if attend is grouped else 2
    assert subject.backend.name == "softmax"
    before = by_loop(subject.module, ids(0), count=count)
    for name, (step, changes) in STEPS.items():
        expected = by_loop(subject.module, ids(0), count=count, **changes)
        logits = acted(subject, {layer: [step(layer)] for layer in range(2)})
        assert (logits - expected).abs().max() < 5 * CLOSE, name
        assert (expected - before).abs().max() > 0.1, name


@pytest.mark.parametrize("attend", STYLES)
def test_without_steps_and_with_one_that_does_nothing_nothing_changes(attend):
    """Bit by bit, in the pass and after it."""
    subject = load_model(plain(attend))
    before = subject.logits(ids(0))
    for steps in ({}, {1: [Edit()]}, {0: [Record(outputs=True)]}, {0: [Replace(torch.zeros(1, 2).bool())], 1: [Edit()]}):
        assert torch.equal(acted(subject, steps), before)
    assert not torch.equal(acted(subject, {0: [Replace(torch.ones(1, 2).bool())]}), before)
    assert torch.equal(subject.logits(ids(0)), before)


def test_steps_are_taken_in_order_and_what_is_zero_is_zero():
    """What is recorded is what the steps before left."""
    subject, every = load_model(plain(by_torch)), torch.tensor([[True, False]])
    first, last = Record(inputs=True, outputs=True), Record(outputs=True)
    acted(subject, {1: [first, GivePattern(OTHER), Replace(every), last]})
    assert bool((last.get("output")[:, 0] == 0).all()) and torch.equal(last.get("output")[:, 1], first.get("output")[:, 1])
    seen = []
    subject.observe(ids(0), lambda layer, reader: seen.append(reader.pattern_of(range(POSITIONS))))
    assert torch.equal(first.get("pattern"), seen[1])
    reference = {}
    by_loop(subject.module, ids(0), found=lambda *at: reference.setdefault(at[:3], at[3]))
    apart = Record(outputs=True)
    acted(subject, {1: [apart]})
    for row in range(3):
        for head in range(2):
            assert torch.allclose(apart.get("output")[row, head], reference[1, row, head].float(), atol=CLOSE)


def test_heads_that_are_modules_of_their_own_are_numbered_as_they_come():
    """A step is given the part of a layer that each of its calls computes."""
    model, twin = (Positioned(Heads(2, attend), Heads(3, attend), declared=2) for attend in (by_function, fused))
    twin.load_state_dict(model.state_dict())
    here, there = load_model(model), load_model(twin)
    assert (here.backend.name, there.backend.name) == ("softmax", "sdpa")
    entries = torch.zeros(1, 3, POSITIONS, POSITIONS).bool()
    entries[0, 2, :, 3] = True
    for step in (
        Replace(torch.tensor([[False, True, False]])),
        Replace(torch.tensor([[False, True, True]]), numbers(1, 3, POSITIONS, 8)),
        Scale(torch.tensor([[1.0, 0.5, 2.0]])),
        Close(entries),
    ):
        assert torch.allclose(acted(here, {1: [step]}), acted(there, {1: [step]}), atol=CLOSE)
    one, other = Record(outputs=True), Record(outputs=True)
    acted(here, {1: [one]}), acted(there, {1: [other]})
    assert one.get("output").shape == (3, 3, POSITIONS, 8) and torch.allclose(one.get("output"), other.get("output"), atol=CLOSE)


def test_a_softmax_beside_attention_functions_acts_like_them():
    """Both kinds of layers in one model: each takes its steps where it is seen."""
    model, twin = Positioned(Attention(by_function), Attention(fused)), Positioned(Attention(fused), Attention(fused))
    twin.load_state_dict(model.state_dict())
    here, there, step = load_model(model), load_model(twin), Replace(torch.tensor([[True, False]]), numbers(1, 2, 1, 8))
    assert (here.backend.name, there.backend.name) == ("softmax", "sdpa")
    smeared, given = Smear(torch.tensor([0.5])), Give(query=numbers(3, 2, POSITIONS, 8))
    for steps in ({0: [step]}, {1: [step]}, {1: [smeared]}, {0: [smeared]}, {1: [given]}):
        assert torch.allclose(acted(here, steps), acted(there, steps), atol=CLOSE)
    with pytest.raises(BackendUnavailable, match="`Give` edits queries and keys"):
        acted(here, {0: [given]})


def test_gradients_flow_through_what_is_changed():
    """The gradient with respect to what heads found is that of the attention function."""

    class Leaf(Edit):
        def on_output(self, output, call, part):
            self.found = output if output.requires_grad else output.detach().requires_grad_()
            return self.found

    def gradient(attend, layer, trained):
        subject, step = load_model(plain(attend).requires_grad_(trained)), Leaf()
        with torch.enable_grad(), subject.backend.apply_edits(ids(0), {layer: [step]}):
            logits = subject.module(ids(0))
        return torch.autograd.grad(logits[:, -1, 7].sum(), step.found)[0]

    for layer, trained in ((0, True), (0, False), (1, True)):
        expected = gradient(None, layer, trained)
        assert expected.abs().max() > 0.01
        for attend in (by_function, heads_beside):
            assert torch.allclose(gradient(attend, layer, trained), expected, atol=CLOSE)


def test_what_is_given_back_lies_in_memory_as_what_it_stands_for():
    """A model may look at what a product gave in a way that its layout in memory allows."""

    class Moved(Edit):
        def on_output(self, output, call, part):
            return output.clone(memory_format=torch.contiguous_format)

    def viewed(query, key, value):
        found = scores_of(query, key).softmax(-1).transpose(0, 1) @ value.transpose(0, 1)
        return found.view(2, -1).view(2, -1, *value.shape[2:]).transpose(0, 1)

    subject = load_model(plain(viewed))
    assert torch.equal(
        acted(subject, {0: [Moved()], 1: [Replace(SETS[1], VALUES), Moved()]}), acted(subject, {1: [Replace(SETS[1], VALUES)]})
    )


def test_what_is_computed_with_a_pattern_later_is_left_alone():
    """As a hook may do that was attached since."""
    kept, more = [], []

    def watched(query, key, value):
        pattern = scores_of(query, key).softmax(-1)
        found = pattern @ value
        if more:
            kept.append(pattern @ torch.ones(POSITIONS, 1))
        return found

    subject = load_model(plain(watched))
    more.append(True)
    acted(subject, {layer: [Replace(torch.ones(1, 2).bool())] for layer in range(2)})
    assert len(kept) == 2 and all(torch.allclose(each, torch.ones(1)) for each in kept)


# Products, one by one


def layout_of(name, function, *operands):
    """What a product gives of a pattern of 3 rows, 2 heads and 5 positions, the first operand or a view of it, and its layout."""
    moved, *others = operands
    pattern = numbers(3, 2, 5, 5)
    operand = Operand(moved(pattern), moved(torch.empty(pattern.shape, device="meta")), pattern.shape)
    args = [operand.pattern if other is None else other for other in others]
    output = function(*args)
    return pattern, output, AxisLayout.of(name, operand, args, output)


@pytest.mark.parametrize("order", ["bhqd", "bqhd", "hbdq", "dqhb", "qbdh"])
@pytest.mark.parametrize("term", ["bhqk,bkhd", "bkhd,bhqk"])
def test_the_axes_of_any_einsum_are_told(order, term):
    """Rows, heads, positions and d_head, in whatever order they come, and back again."""
    values = numbers(3, 5, 2, 8)
    args = (f"{term}->{order}", *((None, values) if term.startswith("bhqk") else (values, None)))
    pattern, output, layout = layout_of("einsum", torch.einsum, lambda each: each, *args)
    expected = torch.einsum("bhqk,bkhd->bhqd", pattern, values)
    assert torch.allclose(layout.apart(output), expected, atol=CLOSE)
    assert torch.equal(layout.together(layout.apart(output)), output)


@pytest.mark.parametrize(
    ("name", "function", "operands", "why"),
    [
        ("matmul", torch.matmul, (lambda p: p.mT, None, numbers(3, 2, 5, 8)), "does not sum over keys"),
        ("matmul", torch.matmul, (lambda p: p, numbers(3, 2, 8, 5), None), "does not sum over keys"),
        ("matmul", torch.matmul, (lambda p: p, None, numbers(5)), "not of two matrices"),
        ("matmul", torch.matmul, (lambda p: p[1:], None, numbers(2, 2, 5, 8)), "other axes"),
        ("matmul", torch.matmul, (lambda p: p[:, :, :4], None, numbers(3, 2, 5, 8)), "other axes"),
        ("matmul", torch.matmul, (lambda p: p[:, 1:], None, numbers(3, 1, 5, 8)), "other axes"),
        ("matmul", torch.matmul, (lambda p: p[:, :1].expand(-1, 2, -1, -1), None, numbers(3, 2, 5, 8)), "other axes"),
        ("matmul", torch.matmul, (lambda p: p[:, :, None], None, numbers(3, 2, 4, 5, 8)), "other axes"),
        ("matmul", torch.matmul, (lambda p: p, None, numbers(4, 1, 1, 5, 8)), "other axes"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhqd->bhkd", None, numbers(3, 2, 5, 8)), "does not sum over keys"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,gh->bgqk", None, numbers(2, 2)), "does not sum over keys"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhxd->bhqd", None, numbers(3, 2, 5, 8)), "does not sum over keys alone"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhkd->bqd", None, numbers(3, 2, 5, 8)), "does not sum over keys alone"),
        ("einsum", torch.einsum, (lambda p: p, "bhqq,bhqd->bhd", None, numbers(3, 2, 5, 8)), "does not sum over keys alone"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhkd", None, numbers(3, 2, 5, 8)), "of another form"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhkd,b->bhqd", None, numbers(3, 2, 5, 8), numbers(3)), "of another form"),
        ("einsum", torch.einsum, (lambda p: p, "bhqk,bhkde->bhqde", None, numbers(3, 2, 5, 4, 2)), "other axes"),
        ("inner", torch.inner, (lambda p: p, None, numbers(8, 5)), "whose axes are not known"),
    ],
)
def test_a_product_of_another_kind_is_refused_by_name(name, function, operands, why):
    """What sums over something else, or gives something else than what each head finds."""
    with pytest.raises(BackendUnavailable, match=f"`{name}`.*{why}"):
        layout_of(name, function, *operands)


# What cannot be done


def test_what_acts_on_queries_and_keys_is_refused_before_the_pass():
    """With a word on what to do instead."""
    subject, step = load_model(plain(by_function)), Give(query=torch.ones(1, 2, POSITIONS, 8))
    why = r"`Give` edits queries and keys, and only patterns are seen in `call 1`; .*`GivePattern`"
    with pytest.raises(BackendUnavailable, match=why), subject.backend.apply_edits(ids(0), {1: [step]}):
        pytest.fail("the block was entered")


def added(query, key, value):
    parts = scores_of(query, key).softmax(-1).flatten(0, 1), value.flatten(0, 1)
    return torch.baddbmm(torch.zeros(()), *parts).unflatten(0, (-1, 2))


def twice(query, key, value):
    pattern = scores_of(query, key).softmax(-1)
    return torch.cat([pattern @ value[..., :4], pattern @ value[..., 4:]], -1)


def in_pieces(query, key, value):
    pattern = scores_of(query, key).softmax(-1)
    return torch.cat([pattern[:, :, :3] @ value, pattern[:, :, 3:] @ value], 2)


def by_one_head(query, key, value):
    pattern = scores_of(query, key).softmax(-1)
    return torch.stack([pattern[:, head] @ value[:, head] for head in range(2)], 1)


def copied(query, key, value):
    pattern = scores_of(query, key).softmax(-1).transpose(1, 2).reshape(len(query), -1, query.shape[2])
    return (pattern.unflatten(1, (-1, 2)).transpose(1, 2)) @ value


@pytest.mark.parametrize(
    ("attend", "why"),
    [
        (added, "`baddbmm`, whose axes are not known"),
        (twice, "its pattern weighs values in 2 products"),
        (in_pieces, "other axes than rows, heads, positions and d_head"),
        (by_one_head, "other axes than rows, heads, positions and d_head"),
        (copied, "its pattern is lost in `reshape`"),
    ],
)
def test_where_what_heads_find_is_not_seen_it_is_refused_by_name_and_patterns_change_all_the_same(attend, why):
    """A product of another kind, several of them, or a copy on the way."""
    subject = load_model(plain(attend))
    assert subject.backend.name == "softmax"
    for step in (Replace(SETS[1]), Scale(FACTORS), Record(outputs=True)):
        with pytest.raises(BackendUnavailable, match=f"what heads find in `call 1` is not seen: .*{why}"):
            acted(subject, {1: [step]})
    for name in ("close", "substitute", "give a pattern"):
        step, changes = STEPS[name]
        logits = acted(subject, {layer: [step(layer)] for layer in range(2)})
        assert (logits - by_loop(subject.module, ids(0), **changes)).abs().max() < 5 * CLOSE, name


def pointwise_where_long(query, key, value):
    """Values weighed by no product, where there are more positions than in any verification."""
    pattern = scores_of(query, key).softmax(-1)
    if query.shape[2] <= 100:
        return pattern @ value
    return (pattern[..., None] * value[:, :, None]).sum(3)


def other_where_long(query, key, value):
    """By hand where there are more positions than in any verification."""
    return (by_function if query.shape[2] > 100 else fused)(query, key, value)


def test_a_step_that_is_not_taken_in_a_pass_is_an_error():
    """A pattern that goes another way than in the verification; a layer that is not run; a block in which no pass is made."""
    subject, tokens = load_model(plain(pointwise_where_long)), torch.ones(2, 120).long()
    step = Replace(torch.tensor([[True, False]]))
    with pytest.raises(
        BackendUnavailable, match="what heads find in `call 0` was not seen in this pass: its pattern is lost in `mul`"
    ):
        acted(subject, {0: [step]}, tokens)
    with (
        pytest.raises(BackendUnavailable, match="0 of 2 layers were seen to compute patterns in this pass"),
        subject.backend.apply_edits(ids(0), {0: [step]}),
    ):
        pass
    later = load_model(Positioned(Attention(by_function), Attention(other_where_long)))
    assert later.backend.name == "softmax"
    acted(later, {1: [Give(query=numbers(2, 2, 90, 8))]}, tokens[:, :90])
    with pytest.raises(BackendUnavailable, match="`Give` edits queries and keys, and only patterns are seen in `layer 1`"):
        acted(later, {1: [Give(query=numbers(2, 2, 120, 8))]}, tokens)
    with pytest.raises(BackendUnavailable, match="1 of 2 layers"), subject.backend.apply_edits(ids(0), {0: [step]}, first=1):
        pass


def test_a_pattern_that_is_changed_before_it_weighs_is_lost():
    """What heads find by it is not what they find by the pattern: looked at in a verification, for what no backend follows."""
    caller = Caller(plain(lambda query, key, value: scores_of(query, key).softmax(-1).pow(2) @ value))
    with torch.no_grad():
        editing = SoftmaxEditor(caller, ids(0), ("first", "second"), calls={0, 1}, groups=None)
    with pytest.raises(BackendUnavailable, match="what heads find in `second` is not seen: its pattern is lost in `pow`"):
        editing.apply_edits(ids(0), {1: [Replace(SETS[1])]}).__enter__()
    with pytest.raises(BackendUnavailable, match="1 of 2 layers were seen to compute patterns"), torch.no_grad():
        SoftmaxEditor(caller, ids(0), ("first", "second"), calls={1}, groups=None).apply_edits(ids(0), {}).__enter__()
    failing = Caller(plain(lambda query, key, value: next(iter(()))))
    with pytest.raises(BackendUnavailable, match="the pass that verifies it failed: StopIteration"):
        SoftmaxEditor(failing, ids(0), ("first", "second"), calls={0, 1}, groups=None).apply_edits(ids(0), {}).__enter__()


# Measured while it acts


class Busy:
    """Computes with a pattern what a model might: neither a layer nor what heads find."""

    def __init__(self):
        self.patterns, self.sums = [], []

    def __call__(self, layer, reader):
        pattern = reader.pattern_of(range(POSITIONS))
        self.patterns.append(pattern.clone())
        self.sums.append(pattern @ torch.ones(POSITIONS, 1))
        pattern.softmax(-1)


def test_a_measurement_sees_what_is_changed_and_is_not_changed_itself():
    """Patterns are those after the steps; products and softmaxes of the observer's own are no part of the model."""
    subject, every = load_model(plain(by_torch)), torch.ones(1, 2).bool()
    steps = {0: [Substitute(every[0], OTHER), Replace(torch.tensor([[True, False]]))], 1: [Replace(every)]}
    busy = Busy()
    assert subject.backend.edits_outside
    with as_found(subject.module), subject.backend.apply_edits(ids(0), steps):
        logits = subject.backend.run(ids(0), None, busy, logits=True)
    assert torch.equal(logits, acted(subject, steps))
    assert torch.equal(busy.patterns[0], OTHER)
    assert all(torch.allclose(each, torch.ones(1)) for each in busy.sums)  # and not zero, as what the heads give
    clean = Busy()
    subject.observe(ids(0), clean)
    assert (busy.patterns[1] - clean.patterns[1]).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda: load_model(plain(by_function)), lambda: bridge("gpt2")], ids=["softmax", "hook point"])
def test_a_pass_may_end_early_while_it_acts(make):
    """At the last pattern, before anything is found by it."""
    subject, seen = make(), []
    assert subject.backend.can_stop
    layers, every = range(subject.n_layers), torch.ones(1, subject.n_heads).bool()
    with as_found(subject.module), subject.backend.apply_edits(ids(0), {layer: [Replace(every)] for layer in layers}):
        subject.backend.run(ids(0), None, lambda layer, reader: seen.append(layer), logits=False, last=subject.n_layers)
    assert seen == [*layers]


# Hugging Face models and TransformerLens


def both(kind, make):
    """A backend that sees patterns only, and one that sees calls, of the same weights."""
    here, there = make(), adapt(zoo.build(kind, "eager"))
    assert there.backend.name == "transformers attention interface"
    return here, there


def eager(kind):
    subject = adapt(zoo.build(kind, "eager"))
    with as_found(subject.module):
        subject.backend = EagerBackend(Caller(subject.module), VerificationInputs(ids(0)[:, :9], ids(0)))
    return subject


def bridge(kind):
    pytest.importorskip("transformer_lens.model_bridge")
    from tests.attention.test_transformer_lens import bridge

    subject = adapt(bridge(kind))
    assert subject.backend.name == "TransformerLens hook_pattern"
    return subject


def hugging_face_steps(n_heads=4):
    one = torch.arange(n_heads) == 1
    entries = CLOSED[:, :1] & one[:, None, None]
    return (
        Replace(one[None]),
        Replace(one[None], numbers(3, n_heads, POSITIONS, 8)),
        Scale(torch.linspace(-1, 2, n_heads)[None]),
        Close(entries),
        Substitute(one, OTHER[:, :1]),
        Smear(torch.tensor([0.2])),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "kind"), [(eager, "gpt2"), (eager, "gpt-oss"), (bridge, "llama"), (bridge, "gpt-oss")])
def test_what_a_model_returns_or_a_hook_point_carries_acts_like_its_attention_function(make, kind):
    """Grouped queries, windows and sinks included; what is measured meanwhile is what is changed."""
    here, there = both(kind, lambda: make(kind))
    before, found = acted(here, {}), condition(here.module)
    assert here.backend.edits_outside and not there.backend.edits_outside
    assert torch.equal(acted(here, {1: [Edit()]}), before) and torch.equal(here.logits(ids(0)), before)
    for step in hugging_face_steps():
        logits = acted(here, {0: [step], 1: [step]})
        assert torch.allclose(logits, acted(there, {0: [step], 1: [step]}), atol=2 * CLOSE)
        assert (logits - before).abs().max() > 0.1
    seen = []
    with as_found(here.module), here.backend.apply_edits(ids(0), {1: [Substitute(torch.arange(4) == 1, OTHER[:, :1])]}):
        here.backend.run(ids(0), None, lambda layer, reader: seen.append(reader.pattern_of(range(POSITIONS))), logits=True)
    assert torch.equal(seen[1][:, 1], OTHER[:, 0])
    with pytest.raises(BackendUnavailable, match=r"`Give` edits queries and keys, and only patterns are seen in `[\w.]+1[\w.]*`"):
        acted(here, {1: [Give(query=torch.ones(1, 4, POSITIONS, 8))]})
    assert torch.equal(here.logits(ids(0)), before) and condition(here.module) == found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [adapt, bridge])
def test_bloom_acts_as_its_output_projection_shows(make):
    """No other backend reads it: zeroed is what the projection is given of a head, and its patterns can be kept."""
    plain_model = zoo.build("bloom")
    subject = make("bloom") if make is bridge else adapt(plain_model)
    assert make is bridge or subject.backend.name == "eager output_attentions"

    def zero(part, inputs):
        return (inputs[0].index_fill(-1, torch.arange(8, 16), 0), *inputs[1:])

    handle = plain_model.transformer.h[1].self_attention.dense.register_forward_pre_hook(zero)
    with torch.no_grad():
        expected = plain_model(ids(0)).logits
    handle.remove()
    record, one = Record(inputs=True), torch.arange(4) == 1
    assert torch.allclose(acted(subject, {1: [Replace(one[None])]}), expected, atol=2 * CLOSE)
    before = acted(subject, {2: [record]})
    assert torch.equal(before, subject.logits(ids(0)))
    kept = acted(subject, {1: [Replace(one[None])], 2: [GivePattern(record.get("pattern"))]})
    assert (kept - expected).abs().max() > 0.01
    again = acted(subject, {2: [GivePattern(record.get("pattern"))]})
    assert torch.equal(again, before)


def test_a_pass_begins_later_only_where_every_softmax_is_known():
    """That of a router counts beside those of the layers, and it is not known which of them are not run."""
    with (
        pytest.raises(BackendUnavailable, match="a pass cannot begin at a later layer"),
        eager("gpt-oss").backend.apply_edits(ids(0), {}, first=1),
    ):
        pytest.fail("the block was entered")


def test_patterns_that_no_softmax_gives_are_refused():
    """What is returned may be something else than what the softmaxes give."""
    subject, tokens = eager("llama"), ids(0)
    backend = subject.backend
    changed = type(backend)._patterns

    class Halved(EagerBackend):
        def _patterns(self, tokens, attention_mask):
            output, patterns = changed(self, tokens, attention_mask)
            return output, tuple(pattern / 2 for pattern in patterns)

    with as_found(subject.module):
        halved = Halved(backend.caller, VerificationInputs(tokens[:, :9], tokens))
    with pytest.raises(BackendUnavailable, match="its patterns are not what 3 softmaxes give"), halved.apply_edits(tokens, {}):
        pytest.fail("the block was entered")


# At the output projection


class Showing(foreign.CausalSelfAttention):
    """Attention that nothing sees, shown by itself."""

    def attend(self, query, key, value):
        expose_attention(query=query, key=key)
        scores = scores_of(query, key)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights @ value / weights.sum(-1, keepdim=True)


def shown_and_fused():
    here, there = (
        load_model(foreign.Language(lambda kind=kind: kind(flash=True))) for kind in (Showing, foreign.CausalSelfAttention)
    )
    assert (here.backend.name, there.backend.name) == ("expose_attention", "sdpa")
    return here, there


def test_what_is_only_shown_acts_at_its_output_projection():
    """What heads found is replaced and scaled there; the same logits as where the attention function acts."""
    here, there = shown_and_fused()
    tokens, one = ids(0), torch.arange(4) == 2
    circuits, before, found = circuits_of(here), here.logits(tokens), condition(here.module)
    recorded, other = Record(outputs=True), Record(outputs=True)
    with apply_edits_to_outputs(here, circuits, tokens, {1: [recorded, Edit()]}):
        assert torch.equal(here.logits(tokens), before)
    acted(there, {1: [other]})
    assert torch.allclose(recorded.get("output"), other.get("output"), atol=CLOSE)
    for step in (Replace(one[None]), Replace(one[None], numbers(3, 4, POSITIONS, 8)), Scale(torch.linspace(-1, 2, 4)[None])):
        with apply_edits_to_outputs(here, circuits, tokens, {0: [step], 1: [step]}):
            logits = here.logits(tokens)
        assert torch.allclose(logits, acted(there, {0: [step], 1: [step]}), atol=5 * CLOSE)
        assert (logits - before).abs().max() > 0.1
    assert torch.equal(here.logits(tokens), before) and condition(here.module) == found


def test_what_the_output_projection_cannot_do_is_refused_by_name():
    """Steps on patterns and keys, a layer whose projection is no module, and one that is given something else."""
    here, _ = shown_and_fused()
    circuits, tokens, one = circuits_of(here), ids(0), torch.ones(1, 4).bool()
    entries = torch.zeros(1, 1, POSITIONS, POSITIONS).bool()
    wrong = (Smear(torch.ones(1)), Close(entries), Substitute(one[0], OTHER[:, :1]), GivePattern(OTHER), Record(inputs=True))
    for step in wrong:
        why = rf"`{type(step).__name__}` edits more than what heads found, .*`h.1.attn` .* read by expose_attention"
        with pytest.raises(BackendUnavailable, match=why), apply_edits_to_outputs(here, circuits, tokens, {1: [step]}):
            pytest.fail("the block was entered")
    without = dataclasses.replace(circuits, layers=tuple(dataclasses.replace(each, writes=None) for each in circuits.layers))
    with (
        pytest.raises(BackendUnavailable, match=r"no module is given what the heads of `h.0.attn` found"),
        apply_edits_to_outputs(here, without, tokens, {0: [Replace(one)]}),
    ):
        pytest.fail("the block was entered")
    with (
        pytest.raises(BackendUnavailable, match=r"of `h.0.attn` is given \(3, 12, 32\) where \(2, 12, 4\) x d_head was expected"),
        apply_edits_to_outputs(here, circuits, tokens[:2], {0: [Replace(one)]}),
    ):
        here.module(tokens)
    why = "a pass cannot begin at a later layer in a model that is read by expose_attention"
    with pytest.raises(UnsupportedModel, match=why), apply_edits(here, tokens, {1: [Replace(one)]}, first=1):
        pytest.fail("the block was entered")


def test_a_model_that_only_shows_its_attention_is_ablated_like_any_other():
    """Through the public names: what is called and what is measured inside, the mean included, and all heads one by one."""
    here, there = shown_and_fused()
    tokens, before = ids(0), here.logits(ids(0))
    for change in (ablate("L1H2"), ablate(["L0H1", "L1H0"], "mean"), scale("L0H3", -1.0)):
        one, other = (run_with(each, tokens, change) for each in (here, there))
        assert torch.allclose(one, other, atol=5 * CLOSE) and (one - before).abs().max() > 0.01
    with intervene(here, ablate("L0H1")) as changed, intervene(there, ablate("L0H1")) as twin:
        one, other = (measure_heads(each, n_sequences=2).previous_token for each in (changed, twin))
    assert np.allclose(one, other, atol=CLOSE) and not np.allclose(one, measure_heads(here, n_sequences=2).previous_token)
    one, other = (measure_ablations(each, n_sequences=2).effect for each in (here, there))
    assert np.allclose(one, other, atol=1e-4)
    for change in (smear(0.5), knock_out("L0H0", [(3, 1)]), freeze_patterns()):
        with pytest.raises(UnsupportedModel, match=r"cannot be edited: .* read by expose_attention"):
            run_with(here, tokens, change)
    assert torch.equal(here.logits(tokens), before)


def test_other_projections_are_found_by_the_first_tensor_that_they_are_given():
    """Also by name, among the options of a call."""

    class Named(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.weight = linear.weight

        def forward(self, given):
            return F.linear(given, self.weight)

    part = Named(nn.Linear(32, 32, bias=False))
    here, _ = shown_and_fused()
    circuits = circuits_of(here)
    layer = dataclasses.replace(circuits.layers[0], writes=part)
    one = dataclasses.replace(circuits, layers=(layer,))
    with apply_edits_to_outputs(here, one, ids(0), {0: [Replace(torch.arange(4)[None] < 2)]}):
        given = numbers(3, POSITIONS, 32)
        by_name, by_place = part(given=given), part(given)
    expected = given.clone()
    expected[..., :16] = 0
    assert torch.equal(by_name, by_place) and torch.equal(by_name, F.linear(expected, part.weight))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("aab", {3: 0, 5: 1, 8: 2}),  # layers alike have theirs in order
        ("ab", {3: 0, 5: 0, 8: 1}),  # one that two softmaxes give: not each layer has one
        ("aaab", {3: 2, 5: 2, 8: 3}),
        ("b", {8: 0}),
    ],
)
def test_patterns_alike_have_a_softmax_each_where_there_are_as_many(patterns, expected):
    """As those of layers all of whose heads rest on the first position, in whatever layout."""
    made = {"a": torch.eye(6).expand(2, 4, 6, 6), "b": torch.full((2, 4, 6, 6), 1 / 6)}
    softmaxes = SquareSoftmaxes(Interceptor(ids(0), Capture()))
    softmaxes.found = {3: made["a"], 5: made["a"].clone(), 8: made["b"].transpose(0, 1)}
    assert softmaxes.that_give([made[name] for name in patterns]) == expected
