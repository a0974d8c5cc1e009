"""Arguments that cannot be used, and models that cannot be run, in one line each; models with odd logits, measured."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from pytest_induction import assert_copies_repeats, load_model, measure_heads
from pytest_induction.errors import ArgumentError, ModelError
from tests.attention.recorded import Positioned, assert_right, probe
from tests.attention.test_hand_written import Attention, fused


def model(kind=Positioned):
    return kind(Attention(fused))


def in_one_line(caught, kind):
    """It is of exactly this kind, and one line."""
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[3]], "`tokens` must have at least 3 positions, got 1"),
        ([[3, 3]], "`tokens` must have at least 3 positions, got 2"),
        ([[1, 2], [1]], "`tokens` must be integer ids (sequences, positions): expected sequence of length 2"),
        ("abc", "`tokens` must be integer ids (sequences, positions): "),
        ([[None, 1, 2]], "`tokens` must be integer ids (sequences, positions): "),
        ({"ids": [[1, 2, 1]]}, "`tokens` must be integer ids (sequences, positions): "),
        ([1, 2, 1], "`tokens` must be integer ids (sequences, positions), got torch.int64 (3,)"),
        ([[1.0, 2.0, 1.0]], "`tokens` must be integer ids (sequences, positions), got torch.float32 (1, 3)"),
        ([[True, False, True]], "`tokens` must be integer ids (sequences, positions), got torch.bool (1, 3)"),
        (np.array([["a", "b", "a"]]), "`tokens` must be integer ids (sequences, positions): "),
        ([[1, -2, 1]], "token ids must lie from 0 to 39, got -2 to 1"),
    ],
)
def test_tokens_that_are_no_rows_of_ids_are_one_line(tokens, message):
    """What cannot be made a tensor, has no rows, or has no integers is told as such."""
    with pytest.raises(ArgumentError, match=re.escape(message)) as caught:
        measure_heads(model(), tokens=tokens)
    in_one_line(caught, ArgumentError)


@pytest.mark.parametrize("tokens", [probe().tolist(), probe().numpy(), probe().int(), probe().numpy().astype(np.uint8)])
def test_ids_may_come_as_lists_arrays_and_any_integers(tokens):
    """They are the same ids."""
    subject = load_model(model())
    wanted, found = (measure_heads(subject, tokens=ids).prefix_matching for ids in (probe(), tokens))
    np.testing.assert_array_equal(found, wanted)


LEAST = {"n_sequences": 1, "period": 1, "repeats": 2, "seed": 0}


@pytest.mark.parametrize("value", [2.5, 4.0, "4", True, False, [4], -1, "least"])
@pytest.mark.parametrize("name", LEAST)
def test_numbers_must_be_whole_and_large_enough(name, value):
    """A fraction, a string, a truth value, a list or too small a number is told with what it must be."""
    value = LEAST[name] - 1 if value == "least" else value
    with pytest.raises(ArgumentError) as caught:
        measure_heads(model(), **{name: value})
    in_one_line(caught, ArgumentError)
    assert str(caught.value) == f"`{name}` must be a whole number from {LEAST[name]} up, got {value!r}"


@pytest.mark.parametrize("name", ["n_sequences", "repeats"])
def test_what_has_no_meaning_of_none_is_told_so(name):
    """The period varies and the seed is the model's where none is given; these must be numbers."""
    with pytest.raises(ArgumentError, match=f"`{name}` must be a whole number"):
        measure_heads(model(), **{name: None})


def test_whole_numbers_of_numpy_are_whole_numbers():
    """What counts as an index in Python counts here."""
    one, other = (measure_heads(model(), n_sequences=kind(6), period=kind(9), seed=kind(3)) for kind in (int, np.int64))
    assert one.prefix_matching.shape == other.prefix_matching.shape
    assert one.provenance.probe == other.provenance.probe == "period 9, 4 copies"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.ones(2, 3)}, "`attention_mask` belongs to `tokens`, which were not given"),
        (
            {"tokens": [[1, 2, 1, 2]], "attention_mask": torch.ones(1, 3)},
            "`attention_mask` must have the shape of `tokens`, (1, 4), got (1, 3)",
        ),
    ],
)
def test_a_mask_that_belongs_to_no_tokens_is_one_line(options, message):
    """It would be ignored, or mark other positions."""
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        measure_heads(model(), **options)


# Models that raise


class Raising(Positioned):
    """Raises what it is told, beyond as many positions as it is told."""

    error: Exception
    beyond = 0

    def forward(self, tokens):
        if tokens.shape[1] > self.beyond:
            raise self.error
        return super().forward(tokens)


def raising(error, beyond=0, **attributes):
    made = model(Raising)
    for name, value in {"error": error, "beyond": beyond, **attributes}.items():
        setattr(made, name, value)
    return made


