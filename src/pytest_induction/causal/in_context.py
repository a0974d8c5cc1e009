"""The assertion about cause: without its induction heads a model no longer learns in context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_induction.behaviour.judging import MIN_ROWS
from pytest_induction.behaviour.text import rows_of, windows_of
from pytest_induction.causal.judging import MIN_SHARE, Ablated, CausalClaim, as_answer, judge_necessity, judge_sufficiency
from pytest_induction.causal.prices import SUFFICIENCY_CONTROLS, price_of_removal
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, MAX_TEXT_ROWS, Judgement, priced_claim, until_clear
from pytest_induction.errors import ArgumentError, TextError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING
from pytest_induction.heads.induction import judged_induction_head, list_of_heads
from pytest_induction.heads.table import Thresholds
from pytest_induction.interventions.ablation import Controls, matched_controls
from pytest_induction.interventions.arguments import HeadsLike, all_heads, heads_of
from pytest_induction.interventions.edits import HOW, Replacement
from pytest_induction.interventions.passes import Ablating, HeadSet, Passes
from pytest_induction.measuring.observing import Array, ModelLike, probes_of, provenance
from pytest_induction.measuring.rounds import MAX_SEQUENCES as MOST_FOR_HEADS
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, repeated_sequences
from pytest_induction.progress import progress
from pytest_induction.records import Evidence, HeadId, HeadList, Verdict
from pytest_induction.spending import spend_at_most, within_budget
from pytest_induction.statistics import FIRST_LOOK

Floats = NDArray[np.float64]


def late_minus_early(losses: Floats, late: NDArray[np.bool_]) -> Floats:
    """The in-context learning score of each row, (..., rows): the mean loss of late tokens minus that of early ones, in nats.

    `losses` is (..., rows, tokens), `late` (tokens,) says which of the tokens are late; all others are early. Negative where a
    model learns in context. Raises `ArgumentError` where one of the two has no tokens.
    """
    if losses.shape[-1:] != late.shape or late.all() or not late.any():
        raise ArgumentError(f"`late` must name some of the {losses.shape[-1]} tokens and not all, got {late.shape}")
    return np.asarray(losses[..., late].mean(axis=-1) - losses[..., ~late].mean(axis=-1), dtype=np.float64)


def in_context_attribution(clean: Floats, ablated: Floats, late: NDArray[np.bool_]) -> Floats:
    """By how many nats the in-context learning score of each row rises with heads ablated, (..., rows).

    `clean` is (rows, tokens), `ablated` (..., rows, tokens). Positive where the heads contribute to in-context learning, also
    above all of it; 0 where they do nothing, or as much to early tokens as to late ones. Of single heads it is what each is worth
    beside all others: of two equal ones either may have next to nothing.

    >>> clean, late = np.array([[4.0, 4.0, 1.0, 1.0]]), np.array([False, False, True, True])
    >>> in_context_attribution(clean, np.array([[4.5, 4.5, 4.0, 4.0]]), late)
    array([2.5])
    """
    return np.asarray(late_minus_early(ablated, late) - late_minus_early(clean, late), dtype=np.float64)


def before_and_after(start: Any, end: Any, clean: Any, ablated: Any) -> Floats:
    """How far ablations move losses along the way that they went in a training, (...,): v . (ablated - clean).

    v = (end - start) / ||end - start||, of length 1. `start`, `end` and `clean` are losses (tokens,) of the same tokens at two
    snapshots and of the model in question, `ablated` (..., tokens) its losses with each of some ablations. Negative where an
    ablation undoes the change, as it does for induction heads over a phase change: losses that fell rise again. In nats times the
    root of the number of tokens: an ablation that undoes all of it gets -||end - start||, one that does nothing or moves losses
    at a right angle 0.

    Raises `ArgumentError` for losses of different tokens, that are not finite, or that are the same at both snapshots.

    >>> before_and_after([4.0, 4.0], [4.0, 1.0], [4.0, 1.0], [[4.0, 4.0], [5.0, 1.0]])
    array([-3.,  0.])
    """
    first, last, whole, without = (np.asarray(losses, dtype=np.float64) for losses in (start, end, clean, ablated))
    shapes = {losses.shape[-1:] for losses in (first, last, whole, without)}
    if len(shapes) > 1 or any(losses.ndim != 1 for losses in (first, last, whole)):
        seen = ", ".join(str(losses.shape) for losses in (first, last, whole, without))
        raise ArgumentError(f"losses must be of the same tokens, (tokens,) three times and (..., tokens), got {seen}")
    if not all(np.isfinite(losses).all() for losses in (first, last, whole, without)):
        raise ArgumentError("losses must be finite")
    length = float(np.linalg.norm(last - first))
    if not length > 0:
        raise ArgumentError("the losses are the same at both snapshots: there is no way that they went")
    return np.asarray((without - whole) @ ((last - first) / length), dtype=np.float64)


CLAIM = "ablation_removes_icl"
INDUCTION = "induction"
N_CONTROLS = 100
FEWEST_CONTROLS = 49  # of which, if none does as much, one set in fifty does
SHARE_OF_REST = 0.2  # of the error rate, for choosing heads, and as much for whether they are sufficient
LEAST_MOVED = 1e-4  # nats: less may be rounding
Ids = NDArray[np.int64]


@user_facing
@priced_claim(price_of_removal)
def assert_ablation_removes_icl(
    model: ModelLike,
    text: Any = None,
    *,
    heads: HeadsLike = INDUCTION,
    how: str | Iterable[str] = HOW,
    min_share: float = MIN_SHARE,
    n_controls: int = N_CONTROLS,
    pattern_preserving: bool = False,
    max_sequences: int | None = None,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that in-context learning is gone without the model's induction heads, and not without as many others.

    Measured on `text` (a string, a path or token ids, as for `assert_learns_in_context`) by the in-context learning score;
    without a text by what repetition gains, the loss on the first copy of random tokens minus that on later ones. Shown when, by
    every kind of ablation in `how` ("zero", "mean", "resample"), at least `min_share` of it is gone with all heads ablated
    together, half of that is left without what is gone with as many random others, and of `n_controls` such sets at most one in
    fifty does as much (none, where there are fewer than 99). Controls have as many heads in each layer, none of those in
    question; all that there are of fewer, and some from the nearest layers where a layer has too few. To fall short of such a
    one, which may hold what the heads read from, is UNDETERMINED.

    `heads` are "induction", all those that `find_induction_heads` lists, on other sequences than they are tested on; or heads of
    your own. Heads that the list leaves open are named in a note. With `pattern_preserving` all heads attend as without the
    ablation (as in the paper).

    SHOWN has the reason "necessary_and_sufficient" where with all other heads of the same layers ablated at least `min_share` is
    left, and by half of that more than with random others left; else "necessary". UNDETERMINED too where kinds disagree in sign,
    where there is nothing to compare with, or where ablating every head moves no loss.

    Cost: each row takes, for each kind, as many passes as there are controls, and one for each head; a pass begins at the first
    layer of the heads. Rows are drawn in rounds of 12, 24, ... until all is clear, at most `max_sequences` (512 rows of text, 192
    sequences), after the list of heads has taken what it needs, or until a `budget` is spent, as in
    `assert_has_induction_head`. `error_rate` is for choosing heads, for all kinds and rounds together.

    Returns the evidence. `.estimates`: `icl_score`; of each kind "lost zero", "control zero" (nats), "share zero",
    "beyond controls zero" and "rank zero"; "kept zero" and "kept beyond controls zero" for sufficiency; "lost without L2H0 alone"
    and "kept by L2H0 alone", of the first kind. Raises `ExpectationFailed`, which carries it, `UnsupportedModel` where heads
    cannot be edited, `TextError` for a text of fewer than 16 rows. Source: Olsson et al. 2022, argument 3.

    >>> from pytest_induction.planted import induction_head
    >>> assert_ablation_removes_icl(induction_head(), how="zero").reason
    'necessary_and_sufficient'
    """
    spend_at_most(budget)
    check_share("min_share", min_share)
    check_share("error_rate", error_rate)
    kinds = _kinds(how)
    whole_number("n_controls", n_controls, least=FEWEST_CONTROLS)
    most = MAX_SEQUENCES if text is None else MAX_TEXT_ROWS
    most = most if max_sequences is None else whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = None if text is None else _rows(subject, text, most, seed)
    chosen, evidence = _chosen(subject, heads, (MOST_FOR_HEADS, error_rate * SHARE_OF_REST, seed))
    evidence = replace(evidence, thresholds={"min_share": min_share, **evidence.thresholds}, confidence=1 - error_rate)
    if not chosen:
        return expect(evidence)
    task = _Task(subject, chosen, kinds, seed, n_controls, rows, pattern_preserving=pattern_preserving)
    sampling = (most if rows is None else min(most, len(rows)), error_rate)
    return expect(_judged(task, evidence, min_share, sampling))


