"""What calls about heads take, in tokens, at least and at most: from the model's shape and the arguments of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_induction.behaviour.text import row_length
from pytest_induction.errors import InductionError
from pytest_induction.heads.absence import MORE_ROWS, MOST_ALTERNATIVES, MOST_LONG_ROWS, ROWS
from pytest_induction.heads.distances import LONGEST_ROWS
from pytest_induction.heads.explained import PASSES, PASSES_OF_A_HEAD
from pytest_induction.heads.search import COPY_ROWS, is_small
from pytest_induction.interventions.arguments import heads_of
from pytest_induction.interventions.function_vectors import encoder
from pytest_induction.interventions.passes import tried_out
from pytest_induction.measuring.observing import PERIODS_AT_ONCE
from pytest_induction.measuring.rounds import IRREGULAR_SHARE, controls_needed, price_of_probes, round_size, rounds_within
from pytest_induction.model.circuits import TRIED as CIRCUITS
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.competing import fitting_groups
from pytest_induction.probes.needles import LENGTH, form_of, lengths_of
from pytest_induction.probes.semantic import chosen_families
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD, usual_length
from pytest_induction.spending import Price
from pytest_induction.statistics import FIRST_LOOK

SUPPRESSION_ROWS = {True: 192, False: 48}  # at most, of a model that is small or not
Given = Mapping[str, Any]


def price_of_list(subject: ModelUnderTest, given: Given) -> Price:
    """Of `find_induction_heads`: rounds with rows of irregular copies beside, what heads write, and whether they write at all."""
    space, size = subject.space, round_size(subject.space)
    most = size * rounds_within(space, given["max_sequences"])
    rounds = most * (2 + controls_needed(space)) * usual_length(space)
    first = price_of_probes(space, size + size // IRREGULAR_SHARE)
    return Price(first.least, rounds + _copies(subject, COPY_ROWS * PERIODS_AT_ONCE) + _written(subject))


def price_of_verdict(subject: ModelUnderTest, given: Given) -> Price:
    """Of a yes or no about induction heads: as the list; and rows on which the model copies, pairs of heads, and all the looks at
    other rows that absence takes.
    """
    most = round_size(subject.space) * rounds_within(subject.space, given["max_sequences"])
    pairs = 2 * most * usual_length(subject.space) if subject.n_layers > 1 else 0
    copies = _copies(subject, 2 * given["max_sequences"] + COPY_ROWS * PERIODS_AT_ONCE)
    listed = price_of_list(subject, given)
    return Price(listed.least, listed.most + pairs + copies + _absence(subject))


def price_of_generality(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_generality`: each family with its control, what heads copy on its rows, and repeated tokens."""
    families, count = len(chosen_families(given["probes"])), given["n_sequences"]
    least = price_of_probes(subject.space, count).least
    most = (3 * families * _abstract(subject) + usual_length(subject.space)) * count
    return Price(least, most + tried_out(subject))


def price_of_generalizing(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_heads_generalize`: each family with its control until it is clear; and what is reported beside."""
    families, positions = len(chosen_families(given["probes"])), _abstract(subject)
    beside = FIRST_LOOK * (families * positions + usual_length(subject.space))
    least = price_of_probes(subject.space, FIRST_LOOK).least
    return Price(least, 2 * families * positions * given["max_sequences"] + beside + tried_out(subject))


def price_of_competing(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_competing_matches`: one pass over its rows."""
    tokens = given["n_sequences"] * _competing(subject)
    return Price(tokens, tokens)


def price_of_preference(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_prefers_longer_match`: the same rows until it is clear."""
    return Price(FIRST_LOOK * _competing(subject), given["max_sequences"] * _competing(subject))


def price_of_match_length(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_match_length`: rows of irregular copies until it is clear, shorter ones where the model has few ids."""
    most, least = given["max_sequences"] * usual_length(subject.space), price_of_probes(subject.space, FIRST_LOOK).least
    return Price(min(least, most), most)


def price_of_retrieval(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_retrieval`: two passes over each row, and how the weights of heads are found."""
    rows = given["n_sequences"] * sum(needle_lengths(subject, given))
    return Price(2 * rows, 2 * rows + tried_out(subject))


def needle_lengths(subject: ModelUnderTest, given: Given) -> tuple[int, ...]:
    """Positions of each length of rows with facts; what is usual where the call is refused."""
    lengths, room = given.get("lengths", given.get("length")), subject.space.n_ctx
    try:
        form = form_of(subject.space, encoder(subject, given["tokenizer"]), given["facts"], given["wording"])
        return lengths_of(form, subject.space, lengths, given["n_facts"])
    except InductionError:
        return (LENGTH if room is None else min(LENGTH, room),)


def price_of_suppression(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_copy_suppression`: one pass over the rows of a text, two at least; with heads to explain two passes more, and
    three for each.
    """
    heads = () if given["explain"] is None else heads_of(subject, given["explain"])
    passes = 1 + (PASSES + PASSES_OF_A_HEAD * len(heads) if heads else 0)
    once = CIRCUITS + (tried_out(subject) if heads else 0)
    return Price(2 * passes * row_length(subject), given["max_rows"] * passes * row_length(subject) + once)


def price_of_suppression_verdict(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_copy_suppression`: the same until it is clear."""
    most = given["max_sequences"] or most_suppression_rows(subject)
    return Price(FIRST_LOOK * row_length(subject), most * row_length(subject) + CIRCUITS)


def most_suppression_rows(subject: ModelUnderTest) -> int:
    """How many rows of a text are drawn at most for what heads do to predictions, where that is not said."""
    return SUPPRESSION_ROWS[is_small(subject)]


def _competing(subject: ModelUnderTest) -> int:
    """Positions of a row in which matches compete."""
    return fitting_groups(subject.space).n_positions + (subject.space.bos_id is not None)


def _absence(subject: ModelUnderTest) -> int:
    """Longer rows of three periods, close repeats of as many, and other first tokens, each kind on ever more rows."""
    space = subject.space
    longest = LONGEST_ROWS if space.n_ctx is None else max(usual_length(space), min(LONGEST_ROWS, space.n_ctx))
    long_rows = 3 * ROWS * sum(min(more, MOST_LONG_ROWS[0]) for more in MORE_ROWS)
    other_rows = sum(MORE_ROWS) * (3 * ROWS + PERIODS_AT_ONCE * MOST_ALTERNATIVES)
    tries = 2 * longest if space.n_ctx is None else 0  # where no context is declared, the longest row that runs is looked for
    return long_rows * longest + tries + other_rows * (usual_length(space) + 1)


def _written(subject: ModelUnderTest) -> int:
    """Whether every head writes something: with each one ablated twice, and once more for each layer."""
    heads = sum(subject.reading.heads)
    return _copies(subject, ROWS * (2 + 2 * heads + subject.n_layers)) + tried_out(subject)


def _copies(subject: ModelUnderTest, rows: int) -> int:
    """So many rows in which a block stands twice."""
    return price_of_probes(subject.space, rows, repeats=2).most


def _abstract(subject: ModelUnderTest) -> int:
    """Positions of the longest row in which nothing repeats literally, as far as the context has room."""
    longest = COPIES * LONGEST_PERIOD + 1
    return longest if subject.space.n_ctx is None else min(longest, subject.space.n_ctx)