class Foreign(Exception):
    """An error of a library that nobody here knows."""


ERRORS = [
    ImportError("flash_attn is missing"),
    NameError("name 'x' is not defined"),
    OSError("no such file"),
    KeyError(64),
    AttributeError("no attribute 'y'"),
    StopIteration(),
    RecursionError("maximum recursion depth exceeded"),
    ZeroDivisionError("division by zero"),
    NotImplementedError(),
    AssertionError("first\nsecond"),
    Foreign("of a type-checker"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_model_raises_is_one_line(error):
    """The line names the model, what it was given and what it raised."""
    said = rf"^Raising must map token ids .* to logits; given \(3, 11\) it raised {type(error).__name__}: "
    with pytest.raises(ModelError, match=said) as caught:
        load_model(raising(error))
    in_one_line(caught, ModelError)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_model_raises_on_a_probe_is_one_line(error):
    """A context that is declared too long is told with the error that contradicts it."""
    said = r"^Raising failed on token ids \(3, 64\) \(its context is said to be 100\): "
    with pytest.raises(ModelError, match=said) as caught:
        measure_heads(raising(error, beyond=60, n_ctx=100), tokens=probe(64))
    in_one_line(caught, ModelError)
    with pytest.raises(ModelError, match=r"^Raising failed on token ids \(\d+, \d+\) \(its context is said to be 100\): "):
        assert_copies_repeats(raising(error, beyond=60, n_ctx=100))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_undeclared_context_is_found_by_trial_whatever_ends_it(error):
    """Longer rows are refused before the model sees them, and shorter ones are measured."""
    subject = load_model(raising(error, beyond=40))
    assert subject.space.n_ctx == 40
    assert_right(subject, probe(40))
    with pytest.raises(ArgumentError, match=r"^`tokens` has 41 positions, the context has 40$"):
        measure_heads(subject, tokens=probe(41))


def test_a_context_of_ten_positions_is_long_enough():
    """Models with less context than is tried first are tried with less."""
    subject = load_model(raising(ValueError("too long"), beyond=10))
    assert subject.space.n_ctx == 10
    assert_right(subject, probe(10, period=5))


def test_a_model_without_weights_is_one_line():
    """On the meta device there is nothing to measure."""
    message = "Positioned lies on the meta device and has no weights: load or initialise them"
    with pytest.raises(ModelError, match=f"^{message}$"):
        load_model(model().to("meta"))


# Models with more logits than tokens


class Wide(Positioned):
    """Gives more logits than its embedding has rows, as heads do that are padded to a round number."""

    def __init__(self, *mixing_modules):
        super().__init__(*mixing_modules)
        self.out = nn.Linear(16, 64)


class Closed(Positioned):
    """Sets the logits of what is no token to minus infinity."""

    def forward(self, tokens):
        logits = super().forward(tokens)
        return torch.cat([logits, torch.full((*tokens.shape, 2), -torch.inf)], -1)


@pytest.mark.parametrize("kind", [Wide, Closed])
def test_a_vocabulary_that_is_padded_is_measured_where_its_size_is_told(kind):
    """`vocab_size` says which ids are tokens; probes use no other, and losses count no other."""
    made = model(kind)
    made.vocab_size = 40
    subject = load_model(made)
    assert subject.space.d_vocab == 40
    assert_right(subject)
    assert measure_heads(subject).provenance.n_sequences == 24
    with pytest.raises(ArgumentError, match="token ids must lie from 0 to 39, got 40 to 40"):
        measure_heads(subject, tokens=torch.full((1, 12), 40))
    with pytest.raises(AssertionError, match="copies_repeats is REFUTED"):
        assert_copies_repeats(subject)


def test_a_vocabulary_that_is_padded_far_is_one_line_where_its_size_is_not_told():
    """What is half as wide again as the embedding has rows may be another thing; the line says how to tell that it is not."""
    said = r"expected next-token logits .* its token embedding has 40 rows; if these are logits that are padded, .* `vocab_size`"
    with pytest.raises(ModelError, match=said) as caught:
        load_model(model(Wide))
    in_one_line(caught, ModelError)


def test_a_few_ids_that_are_none_need_not_be_told():
    """The rows of the embedding tell how many ids there are."""
    subject = load_model(model(Closed))
    assert subject.space.d_vocab == 40
    assert_right(subject)


class Inferring(Positioned):
    """Runs in inference mode, whatever calls it."""

    @torch.inference_mode()
    def forward(self, tokens):
        return super().forward(tokens)


def test_a_forward_pass_under_inference_mode_is_measured():
    """Its tensors are none that autograd may touch, and nothing does."""
    made = Inferring(Attention(fused), Attention(fused))
    assert_right(made)
    with pytest.raises(AssertionError, match="copies_repeats is REFUTED"):
        assert_copies_repeats(made)
