"""PyTorch's own attention modules and compiler: seen whole, on every path that they may take."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import load_model, measure_heads
from pytest_induction.errors import UnsupportedModel
from tests.measuring import slow
from tests.model.plain import Plain, by_hand

HEADS, WIDTH, D_VOCAB = 4, 32, 50


def causal_mask(positions):
    return torch.ones(positions, positions, dtype=torch.bool).triu(1)


class OfModules(nn.Module):
    """Embedding, whatever makes of it what it makes under a causal mask, unembedding."""

    def __init__(self, body, run):
        super().__init__()
        self.embed, self.out = nn.Embedding(D_VOCAB, WIDTH), nn.Linear(WIDTH, D_VOCAB)
        self.body, self.run = body, run
        with torch.no_grad():
            for weight in self.parameters():
                weight.mul_(2)  # so that no pattern is flat

    def forward(self, tokens):
        return self.out(self.run(self.body, self.embed(tokens), causal_mask(tokens.shape[1])))


def multi_head(**how):
    def run(layers, x, mask):
        for layer in layers:
            x = x + layer(x, x, x, attn_mask=mask, **how)[0]
        return x

    return OfModules(nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2)), run)


def positions_first():
    def run(layers, x, mask):
        x = x.transpose(0, 1)
        for layer in layers:
            x = x + layer(x, x, x, attn_mask=mask)[0]
        return x.transpose(0, 1)

    return OfModules(nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS) for _ in range(2)), run)


class InOrder(nn.MultiheadAttention):
    """Calls the function with its arguments in order, as libraries with modules of their own do."""

    def forward(self, query, key, value, need_weights=True, attn_mask=None):
        x = query.transpose(0, 1)
        weights = (self.in_proj_weight, self.in_proj_bias, None, None, False, 0.0, self.out_proj.weight, self.out_proj.bias)
        output, pattern = F.multi_head_attention_forward(x, x, x, WIDTH, HEADS, *weights, False, None, need_weights, attn_mask)
        return output.transpose(0, 1), pattern


def in_order(need_weights):
    def run(layers, x, mask):
        for layer in layers:
            x = x + layer(x, x, x, need_weights, mask)[0]
        return x

    return OfModules(nn.ModuleList(InOrder(WIDTH, HEADS, batch_first=True) for _ in range(2)), run)


def encoder(**how):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, **how)
    return OfModules(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), lambda body, x, mask: body(x, mask=mask, is_causal=True)
    )


def decoder():
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 64, batch_first=True)
    memory = torch.randn(1, 5, WIDTH)
    return OfModules(nn.TransformerDecoder(layer, 2), lambda body, x, mask: body(x, memory.expand(len(x), -1, -1), tgt_mask=mask))


KINDS = {
    "weights not asked for": lambda: multi_head(need_weights=False),
    "weights asked for": lambda: multi_head(need_weights=True),
    "weights of each head asked for": lambda: multi_head(need_weights=True, average_attn_weights=False),
    "causal hint": lambda: multi_head(need_weights=False, is_causal=True),
    "arguments in order": lambda: in_order(need_weights=False),
    "arguments in order, with weights": lambda: in_order(need_weights=True),
    "positions first": positions_first,
    "encoder layers": encoder,
    "encoder layers, norm first": lambda: encoder(norm_first=True),
    "decoder layers": decoder,
}


def projections(model, tokens):
    """The pattern of each self-attention module, by hand from what goes into it."""
    found = []

    def listen(module, inputs, keywords):
        x = inputs[0] if inputs else keywords["query"]
        if inputs[1] is not inputs[0]:
            return  # cross-attention
        x = x if module.batch_first else x.transpose(0, 1)
        query, key, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
        query, key = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2).double() for part in (query, key))
        scores = query @ key.mT / (WIDTH // HEADS) ** 0.5
        found.append(scores.masked_fill(causal_mask(x.shape[1]), -torch.inf).softmax(-1))

    attentions = (part for part in model.modules() if isinstance(part, nn.MultiheadAttention))
    handles = [part.register_forward_pre_hook(listen, with_kwargs=True) for part in attentions]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_modules_are_measured_on_every_path(kind, training):
    """Also where one C++ call would compute a whole encoder layer: scores equal those of the projections by hand."""
    model = KINDS[kind]().train(training)
    tokens = torch.randperm(D_VOCAB, generator=torch.Generator().manual_seed(0))[:13].repeat(2, 3)[:, :37]
    patterns = projections(model.eval(), tokens)
    found = measure_heads(model.train(training), tokens=tokens)
    assert found.provenance.backend == "sdpa"
    assert model.training is training
    for layer, head in np.ndindex(2, HEADS):
        wanted = slow.head_scores(patterns[layer, 0, head].numpy(), tokens[0].tolist())
        for name, score in wanted.items():
            assert found.per_sequence[name][0, layer, head] == pytest.approx(score, abs=1e-5)


def test_the_fast_path_is_what_it_was_afterwards():
    """The switch is the process's, and belongs to the user."""
    for setting in (True, False):
        torch.backends.mha.set_fastpath_enabled(setting)
        try:
            measure_heads(encoder())
            assert torch.backends.mha.get_fastpath_enabled() is setting
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert F.multi_head_attention_forward.__module__ == "torch.nn.functional"


def test_self_attention_over_more_than_the_positions_is_refused():
    """Keys of its own before the sequence shift every diagonal; that is said, not measured."""

    def with_memory(query, key, value):
        memory = torch.zeros(len(query), 2, 3, 8)
        key, value = torch.cat([memory, key], 2), torch.cat([memory, value], 2)
        mask = torch.cat([torch.ones(query.shape[2], 3), torch.ones(query.shape[2], query.shape[2]).tril()], 1).bool()
        return F.scaled_dot_product_attention(query, key, value, mask)

    calls = iter(range(10**6))
    with pytest.raises(
        UnsupportedModel,
        match="sdpa: the model itself attends from 11 positions to 14 keys, which follow the number of positions",
    ):
        measure_heads(Plain(with_memory))

    def every_other(*args):
        return with_memory(*args) if next(calls) % 2 else F.scaled_dot_product_attention(*args, is_causal=True)

    with pytest.raises(UnsupportedModel, match="attends from 11 positions to 14 keys, which follow the number of positions"):
        measure_heads(Plain(every_other))


COMPILED = {
    "a module": lambda model: torch.compile(model, backend="eager"),
    "in place": lambda model: (model.compile(backend="eager"), model)[1],
    "a part of a module": lambda model: (setattr(model, "out", torch.compile(model.out, backend="eager")), model)[1],
    "its attention, by inductor": lambda model: (
        setattr(model, "attend", torch.compile(lambda *parts: F.scaled_dot_product_attention(*parts, is_causal=True))),
        model,
    )[1],
    "its attention by hand": lambda model: (setattr(model, "attend", torch.compile(by_hand, backend="eager")), model)[1],
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own code
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_model_is_measured_as_it_was_written(how):
    """Whatever was compiled, before it ever ran and after, the scores are those of the model; nothing is compiled again."""
    torch.manual_seed(1)
    plain = Plain()
    wanted = measure_heads(plain).prefix_matching
    torch.manual_seed(1)
    compiled = COMPILED[how](Plain())
    first = measure_heads(compiled)
    with torch.no_grad():
        compiled(torch.zeros(2, 9, dtype=torch.long))
    again = measure_heads(load_model(compiled))
    for found in (first, again):
        np.testing.assert_allclose(found.prefix_matching, wanted, atol=1e-6)
    if how in ("a module", "in place", "a part of a module"):
        assert "compiled; measured without compilation" in first.provenance.notes
