"""Probe a model: token ids in, numbers per sequence, layer and head out. One forward pass per batch, reduced on the fly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.attention.scores import SCORES, WRONG_SHIFT, PeriodicScores, ScoresAndChance, at_period, scores_for
from pytest_induction.claims import head_scores
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ArgumentError, ProbeError, user_facing, whole_number
from pytest_induction.forward.calling import first_line
from pytest_induction.head_score import HeadScore
from pytest_induction.measuring.added import with_added
from pytest_induction.measuring.losses import Repetition, repetition
from pytest_induction.measuring.observing import (
    PERIODS_AT_ONCE,
    Array,
    ModelLike,
    check_range,
    describe,
    joined,
    masses_of,
    named_behaviour,
    observe,
    plain,
    plain_scores,
    probes_of,
    provenance,
)
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.irregular import IrregularRows, irregular_sequences
from pytest_induction.probes.sequences import COPIES, Ids, Probe, even_periods, fitting_shape, unrepeated_sequences, usual_length
from pytest_induction.progress import progress
from pytest_induction.records import Provenance, TokenSpace
from pytest_induction.spending import Price, priced

FEWEST_POSITIONS = 3  # the first query that counts everywhere
PLACES_OF_CHANCE = 2  # wrong shifts, and other periods: no head can have all of its attention at each of several places
OF_A_ROUND = (*SCORES, WRONG_SHIFT, "other_periods", "control")
IRREGULAR_SHARE = 3  # of repeated rows for each row with irregular copies, unless more are asked for


@dataclass(frozen=True, repr=False)
class HeadScores(Plotted):
    """Four scores of every head, each an array (n_layers, n_heads) of means over sequences, in [0, 1].

    `added` has those that were registered beside them, and their own chance, by name; `scores["name"]` is any of them by its
    name. `per_sequence` holds the same before the mean: name -> (n_sequences, n_layers, n_heads). Where layers differ in their
    number of heads, a head that a layer does not have is NaN.
    """

    prefix_matching: Array
    previous_token: Array
    duplicate_token: Array
    first_token: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance
    added: Mapping[str, Array] = field(default_factory=dict)

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, more=self.added)

    def __getitem__(self, name: str) -> Array:
        """A score by its name. Raises `ArgumentError` where there is none."""
        found = {**{each: getattr(self, each) for each in SCORES}, **self.added}
        if name not in found:
            raise ArgumentError(f"there is no score {name!r}: it must be one of {', '.join(found)}")
        return found[name]

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`."""
        added = {"added": {name: plain(values) for name, values in self.added.items()}} if self.added else {}
        return plain_scores(self, SCORES) | added


def price_of_probes(space: TokenSpace, n_sequences: int, period: int | None = None, repeats: int = COPIES) -> Price:
    """Of passes over so many rows of repeated tokens: periods are of a range unless one is given."""
    periods, copies = fitting_shape(space, repeats) if period is None else (range(period, period + 1), repeats)
    first = int(space.bos_id is not None)
    return Price(n_sequences * (copies * periods[0] + first), n_sequences * (copies * periods[-1] + first))


