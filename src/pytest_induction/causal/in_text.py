"""The assertion about cause by class of token: what a match in a text foretells, the model predicts by its induction heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pytest_induction.behaviour.judging import shuffled_rows
from pytest_induction.behaviour.matches import in_groups, matches_of
from pytest_induction.behaviour.text import row_losses
from pytest_induction.causal.ablating import LEAST_MOVED, SETS_IN_A_ROW, Ids
from pytest_induction.causal.choosing import INDUCTION, chosen_heads
from pytest_induction.causal.dealing import RANKED, Dealer
from pytest_induction.causal.judging import CausalClaim
from pytest_induction.causal.prices import MEAN_ROWS, most_rows_by_class, price_of_text_ablations
from pytest_induction.causal.specificity import (
    MIN_FORETOLD,
    MIN_SPECIFICITY,
    Rises,
    few_foretold,
    halves,
    judge_gap,
    judge_specificity,
)
from pytest_induction.deciding import ERROR_RATE, Judgement, more_needed_in_words, priced_claim, until_clear
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.interventions.ablation import matched_controls
from pytest_induction.interventions.arguments import HeadsLike, all_heads
from pytest_induction.interventions.by_row import Rows
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import HeadSet, mean_found
from pytest_induction.measuring.observing import Array, ModelLike, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import Evidence, HeadId, Verdict
from pytest_induction.spending import joined_notes, spend_at_most, spent_so_far
from pytest_induction.statistics import FIRST_LOOK

CLAIM = "icl_is_induction"
N_CONTROLS = min(RANKED)
AFTERWARDS = 1  # new sets in a row, once all were dealt
SHARE_OF_HEADS = 0.2  # of the error rate, for choosing heads
HOW: Replacement = "mean"


@user_facing
@priced_claim(price_of_text_ablations)
def assert_icl_is_induction(
    model: ModelLike,
    text: Any,
    *,
    heads: HeadsLike = INDUCTION,
    min_specificity: float = MIN_SPECIFICITY,
    max_sequences: int | None = None,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the model needs its induction heads for tokens that a match in a text foretells, and for little else.

    A token is *foretold* where the longest run of tokens just before it that occurs earlier in the row is of two tokens or more,
    and its latest occurrence is followed by that very token (see `measure_loss_by_match`). The heads are mean-ablated, and by how
    much the loss of foretold tokens rises above that of all others is their specificity, in nats, over the same rows. Shown when
    it is above `min_specificity`, half of that is left without the specificity of random sets of as many heads of the same
    layers, and of 72 such sets none has as much; all that there are of fewer. Heads that do nothing, or as much to every token,
    have 0.

    `text` is as for `assert_learns_in_context`, `heads` as for `assert_ablation_removes_icl`. What an ablated head gives instead
    is the mean of what it finds over four other rows of the text.

    UNDETERMINED where nothing can be said: the rows have fewer than 100 foretold tokens (`few_matches`), the model does not
    predict these better than unmatched tokens that were seen (`does_not_use_matches`), or layers have too few other heads.

    Cost: after the list of heads, of each row a pass and, begun at the first layer of the heads, one without them and six without
    others, in later rows one to five. Rows are drawn in rounds of 12, 24, ... until it is clear, or `max_sequences` (48 rows, 192
    for a model of up to 2 million weights) or a `budget` are spent. `error_rate` is for choosing heads and for all rounds
    together.

    Returns the evidence. `.estimates`: "specificity", "beyond controls", "rank", "gap" (by how much foretold tokens cost less
    than unmatched ones), and by how much the loss of each class rises, "lost right_2". Raises `ExpectationFailed`, which carries
    it, `UnsupportedModel` where heads cannot be edited, `TextError` for a text of fewer than 16 rows.

    >>> assert_icl_is_induction(model, "manual.txt").estimates["specificity"]            # doctest: +SKIP
    """
    spend_at_most(budget)
    check_share("error_rate", error_rate)
    if not min_specificity > 0:
        raise ArgumentError(f"`min_specificity` must be above 0 nats, got {min_specificity}")
    if max_sequences is not None:
        whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    subject = load_model(model)
    most = most_rows_by_class(subject) if max_sequences is None else max_sequences
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = shuffled_rows(subject, text, most + MEAN_ROWS, seed)
    thresholds = {"min_specificity": min_specificity}
    about = provenance(subject, seed=seed, n_sequences=len(rows), probe=f"rows of {rows.shape[1]} tokens of text")
    if (n_foretold := int(matches_of(rows[MEAN_ROWS:]).foretold.sum())) < MIN_FORETOLD:
        summary = few_foretold(n_foretold, len(rows) - MEAN_ROWS)
        nothing = Evidence(CLAIM, Verdict.UNDETERMINED, "few_matches", summary, about, thresholds=thresholds)
        return expect(replace(nothing, confidence=1 - error_rate))
    chosen, evidence = chosen_heads(CLAIM, subject, heads, (error_rate * SHARE_OF_HEADS, seed))
    evidence = replace(evidence, thresholds={**thresholds, **evidence.thresholds}, confidence=1 - error_rate)
    rest = error_rate * (1 - SHARE_OF_HEADS)
    if not chosen:
        return expect(_without_heads(subject, rows[MEAN_ROWS:][:FIRST_LOOK], evidence, rest))
    task = ByClass(subject, chosen, rows, seed)
    return expect(_judged(task, evidence, (most, rest), min_specificity))


