"""Which of the heads that match prefixes copy what they match, and which suppress it: by what they add to its logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pytest_induction.criteria import PERIOD_DETECTOR, SILENT, SUPPRESSES, suppresses
from pytest_induction.observing import Array
from pytest_induction.records import HeadEvidence
from pytest_induction.statistics import mean_interval


def of_heads(heads: Sequence[HeadEvidence], effects: Array, error_rate: float) -> list[HeadEvidence]:
    """The heads with the copy effect of each; one that suppresses what it matches has that as its kind.

    `effects` (sequences, n_layers, n_heads) are copy effects in nats: what a head adds to the logit of the successor above the
    rest of the block, on the direct path. Only an interval below -0.25 says that a head suppresses: what it writes may be used
    by later layers without raising the logit itself. `error_rate` is for all of these heads together.
    """
    columns = np.stack([effects[:, head.layer, head.head] for head in heads], axis=1)
    found = mean_interval(columns, error_rate, "nats")
    return [
        replace(head, copy_effect=effect, kind=SUPPRESSES if suppresses(effect) else head.kind)
        for head, effect in zip(heads, found, strict=True)
    ]


def named_ruled_out(heads: Sequence[HeadEvidence]) -> str:
    """Which heads do not count, and why, in words."""
    said = []
    for kind, does in (
        (SUPPRESSES, ("lowers what it matches", "lower what they match")),
        (SILENT, ("writes nothing", "write nothing")),
        (PERIOD_DETECTOR, ("only follows the period", "only follow the period")),
    ):
        of_kind = [head for head in heads if head.kind == kind]
        if not of_kind:
            continue
        first = of_kind[0].copy_effect
        by = f" by {-first.value:.2f} nats" if kind == SUPPRESSES and first is not None else ""
        more = f" and {len(of_kind) - 1} more" if len(of_kind) > 1 else ""
        said.append(f"{of_kind[0]}{more} {does[len(of_kind) > 1]}{by}")
    return ", ".join(said)
