"""Factories of tiny models, to be named as `path/small_models.py:make`; and what loads a checkpoint into one by hand."""

import mmap
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

HERE = Path(__file__)
MAKE = f"{HERE}:make"


class Evil:
    """Would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Small(nn.Module):
    """Two layers of attention and nothing else; token ids (batch, positions) to logits."""

    def __init__(self, width=16, layers=2, *, tied=False):
        super().__init__()
        self.n_ctx, self.vocab_size = 64, 40
        self.embed = nn.Embedding(40, width)
        self.places = nn.Embedding(64, width)
        self.layers = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(layers))
        self.unembed = nn.Linear(width, 40, bias=False)
        if tied:
            self.unembed.weight = self.embed.weight

    def forward(self, tokens):
        residual = self.embed(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            query, key, value, gate = (
                part.unflatten(-1, (2, -1)).transpose(1, 2)
                for part in layer(F.layer_norm(residual, residual.shape[-1:])).chunk(4, -1)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True) * torch.sigmoid(gate)
            residual = residual + mixed.transpose(1, 2).flatten(-2)
        return self.unembed(residual)


class Hoarder(Small):
    """Keeps what it made of its weights at the first pass, as some models do to be quick."""

    def forward(self, tokens):
        if not hasattr(self, "scaled"):
            self.scaled = self.unembed.weight.detach() * 2
        return super().forward(tokens) + F.linear(self.embed(tokens), self.scaled)


class Scan(nn.Module):
    """A recurrence whose gates depend on what it is given."""

    def __init__(self):
        super().__init__()
        self.gate, self.add = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        log_gate = F.logsigmoid(self.gate(x)).cumsum(1)
        return log_gate.exp() * ((-log_gate).exp() * self.add(x)).cumsum(1)


class Hybrid(Small):
    """Begins with two recurrences."""

    def __init__(self):
        super().__init__()
        self.scans = nn.ModuleList(Scan() for _ in range(2))
        self.embed = nn.Sequential(self.embed, *self.scans)


def make():
    return Small()


def make_hybrid():
    return Hybrid()


def make_tied():
    return Small(tied=True)


def make_hoarder():
    return Hoarder()


def make_compiled():
    return torch.compile(Small(), backend="eager")


def make_half():
    return Small().to(torch.bfloat16)


def make_none():
    return None


def make_broken():
    raise ValueError("out of luck\nand more")


def make_deadly():
    """Kills the process that makes it, as often as `DEADLY` (a file) has lines left."""
    left = Path(os.environ["DEADLY"])
    lines = left.read_text().splitlines() if left.exists() else []
    if lines:
        left.write_text("\n".join(lines[1:]))
        os._exit(3)
    return Small()


class Fatal(Small):
    """Kills its process when it runs with weights that begin with 7."""

    def forward(self, tokens):
        if float(self.embed.weight[0, 0]) == 7:
            os._exit(9)
        return super().forward(tokens)


class Cut(Small):
    """With weights that begin with 7 it maps a file, cuts it short, and reads on."""

    def forward(self, tokens):
        if float(self.embed.weight[0, 0]) == 7:
            with tempfile.TemporaryFile() as file:
                file.truncate(2**16)
                with mmap.mmap(file.fileno(), 2**16) as mapped:
                    file.truncate(0)
                    mapped.read()
        return super().forward(tokens)


class Held(Small):
    """With weights that begin with 5 it runs no further while `HOLD` (a file) exists."""

    def forward(self, tokens):
        while float(self.embed.weight[0, 0]) == 5 and Path(os.environ["HOLD"]).exists():
            time.sleep(0.01)
        return super().forward(tokens)


def make_fatal():
    return Fatal()


def make_cut():
    return Cut()


def make_held():
    return Held()


def state(seed, made=Small, first=None, **options):
    """Weights of a model whose attention is not flat, the same for the same seed, but for the very first."""
    torch.manual_seed(seed)
    model = made(**options)
    for weight in model.layers.parameters():
        nn.init.normal_(weight, std=0.5)
    if first is not None:
        model.embed.weight.data[0, 0] = first
    return model.state_dict()
