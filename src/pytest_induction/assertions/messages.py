"""The texts of failed assertions: verdict and bound, what was seen, where it was measured, what to do next."""

from __future__ import annotations

from pytest_induction.records import Change, Estimate, Evidence, HeadEvidence, PairEvidence, Provenance, Verdict

NEXT = {
    "no_head_matches": "if heads are expected: train further, or see every head with `measure_heads(model)`",
    "copies_without_a_head": "see every head with `measure_heads(model)`, pairs with `measure_virtual_heads(model)`",
    "copies_through_pairs": "with `allow_virtual=True` two heads in a row are enough; see `measure_virtual_heads(model)`",
    "formed_virtual": "with `allow_virtual=False` only single heads count",
    "suppresses_what_it_matches": "a head that lowers what it finds suppresses copies; ablate it to see",
    "dormant": "heads may wake on other data: measure on your own with `measure_heads(model, tokens=...)`",
    "matches_without_copying": "the head may suppress what it finds, or nothing downstream reads it; ablate it to see",
    "counts_back": "a head trained on one period only counts back: train on repeats of varied distance",
    "does_not_copy": "see `measure_heads(model)` for its heads; a lower bar is `min_accuracy=`",
    "does_not_learn": "compare with a model trained further on the same text; the bar is `max_score=`",
    "formed": "the heads are named above; `measure_heads(model)` shows every one",
    "no_induction_head": "see every head with `measure_heads(model)`, or name some with `heads=`",
    "removes_too_little": "see every head with `measure_ablations(model)`; the bar is `min_share=`",
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
    "no_previous_token_head": "a lower bar is `min_previous_token=`; `measure_heads(model)` shows every head",
}
NEXT_OF_RUN = {
    "no_change": "if a change is expected: train further; what counts as one is `min_change=`",
    "gradual": "what counts as abrupt is `max_width=`, in decades",
    "formed": "when and how fast it was stands above",
    "matches_without_copying": "the head may suppress what it finds: `measure_copying` on a checkpoint tells",
    "too_late": "what is allowed is `before_tokens=` or `before_steps=`",
    "differs": "what counts as alike is `margins=`; a margin of None leaves a measure out",
    "no_turn": "the path of token losses does not turn: see docs/runs.md#the-turn, or ask without (turn=False)",
    "turn_apart": "the path turns elsewhere: see docs/runs.md#the-turn, or ask without (turn=False)",
    "apart": "what counts as together is `margin=`, in decades",
    "nothing_moves": "how far it must move is `margin=`, in decades",
    "induction_stays": "how far it must move is `margin=`, in decades",
    "in_context_learning_stays": "how far it must move is `margin=`, in decades",
    "changes_apart": "what counts as together is `together=`, in decades",
    "moves_apart": "what counts as together is `together=`, in decades",
    "later": "what is allowed is `margin=`, in decades; onsets vary with the seed of a training",
    "onset_unclear": "record more snapshots around the onset, in both runs",
    "previous_later": "trainings differ in the order: leave `gate=` out to have it reported only",
    "order_unclear": "record more snapshots around the changes, or leave `gate=` out",
    "no_two_changes": "train further, or record heads too; what counts as a change is `min_change=`",
    "not_sane": "see the loss: `python -m pytest_induction draw RUN`; a lower learning rate may keep it from diverging",
    "few_snapshots": "record the training more often",
    "no_head_matches": "train further; a lower bar is `min_prefix_matching=`",
    "lost": "see `run.best_of_heads('prefix_matching')` for when; what must be kept is `min_share=`",
    "never_there": "train further, or lower `min_prefix_matching=`",
}
ABOUT = ("icl_", "turn_")  # what a reason is about, where it is that of another series than heads


def failure_text(evidence: Evidence, wanted: Verdict) -> str:
    """The whole message, at most eight lines."""
    first = f"{evidence.claim} is {evidence.verdict}, expected {wanted}: {evidence.summary}"
    if evidence.provenance.is_run:
        return "\n".join([first, *_of_run(evidence)])
    lines = [
        first,
        *([_heads_line(evidence)] if evidence.heads or evidence.nearest else []),
        *([f"  pairs: {', '.join(map(_pair, evidence.pairs))}"] if evidence.pairs else []),
        f"  behaviour: {_estimates_line(evidence)}",
        f"  measured: {measured_on(evidence.provenance)}",
        f"  next: {next_step(evidence)}",
    ]
    return "\n".join(lines)


def _of_run(evidence: Evidence) -> list[str]:
    """What a training run did, where it was recorded, what to do."""
    series = [f"  {change.series.replace('_', ' ')}: {_change(change)}" for change in evidence.changes[:5]]
    heads = (
        [f"  heads: {', '.join(map(_head, (*evidence.heads, *evidence.nearest)[:5]))}"]
        if evidence.nearest or evidence.heads
        else []
    )
    return [*series, *heads, f"  measured: {measured_on(evidence.provenance)}", f"  next: {next_step(evidence)}"]


def next_step(evidence: Evidence) -> str:
    """What to do: what would settle it, or what is known of the reason; a page, for a reason of which nothing is."""
    if evidence.settle:
        return evidence.settle
    if not evidence.provenance.is_run:
        return NEXT.get(evidence.reason, "see docs/metrics.md")
    shorter = next((evidence.reason.removeprefix(about) for about in ABOUT if evidence.reason.startswith(about)), "")
    return NEXT_OF_RUN.get(evidence.reason) or NEXT_OF_RUN.get(shorter, "see docs/runs.md")


def _change(change: Change) -> str:
    rivals = (
        f"; may be due to {' and '.join(change.rivals)}" if change.rivals and change.verdict is not Verdict.NOT_FORMED else ""
    )
    return f"{change.verdict}, {change.summary}{rivals}"


def measured_on(about: Provenance) -> str:
    """Where a measurement was made, in one line."""
    if about.is_run:
        return f"{about.model}, {about.probe}"
    probe = f"; {about.n_sequences} sequences, {about.probe}" if about.n_sequences else ""
    seed = "" if about.seed is None else f"; --induction-seed={about.seed}"
    return f"{about.model}, {about.how}{probe}{seed}"


def _heads_line(evidence: Evidence) -> str:
    heads = (*evidence.heads, *evidence.nearest)[:5]
    bar, first = evidence.bars["min_prefix_matching"], heads[0]
    return f"  heads: {', '.join(_head(head) for head in heads)} (bar {bar:.3f}; chance gives {first} {first.null:.3f})"


def _head(head: HeadEvidence) -> str:
    estimate = head.prefix_matching
    return f"{head} {estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"


def _pair(pair: PairEvidence) -> str:
    return f"{pair} {pair.composed.value:.3f} ({pair.composed.low:.3f}..{pair.composed.high:.3f})"


def _estimates_line(evidence: Evidence) -> str:
    bars = {name.removeprefix("min_").removeprefix("max_"): bar for name, bar in evidence.bars.items()}
    bars = {{"accuracy": "later_accuracy", "score": "in_context_learning"}.get(name, name): bar for name, bar in bars.items()}
    return "; ".join(_estimate(name, value, bars.get(name)) for name, value in evidence.estimates.items())


def _estimate(name: str, estimate: Estimate, bar: float | None) -> str:
    unit = " nats" if estimate.unit == "nats" else ""
    held = "" if bar is None else f" ({estimate.low:.2f}..{estimate.high:.2f}, bar {bar:.2f})"
    return f"{name.replace('_', ' ')} {estimate.value:.2f}{unit}{held}"
