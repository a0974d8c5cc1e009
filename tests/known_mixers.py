"""Models without attention whose path of recall is known: a convolution binds key and value, a state keeps what was bound."""

import torch
from torch import nn

STRENGTH = 12.0
TINY = {  # what every config of transformers takes
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
}


class Binding(nn.Module):
    """Writes the token before into the second third of the stream, by a short convolution over one-hot tokens."""

    def __init__(self, ids):
        super().__init__()
        self.conv1d = nn.Conv1d(ids, ids, 3, groups=ids, padding=2, bias=False)
        with torch.no_grad():
            self.conv1d.weight.zero_()[:, 0, 1] = 1  # lags 2, 1, 0

    def forward(self, stream):
        ids = self.conv1d.in_channels
        before = self.conv1d(stream[..., :ids].mT)[..., : stream.shape[1]].mT
        return torch.cat([torch.zeros_like(before), before, torch.zeros_like(before)], dim=-1)


class Keeping(nn.Module):
    """A matrix state that adds up (token before) x (token); the current token looks up what followed it, for the last third."""

    def __init__(self, ids):
        super().__init__()
        self.ids, self.gain = ids, nn.Parameter(torch.ones(1))

    def forward(self, stream):
        token, before, _ = stream.split(self.ids, dim=-1)
        state, found = torch.zeros(len(stream), self.ids, self.ids), []
        for place in range(stream.shape[1]):
            state = state + before[:, place, :, None] * token[:, place, None, :]
            found.append((token[:, place, None, :] @ state)[:, 0] * self.gain)
        result = torch.stack(found, dim=1)
        return torch.cat([torch.zeros_like(result), torch.zeros_like(result), result], dim=-1)


class Both(nn.Module):
    """Both in one mixer, so that what is bound at a value never stands in the stream."""

    def __init__(self, ids):
        super().__init__()
        self.binding, self.keeping = Binding(ids), Keeping(ids)

    def forward(self, stream):
        return self.keeping(stream + self.binding(stream))


class Block(nn.Module):
    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, stream):
        return stream + self.mixer(stream)


class KnownRecall(nn.Module):
    """Recalls any number of pairs: in two blocks, or `at_once` in one. `strength` is a logit."""

    def __init__(self, ids=48, *, at_once=False):
        super().__init__()
        self.ids = ids
        self.embed = nn.Embedding.from_pretrained(torch.eye(ids, 3 * ids), freeze=False)
        mixers = [Both(ids)] if at_once else [Binding(ids), Keeping(ids)]
        self.blocks = nn.ModuleList(map(Block, mixers))

    def forward(self, input_ids):
        stream = self.embed(input_ids)
        for block in self.blocks:
            stream = block(stream)
        return STRENGTH * stream[..., 2 * self.ids :]
