"""What the assertions about cause take, in tokens, at least and at most: from the model's shape and the arguments of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_induction.behaviour.text import row_length
from pytest_induction.causal.dealing import MOST_SUSPECTS
from pytest_induction.causal.few_shot import ROWS_OF_REPEATS, SETS_IN_A_DRAW
from pytest_induction.causal.needles import SETS_IN_A_ROW
from pytest_induction.deciding import MAX_SEQUENCES, MAX_TEXT_ROWS
from pytest_induction.heads.prices import needle_lengths, price_of_list, price_of_verdict
from pytest_induction.heads.retrieval import N_SEQUENCES as NEEDLE_ROWS
from pytest_induction.heads.search import is_small
from pytest_induction.interventions.concepts import N_SEQUENCES as WORD_ROWS
from pytest_induction.interventions.concepts import price_of_choice, row_price
from pytest_induction.interventions.function_vectors import N_SEQUENCES, asked, price_of_scores
from pytest_induction.interventions.passes import tried_out
from pytest_induction.measuring.rounds import MAX_SEQUENCES as MOST_FOR_HEADS
from pytest_induction.measuring.rounds import price_of_probes
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import usual_length
from pytest_induction.spending import Price
from pytest_induction.statistics import FIRST_LOOK

SETS = 24  # of heads, the empty one among them, that are ablated in a row at the most
BEFORE_CONTROLS = (
    4  # passes over a row of a text in which no control is ablated yet: as it is, and without the heads by each kind
)
DEAR_TEXT_ROWS = 80  # of a model that is not small: to read them takes about 34 passes over 12 rows of 101 tokens
DEAR_ABLATED_ROWS = 24  # of these; without the heads about 24 such passes
ROWS_BY_CLASS = {True: 192, False: 48}  # at most, of a model that is small or not
MEAN_ROWS = 4  # of the text, over which is the mean of what heads find
SETS_BY_CLASS = 1 + 6 + 4  # the heads, new controls and those that do nearly as much
PATHS = 11  # passes over each row: the means, three sets by keys and by queries, and as it is
WEIGHED = 24 + 24  # rows on which previous-token heads are found and norms are read
CONTRIBUTIONS = 6  # rows
ABLATED_IN_A_DRAW = 2 + SETS_IN_A_DRAW + MOST_SUSPECTS  # both kinds of heads, and controls
Given = Mapping[str, Any]


def price_of_removal(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_ablation_removes_icl`: the list of heads, each row of a text once, some of them again and without the heads, and
    of each row that is looked at further a pass and one for each set of heads.
    """
    is_text = given["text"] is not None
    positions = row_length(subject) if is_text else usual_length(subject.space)
    most = given["max_sequences"] or most_rows(subject, is_text=is_text)
    shortest = positions if is_text else price_of_probes(subject.space, 1).least
    listed = _listed(subject) if given["heads"] == "induction" else Price(0, 0)
    if not is_text:
        return listed + Price(FIRST_LOOK * shortest, (most + 2) * SETS * positions + tried_out(subject))
    ablated = given["max_sequences"] or min(most, most_ablated(subject))
    passes = most + (ablated + 2) * (SETS + BEFORE_CONTROLS)
    return listed + Price(FIRST_LOOK * shortest, passes * positions + tried_out(subject))


def most_rows(subject: ModelUnderTest, *, is_text: bool) -> int:
    """How many sequences, or rows of text, are drawn at most where that is not said: of a text fewer where a row is dear."""
    if not is_text:
        return MAX_SEQUENCES
    return MAX_TEXT_ROWS if is_small(subject) else DEAR_TEXT_ROWS


def most_ablated(subject: ModelUnderTest) -> int:
    """In how many rows of a text something is ablated at most where that is not said: to tell a share takes hundreds."""
    return MAX_TEXT_ROWS if is_small(subject) else DEAR_ABLATED_ROWS


def most_rows_by_class(subject: ModelUnderTest) -> int:
    """How many rows of a text are drawn at most for what ablations do to each class of token, where that is not said."""
    return ROWS_BY_CLASS[is_small(subject)]


def price_of_text_ablations(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_icl_is_induction`: the list of heads, rows for the means, and of each row a pass and one for each set."""
    each = row_length(subject)
    most = given["max_sequences"] or most_rows_by_class(subject)
    listed = _listed(subject) if given["heads"] == "induction" else Price(0, 0)
    return listed + Price(FIRST_LOOK * each, (MEAN_ROWS + 2 + most * (1 + SETS_BY_CLASS)) * each + tried_out(subject))


def _listed(subject: ModelUnderTest) -> Price:
    """Of the list of heads, and of a verdict where it is empty."""
    given = {"max_sequences": MOST_FOR_HEADS}
    listed = price_of_list(subject, given)
    return Price(listed.least, listed.most + price_of_verdict(subject, given).most)


def price_of_circuit(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_induction_circuit`: a verdict, what is read of weights, and the paths to one head on each row."""
    found = price_of_verdict(subject, given)
    rows = given["max_sequences"] * PATHS + WEIGHED + CONTRIBUTIONS * (subject.n_layers + 6)
    return Price(found.least, found.most + rows * usual_length(subject.space) + tried_out(subject))


def price_of_icl_heads(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_icl_heads`: the scores of every head, prefix matching, and each prompt with all that is ablated in it."""
    scored = price_of_scores(subject, given, N_SEQUENCES)
    n_tasks, prompt = asked(subject, given)
    chosen = N_SEQUENCES * n_tasks * 3 * prompt
    drawn = given["max_sequences"] * n_tasks * (2 + ABLATED_IN_A_DRAW) * prompt
    repeats = ROWS_OF_REPEATS * (2 + ABLATED_IN_A_DRAW) * usual_length(subject.space)
    matching = FIRST_LOOK * usual_length(subject.space)
    return Price(scored.least, scored.most + chosen + drawn + repeats + matching + tried_out(subject))


def price_of_retrieval_heads(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_retrieval_heads`: rows that choose heads, read twice, and each other row with all that is ablated in it."""
    length = max(needle_lengths(subject, given))
    whole = length + given["n_facts"]
    matching = FIRST_LOOK * usual_length(subject.space)
    least = NEEDLE_ROWS * length
    each = length + (2 + SETS_IN_A_ROW + MOST_SUSPECTS) * whole
    return Price(least, 2 * least + given["max_sequences"] * each + matching + tried_out(subject))


def price_of_concept_heads(subject: ModelUnderTest, given: Given) -> Price:
    """Of `assert_concept_heads`: rows in which every head is patched, and each other row with two sets of heads."""
    chosen = price_of_choice(subject, given, WORD_ROWS)
    return Price(chosen.least, chosen.most + given["max_sequences"] * row_price(subject, given, 2))
