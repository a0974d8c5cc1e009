"""Copy suppression: heads that lower what is predicted before them, where it stands earlier in the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.behaviour.judging import shuffled_rows
from pytest_induction.behaviour.text import rows_of
from pytest_induction.deciding import ERROR_RATE, Judgement, more_needed_in_words, priced_claim, until_clear
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ArgumentError, ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.heads.copying import projected
from pytest_induction.heads.explained import ExplainedHead, explained
from pytest_induction.heads.prices import most_suppression_rows, price_of_suppression, price_of_suppression_verdict
from pytest_induction.heads.semantic import named_heads
from pytest_induction.interventions.arguments import HeadsLike
from pytest_induction.measuring.observing import (
    Array,
    ModelLike,
    joined,
    numbers,
    of_all_heads,
    plain_scores,
    provenance,
)
from pytest_induction.model.batching import in_batches
from pytest_induction.model.capture import HeadOutputCapture, ReadByLayers, mix
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.lens import Lens
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import Ids
from pytest_induction.progress import progress
from pytest_induction.records import Estimate, Evidence, HeadId, Provenance, Verdict
from pytest_induction.spending import priced, spend_at_most, spent_so_far
from pytest_induction.statistics import FIRST_LOOK, clipped_intervals, more_rows

N_QUERIES = 32  # of a row, evenly spaced: at each the whole vocabulary is looked at before every layer
FIRST_QUERY = 4  # queries are in the last three quarters of a row, so that something comes before them
HIGH_MASS = 0.1  # on what is predicted: a head that has it there attends to it
MIN_SUPPRESSION = 0.1  # nats
MIN_PREDICTIONS = 50  # before a layer: of fewer no mean is judged
MIN_SHARE = 0.05  # of the queries: before a layer that predicts less often there is too little to lower
MOST_COUNTED = 4  # times the threshold: so much a row counts at most, up or down
MOST_ATTENTION = 0.2  # the same of attention
MAX_ROWS = 16
NEAREST = 5  # heads that are in the evidence
CLAIM = "copy_suppression"
SEEN = ("copy suppression",)  # the key under which a model remembers what was measured of all its heads, for charts
SUMS = (
    "mass",
    "other_mass",
    "effect",
    "other_effect",
    "direct_effect",
    "mass_squared",
    "direct_effect_squared",
    "product",
    "attended",
    "attended_effect",
)


def queries_of(length: int) -> NDArray[np.int64]:
    """The positions of a row of that length at which predictions are looked at, in order."""
    first = max(2, length // FIRST_QUERY)
    return np.unique(np.linspace(first, length - 1, min(N_QUERIES, length - first)).round().astype(np.int64))


@dataclass(frozen=True)
class Asked:
    """What is predicted before a layer at each query of some rows, (rows, queries), and a token to compare it with.

    `counts` says where a prediction counts: one token is ahead of all others, it stands in the row before the query and is not
    the query's own; `others` is another such token that stands there about as often. Both are -1 where none counts.
    """

    predicted: Ids
    others: Ids

    @property
    def counts(self) -> NDArray[np.bool_]:
        return self.predicted >= 0


def asked(likeliest: Ids, rows: Ids, queries: NDArray[np.int64], draw: Callable[[int], np.random.Generator]) -> Asked:
    """Of the `likeliest` token at each query (rows, queries), -1 for none, those that count; others drawn at random.

    The first position of a row is no occurrence, as heads rest there. `draw` gives the generator of the row of that number.
    """
    predicted, others = np.full(likeliest.shape, -1), np.full(likeliest.shape, -1)
    for number, row in enumerate(rows):
        rng = draw(number)
        for place, query in enumerate(queries):
            wanted, own = likeliest[number, place], row[query]
            if wanted < 0 or wanted == own or not (before := row[1:query] == wanted).any():
                continue
            tokens, often = np.unique(row[1:query], return_counts=True)
            fits = (tokens != wanted) & (tokens != own)
            if not fits.any():
                continue
            apart = np.abs(often[fits] - before.sum())
            predicted[number, place] = wanted
            others[number, place] = rng.choice(tokens[fits][apart == apart.min()])
    return Asked(predicted, others)


class _Measured(ReadByLayers):
    """What heads do to predictions in one batch of rows, layer by layer as the pass goes."""

    def __init__(
        self,
        circuits: Circuits,
        lens: Lens,
        rows: Tensor,
        layers: Sequence[int],
        draw: Callable[[int, int], np.random.Generator],
    ) -> None:
        super().__init__(circuits, layers)
        self._lens, self._draw = lens, draw
        self._rows = rows.cpu().numpy()
        self._queries = queries_of(rows.shape[1])
        self._at = torch.from_numpy(self._queries)
        self._asked: dict[int, Asked] = {}
        self.found: dict[int, tuple[Asked, Tensor, Tensor]] = {}

    def enter(self, layer: int, stream: Tensor) -> None:
        """Note what the stream before a layer predicts."""
        if layer not in self._layers:
            return
        at = self._at.to(stream.device)
        of_rows = zip(stream, self._rows, strict=True)
        likeliest = np.stack([self._lens.likeliest(each[at], row, self._queries) for each, row in of_rows])
        self._asked[layer] = asked(likeliest, self._rows, self._queries, lambda row: self._draw(row, layer))

    def take(self, layer: int, found: Tensor, pattern: Tensor | None) -> None:
        """What the heads of a layer attend to, (2, rows, queries, heads), and write, (3, rows, queries, heads).

        Of what is predicted and of the others: the mass on their occurrences and what is written to their logits from there;
        and last all that is written to the logit of what is predicted.
        """
        if layer not in self._layers:
            return
        if pattern is None:
            raise TypeError("copy suppression needs the pattern")
        one, values, device = self._asked.pop(layer), self._values.pop(layer), pattern.device
        rows, at = torch.from_numpy(self._rows).to(device), self._at.to(device)
        earlier = torch.arange(rows.shape[1], device=device) < at[:, None]
        earlier[:, 0] = False
        of_queries, behind = pattern[:, :, at], self._scales.pop(layer, None)
        masses, effects = [], []
        for tokens in (one.predicted, one.others):
            ids = torch.from_numpy(tokens).to(device)
            there = (rows[:, None, :] == ids[..., None]) & earlier  # rows, queries, keys
            attended = of_queries * there[:, None]
            own = projected(self._circuits.written(ids.clamp_min(0)), self._circuits.layers[layer].outs)
            from_there = mix(attended, values.to(attended)).to(own)
            from_there = from_there if behind is None else from_there / behind[:, at, None, None].to(own)
            masses.append(attended.sum(-1).transpose(1, 2))
            effects.append(torch.linalg.vecdot(from_there, own))
            if tokens is one.predicted:
                everything = torch.linalg.vecdot(found[:, at.to(found.device)].to(own), own)
        self.found[layer] = (one, torch.stack(masses), torch.stack([*effects, everything]))


def _sums(one: Asked, masses: Array, effects: Array) -> dict[str, Array]:
    """Sums over the predictions that count, by the names of `SUMS`, (rows, heads), of what `_Measured.take` gives."""
    there = one.counts[..., None]
    (mass, other_mass), (effect, other_effect, whole) = np.where(there, masses, 0.0), np.where(there, effects, 0.0)
    high = there & (mass >= HIGH_MASS)
    values = (mass, other_mass, effect, other_effect, whole, mass**2, whole**2, mass * whole, high, effect * high)
    return {name: each.sum(1).astype(np.float64) for name, each in zip(SUMS, values, strict=True)}


def sums_of(subject: ModelUnderTest, rows: Ids, seed: int, layers: Sequence[int], first: int = 0) -> dict[str, Array]:
    """What heads of these layers do to what is predicted before them: each of `SUMS`, (rows, n_layers, n_heads).

    And "predictions", (rows, n_layers), over how many. `first` is the number of the first row, by which others are drawn.
    """
    circuits = circuits_of(subject)
    capture, lens = HeadOutputCapture(subject, circuits), Lens(circuits)

    def measured(batch: Tensor, part: slice) -> dict[str, Array]:
        def draw(row: int, layer: int) -> np.random.Generator:
            return np.random.default_rng([seed, 26, first + part.start + row, layer])

        one = _Measured(circuits, lens, batch, layers, draw)
        scale = numbers(capture(batch, one.take, patterns=True, watch=one))[:, queries_of(batch.shape[1])]
        by_layer = []
        for layer, each in enumerate(circuits.layers):
            if layer not in one.found:
                by_layer.append(dict.fromkeys(SUMS, np.full((len(batch), each.n_heads), np.nan)))
                continue
            of_tokens, masses, effects = one.found[layer]
            by_layer.append(_sums(of_tokens, numbers(masses), numbers(effects) / scale[..., None]))
        found = {name: of_all_heads([each[name] for each in by_layer], subject.n_heads) for name in SUMS}
        counted = [
            one.found[layer][0].counts.sum(1) if layer in one.found else np.zeros(len(batch)) for layer in range(len(by_layer))
        ]
        return found | {"predictions": np.stack(counted, axis=1).astype(np.float64)}

    found = joined(in_batches(subject, torch.from_numpy(rows), measured, logits=False))
    exists = np.arange(subject.n_heads) < np.array(subject.reading.heads)[:, None]
    exists[[layer for layer in range(subject.n_layers) if layer not in layers]] = False
    if not all(np.isfinite(found[name][:, exists]).all() for name in SUMS):
        raise ModelError(f"what the heads of {subject.name} write is not finite (NaN or infinity)")
    return found


@dataclass(frozen=True, repr=False)
class SuppressionScores(Plotted):
    """What heads do to the token that is predicted before their layer, where it stands earlier in the row.

    Arrays (n_layers, n_heads), means over these predictions; NaN before a layer that makes none, and for a head there is not.
    `effect`, in nats, is what a head adds to the logit of the predicted token, above the mean over the vocabulary, by what it
    reads at the earlier occurrences: on the direct path, with the scale of the final norm held fixed. `other_effect` is the same
    of another token of the row that occurred about as often, the null. `mass` and `other_mass`, in [0, 1], are the attention to
    these occurrences. `direct_effect`, in nats, is all that the head adds to the predicted token, from wherever it reads.
    `attended_share` is how often the mass is 0.1 or more, and `attended_effect` the effect there, NaN where that is never.
    `correlation`, in [-1, 1], is that of the mass and the direct effect, NaN where either is always the same.

    `predictions` (n_layers,) is how many queries of each layer count, and `predicted_share` which share that is of all.
    `explained` has the heads of which it was asked how much of their effect suppression explains.
    `per_sequence` has the sums of each row, (n_sequences, n_layers, n_heads), of "mass", "other_mass", "effect", "other_effect"
    and "direct_effect", and under "predictions" (n_sequences, n_layers) over how many.
    """

    effect: Array
    other_effect: Array
    mass: Array
    other_mass: Array
    direct_effect: Array
    attended_share: Array
    attended_effect: Array
    correlation: Array
    predictions: Array
    predicted_share: Array
    explained: tuple[ExplainedHead, ...]
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="effect", units=dict.fromkeys(NATS, "nats") | {"correlation": "from \u22121 to 1"})

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return plain_scores(self, LISTS) | {"explained": [head.to_dict() for head in self.explained]}


NATS = ("effect", "other_effect", "direct_effect", "attended_effect")
LISTS = (
    "effect",
    "other_effect",
    "mass",
    "other_mass",
    "direct_effect",
    "attended_share",
    "attended_effect",
    "correlation",
    "predictions",
    "predicted_share",
)
KEPT = ("mass", "other_mass", "effect", "other_effect", "direct_effect")


@user_facing
@priced(price_of_suppression)
def measure_copy_suppression(
    model: ModelLike, text: Any, *, explain: HeadsLike | None = None, max_rows: int = MAX_ROWS, seed: int | None = None
) -> SuppressionScores:
    """Measure copy suppression on a text: do heads make predicted tokens less likely that stand earlier in the row?

    At 32 queries of each row, in its last three quarters, the token that is *predicted* before a layer is the likeliest one if
    the model ended there (the logit lens: final norm and unembedding of the residual stream that the layer is given). It counts
    where it stands earlier in the row, the first position left out, and is not the query's own token. It is chosen before the
    head acts: the likeliest token of all the model without the head's own share would be one that the head happens to lower.

    | a head that | effect | other effect |
    |---|---|---|
    | attends to what is predicted and lowers it by s, of V tokens | s / V - s | 0 |
    | does so and raises it: it copies what is predicted anyway | s - s / V | 0 |
    | attends evenly and lowers whatever stands there | -s m / q | about the same |
    | rests on the first token, or writes nothing | 0 | 0 |

    m is how often the token occurred before the query at position q. `text` is as for `assert_learns_in_context`; of a long one
    `max_rows` rows are taken, spread over all of it. `seed` draws the other tokens.

    `explain` names heads of which it is also measured how much of their effect suppression explains (`.explained`). Each writes
    its mean but for what it lowers where it stands, of the 5 % of earlier tokens that are predicted most, and the model goes on
    from there: `recovered` is 1 where this changes nothing, and 0 where it changes as much as mean ablation.

    Costs one pass over the rows, and beside it the unembedding of 32 positions before every layer. With `explain` two passes more
    and three for each head, from its layer on. Raises `TextError` for a text that makes fewer than two rows, `UnsupportedModel`
    where the weights of heads are not known, `ModelError` where what they write is not finite. Source: McDougall et al. 2023
    (arXiv 2310.04625), `explain` too; the effect through occurrences and both nulls are ours.

    >>> scores = measure_copy_suppression(model, "manual.txt")               # doctest: +SKIP
    >>> scores.effect[13, 3], scores.other_effect[13, 3]                     # doctest: +SKIP
    (-0.94, -0.02)
    """
    whole_number("max_rows", max_rows, least=2)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    wanted = () if explain is None else named_heads(subject, explain)
    rows = rows_of(subject, text, max_rows)
    with progress("copy suppression", len(rows)):
        found = sums_of(subject, rows, seed, range(subject.n_layers))
    subject.remember(SEEN, lambda: effects_to_draw(found))
    of_heads = explained(subject, rows, queries_of(rows.shape[1]), wanted, seed) if wanted else ()
    return _scores(found, of_heads, provenance(subject, seed=seed, n_sequences=len(rows), probe=described(rows)), rows.shape[1])


def described(rows: Ids) -> str:
    """What was probed with, in a few words."""
    return f"rows of {rows.shape[1]} tokens of text, {len(queries_of(rows.shape[1]))} queries each"


def _scores(found: Mapping[str, Array], of_heads: tuple[ExplainedHead, ...], about: Provenance, length: int) -> SuppressionScores:
    sums = {name: values.sum(0) for name, values in found.items()}
    predictions = sums.pop("predictions")
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {name: values / predictions[:, None] for name, values in sums.items()}
        shared = means["product"] - means["mass"] * means["direct_effect"]
        spreads = [means[f"{name}_squared"] - means[name] ** 2 for name in ("mass", "direct_effect")]
        known = (spreads[0] > TINY) & (spreads[1] > TINY)
        correlation = np.where(known, shared / np.sqrt(np.maximum(spreads[0] * spreads[1], TINY**2)), np.nan)
        attended_effect = sums["attended_effect"] / sums["attended"]
    return SuppressionScores(
        **{name: means[name] for name in KEPT},
        attended_share=means["attended"],
        attended_effect=attended_effect,
        correlation=np.clip(correlation, -1.0, 1.0),
        predictions=predictions,
        predicted_share=predictions / (len(found["predictions"]) * len(queries_of(length))),
        explained=of_heads,
        per_sequence={name: found[name] for name in (*KEPT, "predictions")},
        provenance=about,
    )


TINY = 1e-12  # a variance below it is that of rounding


def effects_to_draw(found: Mapping[str, Array]) -> Array:
    """The mean effect in each row, (rows, n_layers, n_heads), in nats; NaN before layers of too few predictions in all."""
    predictions = found["predictions"]
    counted = np.where(predictions.sum(0) >= MIN_PREDICTIONS, predictions, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted[..., None] > 0, found["effect"] / counted[..., None], np.nan)


@dataclass(frozen=True)
class Suppressing:
    """One head: its effect on what is predicted, in nats, and the same without twice its effect on other tokens.

    Where both lie below minus `least` it lowers what is predicted by enough, and other tokens by no more than half of that.
    `attention` is its mass on the occurrences of what is predicted without twice that on the others': above 0 it looks for them.
    """

    head: HeadId
    effect: Estimate
    beyond: Estimate
    attention: Estimate
    least: float

    @property
    def suppresses(self) -> bool:
        lowers = self.effect.is_below(-self.least) and self.beyond.is_below(-self.least)
        return lowers and self.attention.is_above(0.0)

    @property
    def does_not(self) -> bool:
        """Whether it is shown to lower too little, other tokens nearly as much, or to attend to these nearly as much."""
        return self.effect.is_above(-self.least) or self.beyond.is_above(-self.least) or self.attention.is_below(0.0)

    def more_needed(self, count: int) -> int:
        """How many more rows would tell."""
        unclear = [each for each in (self.effect, self.beyond) if not each.is_below(-self.least)]
        more = [more_rows(each, -self.least, count) for each in unclear]
        more += [] if self.attention.is_above(0.0) else [more_rows(self.attention, 0.0, count)]
        return max(more)

    def __str__(self) -> str:
        found = self.effect
        return f"{self.head} adds {found.value:.3f} nats ({found.low:.3f}..{found.high:.3f})"


def suppressing(
    found: Mapping[str, Array], heads: Sequence[HeadId], least: float, rates: tuple[float, float]
) -> list[Suppressing]:
    """Each of the heads with its intervals, the strongest suppression first.

    `found` has "effect", "other_effect", "mass" and "other_mass" (rows, n_layers, n_heads), sums over the "predictions" (rows,
    n_layers); each of these heads has some. Means are over rows. Each row counts once, and with four times `least` at most: so
    their intervals hold for any distribution of rows. `rates` are those at which an end that may show
    suppression is wrong, and an end that may rule it out.
    """
    if not heads:
        return []
    places = [head.layer for head in heads], [head.head for head in heads]
    names = ("effect", "other_effect", "mass", "other_mass")
    with np.errstate(invalid="ignore"):
        of_rows = [found[name][:, places[0], places[1]] / found["predictions"][:, places[0]] for name in names]
    effect, other, mass, other_mass = of_rows
    to_show, to_rule_out = rates
    lowered = [clipped_intervals(each, MOST_COUNTED * least, to_rule_out, to_show) for each in (effect, effect - 2 * other)]
    attention = clipped_intervals(mass - 2 * other_mass, MOST_ATTENTION, to_show, to_rule_out, unit="excess")
    known = [
        Suppressing(head, of_head, beyond, looks, least)
        for head, of_head, beyond, looks in zip(heads, lowered[0], lowered[1], attention, strict=True)
    ]
    return sorted(known, key=lambda each: each.effect.value)


def judge_suppression(
    found: Mapping[str, Array], heads: Sequence[HeadId], n_queries: int, *, is_named: bool, least: float, error_rate: float
) -> Judgement:
    """Does each of the named heads suppress what is predicted before it, or else some head of all?

    A layer before which too little is predicted is not judged: of all heads it is left out where it predicts at less than 0.05
    of the queries. Only one of the two answers can be wrong, so each has the whole error rate. That some head does what three
    statements say is shown where all three hold for one of the heads, and ruled out where one fails for each of them.
    """
    rates = (error_rate, error_rate / (3 * len(heads))) if is_named else (error_rate / len(heads), error_rate / 3)
    count, predictions = len(found["predictions"]), found["predictions"].sum(0)
    enough = predictions >= MIN_PREDICTIONS
    rare = predictions < MIN_SHARE * count * n_queries
    known = suppressing(found, [head for head in heads if enough[head.layer]], least, rates)
    lacking = sorted({head.layer for head in heads if not enough[head.layer]})
    waited_for = [layer for layer in lacking if not rare[layer]]
    estimates = _estimates(known)
    suppress = [each for each in known if each.suppresses]
    against = [each for each in known if each.does_not]
    if suppress and (not is_named or len(suppress) == len(heads)):
        named = ", ".join(map(str, suppress[:NEAREST]))
        summary = f"a predicted token that stands earlier in the row becomes less likely: {named}"
        return Judgement(Verdict.SHOWN, "suppresses", summary, estimates=estimates)
    if is_named and against:
        summary = f"{against[-1]} to a predicted token that stands earlier in the row{_not_beyond(against[-1])}"
        return Judgement(Verdict.REFUTED, "does_not_suppress", summary, estimates=estimates)
    if lacking and (is_named or not known or (waited_for and len(against) == len(known))):
        return _few(predictions, lacking, count, n_queries, estimates)
    if not is_named and len(against) == len(known):
        strongest = known[0]
        left_out = f"; before {_layers(lacking)} hardly any predicted token stands earlier" if lacking else ""
        summary = f"no head suppresses predicted tokens: {strongest}{_not_beyond(strongest)}{left_out}"
        return Judgement(Verdict.REFUTED, "no_head_suppresses", summary, estimates=estimates)
    unclear = [each for each in known if not each.suppresses and not each.does_not]
    more = [each.more_needed(count) for each in unclear]
    summary = f"whether a predicted token loses {least:.3f} nats is too close to tell: {unclear[0]}"
    wanted = max(more) if is_named else min(more)
    return Judgement(Verdict.UNDETERMINED, "suppression_unclear", summary, estimates=estimates, more_sequences=wanted)


def _not_beyond(found: Suppressing) -> str:
    """Against what a head fell short, as the end of a sentence."""
    if found.effect.is_above(-found.least):
        return f", not {-found.least:.3f} or less"
    if found.attention.is_below(0.0):
        return ", but does not look for it: other tokens that stand there as often get more than half of the attention to it"
    return f", and {(found.effect.value - found.beyond.value) / 2:.3f} to other tokens that stand there as often"


def _few(predictions: Array, lacking: Sequence[int], count: int, n_queries: int, estimates: Mapping[str, Estimate]) -> Judgement:
    """The judgement where too little is predicted before layers that would have to be judged."""
    most = max(lacking, key=lambda layer: float(predictions[layer]))
    seen = int(predictions[most])
    summary = (
        f"too few predicted tokens stand earlier in the row: before layer {most} at {seen} of {count * n_queries} queries, "
        f"{MIN_PREDICTIONS} are needed"
    )
    share = seen / (count * n_queries)
    more = 0 if share < MIN_SHARE else int(np.ceil(MIN_PREDICTIONS / (share * n_queries))) - count
    return Judgement(Verdict.UNDETERMINED, "few_predictions", summary, estimates=estimates, more_sequences=max(0, more))


def _layers(numbers_of: Sequence[int]) -> str:
    named = ", ".join(map(str, numbers_of[:NEAREST]))
    more = f" and {len(numbers_of) - NEAREST} more" if len(numbers_of) > NEAREST else ""
    return f"layer{'s' if len(numbers_of) > 1 else ''} {named}{more}"


def _estimates(known: Sequence[Suppressing]) -> dict[str, Estimate]:
    """Of the heads with the strongest suppression what each is judged by."""
    found = {f"effect {each.head}": each.effect for each in known[:NEAREST]}
    found |= {f"beyond others {each.head}": each.beyond for each in known[:NEAREST]}
    return found | {f"attention {each.head}": each.attention for each in known[:NEAREST]}


@user_facing
@priced_claim(price_of_suppression_verdict)
def assert_copy_suppression(
    model: ModelLike,
    text: Any,
    *,
    heads: HeadsLike | None = None,
    min_suppression: float = MIN_SUPPRESSION,
    max_sequences: int | None = None,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that some head, or each named one, makes a token that earlier layers predict less likely if the row has it.

    Predictions, and what heads do to them, are those of `measure_copy_suppression`. A head suppresses where three means over rows
    lie beyond their thresholds with their whole intervals: its effect below minus `min_suppression`, in nats; the effect without
    twice that on other tokens of the row that occurred as often, below the same, so that it does not lower whatever stood there;
    and its mass without twice that on these tokens, above 0, so that it looks for what is predicted. REFUTED where for each head
    one of the three is shown not to hold, or for one of those named.

    All predictions that stand earlier count, also where the head attends elsewhere. A row counts for four times `min_suppression`
    at most, so that the intervals hold whatever rows are distributed like.

    UNDETERMINED where too little is predicted before the layers (`few_predictions`): small models, and early layers of larger
    ones, predict nothing by the logit lens. Of all heads, those of layers that predict at less than 0.05 of the queries are left
    out, and the summary says so.

    `text` is as for `assert_learns_in_context`. Rows are drawn in rounds until it is clear, at most `max_sequences` (48, 192 for
    a model of up to 2 million weights). `budget` is as for `assert_has_induction_head`. `error_rate` is for all heads and rounds
    together.

    Returns the evidence: `.estimates` has "effect L13H3", "beyond others L13H3" and "attention L13H3" of the strongest heads.
    Raises `ExpectationFailed`, which carries it, `UnsupportedModel` where the weights of heads are not known, `TextError` for a
    text of fewer than 16 rows. Source: McDougall et al. 2023 (arXiv 2310.04625); what decides is ours.

    >>> assert_copy_suppression(model, "manual.txt").reason                  # doctest: +SKIP
    'suppresses'
    """
    spend_at_most(budget)
    check_share("error_rate", error_rate)
    if not 0 < min_suppression < np.inf:
        raise ArgumentError(f"`min_suppression` must be above 0 nats, got {min_suppression}")
    if max_sequences is not None:
        whole_number("max_sequences", max_sequences, least=FIRST_LOOK)
    subject = load_model(model)
    most = most_suppression_rows(subject) if max_sequences is None else max_sequences
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked_for = named_heads(subject, heads)
    rows = shuffled_rows(subject, text, most, seed)
    layers, drawn, begun = sorted({head.layer for head in asked_for}), 0, spent_so_far()

    def draw(n_rows: int, _: int) -> Mapping[str, Array]:
        nonlocal drawn
        part, first = rows[drawn : drawn + n_rows], drawn
        key = (CLAIM, part.tobytes(), part.shape, seed, first, tuple(layers))
        with progress(CLAIM, n_rows):
            found = subject.remember(key, lambda: sums_of(subject, part, seed, layers, first))
        drawn += n_rows
        return found

    def judge(rounds: list[Mapping[str, Array]], rate: float) -> Judgement:
        options: dict[str, Any] = {"is_named": heads is not None, "least": min_suppression, "error_rate": rate}
        return judge_suppression(joined(rounds), asked_for, len(queries_of(rows.shape[1])), **options)

    rounds, found, _ = until_clear(draw, judge, min(most, len(rows)), error_rate)
    if heads is None:
        subject.remember(SEEN, lambda: effects_to_draw(joined(rounds)))
    evidence = Evidence(
        claim=CLAIM,
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=provenance(subject, seed=seed, n_sequences=drawn, probe=described(rows)),
        estimates=found.estimates or {},
        thresholds={"min_suppression": min_suppression},
        confidence=1 - error_rate,
        next_step=more_needed_in_words(found.more_sequences, drawn, (spent_so_far() - begun) / drawn, "rows of text"),
    )
    return expect(evidence)
