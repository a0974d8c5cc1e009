"""Rows with facts: every id where it should be, whatever the tokenizer, and what cannot be asked."""

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, ProbeError, TextError
from pytest_induction.planted import retrieval_head
from pytest_induction.probes.needles import CITIES, FILLER, NAMES, form_of, lengths_of, needle_rows
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=64, n_ctx=128, bos_id=0)
FACTS = retrieval_head().facts
WORDS = TokenSpace(d_vocab=5000, bos_id=0)


def encode(text):
    """A tokenizer of words: those with an O in them are of two tokens."""
    known = encode.known
    ids = []
    for word in text.replace(".", " .").split():
        parts = [word, "##"] if "O" in word else [word]
        ids += [known.setdefault(part, len(known) + 1) for part in parts]
    return ids


encode.known = {}


def text_of(ids):
    words = {token: word for word, token in encode.known.items()}
    return " ".join(words[token] for token in ids)


def rows_of(form, space=SPACE, length=64, n_facts=4, **options):
    return needle_rows(form, space, length, n_facts, rng=np.random.default_rng(0), n_sequences=40, **options)


def test_facts_of_ids_are_where_it_says():
    """Each value stands behind its name; the question is the name of the first; nothing else has ids of facts."""
    form = form_of(SPACE, None, FACTS)
    rows = rows_of(form)
    (link,) = FACTS["between"]
    assert rows.tokens.shape == (40, 64) and rows.n_facts == 4 and (rows.tokens[:, 0] == 0).all()
    for row, values, keys, place in zip(rows.tokens, rows.values, rows.keys, rows.places, strict=True):
        assert row[keys].tolist() == values.tolist() and (row[keys - 1] == link).all()
        assert row[-2:].tolist() == [row[keys[0] - 2], link]
        assert sorted(keys).index(keys[0]) == place
        names = row[keys - 2].tolist()
        assert set(names) <= set(FACTS["names"]) and len(set(names)) == len(set(values)) == 4
        special = np.isin(row, [*FACTS["names"], *FACTS["values"], link])
        assert special.sum() == 4 * 3 + 2
    assert set(rows.places.tolist()) == {0, 1, 2, 3} and len({tuple(row) for row in rows.tokens}) == 40
    assert (rows.with_values[:, 64:] == rows.values).all() and (rows.with_values[:, :64] == rows.tokens).all()


def test_places_lie_evenly_and_can_be_said():
    rows = rows_of(form_of(SPACE, None, FACTS), length=128 - 4, places=[2] * 40)
    assert (rows.places == 2).all()
    depths = np.sort(rows.keys, axis=1) / 124
    np.testing.assert_allclose(depths, np.tile([1 / 8, 3 / 8, 5 / 8, 7 / 8], (40, 1)), atol=0.05)


@pytest.mark.parametrize(
    ("wording", "asked"), [("literal", "{name} lives in"), ("reworded", "The home of {name} is the city of")]
)
def test_facts_of_words_are_sentences(wording, asked):
    form = form_of(WORDS, encode, wording=wording)
    assert len(form.names) == len(NAMES.split()) and len(form.values) == len([city for city in CITIES.split() if "O" not in city])
    rows = rows_of(form, WORDS, length=100)
    for row, keys in zip(rows.tokens, rows.keys, strict=True):
        assert len(row) == 100
        name, value = (text_of([row[keys[0] + shift]]) for shift in (-3, 0))
        text = text_of(row[1:])
        assert text.endswith(asked.format(name=name)) and text.count(f"{name} lives in {value} .") == 1
        assert text.count(" lives in ") == 4
        whole = [sentence for sentence in FILLER if text_of(encode(sentence)) in text]
        assert whole and all(" lives" not in sentence for sentence in whole)


def test_names_and_cities_are_in_no_filler():
    told = {*NAMES.split(), *CITIES.split()}
    assert not told & {word.strip(".,") for sentence in FILLER for word in sentence.split()}
    assert len(set(FILLER)) == len(FILLER) and not set(NAMES.split()) & set(CITIES.split())


def test_words_of_ones_own():
    facts = {"names": ["red", "blue", "green"], "values": ["one", "two", "three"], "between": " means"}
    rows = rows_of(form_of(WORDS, encode, facts), WORDS, length=60, n_facts=3)
    assert text_of(rows.tokens[0, -2:]).split()[1] == "means" and text_of(rows.values[0]).split()[0] in facts["values"]


def test_lengths_are_what_fits():
    form = form_of(SPACE, None, FACTS)
    assert lengths_of(form, SPACE, None, 4) == (124,)  # all values stand behind the question in some passes
    assert lengths_of(form, TokenSpace(d_vocab=64, bos_id=0), None, 4) == (128,)
    assert lengths_of(form, SPACE, [20, 40], 4) == (20, 40)


@pytest.mark.parametrize(
    ("facts", "encoder", "options", "error", "said"),
    [
        (None, None, {}, TextError, "there is no tokenizer: give it `tokenizer=`, or `facts=` of token ids"),
        ({"names": [1, 2]}, None, {}, ArgumentError, "`facts` must have `names` and `values`"),
        ({"names": [1, 2], "values": ["a", "b"]}, encode, {}, ArgumentError, "got words beside ids"),
        ({"names": [1, 2], "values": [2, 3]}, None, {}, ArgumentError, "no id twice"),
        ({"names": [1, 1], "values": [2, 3]}, None, {}, ArgumentError, "must have each id once"),
        ({"names": [1, 2], "values": [3, 99]}, None, {}, ArgumentError, "below 64 and not special, got 99"),
        ({"names": [0, 2], "values": [3, 4]}, None, {}, ArgumentError, "below 64 and not special, got 0"),
        (FACTS, None, {"wording": "reworded"}, ArgumentError, "'reworded' is of the facts of the package"),
        (FACTS, None, {"wording": "loud"}, ArgumentError, "`wording` must be literal or reworded, got 'loud'"),
    ],
)
def test_what_are_no_facts_is_one_line(facts, encoder, options, error, said):
    with pytest.raises(error, match=said) as caught:
        form_of(SPACE, encoder, facts, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lengths", "n_facts", "error", "said"),
    [
        (None, 1, ArgumentError, "`n_facts` must be at least 2, got 1: with a single fact whatever copies a value is right"),
        (None, 9, ProbeError, "9 facts need as many names and values of one token each, found 8"),
        (14, 4, ProbeError, "4 facts and a question need 15 positions, got 14"),
        (125, 4, ProbeError, "need 129, the context has 128"),
        ([], 4, ArgumentError, "`lengths` must be a number of positions or several, got none"),
    ],
)
def test_lengths_that_do_not_fit_are_one_line(lengths, n_facts, error, said):
    with pytest.raises(error, match=said):
        lengths_of(form_of(SPACE, None, FACTS), SPACE, lengths, n_facts)