def price_of_scores(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of `measure_heads`: one pass over its rows."""
    tokens = given.get("tokens")
    if tokens is not None:
        count = torch.as_tensor(tokens).numel()
        return Price(count, count)
    return price_of_probes(subject.space, given["n_sequences"], given.get("period"), given.get("repeats", COPIES))


@user_facing
@priced(price_of_scores)
def measure_heads(
    model: ModelLike,
    *,
    tokens: Any = None,
    attention_mask: Any = None,
    n_sequences: int = 24,
    period: int | None = None,
    repeats: int = COPIES,
    seed: int | None = None,
) -> HeadScores:
    """Measure prefix-matching, previous-token, duplicate-token and first-token scores of every head.

    Without `tokens` the model is probed with `n_sequences` rows of repeated random tokens, of varied period unless `period`
    is given. `tokens` (sequences, positions) are your own ids instead, taken as they are: the answer key of each row follows
    from where its tokens occurred earlier. `attention_mask`, same shape, marks padding with 0.

    A perfect induction head has prefix matching 1, a uniform causal head about 1 / period, a head that rests on the first
    token 0. See docs/metrics.md for each definition. Raises `ModelError` for a model whose attention cannot be read,
    `ProbeError` where no probe fits it, `ArgumentError` for ids that it does not have or rows in which nothing repeats.

    >>> scores = measure_heads(model)                                # doctest: +SKIP
    >>> scores.prefix_matching.shape                                 # doctest: +SKIP
    (2, 4)
    """
    for name, value, least in (
        ("n_sequences", n_sequences, 1),
        ("period", period, 1),
        ("repeats", repeats, 2),
        ("seed", seed, 0),
    ):
        if value is not None or name in ("n_sequences", "repeats"):
            whole_number(name, value, least=least)
    if attention_mask is not None and tokens is None:
        raise ArgumentError("`attention_mask` belongs to `tokens`, which were not given")
    subject = load_model(model)
    seed = subject.seed if seed is None else seed
    if tokens is not None:
        ids, mask = _checked_tokens(subject, tokens, attention_mask)
        with progress("scores of heads", len(ids)):
            per_sequence = _score_tokens(subject, ids, mask)
        about = provenance(subject, n_sequences=len(ids), probe=f"given ids, {ids.shape[1]} positions")
    else:
        rng = np.random.default_rng([seed, 0])
        probes = list(probes_of(subject, n_sequences, rng, repeats, period))
        with progress("scores of heads", n_sequences):
            per_sequence = joined([_score_tokens(subject, torch.from_numpy(probe.tokens), None) for probe in probes])
        about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes))
    means = {name: scores.mean(axis=0) for name, scores in per_sequence.items()}
    usual = {name: means.pop(name) for name in SCORES}
    return HeadScores(**usual, per_sequence=per_sequence, provenance=about, added=means)


@dataclass(frozen=True)
class Round:
    """One round of probes; each array has one entry per sequence first.

    `scores` are those of every head by name, each (sequences, n_layers, n_heads): the four of `SCORES`, and what each head has
    where nothing matches: in the same rows at wrong shifts ("wrong_shift") and at the places of other periods ("other_periods"),
    and at the places of the very same period in rows of another, or in rows without one ("control"). `criteria` says what of it
    is a head's own chance. `irregular`, each (rows, n_layers, n_heads), is the mass on successors in rows whose copies come at
    irregular distances, by the names of `LISTS`. Both are empty where attention cannot be read, `irregular` also where the probes
    of a model have none. `behaviour` names first_loss, repeat_loss, first_accuracy, repeat_accuracy and advantage, and has as
    many entries as sequences of which logits were looked at. `most_beside` is what "wrong_shift" and "other_periods" can be at
    most, taken together.
    """

    periods: NDArray[np.int64]
    scores: Mapping[str, Array]
    irregular: Mapping[str, Array]
    behaviour: Mapping[str, Array]
    described: str
    most_beside: float = 1.0

    @property
    def added(self) -> tuple[str, ...]:
        """The names of scores that do not come with the package."""
        return tuple(name for name in self.scores if name not in OF_A_ROUND)

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Which heads there are, (n_layers, n_heads): a layer may have fewer than another."""
        return ~np.isnan(self.scores["prefix_matching"][0])

    @classmethod
    def join(cls, rounds: Sequence[Round]) -> Round:
        """All rounds as one."""
        periods = np.concatenate([part.periods for part in rounds])
        scores, behaviour = joined([part.scores for part in rounds]), joined([part.behaviour for part in rounds])
        irregular = [part.irregular for part in rounds if part.irregular]
        covered = f"periods {periods.min()} to {periods.max()}, {rounds[0].described.rpartition(', ')[2]}"
        most = max(part.most_beside for part in rounds)
        return cls(periods, scores, joined(irregular) if irregular else {}, behaviour, covered, most)


def probe_round(
    subject: ModelUnderTest,
    n_sequences: int,
    seed: int,
    number: int,
    *,
    n_irregular: int | None = None,
    depth: int | None = None,
) -> Round:
    """Probe with `n_sequences` repeated rows, and rows with irregular copies beside them, a third as many unless `n_irregular`
    says how many. The same for the same seed and number. With `depth` only the heads of so many layers, from the first, are
    looked at, NaN in the others, and not what the model does: the rest of it need not be run.
    """
    beside = n_sequences // IRREGULAR_SHARE if n_irregular is None else n_irregular

    def measured() -> Round:
        drawn = draw(subject, n_sequences, np.random.default_rng([seed, 1, number]))
        found = measured_round(subject, drawn, depth)
        rows = None if subject.backend is None else _irregular(subject, beside, np.random.default_rng([seed, 16, number]))
        return found if rows is None else replace(found, irregular=score_irregular(subject, rows))

    return subject.remember(("round", n_sequences, seed, number, beside, depth, head_scores()), measured)


def draw_round(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> Round:
    """Repeated rows alone, from a generator, and not kept: of a model in training no round is asked for twice."""
    return measured_round(subject, draw(subject, n_sequences, rng))


@dataclass(frozen=True)
class Drawn:
    """A probe with what scores it: drawn once, and measured as often as a model changes.

    `control` (sequences, positions) are rows in which nothing stands at a multiple of the period before itself, where no probe of
    the round tells what a head has at these places; None otherwise.
    """

    probe: Probe
    scores: ScoresAndChance
    control: Ids | None = None


def draw(
    subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator, most_periods: int = PERIODS_AT_ONCE
) -> tuple[Drawn, ...]:
    """The probes of a round, one for each of at most so many periods."""
    probes = list(probes_of(subject, n_sequences, rng, COPIES, None, most_periods))
    periods = [probe.period for probe in probes]
    others = [other_periods(probe, periods) for probe in probes]
    controlled = {period for each in others for period in each}
    found = []
    for probe, beside in zip(probes, others, strict=True):
        scores = ScoresAndChance(probe.period, probe.start, probe.n_positions, wrong_shifts(probe, beside, rng), beside)
        shape = {"period": probe.period, "n_sequences": probe.n_sequences, "repeats": probe.repeats}
        control = None if probe.period in controlled else unrepeated_sequences(subject.space, rng=rng, **shape).tokens
        found.append(Drawn(probe, scores, control))
    return tuple(found)


def wrong_shifts(probe: Probe, others: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """How far from the successors chance is looked for: two distances of less than half a period, one where it is short.

    Such as lead to no place of the `others`, where there are any.
    """
    room, possible = probe.n_positions - probe.start, range(1, max(2, probe.period // 2))
    places = {copy for other in others for copy in range(other, room, other)}
    apart = [shift for shift in possible if places.isdisjoint(range(probe.period - shift, room, probe.period))]
    return tuple(int(each) for each in rng.permutation(apart or possible)[:PLACES_OF_CHANCE])


def other_periods(probe: Probe, periods: Sequence[int]) -> tuple[int, ...]:
    """At which periods' places chance is looked for in the rows of a probe: the next two of the round, so that each serves as
    often; where it has none that does, those next to its own.
    """
    at, room = list(periods).index(probe.period), probe.n_positions - probe.start
    candidates = dict.fromkeys([*periods[at + 1 :], *periods[:at], *range(probe.period + 1, room), *range(2, probe.period)])
    usable = [each for each in candidates if each % probe.period and each < room]
    return tuple(usable[:PLACES_OF_CHANCE])


def _irregular(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> IrregularRows | None:
    """Rows with irregular copies, as long as the longest usual probe; None where none are wanted, or the model has too few ids or
    positions for any.
    """
    if n_sequences == 0:
        return None
    n_positions = usual_length(subject.space)
    try:
        return irregular_sequences(subject.space, n_positions=n_positions, rng=rng, n_sequences=n_sequences)
    except ProbeError:
        return None


def score_irregular(subject: ModelUnderTest, rows: IrregularRows) -> dict[str, Array]:
    """The mass of every head on the keys of each of `LISTS`, by name: (sequences, n_layers, n_heads)."""
    return masses_of(subject, rows.tokens, lambda part: rows.scores(subject.device, part))


def measured_round(
    subject: ModelUnderTest, drawn: Sequence[Drawn], depth: int | None = None, *, added: Sequence[HeadScore] | None = None
) -> Round:
    """One round of what was drawn, one pass for each probe; of `depth` layers only, and without logits, where that is given.

    `added` are the scores that are measured beside those of the package, all that are registered unless given.
    """
    found = [_one_probe(subject, each, depth, added) for each in drawn]
    values, parts, is_balanced = [heads for heads, _ in found], [], _is_balanced(drawn)
    for each, (heads, behaviour) in zip(drawn, found, strict=True):
        periods = np.full(each.probe.n_sequences, each.probe.period)
        if subject.backend is None:
            parts.append(Round(periods, {}, {}, behaviour, ""))
            continue
        control = _control(subject, each, drawn, values)
        others = [at_period(period) for period in each.scores.other_periods]
        beside = np.mean([heads[name] for name in others], axis=0) if is_balanced else control
        scores = {name: of_score for name, of_score in heads.items() if name not in others}
        scores |= {"other_periods": beside, "control": control}
        most = each.scores.most_beside if is_balanced else 1 + 1 / len(each.scores.wrong_shifts)
        parts.append(Round(periods, scores, {}, behaviour, "", most))
    return replace(Round.join(parts), described=describe([each.probe for each in drawn]))


def _is_balanced(drawn: Sequence[Drawn]) -> bool:
    """Whether the places of each period are looked at in the rows of equally many others: what heads have there by rows is then
    on the average what they have there by periods.
    """
    counts = Counter(period for each in drawn for period in each.scores.other_periods)
    return {each.probe.period for each in drawn} == set(counts) and len(set(counts.values())) == 1


def _control(subject: ModelUnderTest, drawn: Drawn, every: Sequence[Drawn], values: Sequence[Mapping[str, Array]]) -> Array:
    """What each head has at the places of this period where the period is another, (rows, n_layers, n_heads): row by row."""
    probe = drawn.probe
    if drawn.control is not None:
        scores = PeriodicScores(probe.period, probe.start, probe.n_positions)
        return masses_of(subject, drawn.control, lambda _: scores)["prefix_matching"]
    found = [
        (there := heads[at_period(probe.period)])[np.arange(probe.n_sequences) % len(there)]
        for other, heads in zip(every, values, strict=True)
        if probe.period in other.scores.other_periods
    ]
    return np.mean(found, axis=0)


def _one_probe(
    subject: ModelUnderTest, drawn: Drawn, depth: int | None, added: Sequence[HeadScore] | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What heads have on the rows of a probe, each score (rows, n_layers, n_heads), and what the model does."""
    probe, logits = drawn.probe, depth is None or subject.backend is None

    def measured(rows: Tensor, part: slice) -> tuple[dict[str, Array] | None, Repetition | None]:
        if subject.backend is None:
            values, predicted = None, subject.logits(rows)
        else:
            values, predicted = observe(subject, rows, with_added(drawn.scores, rows, added), logits=logits, depth=depth)
        if not logits:
            return values, None
        return values, repetition(predicted, rows.to(predicted.device), period=probe.period, start=probe.start)

    parts = in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=logits)
    named = named_behaviour(subject, [found for _, found in parts if found is not None])
    seen = [values for values, _ in parts if values is not None]
    return (joined(seen) if seen else {}), named


def _score_tokens(subject: ModelUnderTest, tokens: Tensor, attention_mask: Tensor | None) -> dict[str, Array]:
    """The four scores of every row by name: (sequences, n_layers, n_heads)."""

    def measured(rows: Tensor, part: slice) -> dict[str, Array]:
        mask = None if attention_mask is None else attention_mask[part]
        return observe(subject, rows, with_added(scores_for(rows, mask), rows), mask)[0]

    parts = in_batches(subject, tokens, measured, logits=False)
    of_all = [name for name in parts[0] if all(name in part for part in parts)]  # added scores are of rows with one period
    return joined([{name: part[name] for name in of_all} for part in parts])


def _checked_tokens(subject: ModelUnderTest, tokens: Any, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"`tokens` must be integer ids (sequences, positions): {first_line(error)}") from None
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool or ids.numel() == 0:
        raise ArgumentError(f"`tokens` must be integer ids (sequences, positions), got {ids.dtype} {tuple(ids.shape)}")
    check_range(subject, int(ids.min()), int(ids.max()))
    if subject.space.n_ctx is not None and ids.shape[1] > subject.space.n_ctx:
        raise ArgumentError(f"`tokens` has {ids.shape[1]} positions, the context has {subject.space.n_ctx}")
    if ids.shape[1] < FEWEST_POSITIONS:
        raise ArgumentError(f"`tokens` must have at least {FEWEST_POSITIONS} positions, got {ids.shape[1]}")
    mask = None if attention_mask is None else torch.as_tensor(attention_mask)
    if mask is not None and mask.shape != ids.shape:
        raise ArgumentError(f"`attention_mask` must have the shape of `tokens`, {tuple(ids.shape)}, got {tuple(mask.shape)}")
    return ids.long().to(subject.device), None if mask is None else mask.long().to(subject.device)


def price_of_rounds(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of rounds of probes until a verdict is clear, each with rows of irregular copies beside."""
    space, size = subject.space, round_size(subject.space)
    most = size * rounds_within(space, given["max_sequences"])
    rows = most + most // IRREGULAR_SHARE + most * controls_needed(space)
    return Price(price_of_probes(space, size).least, rows * usual_length(space))


def controls_needed(space: TokenSpace) -> bool:
    """Whether rows in which nothing repeats may be measured beside those of a round: few periods do not serve each other."""
    return len(even_periods(fitting_shape(space)[0], PERIODS_AT_ONCE)) <= FEW_PERIODS


FEW_PERIODS = 3
FEWEST_ROWS = 21  # of a round; as many more as make it as many of each period


def round_size(space: TokenSpace) -> int:
    """How many sequences a round has: at least 21, of each of at most seven periods as many."""
    periods = len(even_periods(fitting_shape(space)[0], PERIODS_AT_ONCE))
    return -(-FEWEST_ROWS // periods) * periods


def rounds_within(space: TokenSpace, max_sequences: int) -> int:
    """How many rounds a budget has. Raises `ArgumentError` where it has none."""
    size = round_size(space)
    if max_sequences < size:
        raise ArgumentError(f"`max_sequences` must be at least {size} for this model, a round of probes, got {max_sequences}")
    return max_sequences // size


MAX_SEQUENCES = 231  # eleven rounds of the usual size