class ByClass:
    """Mean ablations of the heads in question and of controls on rows of a text, the first of which give the means."""

    def __init__(self, subject: ModelUnderTest, heads: Sequence[HeadId], rows: Ids, seed: int) -> None:
        self.subject, self.heads, self.seed = subject, tuple(heads), seed
        self.described = f"rows of {rows.shape[1]} tokens of text"
        rng = np.random.default_rng([seed, 19])
        self.controls = matched_controls(heads, subject.reading.heads, N_CONTROLS, rng)
        self.order = rng.permutation(len(self.controls.sets)).tolist()
        self._dealer = Dealer(len(self.order), [HOW], SETS_IN_A_ROW, AFTERWARDS)
        self._for_means, self._rows = torch.from_numpy(rows[:MEAN_ROWS]), rows[MEAN_ROWS:]
        self._groups = in_groups(matches_of(self._rows)).transpose(1, 0, 2)  # rows, groups, tokens
        self._scale = halves(self._groups.sum(-1)).mean(0)
        self._means: dict[int, torch.Tensor] | None = None
        self._drawn = 0
        self._moved = 0.0

    @property
    def n_rows(self) -> int:
        """Rows that can be drawn."""
        return len(self._rows)

    def control(self, number: int) -> frozenset[HeadId]:
        """The control set of that number, in the order in which they are dealt."""
        return frozenset(self.controls.sets[self.order[number]])

    def drawn(self, n_rows: int, _: int) -> Rises:
        """The next rows, with all that is to be known of them."""
        part = slice(self._drawn, self._drawn + n_rows)
        groups = self._groups[part]
        asked: list[tuple[list[int], list[int]]] = []

        def sets_of(_: int) -> dict[Replacement, list[HeadSet]]:
            fresh, again = self._dealer.next_row()[HOW]
            asked.append((fresh, again))
            return {HOW: [frozenset(self.heads), *(self.control(number) for number in (*fresh, *again))]}

        found: list[tuple[Array, Array, Array, Array]] = []
        with progress(CLAIM, n_rows * (SETS_IN_A_ROW + 2)):
            for row, of_groups in zip(self._of(part).losses(sets_of), groups, strict=True):
                fresh, again = asked[-1]
                rises = row.ablated[HOW] - row.clean
                self._moved = max(self._moved, float(np.abs(rises[0]).max()))
                sums = rises @ of_groups.T.astype(np.float64)  # sets, groups
                parts = halves(sums)
                scores = (parts / self._scale) @ (1.0, -1.0)
                self._dealer.record(HOW, dict(zip((*fresh, *again), scores[1:].tolist(), strict=True)), float(scores[0]))
                controls = np.full((len(self.order), 2), np.nan)
                controls[[*fresh, *again]] = parts[1:]
                usual = parts[1 : 1 + len(fresh)].mean(0)
                found.append((row.clean @ of_groups.T.astype(np.float64), sums[0], controls, usual))
        self._drawn += n_rows
        clean, lost, controls, usual = (np.stack(each) for each in zip(*found, strict=True))
        return Rises(groups.sum(-1).astype(np.float64), clean, lost, controls.transpose(1, 0, 2), usual)

    def moves(self) -> bool:
        """Whether ablating the heads, or else every head, moves a loss."""
        if self._moved > LEAST_MOVED:
            return True
        found = self._of(slice(0, 2)).losses(lambda _: {HOW: [frozenset(all_heads(self.subject))]})
        return max(float(np.abs(row.ablated[HOW] - row.clean).max()) for row in found) > LEAST_MOVED

    def claim(self) -> CausalClaim:
        """What is asked of these heads."""
        heads = tuple(map(str, self.heads))
        relaxed, complete, n_sets = self.controls.relaxed, self.controls.complete, len(self.controls.sets)
        return CausalClaim(heads, "", relaxed=relaxed, complete=complete, n_controls=n_sets)

    def _of(self, part: slice) -> Rows:
        if self._means is None:
            self._means = mean_found(self.subject, self._for_means.to(self.subject.device))
        tokens = torch.from_numpy(self._rows[part]).to(self.subject.device)
        return Rows(self.subject, tokens, torch.arange(tokens.shape[1] - 1), (), means=self._means)


