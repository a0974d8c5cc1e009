"""Several attention calls of one module that are one layer: heads or queries side by side. What is not one layer is refused."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_induction import load_model, measure_heads
from pytest_induction.attention.joining import CallOutputs
from pytest_induction.attention.pattern import ChunkedReader, PatternReader, QueryChunk
from pytest_induction.errors import UnsupportedModel
from pytest_induction.interventions import ablate, knock_out, run_with
from tests.attention.recorded import Positioned, assert_right, causal, probe, triangle
from tests.attention.test_hand_written import Attention, by_function, fused, plain

sdpa = F.scaled_dot_product_attention


def windowed(positions, width):
    return triangle(positions) & ~torch.ones(positions, positions).tril(-width).bool()


def each_head(query, key, value, axes=4):
    for head in range(query.shape[1]):
        chosen = head if axes == 3 else slice(head, head + 1)
        yield tuple(part[:, chosen] for part in (query, key, value))


# Heads


KNOCK_OUT = knock_out(((0, 1),), [(3, 1)])


def stacked(query, key, value):
    return torch.stack([fused(*parts) for parts in each_head(query, key, value, 3)], 1)


def joined(query, key, value):
    return torch.cat([fused(*parts) for parts in each_head(query, key, value)], 1)


def stacked_by_hand(query, key, value):
    return torch.stack([by_function(*parts) for parts in each_head(query, key, value, 3)], 1)


def assigned(query, key, value):
    out = torch.empty_like(query)
    for head, parts in enumerate(each_head(query, key, value, 3)):
        out[:, head] = fused(*parts)
    return out


def copied(query, key, value):
    out = query.new_zeros(query.transpose(1, 2).shape)
    for head, parts in enumerate(each_head(query, key, value, 3)):
        out[:, :, head].copy_(by_function(*parts))
    return out.transpose(1, 2)


def gated(query, key, value):
    return torch.cat([fused(*parts) * torch.sigmoid(parts[0]) for parts in each_head(query, key, value)], 1)


def flattened_first(query, key, value):
    """Side by side on the axis of what heads find, as teaching code has it."""
    found = [by_function(*parts) for parts in each_head(query, key, value, 3)]
    return torch.cat(found, -1).unflatten(-1, (query.shape[1], -1)).transpose(1, 2)


def in_turns(query, key, value):
    """Numbers of the heads in turns, as a projection may have them."""
    found = torch.stack([fused(*parts) for parts in each_head(query, key, value, 3)], -1).flatten(-2)
    return found.unflatten(-1, (-1, query.shape[1])).movedim(-1, 1)


@pytest.mark.parametrize("attend", [stacked, joined, stacked_by_hand, assigned, copied, gated, flattened_first, in_turns])
def test_a_call_for_each_head_makes_one_layer(attend):
    """However the heads are put side by side; beside layers of one call too."""
    for model in (Positioned(Attention(attend), Attention(attend)), Positioned(Attention(fused), Attention(attend))):
        subject = load_model(model)
        assert subject.backend.layers == ("blocks.0.mixer", "blocks.1.mixer")
        assert (subject.backend.heads, subject.backend.can_edit) == ((2, 2), True)
        assert_right(subject)


def test_the_heads_of_a_model_in_one_module_make_its_layers():
    """Two layers of two heads, and not four of one, where no module tells them apart."""
    assert load_model(plain(stacked)).backend.heads == (2, 2)
    assert load_model(plain(stacked_by_hand)).backend.heads == (2, 2)


def local_and_global(query, key, value):
    half = query.shape[1] // 2
    local, whole = ([part[:, chosen] for part in (query, key, value)] for chosen in (slice(half), slice(half, None)))
    return torch.cat([sdpa(*local, windowed(query.shape[2], 5)), fused(*whole)], 1)


def interleaved(query, key, value):
    """Every other head is local, and its call comes last."""
    out = torch.empty_like(query)
    out[:, 1::2] = fused(*(part[:, 1::2] for part in (query, key, value)))
    out[:, ::2] = sdpa(*(part[:, ::2] for part in (query, key, value)), windowed(query.shape[2], 5))
    return out


class Four(Attention):
    """Four heads and an output projection."""

    def __init__(self, attend):
        super().__init__(attend)
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        heads = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(self.attend(*heads).transpose(1, 2).flatten(-2))


def truth_with_local(local):
    def truth(query, key):
        pattern, window = causal(query, key), causal(query, key, allowed=windowed(query.shape[2], 5))
        return torch.where(torch.tensor(local)[:, None, None], window, pattern)

    return truth


def test_local_and_global_heads_make_one_layer():
    """Half of the heads see a window only; they are the first of the layer."""
    model = Positioned(Four(local_and_global), Four(local_and_global))
    assert_right(load_model(model), truth=truth_with_local([True, True, False, False]))


def test_heads_are_numbered_as_they_lie_and_not_as_they_are_called():
    """Heads whose calls come in another order can be read; to change them is refused where it needs more than what they found."""
    model = Positioned(Four(interleaved), Four(interleaved))
    subject = load_model(model)
    assert_right(subject, truth=truth_with_local([True, False, True, False]))
    with pytest.raises(UnsupportedModel, match="edits more than what heads found"):
        run_with(subject, probe(), KNOCK_OUT)


def shared_key_and_value(query, key, value):
    return torch.cat([fused(query[:, head : head + 1], key[:, :1], value[:, :1]) for head in range(query.shape[1])], 1)


def test_heads_that_share_a_key_and_value_make_one_layer():
    """Attention to the same values twice is no reason where what is found lies side by side."""
    assert_right(Positioned(Attention(shared_key_and_value)), truth=lambda query, key: causal(query, key[:, :1]))


@pytest.mark.parametrize("attend", [stacked, joined, stacked_by_hand, assigned])
def test_a_head_of_joined_calls_is_ablated_as_in_one_call(attend):
    """The same logits as those of the model that makes one call."""
    tokens, change = probe(24, 9), ablate(((0, 1), (1, 0)))
    one, other = Positioned(Attention(fused), Attention(fused)), Positioned(Attention(attend), Attention(attend))
    other.load_state_dict(one.state_dict())
    wanted, found = (run_with(load_model(model), tokens, change) for model in (one, other))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - one(tokens)).abs().max() > 0.1


# Queries


def in_chunks(size, *, all_keys=False, by_hand=False, window=None, assign=False):
    """Attention from so many queries at a time, to the keys up to there, to all keys, or to those of a window."""

    def attend(query, key, value):
        positions, found, out = query.shape[2], [], torch.zeros_like(query)
        allowed = triangle(positions) if window is None else windowed(positions, window)
        for start in range(0, positions, size):
            end = min(start + size, positions)
            keys = slice(0 if window is None else max(0, start - window + 1), positions if all_keys else end)
            parts = query[:, :, start:end], key[:, :, keys], value[:, :, keys]
            mask = allowed[start:end, keys]
            if by_hand:
                scores = (parts[0] @ parts[1].mT / query.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
                found.append(scores.softmax(-1) @ parts[2])
            else:
                found.append(sdpa(*parts, mask))
            out[:, :, start:end] = found[-1]
        return out if assign else torch.cat(found, 2)

    return attend


def by_head_and_chunk(query, key, value):
    return torch.cat([in_chunks(16)(*parts) for parts in each_head(query, key, value)], 1)


CHUNKED = {
    "to the end": (in_chunks(16), None),
    "all keys": (in_chunks(16, all_keys=True), None),
    "a window": (in_chunks(10, window=7), 7),
    "by hand": (in_chunks(10, by_hand=True), None),
    "by hand, a window": (in_chunks(8, by_hand=True, window=7), 7),
    "assigned": (in_chunks(16, assign=True), None),
    "single queries": (in_chunks(1), None),
    "heads too": (by_head_and_chunk, None),
    "beyond the verification": (in_chunks(40), None),
    "beyond the verification, by hand": (in_chunks(40, by_hand=True, window=30), 30),
}


@pytest.mark.parametrize("before", [None, fused])
@pytest.mark.parametrize("name", CHUNKED)
def test_queries_in_chunks_make_one_layer(name, before):
    """At every length, also where the layer before makes one call, and where only long sequences are cut."""
    attend, window = CHUNKED[name]
    subject = load_model(Positioned(Attention(before or attend), Attention(attend)))
    for length in (48, 9, 64, 61):
        in_window = causal if window is None else lambda query, key: causal(query, key, allowed=windowed(query.shape[2], window))
        truths = itertools.cycle([causal if before else in_window, in_window])
        assert_right(subject, probe(length, min(16, length // 2)), truth=lambda query, key, each=truths: next(each)(query, key))
    assert subject.backend.layers == ("blocks.0.mixer", "blocks.1.mixer")


def test_chunks_that_begin_at_a_length_are_found_between_layers():
    """What was shown of a pass before the first chunk came is not shown again."""
    subject = load_model(Positioned(Attention(fused), Attention(in_chunks(40))))
    shown = []
    assert not subject.backend.chunked
    subject.observe(probe(64), lambda layer, reader: shown.append(layer))
    assert shown == [0, 1]
    assert subject.backend.chunked


def test_a_chunked_layer_is_changed_where_it_is_projected_or_not_at_all():
    """Ablation needs what heads found only; a knock-out is refused by name."""
    tokens = probe(48)
    one, other = Positioned(Four(fused), Four(fused)), Positioned(Four(in_chunks(16)), Four(in_chunks(16)))
    other.load_state_dict(one.state_dict())
    wanted, found = (run_with(load_model(model), tokens, ablate(((0, 1),))) for model in (one, other))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(UnsupportedModel, match="edits more than what heads found"):
        run_with(load_model(other), tokens, KNOCK_OUT)


def last_chunk_first(query, key, value):
    out, allowed = torch.zeros_like(query), triangle(query.shape[2])
    for start in reversed(range(0, query.shape[2], 16)):
        chunk = slice(start, min(start + 16, query.shape[2]))
        out[:, :, chunk] = sdpa(query[:, :, chunk], key, value, allowed[chunk])
    return out


def test_chunks_in_another_order_are_refused():
    """Which positions the queries of a call are is checked, and not guessed."""
    with pytest.raises(UnsupportedModel, match=r"attention of layer 0 sums to|information moves between positions"):
        measure_heads(Positioned(Attention(last_chunk_first), Attention(last_chunk_first)))


@pytest.mark.parametrize("spans", [[(5, 5), (5, 10), (3, 13)], [(5, 13), (8, 13)], [(5, 5), (8, 9)], [(13, 13)]])
def test_a_chunked_reader_reads_what_a_whole_pattern_holds(spans):
    """Diagonals, columns, pairs and rows of chunks over keys to their end, over all keys, over the last ones."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(2, 3, 13, 13, generator=generator).tril()
    chunks, start = [], 0
    for queries, keys in spans:
        end = start + queries
        first = 0 if keys == 13 else end - keys
        whole[:, :, start:end, :first] = 0
        rows = whole[:, :, start:end, first : first + keys].clone()
        chunks.append(QueryChunk(lambda rows=rows: rows, range(start, end), range(first, first + keys), rows.device, rows.dtype))
        start = end
    one, other = ChunkedReader(chunks), PatternReader(whole)
    assert one.n_heads == 3
    for first in (True, False):
        assert torch.equal(one.diagonals([0, 1, 4, 12, 13], first=first), other.diagonals([0, 1, 4, 12, 13], first=first))
    keys = torch.tensor([4, 11])
    assert torch.equal(one.columns(keys), other.columns(keys))
    rows, queries, places = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 4, 12, 9]), torch.tensor([0, 2, 12, 12])
    assert torch.equal(one.pairs(rows, queries, places), other.pairs(rows, queries, places))
    for queries in (range(13), range(4, 9), range(6, 7)):
        assert torch.equal(one.pattern_of(queries), other.pattern_of(queries))