@dataclass(frozen=True)
class _Batch:
    """Rows of one length: token ids, the positions whose next token has a loss that counts, and which of these are late."""

    tokens: Ids
    queries: Ids
    late: NDArray[np.bool_]
    other: Ids


class _Task:
    """What is ablated, and on which rows."""

    def __init__(
        self,
        subject: ModelUnderTest,
        heads: Sequence[HeadId],
        kinds: Sequence[Replacement],
        seed: int,
        n_controls: int,
        rows: Ids | None,
        *,
        pattern_preserving: bool,
    ) -> None:
        self.subject, self.heads, self.kinds, self.seed, self.rows = subject, tuple(heads), kinds, seed, rows
        self._pattern_preserving = pattern_preserving
        self.controls: Controls = matched_controls(heads, subject.reading.heads, n_controls, np.random.default_rng([seed, 10]))
        self.batches: list[_Batch] = []

    def drawn(self, n_sequences: int, number: int) -> Ablated:
        """A round of rows with all that is to be known for whether the heads are necessary."""
        batches = list(self._text(n_sequences) if self.rows is not None else self._repeated(n_sequences, number))
        self.batches += batches
        return self._measured(batches, self.heads, self.controls.sets, [[head] for head in self.heads])

    def kept(self) -> Ablated:
        """What is lost on all of these rows with all other heads of the same layers ablated, than these, and than controls."""
        layers = {head.layer for head in self.heads}
        pool = {head for head in all_heads(self.subject) if head.layer in layers}
        controls = [pool.difference(each) for each in self.controls.sets[:SUFFICIENCY_CONTROLS]]
        alone = [frozenset(pool - {head}) for head in self.heads]
        return self._measured(self.batches, frozenset(pool.difference(self.heads)), [frozenset(each) for each in controls], alone)

    def moves(self) -> bool:
        """Whether ablating every head moves a loss, by every kind: a manipulation that is not seen shows nothing."""
        batches = list(self._text(2) if self.rows is not None else self._repeated(2, 0))
        every = all_heads(self.subject)
        found = (passes.losses([every]) for kind in self.kinds for passes in (self._passes(batches[0], kind),))
        return all(float(np.abs(each.ablated[0] - each.clean).max()) > LEAST_MOVED for each in found)

    def claim(self, min_share: float) -> CausalClaim:
        """What is asked of these heads."""
        return CausalClaim(
            tuple(map(str, self.heads)),
            "what repetition gains" if self.rows is None else "in-context learning on the text",
            min_share,
            self.controls.relaxed,
            self.controls.complete,
            2 if self.rows is None else MIN_ROWS,
        )

    @property
    def described(self) -> str:
        """The rows, in a few words."""
        if self.rows is not None:
            return f"rows of {self.rows.shape[1]} tokens of text"
        periods = sorted({int(np.count_nonzero(~batch.late)) + 1 for batch in self.batches})
        return f"periods {periods[0]} to {periods[-1]}" if periods else "repeated tokens"

    def _measured(
        self, batches: Sequence[_Batch], heads: HeadSet, controls: Sequence[HeadSet], single: Sequence[HeadSet]
    ) -> Ablated:
        parts = []
        passes = len(self.kinds) * (1 + len(controls)) + len(single)
        with progress(CLAIM, passes * sum(len(batch.tokens) for batch in batches)):
            for batch in batches:
                first, *others = self.kinds
                learning, effects = self._effects(batch, first, [heads, *controls, *single])
                end = 1 + len(controls)
                found: dict[str, Array] = {first: effects[:end]}
                found |= {kind: self._effects(batch, kind, [heads, *controls])[1] for kind in others}
                lost = {kind: each[0] for kind, each in found.items()}
                usual = {kind: each[1:] for kind, each in found.items()}
                parts.append(Ablated(learning, lost, usual, effects[end:]))
        return Ablated.join(parts)

    def _effects(self, batch: _Batch, kind: Replacement, sets: Sequence[HeadSet]) -> tuple[Array, Array]:
        """The score of each row (rows,), and by how much it rises without each set (sets, rows)."""
        found = self._passes(batch, kind).losses(sets)
        return late_minus_early(found.clean, batch.late), in_context_attribution(found.clean, found.ablated, batch.late)

    def _passes(self, batch: _Batch, kind: Replacement) -> Passes:
        tokens, other = (torch.from_numpy(ids) for ids in (batch.tokens, batch.other))
        ablating = Ablating(kind, self._pattern_preserving)
        queries = torch.from_numpy(batch.queries)
        return Passes(self.subject, tokens.to(self.subject.device), queries, ablating, other if kind == "resample" else None)

    def _text(self, n_sequences: int) -> Iterable[_Batch]:
        """The next rows of the text; of its tokens those of the two windows count."""
        if self.rows is None:
            return
        begun = sum(len(batch.tokens) for batch in self.batches)
        tokens, other = (each[begun : begun + n_sequences] for each in (self.rows, np.roll(self.rows, 1, 0)))
        first_token, windows = windows_of(self.subject, self.rows)
        early, late = (np.arange(span[0] - first_token, span[1] + 1 - first_token) for span in (windows.early, windows.late))
        yield _Batch(tokens, np.concatenate([early, late]), np.arange(len(early) + len(late)) >= len(early), other)

    def _repeated(self, n_sequences: int, number: int) -> Iterable[_Batch]:
        """Repeated tokens; the first token of each copy does not count, for in the second copy it cannot be known."""
        rng = np.random.default_rng([self.seed, 9, number])
        for probe in probes_of(self.subject, n_sequences, rng, COPIES, None):
            place = np.arange(probe.n_positions - 1) + 1 - probe.start  # of the token after a position, in the blocks
            queries = np.flatnonzero((place > 0) & (place % probe.period != 0))
            other = repeated_sequences(
                self.subject.space, period=probe.period, rng=rng, n_sequences=probe.n_sequences, repeats=probe.repeats
            )
            yield _Batch(probe.tokens, queries, place[queries] >= probe.period, other.tokens)


