"""What the heads in question do for the model: the loss without them, and without as many others."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_induction.assertions.looks import ERROR_RATE
from pytest_induction.exhibits.heads import Seen, heads_seen
from pytest_induction.exhibits.plain import ends
from pytest_induction.interventions.ablation import last_copy, rises
from pytest_induction.interventions.chosen import all_heads
from pytest_induction.interventions.controls import matched_controls
from pytest_induction.interventions.passes import Ablating
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import describe, probes_of
from pytest_induction.probes.sequences import COPIES
from pytest_induction.progress import progress
from pytest_induction.records import HeadEvidence, HeadId
from pytest_induction.statistics import mean_interval

N_SEQUENCES = 12  # of six the intervals would be two and a half times as wide
MOST_HEADS = 8
N_CONTROLS = 20


def in_question(seen: Seen) -> tuple[HeadEvidence, ...]:
    """The heads that match prefixes, eight at most, or the two that come nearest to it."""
    return seen.matching[:MOST_HEADS] or seen.heads[:2]


def ablations_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The exhibit "ablations". Raises `UnsupportedModel` where heads cannot be made to act otherwise."""
    seen = heads_seen(subject)
    heads = [HeadId(head.layer, head.head) for head in in_question(seen)]
    controls = matched_controls(heads, subject.reading.heads, N_CONTROLS, np.random.default_rng([subject.seed, 10]))
    sets = [*([head] for head in heads), heads, *controls.sets, all_heads(subject)]
    probes = list(probes_of(subject, N_SEQUENCES, np.random.default_rng([subject.seed, 0]), COPIES, None))
    with progress("ablations", N_SEQUENCES * (len(sets) + 1)):
        found = [rises(last_copy(subject, probe, Ablating("zero")), sets) for probe in probes]
    loss, effects = (np.concatenate([part[which] for part in found]) for which in (0, 1))
    count = len(heads)
    *alone, together = (ends(each) for each in mean_interval(effects[:, : count + 1], ERROR_RATE, "nats"))
    about = f"{N_SEQUENCES} sequences, {describe(probes)}, seed {subject.seed}; intervals hold together at {1 - ERROR_RATE}"
    return {
        "unit": "nats",
        "how": "zero",
        "loss": loss.mean(),
        "of_all": effects[:, -1].mean(),
        "heads": [{"name": str(head), **each} for head, each in zip(heads, alone, strict=True)],
        "together": {"names": [str(head) for head in heads], **together},
        "controls": effects[:, count + 1 : -1].mean(axis=0),
        "relaxed": bool(controls.relaxed),
        "about": f"{about}; heads chosen on {seen.about(subject.seed)}",
    }