# What is no layer


def one_feeds_the_other(query, key, value):
    first, second = each_head(query, key, value)
    found = fused(*first)
    return torch.cat([found, fused(second[0] + found, *second[1:])], 1)


def one_feeds_the_other_through_a_buffer(query, key, value):
    first, second = each_head(query, key, value)
    kept = torch.zeros_like(first[0])
    kept[:, :, 1:] = fused(*first)[:, :, 1:] / 2
    return torch.cat([fused(*first), fused(second[0] + kept, *second[1:])], 1)


def mean_of_two(query, key, value):
    return (fused(query, key, value) + fused(query.flip(-1), key, value)) / 2


def side_by_side_and_subtracted(query, key, value):
    one, other = torch.cat([fused(query, key, value), fused(query.flip(-1), key, value)], 1).chunk(2, 1)
    return one - 0.5 * other


def subtracted_in_place(query, key, value):
    found = fused(query, key, value)
    found -= 0.5 * fused(query.flip(-1), key, value)
    return found


def one_dropped(query, key, value):
    fused(query.flip(-1), key, value)
    return fused(query, key, value)


def mixed_by_einsum(query, key, value):
    both = torch.stack([fused(query, key, value), fused(query.flip(-1), key, value)])
    return torch.einsum("nbhtd,n->bhtd", both, torch.tensor([1.0, -0.5]))


