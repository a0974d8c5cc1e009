"""Assertions about induction heads and what they do: has one, has none, copies repeats, learns in context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pytest_induction.assertions.boundary import check_share, expect
from pytest_induction.copying import copy_effects
from pytest_induction.criteria import MIN_ADVANTAGE, MIN_PREFIX_MATCHING, SUPPRESSES
from pytest_induction.errors import ArgumentError, ModelError, user_facing, whole_number
from pytest_induction.measure import ModelLike, Round, probe_round, provenance
from pytest_induction.models.calling import first_line
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Evidence, Verdict
from pytest_induction.statistics import look_sizes
from pytest_induction.text import measure_text
from pytest_induction.verdicts.behaviour import (
    MAX_IN_CONTEXT_LEARNING,
    MIN_ACCURACY,
    judge_copying,
    judge_in_context_learning,
)
from pytest_induction.verdicts.copying import judge_copying_of_heads
from pytest_induction.verdicts.heads import judge_induction_head
from pytest_induction.verdicts.judgement import Judgement
from pytest_induction.verdicts.pairs import judge_virtual_head
from pytest_induction.virtual import PairRound, probe_pairs

R = TypeVar("R")
MAX_SEQUENCES = 192
MAX_TEXT_ROWS = 512
ERROR_RATE = 1e-3
COPYING_SHARE = 0.2  # of it, that is kept for whether heads copy what they match


@user_facing
def assert_has_induction_head(
    model: ModelLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    allow_virtual: bool = False,
    max_sequences: int = MAX_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has an induction head: one that matches prefixes, in a model that copies what is matched.

    Shown when some head's prefix matching lies, with its whole interval, above `min_prefix_matching`, and more than half of that
    is left without the mass that the head has at wrong places or where nothing repeats, at two periods or more; and the model
    gives the successor at least `min_advantage` nats more than the tokens after it. A head that is shown to lower what it matches
    suppresses it, and does not count (where the weights of heads are known). With `allow_virtual` two heads that do it in two
    steps are enough where no single head does (a virtual induction head); without, they are named and the verdict is NOT_FORMED.

    Sequences are drawn in rounds until every interval is clear of its bar, at most `max_sequences`; then the verdict is
    UNDETERMINED, which fails too and says what would settle it. `error_rate` is the most with which the verdict may be wrong,
    over all heads and rounds together.

    Returns the evidence: `.heads` strongest first, `.pairs`, `.verdict`, `.estimates`, `.provenance`. Raises
    `ExpectationFailed`, which carries it, or `ModelError` for a model that cannot be measured.

    >>> found = assert_has_induction_head("fixtures/models/llama-2l")        # doctest: +SKIP
    >>> found.heads[0].layer                                                 # doctest: +SKIP
    1
    """
    bars = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    evidence = judged_induction_head(model, bars, (max_sequences, error_rate, seed), allow_virtual=allow_virtual)
    return expect(evidence, Verdict.FORMED)