def _judged(task: _Task, evidence: Evidence, min_share: float, budget: tuple[int, float]) -> Evidence:
    """The verdict on whether the heads are necessary and, where they are, on whether they are sufficient."""
    max_sequences, error_rate = budget
    rest, stage = 1 - 2 * SHARE_OF_REST, error_rate * SHARE_OF_REST
    claim = task.claim(min_share)
    if not task.controls.sets:
        summary = f"the model has no {len(task.heads)} heads beside {claim.named} to compare them with"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="no_controls", summary=summary)
    if not task.moves():
        summary = "ablating every head moves no loss: what the heads do is not seen in this model, or is nothing"
        return replace(evidence, verdict=Verdict.UNDETERMINED, reason="nothing_moves", summary=summary)

    def judge(rounds: list[Ablated], error_rate: float) -> Judgement:
        return judge_necessity(Ablated.join(rounds), claim, error_rate=error_rate)

    rounds, found, settle = until_clear(task.drawn, judge, max_sequences, error_rate * rest)
    found = as_answer(found)
    if found.verdict is Verdict.SHOWN and not claim.relaxed:
        necessary = found
        found = within_budget(lambda: judge_sufficiency(necessary, task.kept(), claim, error_rate=stage), found)
    count = sum(len(part.learning) for part in rounds)
    if task.rows is not None:
        settle = settle.replace("more sequences:", "more rows of text:")
    about = provenance(task.subject, seed=task.seed, n_sequences=count, probe=task.described)
    about = replace(about, notes=tuple(dict.fromkeys((*about.notes, *evidence.provenance.notes))))
    return replace(
        evidence,
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=about,
        estimates=found.estimates or {},
        next_step=settle,
    )


