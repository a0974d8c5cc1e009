"""What every head attends to, query by query for some, and which heads the other charts are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pytest_induction.attention.scores import AttentionReader
from pytest_induction.charts.making import ENDS, why
from pytest_induction.claims import head_scores
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.errors import ModelError
from pytest_induction.heads.copying import copy_effects
from pytest_induction.heads.criteria import MATCHES, MIN_PREFIX_MATCHING, excess, is_previous_token
from pytest_induction.heads.induction import list_of_heads, search_for_all
from pytest_induction.heads.retrieval import SEEN as RETRIEVED
from pytest_induction.heads.suppression import SEEN as SUPPRESSED
from pytest_induction.heads.table import Thresholds, head_evidence
from pytest_induction.interventions.concepts import SEEN as COPIED
from pytest_induction.measuring.observing import Array, numbers
from pytest_induction.measuring.rounds import MAX_SEQUENCES, Round
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Probe, fitting_shape, repeated_sequences
from pytest_induction.records import Estimate, HeadEvidence, HeadList
from pytest_induction.statistics import SHARE, bounded_intervals, mean_interval

N_EFFECTS = 24  # sequences on which copy effects are measured, where the list of heads needs none
COPY_EFFECT = ("copy_effect", "copy effect", "nats")
CONCEPTS = ("concepts", "concept copying", "nats")
RETRIEVAL = ("retrieval", "retrieval of facts", "nats")
SUPPRESSION = ("suppression", "copy suppression", "nats")
MATCH_LENGTHS = {
    "exactly_one": "matching on one token",
    "exactly_two": "matching on two tokens",
    "three_or_more": "matching on three or more",
}


@dataclass(frozen=True)
class Seen:
    """Every head as it was measured: `heads` strongest first, `effects` their copy effects where these are known.

    `listed` is the complete list of induction heads. `why_not` says why effects are not known.
    """

    found: Round
    heads: tuple[HeadEvidence, ...]
    listed: HeadList
    effects: Array | None
    why_not: str

    @property
    def matching(self) -> tuple[HeadEvidence, ...]:
        """The induction heads, strongest first."""
        listed = {(head.layer, head.head) for head in self.listed.heads}
        return tuple(head for head in self.heads if (head.layer, head.head) in listed)

    def kind_of(self, head: HeadEvidence) -> str:
        """What a head does: by its means, and of one that matches what the list says of it."""
        kinds = {(each.layer, each.head): each.kind for each in self.listed.ruled_out}
        return kinds.get((head.layer, head.head), head.kind) if head.kind == MATCHES else head.kind

    def about(self, seed: int) -> str:
        """What all of it was measured on."""
        return f"{len(self.found.periods)} sequences, {self.found.described}, seed {seed}"


def heads_seen(subject: ModelUnderTest) -> Seen:
    """The heads of a model, measured or remembered. Raises `UnsupportedModel` where its attention cannot be read."""
    _ = subject.reading
    return subject.remember(("heads for charts", subject.seed), lambda: _seen(subject))


def _seen(subject: ModelUnderTest) -> Seen:
    budget = (MAX_SEQUENCES, ERROR_RATE, None)
    listed, search = list_of_heads(subject, Thresholds(), budget), search_for_all(subject, Thresholds(), budget)
    found = search.found
    effects, why_not = _effects(subject, [each.effects for each in search.copies if each.effects is not None])
    heads = head_evidence(found, Thresholds(), ERROR_RATE, complete=True)
    return Seen(found, tuple(heads), listed, effects, why_not)


def _effects(subject: ModelUnderTest, known: list[Array]) -> tuple[Array | None, str]:
    """The copy effects that the list has measured; where it has none, on rows of their own."""
    if known:
        return np.concatenate(known), ""
    try:
        return copy_effects(subject, N_EFFECTS, subject.seed), ""
    except Exception as error:  # noqa: BLE001 - whatever it is: what heads attend to is drawn all the same
        return None, why(error)


def heads_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The chart "heads"."""
    seen = heads_seen(subject)
    found = seen.found
    measures = [
        (("prefix_matching", "prefix matching", SHARE), found.scores["prefix_matching"], SHARE),
        (("excess", "prefix matching without chance", SHARE), excess(found.scores), "excess"),
        (("previous_token", "previous token", SHARE), found.scores["previous_token"], SHARE),
        (("duplicate_token", "duplicate token", SHARE), found.scores["duplicate_token"], SHARE),
        (("first_token", "first token", SHARE), found.scores["first_token"], SHARE),
    ]
    measures += [
        ((name, words, SHARE), found.irregular[name], SHARE) for name, words in MATCH_LENGTHS.items() if name in found.irregular
    ]
    of_claims = [score.name for score in head_scores() if score.name in found.scores]
    measures += [((name, name.replace("_", " "), SHARE), found.scores[name], SHARE) for name in of_claims]
    seen_before = ((RETRIEVAL, RETRIEVED), (SUPPRESSION, SUPPRESSED), (CONCEPTS, COPIED))  # where a verdict has asked for them
    measures += [(names, values, "nats") for names, key in seen_before if (values := subject.remembered(key)) is not None]
    if seen.effects is not None:
        measures.append((COPY_EFFECT, seen.effects, "nats"))
    kinds: list[list[str | None]] = [[None] * subject.n_heads for _ in range(subject.n_layers)]
    for head in seen.heads:
        kinds[head.layer][head.head] = seen.kind_of(head)
    about = seen.about(subject.seed) + (f"; what heads copy is not known: {seen.why_not}" if seen.why_not else "")
    return {
        "layers": list(subject.reading.layers),
        "scores": [_score(names, values, unit, found) for names, values, unit in measures],
        "threshold": MIN_PREFIX_MATCHING,
        "kinds": kinds,
        "confidence": 1 - ERROR_RATE,
        "about": about,
    }


