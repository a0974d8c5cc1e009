"""The answer key of a sequence, against hand-made cases and a key written from the definition, token by token."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_induction.errors import ArgumentError
from pytest_induction.probes import Answer, ProbeSequence


def slow_answers(tokens):
    """For each query: the longest earlier context, what always followed it, and the least context that says so alone."""
    found = []
    for query in range(len(tokens) - 1):
        for length in range(query + 1, 0, -1):
            context = tokens[query + 1 - length : query + 1]
            ends = [end for end in range(length - 1, query) if tokens[end + 1 - length : end + 1] == context]
            if ends:
                break
        else:
            continue
        if {tokens[end + 1] for end in ends} != {tokens[query + 1]}:
            continue
        for order in range(1, length + 1):
            context = tokens[query + 1 - order : query + 1]
            following = {tokens[end + 1] for end in range(order - 1, query) if tokens[end + 1 - order : end + 1] == context}
            if following == {tokens[query + 1]}:
                break
        last = [tokens[end + 1] for end in range(query) if tokens[end] == tokens[query]]
        others = [token for token in last if token != tokens[query + 1]]
        distractor = None
        for token in others:  # the most frequent, of equals the one that stood last
            if distractor is None or others.count(token) >= others.count(distractor):
                distractor = token
        found.append(Answer(query, tokens[query + 1], order, distractor))
    return tuple(found)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=24))
def test_the_answer_key_is_what_the_definition_says(tokens):
    """Over sequences of four ids, in which nearly everything stood before."""
    assert ProbeSequence(tuple(tokens)).answers == slow_answers(tuple(tokens))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=24))
def test_an_induction_head_looks_behind_every_earlier_occurrence(tokens):
    """And nowhere else."""
    found = ProbeSequence(tuple(tokens)).successors
    for query, token in enumerate(tokens):
        expected = tuple(key + 1 for key in range(query) if tokens[key] == token)
        assert found.get(query, ()) == expected


def test_a_plain_repeat_is_foretold_within_the_copies_only():
    """Where the second copy begins nothing tells it; the third is told from its first token on."""
    probe = ProbeSequence((9, 1, 2, 3, 1, 2, 3, 1, 2, 3), period=3, repeats=3, breaks=(1, 4, 7), first=True)
    assert probe.targets == (None, None, None, None, 2, 3, 1, 2, 3, None)
    assert {answer.order for answer in probe.answers} == {1}
    assert repr(probe) == "BOS | 1 2 3 | 1 2 3 | 1 2 3"


def test_a_longer_context_is_needed_where_the_last_token_misleads():
    """The distractor is what the last token alone says, by the most occurrences."""
    probe = ProbeSequence((1, 2, 3, 4, 2, 5, 4, 2, 5, 1, 2, 3))
    answer = next(answer for answer in probe.answers if answer.query == 10)
    assert answer == Answer(query=10, token=3, order=2, distractor=5)


@given(st.data())
def test_the_line_makes_the_same_sequence(data):
    """With every field that is not its default, and nothing else."""
    tokens = data.draw(st.lists(st.integers(0, 9), min_size=4, max_size=9))
    probe = ProbeSequence(tuple(tokens), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3)), (2,), lures=((3, 1),))
    made = eval(probe.line, {"ProbeSequence": ProbeSequence})
    assert dataclasses.astuple(made) == dataclasses.astuple(probe)
    assert "first=" not in probe.line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tokens": (1,)}, "at least two, got 1"),
        ({"tokens": (1, -2)}, "`tokens` must be a whole number from 0 up, got -2"),
        ({"tokens": (1, 2.5)}, "got 2.5"),
        ({"tokens": (1, 2), "lures": ((0, 1),)}, "key <= query, got (0, 1)"),
        ({"tokens": (1, 2), "lures": ((2, 1),)}, "got (2, 1)"),
    ],
)
def test_what_is_no_sequence_is_refused(arguments, said):
    """In one line that says what it must be."""
    with pytest.raises(ArgumentError) as caught:
        ProbeSequence(**arguments)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_ids_of_numpy_become_numbers():
    """So that the line and the repr are plain."""
    import numpy as np

    probe = ProbeSequence(tuple(np.array([1, 2, 1])))
    assert probe.line == "ProbeSequence((1, 2, 1))"