def _chosen(subject: ModelUnderTest, heads: HeadsLike, budget: tuple[int, float, int]) -> tuple[tuple[HeadId, ...], Evidence]:
    """The heads to ablate, and what chose them; none where there is no induction head, or that is not clear."""
    if not (isinstance(heads, str) and heads == INDUCTION):
        named = heads_of(subject, heads)
        if not named:
            raise ArgumentError("`heads` must be at least one head, got none")
        about = provenance(subject, seed=budget[2])
        return named, Evidence(CLAIM, Verdict.UNDETERMINED, "", "", about)
    listed = list_of_heads(subject, Thresholds(), budget)
    about = replace(listed.provenance, notes=(*listed.provenance.notes, *_left_open(listed)))
    thresholds = {"min_prefix_matching": MIN_PREFIX_MATCHING}
    if listed.heads:
        found = Evidence(
            CLAIM, Verdict.UNDETERMINED, "", "", about, heads=listed.heads, thresholds=thresholds, head_map=listed.head_map
        )
        return heads_of(subject, listed.heads), found
    found = judged_induction_head(subject, Thresholds(), budget, allow_virtual=False)
    if found.verdict is Verdict.SHOWN:  # a head near the threshold, of which more sequences have told
        return heads_of(subject, found.heads), replace(found, claim=CLAIM, verdict=Verdict.UNDETERMINED, reason="", summary="")
    if found.verdict is Verdict.REFUTED:
        summary = f"there is no induction head to ablate: {found.summary}"
        return (), replace(found, claim=CLAIM, reason="no_induction_head", summary=summary)
    summary = f"which heads to ablate is not clear: {found.summary}"
    return (), replace(found, claim=CLAIM, verdict=Verdict.UNDETERMINED, summary=summary)


def _left_open(listed: HeadList) -> tuple[str, ...]:
    """What to say of heads that were not ablated, though they may be induction heads."""
    left_open = {
        f"within {listed.band:g} of the threshold, and not ablated": listed.near,
        f"not clear, and not ablated (about {listed.more_sequences} more sequences would tell)": listed.undecided,
    }
    return tuple(f"{', '.join(map(str, heads))}: {what}" for what, heads in left_open.items() if heads)


def _rows(subject: ModelUnderTest, text: Any, max_sequences: int, seed: int) -> Ids:
    """The rows of a text, in random order: any first ones of them stand for all."""
    rows = rows_of(subject, text, max_sequences)
    if len(rows) < MIN_ROWS:
        raise TextError(f"the text makes {len(rows)} rows of {rows.shape[1]} tokens: at least {MIN_ROWS} are needed")
    return np.random.default_rng([seed, 11]).permutation(rows)


def _kinds(how: str | Iterable[str]) -> tuple[Replacement, ...]:
    named = (how,) if isinstance(how, str) else tuple(how)
    kinds: tuple[Replacement, ...] = tuple(kind for kind in get_args(Replacement) if kind in named)
    if not kinds or any(kind not in kinds for kind in named):
        raise ArgumentError(f"`how` must be some of {', '.join(HOW)}, got {how!r}")
    return kinds
