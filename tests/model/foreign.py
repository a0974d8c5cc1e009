"""Language models in the styles that people write themselves, in our own words, and quantised layers."""

import math

import torch
import torch.nn.functional as F
from torch import nn

D_VOCAB, N_CTX, WIDTH, HEADS = 61, 64, 32, 4


class CausalSelfAttention(nn.Module):
    """One projection to queries, keys and values; the fused function where asked for, else a buffer of ones as the mask."""

    def __init__(self, flash):
        super().__init__()
        self.flash = flash
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("mask", torch.ones(N_CTX, N_CTX).tril().view(1, 1, N_CTX, N_CTX))

    def weigh(self, pattern):
        return self.attn_dropout(pattern)

    def attend(self, query, key, value):
        if self.flash:
            dropout = self.attn_dropout.p if self.training else 0
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        positions = query.shape[2]
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(key.shape[-1]))
        scores = scores.masked_fill(self.mask[:, :, :positions, :positions] == 0, -math.inf)
        return self.weigh(F.softmax(scores, dim=-1)) @ value

    def forward(self, x):
        parts = self.c_attn(x).split(WIDTH, dim=2)
        query, key, value = (part.view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in parts)
        mixed = self.attend(query, key, value).transpose(1, 2).contiguous().view_as(x)
        return self.resid_dropout(self.c_proj(mixed))


class Minimal(CausalSelfAttention):
    """Three projections, as the smaller teaching code has them, and a softmax called as a method."""

    def __init__(self):
        super().__init__(flash=False)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        query, key, value = (part(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(key.shape[-1])
        scores = scores + torch.full_like(scores, -1e9).triu(1)
        mixed = torch.einsum("bhqk,bhkd->bqhd", self.weigh(scores.softmax(-1)), value)
        return self.c_proj(mixed.reshape(x.shape))


class Mixed(Minimal):
    """Heads are mixed after the softmax, by weights that mix nothing at first."""

    def __init__(self, mix):
        super().__init__()
        self.mixing, self.mix = nn.Parameter(torch.eye(HEADS)), mix

    def weigh(self, pattern):
        return self.mix(pattern, self.mixing)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Language(nn.Module):
    """Logits and a loss, as training code wants them."""

    def __init__(self, attention, layers=2, checkpointed=False):
        super().__init__()
        torch.manual_seed(2)
        self.block_size, self.checkpointed = N_CTX, checkpointed
        self.wte, self.wpe, self.drop = nn.Embedding(D_VOCAB, WIDTH), nn.Embedding(N_CTX, WIDTH), nn.Dropout(0.1)
        self.h = nn.ModuleList(Block(attention()) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, D_VOCAB, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2 and weight.shape != (HEADS, HEADS):
                nn.init.normal_(weight, std=0.3)

    def forward(self, idx, targets=None):
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device)))
        for block in self.h:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        logits = self.lm_head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class Int8Linear(nn.Module):
    """Weights of eight bits with a scale for each row, multiplied in the precision of the input."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def weights_of_eight_bits(module):
    """Replace every linear layer but the last by one with weights of eight bits."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(parent, name, Int8Linear(child))
    return module
