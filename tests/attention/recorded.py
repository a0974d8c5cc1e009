"""Small models whose true patterns are written out in double precision, whatever it is that computes their attention."""

import numpy as np
import torch
from torch import nn

from pytest_induction import ModelUnderTest, measure_heads
from tests.attention.eager import spread
from tests.attention.patterns import worst_difference
from tests.attention.test_hand_written import Blocks

CLOSE = 1e-5
FAR_FROM_UNIFORM = 0.2


class Positioned(Blocks):
    """Blocks that know where a token stands, with weights that are large enough for patterns far from uniform."""

    def __init__(self, *mixing_modules, declared=None):
        super().__init__(*mixing_modules, declared=declared)
        self.positions = nn.Parameter(torch.randn(160, 16) / 2)
        with torch.no_grad():
            for weight in self.blocks.parameters():
                weight.mul_(2.5)

    def forward(self, tokens):
        return self.out(self.through(self.embed(tokens) + self.positions[: tokens.shape[1]]))

    def through(self, x):
        for block in self.blocks:
            x = x + block["mixer"](x)
        return x


def probe(positions=48, period=16, rows=3, d_vocab=40):
    """Token ids (rows, positions) that repeat after `period`, each row another sequence."""
    generator = torch.Generator().manual_seed(1)
    blocks = torch.stack([torch.randperm(d_vocab, generator=generator)[:period] for _ in range(rows)])
    return blocks.repeat(1, -(-positions // period))[:, :positions]


def triangle(positions):
    return torch.ones(positions, positions).tril().bool()


def causal(query, key, *, scale=None, allowed=True, added=0.0):
    """The causal pattern of queries and keys (batch, heads, positions, d_head)."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query.double() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale) + added
    return scores.masked_fill(~(triangle(scores.shape[-1]) & allowed), -torch.inf).softmax(-1)


def true_patterns(model, tokens, truth=causal):
    """What `truth` makes of the queries and keys that every `attend` of the model's parts is given, in order."""
    patterns = []

    def recording(attend):
        def attended(query, key, value):
            patterns.append(truth(query, key))
            return attend(query, key, value)

        return attended

    parts = [(part, part.attend) for part in model.modules() if hasattr(part, "attend")]
    for part, attend in parts:
        part.attend = recording(attend)
    with torch.no_grad():
        model(tokens)
    for part, attend in parts:
        part.attend = attend
    return patterns


def assert_right(subject, tokens=None, truth=causal, patterns=None):
    """Every head has the scores of its true pattern, and those patterns are far enough from uniform to tell them apart."""
    tokens = probe() if tokens is None else tokens
    if patterns is None:
        patterns = true_patterns(subject.module if isinstance(subject, ModelUnderTest) else subject, tokens, truth)
    assert spread(patterns) > FAR_FROM_UNIFORM
    assert worst_difference(subject, tokens, patterns) < CLOSE
    there = np.isfinite(measure_heads(subject, tokens=tokens).prefix_matching)
    assert there.sum(axis=1).tolist() == [pattern.shape[1] for pattern in patterns]