@user_facing
def assert_no_induction_head(
    model: ModelLike,
    *,
    min_prefix_matching: float = MIN_PREFIX_MATCHING,
    min_advantage: float = MIN_ADVANTAGE,
    allow_virtual: bool = False,
    max_sequences: int = MAX_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model has no induction head: shown, not merely not found. Arguments as `assert_has_induction_head`."""
    bars = {"min_prefix_matching": min_prefix_matching, "min_advantage": min_advantage}
    evidence = judged_induction_head(model, bars, (max_sequences, error_rate, seed), allow_virtual=allow_virtual)
    return expect(evidence, Verdict.NOT_FORMED)


@user_facing
def assert_copies_repeats(
    model: ModelLike,
    *,
    min_accuracy: float = MIN_ACCURACY,
    max_sequences: int = MAX_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model completes repeated random tokens: top-1 accuracy on the later copies above `min_accuracy`.

    Behaviour only: it holds for any model that returns logits, whatever does the copying. A model that knows the tokens of
    the block but not their order gets 1 / period. Returns the evidence, raises as `assert_has_induction_head`.
    """
    check_share("min_accuracy", min_accuracy)
    evidence = _decide(
        load_model(model),
        "copies_repeats",
        partial(judge_copying, min_accuracy=min_accuracy),
        {"min_accuracy": min_accuracy},
        (max_sequences, error_rate, seed),
    )
    return expect(evidence, Verdict.FORMED)


@user_facing
def assert_learns_in_context(
    model: ModelLike,
    text: Any,
    *,
    max_score: float = MAX_IN_CONTEXT_LEARNING,
    max_sequences: int = MAX_TEXT_ROWS,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that later tokens of a text are predicted better than early ones: in-context learning score below `max_score`.

    `text` is a string, a path, or token ids (one long row, or rows as the model gets them, with the first-token id in front
    if it has one). It is cut into rows of the context's length, at most 512 tokens; of a long text `max_sequences` rows are
    taken, spread over all of it. The score is the mean loss of tokens 450 to 512 minus that of tokens 40 to 60 (the same
    shares of a shorter row), in nats, negative if the model learns in context. Rows are resampled for its interval. Where rows
    are long enough, the paper's loss at token 500 minus at token 50 is reported beside it.

    The score also falls when ordinary prediction gets worse, so both losses are in `.estimates`. Returns the evidence, raises
    as `assert_has_induction_head`, and `TextError` for a text that makes fewer than two rows.
    """
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    losses, first_token, windows = measure_text(subject, text, whole_number("max_sequences", max_sequences, least=2))
    judgement = judge_in_context_learning(
        losses, windows, first_token=first_token, max_score=max_score, error_rate=error_rate, seed=seed
    )
    described = f"rows of {losses.shape[1] + first_token - 1} tokens of text"
    about = provenance(subject, seed=seed, n_sequences=len(losses), probe=described)
    settle = f"about {judgement.more_sequences} more rows of text would settle it" if judgement.more_sequences else ""
    evidence = Evidence(
        claim="learns_in_context",
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        provenance=about,
        estimates=judgement.estimates or {},
        bars={"max_score": max_score},
        confidence=1 - error_rate,
        settle=settle,
    )
    return expect(evidence, Verdict.FORMED)


def judged_induction_head(
    model: ModelLike, bars: dict[str, float], budget: tuple[int, float, int | None], *, allow_virtual: bool
) -> Evidence:
    """The verdict on whether a model has an induction head, and what it rests on; `budget` is sequences, error rate, seed."""
    check_share("min_prefix_matching", bars["min_prefix_matching"])
    if not bars["min_advantage"] >= 0:
        raise ArgumentError(f"`min_advantage` must be at least 0 nats, got {bars['min_advantage']}")
    check_share("error_rate", budget[1])
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    judge = partial(judge_induction_head, min_prefix_matching=bars["min_prefix_matching"], min_advantage=bars["min_advantage"])
    max_sequences, error_rate, given_seed = budget
    rest = error_rate * (1 - COPYING_SHARE)
    stage = (max_sequences, rest / 2 if allow_virtual else rest, given_seed)  # heads and pairs: of two claims either may be wrong
    evidence = _decide(subject, "has_induction_head", judge, bars, stage)
    if evidence.heads and evidence.verdict is not Verdict.UNDETERMINED:
        evidence = _with_copying(subject, evidence, error_rate * COPYING_SHARE)
    if evidence.reason == "copies_without_a_head" and subject.n_layers > 1:
        evidence = _through_pairs(subject, evidence, stage, allow_virtual=allow_virtual)
    return replace(evidence, confidence=1 - error_rate)


def _with_copying(subject: ModelUnderTest, evidence: Evidence, error_rate: float) -> Evidence:
    """The evidence with what each head that matches adds to the logit of what it matches, where its weights are known."""
    about = evidence.provenance
    try:
        with progress("copying of heads", about.n_sequences):
            effects = copy_effects(subject, about.n_sequences, about.seed or 0)
    except Exception as error:  # noqa: BLE001 - whatever it is: what has been measured is not lost, behaviour says that it copies
        seen = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        note = f"whether each head copies is not known: {seen}{first_line(error)}"
        return replace(evidence, provenance=replace(about, notes=(*about.notes, note)))
    return judge_copying_of_heads(evidence, effects, error_rate)


def _through_pairs(
    subject: ModelUnderTest, evidence: Evidence, budget: tuple[int, float, int | None], *, allow_virtual: bool
) -> Evidence:
    """The evidence on a model that copies without a single head that matches, with what pairs of heads do; FORMED if allowed."""
    max_sequences, error_rate, given_seed = budget
    seed = subject.seed if given_seed is None else given_seed
    bar = evidence.bars["min_prefix_matching"]

    def judge(rounds: list[PairRound], error_rate: float) -> Judgement:
        return judge_virtual_head(PairRound.join(rounds), min_prefix_matching=bar, error_rate=error_rate)

    def draw(n_sequences: int, number: int) -> PairRound:
        with progress("pairs of heads", 2 * n_sequences):  # the repeated rows, and their controls
            return probe_pairs(subject, n_sequences, seed, number)

    _, found, settle = until_clear(draw, judge, max_sequences, error_rate)
    if found.verdict is Verdict.FORMED and not allow_virtual:
        summary = f"{evidence.summary}; {found.summary} (a virtual induction head)"
        return replace(evidence, reason="copies_through_pairs", summary=summary, pairs=found.pairs)
    if found.verdict is Verdict.NOT_FORMED or not allow_virtual:
        return evidence
    and_copies = " and copies" if any(head.kind == SUPPRESSES for head in evidence.nearest) else ""
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=f"no single head matches prefixes{and_copies}, but {found.summary}",
        pairs=found.pairs,
        settle=settle,
    )


def _decide(
    subject: ModelUnderTest,
    claim: str,
    judge: Callable[..., Judgement],
    bars: dict[str, float],
    budget: tuple[int, float, int | None],
) -> Evidence:
    """Draw sequences in rounds until the verdict is clear or the budget is spent."""
    max_sequences, error_rate, given_seed = budget
    check_share("error_rate", error_rate)
    seed = subject.seed if given_seed is None else whole_number("seed", given_seed, least=0)

    def draw(n_sequences: int, number: int) -> Round:
        with progress(claim, n_sequences * (1 if subject.way is None else 2)):  # the repeated rows, and their controls
            return probe_round(subject, n_sequences, seed, number)

    rounds, judgement, settle = until_clear(
        draw, lambda rounds, error_rate: judge(Round.join(rounds), error_rate=error_rate), max_sequences, error_rate
    )
    found = Round.join(rounds)
    about = provenance(subject, seed=seed, n_sequences=len(found.periods), probe=found.described)
    return Evidence(
        claim=claim,
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        provenance=about,
        heads=judgement.heads,
        nearest=judgement.nearest,
        estimates=judgement.estimates or {},
        bars=bars,
        confidence=1 - error_rate,
        settle=settle,
        mosaic=judgement.mosaic,
    )


def until_clear(
    draw: Callable[[int, int], R], judge: Callable[[list[R], float], Judgement], max_sequences: int, error_rate: float
) -> tuple[list[R], Judgement, str]:
    """Draw rounds until the judgement on all of them is clear or the budget is spent: these, it, and what would settle it.

    `draw` is given how many sequences and the round's number, `judge` the rounds and what a look may spend of the error rate.
    """
    looks = look_sizes(max_sequences)
    rounds: list[R] = []
    drawn = 0
    for number, size in enumerate(looks):
        rounds.append(draw(size - drawn, number))
        drawn = size
        judgement = judge(rounds, error_rate / len(looks))
        if judgement.verdict is not Verdict.UNDETERMINED:
            return rounds, judgement, ""
    more = judgement.more_sequences
    return rounds, judgement, f"about {more} more sequences: max_sequences={drawn + more}"