def _without_heads(subject: ModelUnderTest, rows: Ids, evidence: Evidence, error_rate: float) -> Evidence:
    """The evidence where there is no head to ablate: no answer where the model does not use what is foretold anyway."""
    if evidence.verdict is Verdict.UNDETERMINED:
        return evidence
    groups = in_groups(matches_of(rows)).astype(np.float64)
    sums = np.einsum("grt,rt->rg", groups, row_losses(subject, rows))
    counts = groups.sum(-1).T
    judgement = judge_gap(sums, counts, error_rate=error_rate)
    if judgement is None:
        return evidence
    return replace(
        evidence,
        verdict=judgement.verdict,
        reason=judgement.reason,
        summary=judgement.summary,
        estimates=judgement.estimates or {},
        next_step=more_needed_in_words(judgement.more_sequences, len(rows), rows.shape[1], "rows of text"),
    )


def _judged(task: ByClass, evidence: Evidence, sampling: tuple[int, float], min_specificity: float) -> Evidence:
    """The verdict on heads that are named."""
    most, error_rate = sampling
    claim, begun = task.claim(), spent_so_far()
    if not task.controls.sets:
        summary = f"the model has no {len(task.heads)} heads beside {claim.named} to compare them with"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="no_controls", summary=summary)

    def judge(rounds: list[Rises], error_rate: float) -> Judgement:
        return judge_specificity(Rises.join(rounds), claim, min_specificity=min_specificity, error_rate=error_rate)

    rounds, found, _ = until_clear(task.drawn, judge, min(most, task.n_rows), error_rate)
    count = sum(len(each.counts) for each in rounds)
    if not task.moves():
        summary = "ablating every head changes no loss: the heads do nothing, or their effect is not seen in this model"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="nothing_moves", summary=summary)
    about = provenance(task.subject, seed=task.seed, n_sequences=count, probe=task.described)
    about = replace(about, notes=joined_notes(about.notes, evidence.provenance.notes))
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=about,
        estimates=found.estimates or {},
        next_step=more_needed_in_words(found.more_sequences, count, (spent_so_far() - begun) / count, "rows of text"),
    )