def mean_of_a_stack(query, key, value):
    return torch.stack([fused(query, key, value), fused(query.flip(-1), key, value)], -1).mean(-1)


def values_in_halves(query, key, value):
    return torch.cat([fused(query, key, half) for half in value.chunk(2, -1)], -1)


def heads_subtracted(query, key, value):
    """As the calls of differential attention are made: over halves of the values, and then heads from heads."""
    one, other = torch.cat([fused(query, key + 0, half) for half in value.chunk(2, -1)], -1).chunk(2, 1)
    return torch.cat([one - 0.5 * other, other], 1)


COMBINED = "what they give is combined by `{}`"
NEITHER = [
    (one_feeds_the_other, "one is computed from what another gives"),
    (one_feeds_the_other_through_a_buffer, ", and "),
    (mean_of_two, COMBINED.format("add")),
    (side_by_side_and_subtracted, COMBINED.format("sub")),
    (subtracted_in_place, COMBINED.format("(__isub__|sub_)")),
    (values_in_halves, "two attend by the same queries and keys"),
    (heads_subtracted, COMBINED.format("sub")),
    (mixed_by_einsum, COMBINED.format("einsum")),
    (mean_of_a_stack, COMBINED.format("mean")),
    (one_dropped, "what one gives is used nowhere"),
]


