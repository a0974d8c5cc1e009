"""What the heads of a model attend to on one probe, query by query."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pytest_induction.criteria import is_previous_token
from pytest_induction.errors import ModelError
from pytest_induction.exhibits.heads import Seen, heads_seen
from pytest_induction.metrics.attention import AttentionReader
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.observing import Array, numbers
from pytest_induction.probes.sequences import Probe, fitting_shape, repeated_sequences
from pytest_induction.records import HeadEvidence

MOST_POSITIONS, LONGEST = 64, 16  # what can be looked at, token by token
MOST_HEADS = 3
PATTERN_DIGITS = 4


def attention_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The exhibit "attention". Raises `ModelError` where a pattern is not finite."""
    seen = heads_seen(subject)
    probe = _probe(subject)
    chosen = _chosen(seen)
    patterns = _patterns(subject, probe, [head for head, _, _ in chosen])
    return {
        "tokens": probe.tokens[0].tolist(),
        "starts": [probe.start + copy * probe.period for copy in range(probe.repeats)],
        "period": probe.period,
        "bos": subject.space.bos_id is not None,
        "heads": [
            {"name": str(head), "role": role, "score": score, "pattern": _triangle(pattern)}
            for (head, role, score), pattern in zip(chosen, patterns, strict=True)
        ],
        "about": f"1 sequence, period {probe.period}, {probe.repeats} copies, seed {subject.seed}; "
        f"heads chosen on {seen.about(subject.seed)}",
    }


def _probe(subject: ModelUnderTest) -> Probe:
    """One row of repeated tokens, short enough to be looked at."""
    fitting, copies = fitting_shape(subject.space)
    start = 0 if subject.space.bos_id is None else 1
    period = min(LONGEST, fitting[-1], (MOST_POSITIONS - start) // copies)
    return repeated_sequences(subject.space, period=period, rng=np.random.default_rng([subject.seed, 12]), repeats=copies)


def _chosen(seen: Seen) -> list[tuple[HeadEvidence, str, float]]:
    """The strongest heads, then the one that most attends to the token before: head, role, and the score that it has it for."""
    before = max(seen.heads, key=lambda head: head.previous_token)
    previous = [before] if is_previous_token(before.previous_token) and before not in seen.matching else []
    strongest = [head for head in seen.heads if head not in previous][:MOST_HEADS]
    roles = ["induction" if head in seen.matching else "strongest" for head in strongest]
    named = [(head, role, head.prefix_matching.value) for head, role in zip(strongest, roles, strict=True)]
    return named + [(head, "previous token", head.previous_token) for head in previous]


def _patterns(subject: ModelUnderTest, probe: Probe, heads: list[HeadEvidence]) -> list[Array]:
    """The pattern of each head, (queries, keys)."""
    found: dict[tuple[int, int], Array] = {}

    def take(layer: int, attention: AttentionReader) -> None:
        wanted = [head.head for head in heads if head.layer == layer]
        if wanted:
            pattern = attention.pattern_of(range(probe.n_positions))[0, wanted]
            found.update(zip(((layer, number) for number in wanted), numbers(pattern), strict=True))

    subject.observe(torch.from_numpy(probe.tokens), take)
    patterns = [found[head.layer, head.head] for head in heads]
    if not all(np.isfinite(pattern).all() for pattern in patterns):
        raise ModelError(f"the attention of {subject.name} is not finite (NaN or infinity)")
    return patterns


def _triangle(pattern: Array) -> list[Array]:
    """Each query's mass on itself and what is before it."""
    return [np.round(row[: query + 1], PATTERN_DIGITS) for query, row in enumerate(pattern)]
