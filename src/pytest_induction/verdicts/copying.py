"""Which of the heads that match prefixes copy what they match, and which suppress it: by what they add to its logit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pytest_induction.criteria import SUPPRESSES, suppresses
from pytest_induction.measure import Array
from pytest_induction.records import Evidence, HeadEvidence, Verdict
from pytest_induction.statistics import mean_interval


def judge_copying_of_heads(evidence: Evidence, effects: Array, error_rate: float) -> Evidence:
    """The evidence with the copy effect of each head that matches; one that suppresses what it matches is no induction head.

    `effects` (sequences, n_layers, n_heads) are copy effects in nats: what a head adds to the logit of the successor above the
    rest of the block, on the direct path. Only an interval below -0.25 says that a head suppresses: what it writes may be used
    by later layers without raising the logit itself. `error_rate` is for all of these heads together.
    """
    columns = np.stack([effects[:, head.layer, head.head] for head in evidence.heads], axis=1)
    found = mean_interval(columns, error_rate, "nats")
    heads = [
        replace(head, copy_effect=effect, kind=SUPPRESSES if suppresses(effect) else head.kind)
        for head, effect in zip(evidence.heads, found, strict=True)
    ]
    copying = tuple(head for head in heads if head.kind != SUPPRESSES)
    if evidence.verdict is not Verdict.FORMED or len(copying) == len(heads):
        return replace(evidence, heads=tuple(heads))
    suppressing = tuple(head for head in heads if head.kind == SUPPRESSES)
    if copying:
        summary = f"{evidence.summary}; {_named(suppressing)}, and {'does' if len(suppressing) == 1 else 'do'} not count"
        return replace(evidence, heads=copying, nearest=(*suppressing, *evidence.nearest), summary=summary)
    accuracy = evidence.estimates["later_accuracy"]
    summary = (
        f"the model copies (top-1 accuracy {accuracy.value:.2f} on later copies), but not by a head that matches prefixes: "
        f"{_named(suppressing)}"
    )
    return replace(
        evidence, verdict=Verdict.NOT_FORMED, reason="copies_without_a_head", summary=summary, heads=(), nearest=suppressing
    )


def _named(heads: tuple[HeadEvidence, ...]) -> str:
    """Which heads suppress, and how strongly the first."""
    first = heads[0].copy_effect
    by = "" if first is None else f" by {-first.value:.2f} nats"
    if len(heads) == 1:
        return f"{heads[0]} lowers what it matches{by}"
    return f"{heads[0]} and {len(heads) - 1} more lower what they match{by}"