@pytest.mark.parametrize(("attend", "why"), NEITHER)
def test_calls_that_are_not_one_layer_are_refused_by_what_is_done_to_them(attend, why):
    """Sequential calls, sums, differences, also of what lay side by side before, and calls whose results are dropped."""
    with pytest.raises(UnsupportedModel, match=rf"`blocks.0.mixer` makes \d attention calls in one pass, .*{why}"):
        measure_heads(Positioned(Attention(attend), Attention(attend)))


@pytest.mark.parametrize("attend", [mean_of_two, side_by_side_and_subtracted, subtracted_in_place, one_dropped])
def test_they_are_refused_in_a_model_of_one_module_too(attend):
    """Where nothing but what is computed tells one layer from two."""
    with pytest.raises(UnsupportedModel, match="the model itself makes several attention calls in one pass that are neither"):
        measure_heads(plain(attend))


def test_the_heads_of_a_table_are_told_by_where_they_lie():
    """The follower alone: two calls of two heads, put side by side in turns."""
    outputs = CallOutputs()
    one, other = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    outputs.gave(0, one, 2)
    outputs.gave(1, other, 2)
    both = torch.stack([other, one], 2)
    outputs.after(torch.stack, ([other, one], 2), {}, both)
    flat = both.flatten(1, 2)
    outputs.after(torch.flatten, (both, 1, 2), {}, flat)
    assert outputs.apart([0, 1]) == ", and what one gives is used nowhere"
    outputs.after(torch.exp, (flat,), {}, flat.exp())
    assert outputs.apart([0, 1]) == ""
    assert outputs.order([0, 1]) == [2, 0, 3, 1]


# Memory


def test_what_a_layer_found_is_not_held_while_others_run():
    """Verification needs the memory of one layer, and not that of all."""
    memories, held = [], []

    def watched(query, key, value):
        held.append(sum(not memory.expired() for memory in memories))
        found = fused(query, key, value)
        memories.append(StorageWeakRef(found.untyped_storage()))
        memories.append(StorageWeakRef(value.untyped_storage()))
        return found

    subject = load_model(Positioned(*(Attention(watched) for _ in range(6))))
    assert len(subject.backend.layers) == 6
    assert len(held) > 6 * 4
    assert max(held) <= 1


def test_memory_that_was_let_go_says_nothing_of_what_comes_to_lie_there():
    memory = np.zeros((1, 2, 3, 4), np.float32)
    outputs = CallOutputs()
    outputs.gave(0, first := torch.from_numpy(memory), 2)
    outputs.gave(1, second := torch.zeros(1, 2, 3, 4), 2)
    del first
    stranger = torch.from_numpy(memory)  # lies where the first one lay
    both = torch.cat([stranger, second])
    outputs.after(torch.cat, ([stranger, second],), {}, both)
    outputs.after(F.linear, (both, torch.ones(4, 4)), {}, F.linear(both, torch.ones(4, 4)))
    assert outputs.apart([1]) == ""
    assert outputs.apart([0]) == ", and what one gives is used nowhere"
