"""Rows with words of several tokens: what stands where, which words are taken, and what cannot be asked."""

import numpy as np
import pytest

from pytest_induction.errors import ArgumentError, ProbeError, TextError
from pytest_induction.probes.concepts import LENGTH, MOST_PIECES, WORDS, positions_of, word_rows, words_of
from pytest_induction.records import TokenSpace

SPACE = TokenSpace(d_vocab=80, bos_id=0)
GIVEN = [(n, 10 + n) for n in range(1, 7)] + [(7, 17, 30), (8, 18, 31, 32, 33)]


def spelt(text):
    """A tokenizer: pieces of four letters, each an id of its own."""
    pieces = [text[start : start + 4] for start in range(0, len(text), 4)]
    return [1 + sum(map(ord, piece)) * 7 % 4001 for piece in pieces]


def test_a_row_has_the_word_where_the_same_random_ids_stood_before():
    words = words_of(SPACE, None, GIVEN)
    rows = word_rows(words, SPACE, 40, np.random.default_rng(0))
    repeated = LENGTH - MOST_PIECES
    assert rows.tokens.shape == (40, positions_of(words, SPACE)) == (40, 1 + 30 + 25 + 2)
    for clean, mixed, corrupt, other in zip(rows.tokens, rows.mixed, rows.corrupt, rows.other, strict=True):
        ends, again = clean[-2:].tolist(), clean[-2 - repeated : -2]
        (word,) = [word for word in GIVEN if list(word[:2]) == ends]
        line = clean[1 : 1 + LENGTH].tolist()
        assert line[-len(word) :] == list(word) and line[-len(word) - repeated : -len(word)] == again.tolist()
        assert len(set(again.tolist())) == repeated and not set(again.tolist()) & {token for each in GIVEN for token in each}
        line = mixed[1 : 1 + LENGTH].tolist()
        (rest,) = [each[1:] for each in GIVEN if line[-len(each) + 1 :] == list(each[1:])]
        assert line[-len(rest) - 1] == word[0] and rest[0] != word[1] and mixed[-2:].tolist() == [word[0], rest[0]]
        for row in (corrupt, other):
            assert row[-2 - repeated :].tolist() == clean[-2 - repeated :].tolist()
            assert not set(row[1 : 1 + LENGTH].tolist()) & {token for each in GIVEN for token in each}
        assert (corrupt != other).any()
    assert rows.corrupt_of_mixed[:, :-1].tolist() == rows.corrupt[:, :-1].tolist()
    assert rows.corrupt_of_mixed[:, -1].tolist() == rows.mixed[:, -1].tolist()
    assert {tuple(row[-2:]) for row in rows.tokens.tolist()} == {word[:2] for word in GIVEN}


def test_words_of_two_to_five_tokens_are_taken_and_none_twice():
    """Of the package's own, by a tokenizer; one of a single token and one of six are left out."""
    space = TokenSpace(d_vocab=4002, bos_id=0)
    found = words_of(space, spelt)
    assert found.separator == tuple(spelt("\n")) and len(found.words) == len(WORDS.split())
    assert not {token for word in found.words for token in word} & set(found.others)
    given = [*WORDS.split(), WORDS.split()[0], "owl", "pneumonoultramicroscopic"]
    assert words_of(space, spelt, given).words == found.words
    assert len(WORDS.split()) == len(set(WORDS.split())) == 50


@pytest.mark.parametrize(
    ("space", "encode", "words", "error", "said"),
    [
        (SPACE, None, None, TextError, "there is no tokenizer: give it `tokenizer=`"),
        (SPACE, None, "chandelier", ArgumentError, "`words` must be texts, or token ids of each word, got 'chandelier'"),
        (SPACE, None, [], ArgumentError, "`words` must be texts"),
        (SPACE, None, ["a", (1, 2)], ArgumentError, "`words` must be texts"),
        (SPACE, None, [1, 2], ArgumentError, "`words` must be texts"),
        (SPACE, None, [(1, 99)] * 8, ArgumentError, "`words` must be of ids that a probe may use.*got 99"),
        (SPACE, None, [(0, 1)] * 8, ArgumentError, "got 0"),  # the first token
        (SPACE, None, GIVEN[:7], ProbeError, "8 words of 2 to 5 tokens each are needed, found 7 of 7"),
        (SPACE, None, [(1, each) for each in range(2, 12)], ProbeError, "each word needs another one"),
        (TokenSpace(d_vocab=80, n_ctx=40), None, GIVEN, ProbeError, "rows with words need 57 positions, the context has 40"),
        (TokenSpace(d_vocab=17, bos_id=0), None, [(n, 8 + n) for n in range(1, 9)], ProbeError, "no token id is left"),
    ],
)
def test_what_cannot_be_asked_is_one_line(space, encode, words, error, said):
    with pytest.raises(error, match=said) as caught:
        words_of(space, encode, words)
    assert "\n" not in str(caught.value)
