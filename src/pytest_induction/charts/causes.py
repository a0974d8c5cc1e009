"""What the heads in question do for the model, and which heads they read of."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_induction.charts.heads import Seen, heads_seen
from pytest_induction.charts.making import ends
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.errors import ModelError
from pytest_induction.heads.composition import composition_between
from pytest_induction.heads.criteria import is_previous_token
from pytest_induction.interventions.ablation import last_copy, matched_controls, rises
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.passes import Ablating
from pytest_induction.measuring.observing import describe, probes_of
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.protocol import ModelUnderTest
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
    """The chart "ablations". Raises `UnsupportedModel` where heads cannot be edited."""
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


OTHER = "other"  # the role of a head that is neither, but comes nearest
Node = tuple[HeadEvidence, str, float]


def composition_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The chart "composition". Raises `ModelError` for one layer, `UnsupportedModel` where the weights are not known."""
    if subject.n_layers < 2:
        raise ModelError("composition is between heads in two layers, the model has one attention layer")
    circuits_of(subject)  # refuse by name here, before anything is measured
    seen = heads_seen(subject)
    later = _later(seen)
    earlier = _earlier(seen, max(head.layer for head, _, _ in later))
    ends = ([HeadId(node[0].layer, node[0].head) for node in nodes] for nodes in (later, earlier))
    found, mean = composition_between(subject, *ends)
    edges = [{"from": str(one), "to": str(other), **scores} for (other, one), scores in found.items()]
    by_name = {str(node[0]): node for node in sorted((*earlier, *later), key=lambda node: node[1] != OTHER)}
    nodes = sorted(by_name.values(), key=lambda node: (node[0].layer, node[0].head))
    drawn = {edge[end] for edge in edges for end in ("from", "to")}
    return {
        "random_mean": mean,
        "heads": [
            {"name": str(head), "layer": head.layer, "head": head.head, "role": role, "score": score}
            for head, role, score in nodes
            if str(head) in drawn
        ],
        "edges": sorted(edges, key=lambda edge: -np.nan_to_num(edge["key"], nan=-np.inf)),
        "about": f"of the weights, above random heads of these sizes; heads chosen on {seen.about(subject.seed)}",
    }


def _later(seen: Seen) -> list[Node]:
    """The heads that match prefixes and have a layer before them, or the two that come nearest to it."""
    matching = [(head, "induction", head.prefix_matching.value) for head in seen.matching if head.layer > 0]
    others = [(head, OTHER, head.prefix_matching.value) for head in seen.heads if head.layer > 0]
    return matching[:MOST_HEADS] or others[:2]


def _earlier(seen: Seen, last: int) -> list[Node]:
    """The heads before layer `last` that attend to the token before, or the one that comes nearest to it."""
    before = sorted((head for head in seen.heads if head.layer < last), key=lambda head: -head.previous_token)
    previous = [(head, "previous token", head.previous_token) for head in before if is_previous_token(head.previous_token)]
    return previous[:MOST_HEADS] or [(head, OTHER, head.previous_token) for head in before[:1]]
