"""Small trainings to record."""

import torch
import torch.nn.functional as F
from torch import nn

D_VOCAB, CONTEXT = 24, 48


class Tiny(nn.Module):
    """Two attention layers with dropout, small enough to train in a test."""

    vocab_size, n_ctx = D_VOCAB, CONTEXT

    def __init__(self, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(D_VOCAB, 16)
        self.positions = nn.Embedding(CONTEXT, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(16, D_VOCAB)

    def forward(self, tokens):
        x = self.dropout(self.embed(tokens) + self.positions.weight[: tokens.shape[1]])
        for layer in self.layers:
            q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in layer(x).chunk(3, -1))
            rate = self.dropout.p if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
            x = x + self.dropout(attended.transpose(1, 2).flatten(-2))
        return self.out(x)


def rows(count, seed=0):
    """Token ids (count, 24) in which the second half repeats the first."""
    half = torch.randint(0, D_VOCAB, (count, 12), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], dim=1)


def loss_of(model, batch):
    return F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def train(model, steps, each_step=lambda *given: None, start=0):
    """A training loop by hand; `each_step` gets the model, the step and the loss, as a recorder does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(start, start + steps):
        loss = loss_of(model, rows(4, seed=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if each_step(model, step, loss) == "stop":
            break
    return optimizer


class Clock:
    """A clock that stands still unless somebody lets time pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds
