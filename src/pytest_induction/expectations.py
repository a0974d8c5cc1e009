"""A verdict against what was expected of it: the text of a failed assertion, and the one place that raises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pytest_induction.errors import ArgumentError, ExpectationFailed
from pytest_induction.formatting import everywhere, fitted
from pytest_induction.heads.criteria import MATCHES, MIN_PREFIX_MATCHING, PERIOD_DETECTOR, SILENT, SUPPRESSES
from pytest_induction.observers import emit
from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, PairEvidence, Provenance, Verdict

NEXT = {
    "no_head_matches": "if heads are expected: train further, or see every head with `measure_heads(model)`",
    "copies_without_a_head": "see every head with `measure_heads(model)`, pairs with `measure_virtual_heads(model)`",
    "copies_through_pairs": "with `allow_virtual=True` two heads in a row are enough; see `measure_virtual_heads(model)`",
    "formed_virtual": "with `allow_virtual=False` only single heads count",
    "suppresses_what_it_matches": "a head that lowers what it finds suppresses copies; ablate it to see",
    "dormant": "heads may wake on other data: measure on your own with `measure_heads(model, tokens=...)`",
    "matches_without_copying": "see what heads write with `measure_copying(model)`, or see `measure_ablations(model)`",
    "copying_unclear": "draw more sequences with `max_sequences=`; the threshold is `min_advantage=`",
    "heads_unclear": "draw more sequences with `max_sequences=`; `find_induction_heads(model)` lists what is not clear",
    "weak_or_shared": "see every head with `measure_heads(model)`; less than `max_prefix_matching=` counts as none, "
    "`min_prefix_matching=` as an induction head",
    "silent": "see what the loss rises by without each head: `measure_ablations(model)`",
    "period_detector": "see irregular distances with `measure_match_lengths(model)`; train on repeats of varied distance",
    "needs_longer_match": "see `measure_match_lengths(model)`; allow longer matches with `match_length=`, or leave it out",
    "match_length_unclear": "see `measure_match_lengths(model)`; allow more with `max_sequences=`, or leave `match_length=` out",
    "in_longer_rows": "see how far heads reach with `measure_distances(model)`; less than `max_prefix_matching=` counts as none",
    "late_in_rows": "see which positions match with `measure_heads(model, tokens=...)`; less than `max_prefix_matching=` counts "
    "as none",
    "at_short_distances": "see how far heads reach with `measure_distances(model)`; less than `max_prefix_matching=` counts as "
    "none",
    "other_first_token": "if the model is used so, declare it (`bos_token_id` of its config); see such rows with "
    "`measure_heads(model, tokens=...)`; less than `max_prefix_matching=` counts as none",
    "counts_back": "a head trained on one period only counts back: train on repeats of varied distance",
    "does_not_copy": "see `measure_heads(model)` for its heads; a lower threshold is `min_accuracy=`",
    "does_not_learn": "compare with a model trained further on the same text; the threshold is `max_score=`",
    "formed": "the heads are named above; `measure_heads(model)` shows every one",
    "no_induction_head": "see every head with `measure_heads(model)`, or name some with `heads=`",
    "removes_too_little": "see every head with `measure_ablations(model)`; the threshold is `min_share=`",
    "no_more_than_controls": 'what others do is "control" above; see every head with `measure_ablations(model)`',
    "nothing_to_remove": "train further, or measure on a text from which the model learns in context",
    "kinds_disagree": "see each kind alone with `how=`; zero is far from what many heads give",
    "no_controls": "name fewer heads with `heads=`, so that others of their layers are left to compare with",
    "nothing_moves": "see what is read of the model: `python -m pytest_induction doctor`",
    "differs": "see each member with `measure_heads(model)`; what counts as alike is `margins=`",
    "does_not_generalize": "see every head with `measure_generality(model)`; what means alike is `classes=` and `pairs=`",
    "first_layer": "a first layer can only do it where keys see the token before, as smeared ones do",
    "weights_disagree": "see the weights of all heads with `measure_composition(model)` and `measure_copying(model)`",
    "not_through_keys": "what the head finds its place by is not known: `intervene(model, ...)` tries other paths",
    "no_previous_token_head": "a lower threshold is `min_previous_token=`; `measure_heads(model)` shows every head",
    "behaviour_lost": "heads are told apart from behaviour above; what may be lost is `margins=`",
    "mechanism_lost": "see both models with `measure_heads(model)`; how many heads may go is `max_lost=`, how much `margins=`",
    "both_lost": "see both models with `measure_heads(model)`; what may be lost is `margins=`",
    "fails": "look at the sequence alone with `check_property(model, ..., probes=[...])`",
    "holds": "more sequences are `max_examples=`",
    "nothing_to_preserve": "compare with a model that has heads: `measure_heads(model)` shows what the one before has",
}
NEXT_OF_RUN = {
    "no_change": "if a change is expected: train further; what counts as one is `min_change=`",
    "gradual": "what counts as abrupt is `max_width=`, in decades",
    "formed": "when and how fast it was stands above",
    "matches_without_copying": "the head may suppress what it finds: `measure_copying` on a checkpoint tells",
    "too_late": "what is allowed is `before_tokens=`, or the bound in steps",
    "two_steps": "see both with `python -m pytest_induction draw RUN`; whether it is there in the end tells `assert_formed`",
    "behaviour_apart": "what the head matches may be used only later: see both with `python -m pytest_induction draw RUN`",
    "not_there": "train further; thresholds are `min_prefix_matching=` and `min_advantage=`",
    "differs": "what counts as alike is `margins=`; a margin of None leaves a measure out",
    "no_turn": "the path of token losses does not turn: see docs/runs.md#the-turn, or ask without (turn=False)",
    "turn_apart": "the path turns elsewhere: see docs/runs.md#the-turn, or ask without (turn=False)",
    "apart": "what counts as together is `margin=`, in decades",
    "nothing_moves": "how far it must move is `margin=`, in decades",
    "induction_stays": "how far it must move is `margin=`, in decades",
    "icl_stays": "how far it must move is `margin=`, in decades",
    "changes_apart": "what counts as together is `together=`, in decades",
    "moves_apart": "what counts as together is `together=`, in decades",
    "later": "what is allowed is `margin=`, in decades; onsets vary with the seed of a training",
    "onset_unclear": "record more snapshots around the onset, in both runs",
    "previous_later": "trainings differ in the order: leave `gate=` out to have it reported only",
    "order_unclear": "record more snapshots around the changes, or leave `gate=` out",
    "no_two_changes": "train further, or record heads too; what counts as a change is `min_change=`",
    "not_sane": "see the loss: `python -m pytest_induction draw RUN`; a lower learning rate may keep it from diverging",
    "few_snapshots": "record the training more often",
    "no_head_matches": "train further; a lower threshold is `min_prefix_matching=`",
    "lost": "see `run.best_of_heads('prefix_matching')` for when it was lost",
    "holds": "which sequences were looked at is in `run.snapshots[...].hunts`; more are `max_examples=`",
    "fails_at_the_end": "train further, or ask less of the property, as `min_accuracy` does",
    "fails_later": "see all of them with `check_property(...)` without `holds_from=`, or ask less of the property",
    "never_there": "train further, or lower `min_prefix_matching=`",
}
ABOUT = ("icl_", "turn_")  # what a reason is about, where it is that of another series than heads
MOST_HEADS, MOST_SERIES = 5, 5
BARS = {
    "repeat_accuracy": "min_accuracy",
    "icl_score": "max_score",
    "lost_through_keys": "min_share",
    "lag": "margin",
    "turn_lag": "margin",
    "onset_lag": "margin",
    "induction_shift": "margin",
    "icl_shift": "margin",
    "shift_difference": "together",
    "final": "min_prefix_matching",
    "end_tokens": "before_tokens",
    "end_steps": "before_steps",
    "holds_from_tokens": "before_tokens",
    "holds_from_steps": "before_steps",
}
"""What an estimate is held against, where the names do not say so themselves."""
ONE_SIDED = ("onset_lag", "induction_shift", "icl_shift")  # of those that are held against a margin
MATCHING = (MATCHES, SUPPRESSES, SILENT)  # kinds of heads that match, whatever they write
MATCH_LENGTHS = {
    "1": "on 1 matching token",
    "2": "needs 2 matching tokens",
    "3+": "needs 3 matching tokens",
    "more": "needs more than 3 matching tokens, or many copies",
}
SUMMED = "summed prefix matching of layer "  # an estimate for each layer, of which the highest are told
MOST_LAYERS = 3
WORDS = {"final": "prefix matching at the end"}
ESTIMATES = {"continuity": "largest differences", "heads_preserved": "losses"}  # what estimates are, where no behaviour


def failure_text(evidence: Evidence, wanted: Verdict) -> str:
    """The whole message, at most 25 lines of 300 characters: verdict, what was seen, where it was measured, what to do."""
    evidence = everywhere(evidence)
    first = f"{evidence.claim} is {evidence.verdict}, expected {wanted}: {evidence.summary}"
    facts = _of_run(evidence) if evidence.provenance.is_run else _of_model(evidence)
    return fitted(first, facts, f"  measured: {measured_on(evidence.provenance)}", f"  next: {next_step(evidence)}")


def _of_model(evidence: Evidence) -> list[str]:
    """Heads, pairs of them, and what the model does."""
    pairs = ", ".join(map(_pair, evidence.pairs[:MOST_HEADS]))
    found = {"heads": _heads(evidence), "pairs": pairs, ESTIMATES.get(evidence.claim, "behaviour"): _estimates_line(evidence)}
    return [f"  {name}: {said}" for name, said in found.items() if said]


def _of_run(evidence: Evidence) -> list[str]:
    """What a training run did, and what that was held against."""
    found = [f"  {words(change.series)}: {_change(change)}" for change in evidence.changes[:MOST_SERIES]]
    if len(evidence.changes) > MOST_SERIES:
        found.append(f"  and {len(evidence.changes) - MOST_SERIES} series more")
    heads, bars = _heads(evidence), _bars_of_run(evidence)
    return [*found, *([f"  heads: {heads}"] if heads else []), *([f"  thresholds: {bars}"] if bars else [])]


def _bars_of_run(evidence: Evidence) -> str:
    """From how much on a change counts, and what was held against a threshold."""
    series = dict.fromkeys(change.series for change in evidence.changes)
    bars = {name: bar for name, bar in evidence.thresholds.items() if name not in evidence.estimates}  # and no margin of a family
    counts = ", ".join(f"{bars[name]:g} in {words(name)}" for name in series if name in bars)
    held = [_estimate(name, value, bars) for name, value, bars in with_bars(evidence) if bars]
    return "; ".join([*([f"a change counts from {counts} on"] if counts else []), *held])


def words(name: str) -> str:
    """The name of an estimate or a series as it is read."""
    return WORDS.get(name, name.replace("_", " "))


def next_step(evidence: Evidence) -> str:
    """What to do: what would settle it, or what is known of the reason; a page, for a reason of which nothing is."""
    if evidence.next_step:
        return evidence.next_step
    if not evidence.provenance.is_run:
        return NEXT.get(evidence.reason, "see docs/metrics.md")
    shorter = next((evidence.reason.removeprefix(about) for about in ABOUT if evidence.reason.startswith(about)), "")
    return NEXT_OF_RUN.get(evidence.reason) or NEXT_OF_RUN.get(shorter, "see docs/runs.md")


def _change(change: Change) -> str:
    confounders = (
        f"; may be due to {' and '.join(change.confounders)}"
        if change.confounders and change.verdict is not Verdict.REFUTED
        else ""
    )
    return f"{change.verdict}, {change.summary}{confounders}"


def measured_on(about: Provenance) -> str:
    """Where a measurement was made, in one line."""
    if about.is_run:
        return f"{about.model}, {about.probe}"
    count = f"{about.n_sequences} sequence{'s' if about.n_sequences != 1 else ''}"
    probe = f"; {count}, {about.probe}" if about.n_sequences else ""
    seed = "" if about.seed is None else f"; --induction-seed={about.seed}"
    return f"{about.model}, {about.how}{probe}{seed}"


def _heads(evidence: Evidence) -> str:
    """The strongest of the heads that were found and of all others, and what they were held against."""
    heads, bar = (*evidence.heads, *evidence.nearest)[:MOST_HEADS], evidence.thresholds.get("min_prefix_matching")
    said = ", ".join(_head(head, MIN_PREFIX_MATCHING if bar is None else bar) for head in heads)
    if not heads or bar is None:
        return said
    chance = f"; chance gives {heads[0]} {heads[0].null:.3f}" if math.isfinite(heads[0].null) else ""
    return f"{said} (threshold {bar:.3f}{chance})"


def _head(head: HeadEvidence, min_prefix_matching: float) -> str:
    about = ", ".join(traits(head, min_prefix_matching))
    return f"{head} {spanned(head.prefix_matching)}{f' [{about}]' if about else ''}"


def traits(head: HeadEvidence, min_prefix_matching: float) -> Iterator[str]:
    """What is known of a head that matches, beside its score: on how many tokens, how far back, what it writes."""
    if head.kind == PERIOD_DETECTOR:
        yield "only follows the period"
    elif head.match_lengths and head.kind in MATCHING:
        yield MATCH_LENGTHS[match_length(head, min_prefix_matching)]
    if head.reach is not None:
        yield f"up to {head.reach} back"
    effect, ablated = head.copy_effect, head.ablation_effect
    if head.kind == SILENT:
        yield "writes nothing"
    elif head.kind == SUPPRESSES:
        yield "lowers what it matches" + ("" if effect is None else f" by {-effect.value:.2f} nats")
    elif ablated is not None and math.isfinite(ablated.value):
        yield f"loss on later copies {ablated.value:+.2f} nats without it"


def match_length(head: HeadEvidence, min_prefix_matching: float) -> str:
    """How many matching tokens a head needs: "1", "2", "3+", or "more"; "" where that is not known or it does not match."""
    if not head.match_lengths or head.kind not in MATCHING:
        return ""
    found = head.match_length(min_prefix_matching)
    return "more" if found is None else f"{found}+" if found == len(head.match_lengths) else str(found)


def reach(head: HeadEvidence) -> str:
    """The longest period at which a head matches; "all" where it matches at all that were tried, "" where that is not known."""
    if head.reach is not None:
        return str(head.reach)
    return "all" if head.match_lengths and head.kind in MATCHING else ""


def _pair(pair: PairEvidence) -> str:
    return f"{pair} {spanned(pair.composed)}"


def spanned(estimate: Estimate, digits: int = 3) -> str:
    """A value with its interval, as far as they are numbers."""
    if not math.isfinite(estimate.value):
        return "not known"
    return f"{estimate.value:.{digits}f} ({_span(estimate, digits)})"


def with_bars(evidence: Evidence) -> Iterator[tuple[str, Estimate, tuple[float, ...]]]:
    """Each estimate by its name, with what it was held against: one threshold, both ends of a margin, or nothing."""
    bars = dict(evidence.thresholds)
    if "onset_lag" in evidence.estimates:  # the margin is of that one alone
        bars = {"min_onset_lag": bars.pop("margin", 0.0), **bars}
    for name, estimate in evidence.estimates.items():
        yield name, estimate, _bars(name, bars, estimate.unit)


def _bars(name: str, bars: Mapping[str, float], unit: str) -> tuple[float, ...]:
    of_kind = "min_share" if name.startswith("share ") else "min_excess" if unit == "excess" else ""
    together = "together" if name == "lag" else ""  # where there is one, a margin is of something else
    of_head = name.partition(" ")[0]  # "prefix_matching L1H0", whose margin is also that of what is left without chance
    of_head = "prefix_matching" if of_head == "excess" else of_head
    for bar in (name, of_head, together, BARS.get(name, ""), f"min_{name}", f"max_{name}", of_kind):
        if bar in bars:
            is_range = bar in ("margin", "together") and name not in ONE_SIDED
            return (-bars[bar], bars[bar]) if is_range else (bars[bar],)
    return ()


def _estimates_line(evidence: Evidence) -> str:
    summed = sorted(
        (name for name in evidence.estimates if name.startswith(SUMMED)), key=lambda name: -evidence.estimates[name].value
    )
    told = (each for each in with_bars(evidence) if each[0] not in summed[MOST_LAYERS:])
    return "; ".join(_estimate(name, value, bars) for name, value, bars in told)


def _estimate(name: str, estimate: Estimate, bars: tuple[float, ...]) -> str:
    if not math.isfinite(estimate.value):
        return f"{words(name)} not known"
    unit = " nats" if estimate.unit == "nats" else ""
    held = f" ({_span(estimate, 2)}, threshold {bars[-1]:.2f})" if bars else ""
    return f"{words(name)} {estimate.value:.2f}{unit}{held}"


def _span(estimate: Estimate, digits: int) -> str:
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return "interval not known"
    return f"{estimate.low:.{digits}f}..{estimate.high:.{digits}f}"


def expect(evidence: Evidence, wanted: Verdict) -> Evidence:
    """Return the evidence if its verdict is the wanted one, else raise `ExpectationFailed`; tell whoever listens first.

    What is told, returned and raised says what was wanted.
    """
    evidence = replace(evidence, expected=wanted)
    emit(evidence)
    if evidence.verdict is not wanted:
        raise ExpectationFailed(failure_text(evidence, wanted), evidence)
    return evidence


def check_share(name: str, value: float) -> None:
    """Raise `ArgumentError` unless the value lies between 0 and 1, both left out."""
    if not 0 < value < 1:
        raise ArgumentError(f"`{name}` must lie between 0 and 1, got {value}")


def check_advantage(value: float) -> None:
    """Raise `ArgumentError` for a `min_advantage` below 0."""
    if not value >= 0:
        raise ArgumentError(f"`min_advantage` must be at least 0 nats, got {value}")


def checked_bounds(**bounds: float | None) -> dict[str, float]:
    """Those bounds, in tokens or steps, that are given. Raises `ArgumentError` for one that is not above 0 and finite."""
    given = {name: bar for name, bar in bounds.items() if bar is not None}
    for name, bar in given.items():
        if not 0 < bar < math.inf:
            raise ArgumentError(f"`{name}` must be above 0, got {bar}")
    return given