def _score(names: tuple[str, str, str], values: Array, unit: str, found: Round) -> dict[str, Any]:
    """One score of every head with its interval; that of the excess may end below 0."""
    of_heads = values[:, found.exists]
    if unit == "nats":
        estimates: Sequence[Estimate] = _in_nats(of_heads)
    else:
        each = ERROR_RATE / 2 / max(1, of_heads.shape[1])
        estimates = bounded_intervals(of_heads, each, each, lowest=-1.0 if unit == "excess" else 0.0, unit=unit)
    score: dict[str, Any] = dict(zip(("name", "words", "unit"), names, strict=True))
    return score | {end: _matrix([getattr(each, end) for each in estimates], found) for end in ENDS}


def _in_nats(of_heads: Array) -> list[Estimate]:
    """Student's interval of each column (rows, heads), for all together. NaN was not measured; NaN where fewer than two were."""
    rate, estimates = ERROR_RATE / max(1, of_heads.shape[1]), []
    for each in of_heads.T:
        values = each[~np.isnan(each), None]
        known = len(values) > 1
        estimates.append(mean_interval(values, rate, "nats")[0] if known else Estimate(np.nan, np.nan, np.nan, "nats"))
    return estimates


def _matrix(numbers: Sequence[float], found: Round) -> Array:
    """Numbers of the heads that there are, in order, as (n_layers, n_heads)."""
    matrix = np.full(found.exists.shape, np.nan)
    matrix[found.exists] = numbers
    return matrix


MOST_POSITIONS, LONGEST = 64, 16  # what can be looked at, token by token
MOST_HEADS = 3
PATTERN_DIGITS = 4


def attention_data(subject: ModelUnderTest) -> dict[str, Any]:
    """The chart "attention". Raises `ModelError` where a pattern is not finite."""
    seen = heads_seen(subject)
    probe = _probe(subject)
    chosen = _chosen(seen)
    patterns = _patterns(subject, probe, [head for head, _, _ in chosen])
    tokens = probe.tokens[0].tolist()
    return {
        "tokens": tokens,
        **_texts(subject, tokens),
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


def _texts(subject: ModelUnderTest, tokens: list[int]) -> dict[str, list[str]]:
    """Each token as the model's tokenizer decodes it; nothing where there is none, or it does not know them."""
    if subject.tokenizer is None:
        return {}
    try:
        found = [subject.tokenizer.decode([token]) for token in tokens]
    except Exception:  # noqa: BLE001 - a tokenizer may be the user's own, and ids say what is needed
        return {}
    return {"texts": found} if all(isinstance(text, str) for text in found) else {}


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
