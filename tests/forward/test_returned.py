"""What a model returns: logits are found by what they are, and whatever is none is refused by name."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_induction import assert_no_induction_head, load_model, measure_heads
from pytest_induction.errors import ModelError
from tests.attention.recorded import Positioned, assert_right, probe, true_patterns
from tests.attention.test_hand_written import Attention, fused


class Named(NamedTuple):
    state: torch.Tensor
    scores: torch.Tensor


@dataclass
class Result:
    loss: Any
    predictions: torch.Tensor


class Returning(Positioned):
    """Returns what `change` makes of its hidden state and its logits."""

    def __init__(self, change, attend=fused):
        torch.manual_seed(0)
        super().__init__(Attention(attend), Attention(attend))
        self.change = change

    def forward(self, tokens):
        hidden = self.through(self.embed(tokens) + self.positions[: tokens.shape[1]])
        return self.change(hidden, self.out(hidden))


def plain():
    return Returning(lambda hidden, logits: logits)


READ = {
    "second of two": lambda hidden, logits: (hidden, logits),
    "behind None": lambda hidden, logits: (None, logits),
    "by another name": lambda hidden, logits: {"last_hidden_state": hidden, "pred": logits},
    "of a dataclass": lambda hidden, logits: Result(None, logits),
    "of a named tuple": lambda hidden, logits: Named(hidden, logits),
    "deep inside": lambda hidden, logits: {"out": (hidden, {"scores": logits})},
    "rows and positions in one": lambda hidden, logits: logits.flatten(0, 1),
    "positions and rows in one": lambda hidden, logits: logits.transpose(0, 1).flatten(0, 1),
    "ids before positions": lambda hidden, logits: logits.transpose(1, 2),
    "ids first": lambda hidden, logits: logits.movedim(2, 0),
    "positions first": lambda hidden, logits: logits.transpose(0, 1),
    "an axis more": lambda hidden, logits: logits[:, :, None],
    "twice": lambda hidden, logits: (logits, logits.clone()),
    "by name, beside others": lambda hidden, logits: {"aux": logits.flip(-1), "logits": logits},
    "in chunks of positions": lambda hidden, logits: list(logits.chunk(3, 1)),
    "all but the last": lambda hidden, logits: logits[:, :-1],
    "with room for more ids": lambda hidden, logits: F.pad(logits, (0, 8), value=-20.0),
}
LOGGED = {
    "logarithms of probabilities": lambda hidden, logits: logits.log_softmax(-1),
    "probabilities": lambda hidden, logits: logits.softmax(-1),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_logits_are_found_wherever_they_are(change):
    """The logits are those of the model that returns them alone, to the bit, and so are the patterns."""
    subject, tokens = load_model(Returning(change)), probe()
    expected = plain()(tokens)
    assert torch.equal(subject.logits(tokens)[..., : expected.shape[2]], expected)
    assert_right(subject, tokens, patterns=true_patterns(plain(), tokens))


@pytest.mark.parametrize("change", LOGGED.values(), ids=LOGGED)
def test_distributions_are_read_as_their_logarithm(change):
    """What sums to one over the ids is a distribution: the logarithm of it has the same losses as the logits."""
    subject, tokens = load_model(Returning(change)), probe()
    assert torch.allclose(subject.logits(tokens), plain()(tokens).log_softmax(-1), atol=1e-4)
    assert_right(subject, tokens, patterns=true_patterns(plain(), tokens))


NOT_ONE = {
    "hidden states": (lambda hidden, logits: hidden, "next-token logits of every position"),
    "labels": (lambda hidden, logits: logits.argmax(-1), "next-token logits of every position"),
    "values": (lambda hidden, logits: hidden[..., 0], "next-token logits of every position"),
    "values with an axis": (lambda hidden, logits: hidden[..., :1], "next-token logits of every position"),
    "a few classes": (lambda hidden, logits: logits[..., :9], "its token embedding has 40 rows"),
    "a loss": (lambda hidden, logits: logits.logsumexp(-1).mean(), "next-token logits of every position"),
    "nothing": (lambda hidden, logits: None, "returned `NoneType`"),
    "the last position": (lambda hidden, logits: logits[:, -1:], "logits of the last position only"),
    "the last position, flat": (lambda hidden, logits: logits[:, -1], "logits of the last position only"),
    "all but the first": (lambda hidden, logits: logits[:, 1:], "the first one's are missing"),
    "more positions": (lambda hidden, logits: F.pad(logits, (0, 0, 3, 0)), "3 positions more than ids"),
    "two of a kind": (lambda hidden, logits: (logits, -logits), r"output\[0\] and output\[1\] may both be its logits"),
}


@pytest.mark.parametrize(("change", "why"), NOT_ONE.values(), ids=NOT_ONE)
def test_what_is_no_logits_is_refused_by_name(change, why):
    """One line, also of the assertion that nothing is there: it must not pass for want of predictions."""
    for judge in (measure_heads, assert_no_induction_head):
        with pytest.raises(ModelError, match=why) as caught:
            judge(Returning(change))
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("Returning")


class Narrow(nn.Module):
    """As wide as it has ids, so that a hidden state has the shape of logits."""

    def __init__(self, returned):
        super().__init__()
        self.embed, self.attention, self.norm = nn.Embedding(16, 16), Attention(fused), nn.LayerNorm(16)
        self.out, self.returned = nn.Linear(16, 16), returned

    def forward(self, tokens):
        embedded = self.embed(tokens)
        hidden = self.norm(embedded + self.attention(embedded))
        logits = self.out(hidden)
        returned = {"hidden": hidden, "own": F.layer_norm(hidden, (16,)), "logits": logits, "both": (hidden, logits)}
        return returned[self.returned]


@pytest.mark.parametrize("returned", ["hidden", "own"])
def test_a_hidden_state_as_wide_as_the_vocabulary_is_none(returned):
    """What a norm returns is no prediction, whatever its width."""
    for whole in ("logits", "both"):
        torch.manual_seed(0)
        model, tokens = Narrow(whole), torch.randint(16, (2, 9))
        torch.manual_seed(0)
        assert torch.equal(load_model(model).logits(tokens), Narrow("logits")(tokens))
    with pytest.raises(ModelError, match="next-token logits of every position"):
        load_model(Narrow(returned))


class Shifted(Returning):
    """Predicts each token from those before it, in its own place: right for its training loss, one place late for probes."""

    def forward(self, tokens):
        return super().forward(F.pad(tokens[:, :-1], (1, 0)))


def test_logits_that_are_shifted_already_are_refused():
    """Position t of such logits predicts token t, and a loss of the next token would be nonsense."""
    with pytest.raises(ModelError, match="the logits of Shifted are shifted"):
        load_model(Shifted(lambda hidden, logits: logits))


def test_fewer_logits_than_ids_are_told():
    """Ids that are never predicted, as special ones may be, are left out of probes, and a note says so."""
    subject = load_model(Returning(lambda hidden, logits: logits[..., :36]))
    assert subject.space.d_vocab == 36
    assert any("predicts ids 0 to 35 of the 40" in note for note in subject.notes)


class Tokenizer:
    """One id for each character."""

    def __init__(self, size):
        self.size = size
        self.all_special_ids = []

    def __len__(self):
        return self.size

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) % self.size for letter in text]


def test_half_a_vocabulary_that_is_padding_is_told():
    """Ids beyond the tokenizer, and ids that share one row of the table, are in no probe."""
    model = plain()
    model.tokenizer = Tokenizer(20)
    subject = load_model(model)
    assert subject.space.excluded == set(range(20, 40))
    assert any("ids 20 to 39 are not tokens of its tokenizer" in note for note in subject.notes)
    model = plain()
    with torch.no_grad():
        model.embed.weight[25:] = 0
    subject = load_model(model)
    assert subject.space.excluded == set(range(25, 40))
    assert any("15 ids have no embedding of their own" in note for note in subject.notes)


def test_the_id_that_an_embedding_keeps_for_padding_is_in_no_probe():
    """Positions may be counted without it, so that it changes what other tokens are given."""
    model = plain()
    model.embed.padding_idx = 3
    assert load_model(model).space.excluded == {3}


def test_a_tokenizer_with_more_ids_than_the_embedding_is_told():
    """Not an index error in the middle of a pass: the line names both numbers."""
    from pytest_induction import assert_learns_in_context

    model = plain()
    model.tokenizer, model.n_ctx = Tokenizer(90), 128
    assert any("its tokenizer has 90 ids, and the model 40" in note for note in load_model(model).notes)
    with pytest.raises(ModelError, match=r"its tokenizer gives id \d+, and the model has ids 0 to 39"):
        assert_learns_in_context(model, text="PQR xyz " * 90)
