"""Probe a model: token ids in, numbers per sequence, layer and head out. One forward pass per batch, reduced on the fly."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_induction.batching import in_batches
from pytest_induction.betting import ROUNDING
from pytest_induction.errors import ArgumentError, ModelError, ProbeError, UnsupportedModel, user_facing, whole_number
from pytest_induction.journal import name_subject
from pytest_induction.metrics.attention import SCORES, PeriodicScores, Together, scores_for
from pytest_induction.metrics.keys import KeyScores
from pytest_induction.metrics.loss import Repetition, repetition
from pytest_induction.metrics.streaming import Scores, Streamed
from pytest_induction.models.calling import first_line
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.probes.irregular import IrregularRows, irregular_sequences
from pytest_induction.probes.sequences import (
    COPIES,
    Ids,
    Probe,
    even_periods,
    fitting_shape,
    repeated_sequences,
    unrepeated_sequences,
)
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Provenance
from pytest_induction.versions import installed

Array = NDArray[np.float64]
ModelLike = str | Path | nn.Module | ModelUnderTest
Kind = Literal["plain", "whole", "heads"]  # of a round
FEWEST_POSITIONS = 3  # the first query that counts everywhere
PERIODS_AT_ONCE = 7  # different periods in each round of probes
MOST_JOINED = 2**22  # logits of one pass up to which probe and control share it: a pass of few rows costs little but itself
DISTRIBUTIONS = ("pytest-induction", "torch", "transformers", "transformer-lens", "numpy")


@dataclass(frozen=True)
class HeadScores:
    """Four scores of every head, each an array (n_layers, n_heads) of means over sequences, in [0, 1].

    `per_sequence` holds the same before the mean: name -> (n_sequences, n_layers, n_heads). Where layers differ in their
    number of heads, a head that a layer does not have is NaN.
    """

    prefix_matching: Array
    previous_token: Array
    duplicate_token: Array
    first_token: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`."""
        return plain_scores(self, SCORES)


@user_facing
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
    from where its tokens stood before. `attention_mask`, same shape, marks padding with 0.

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
            values = _score_tokens(subject, ids, mask)
        about = provenance(subject, n_sequences=len(ids), probe=f"given ids, {ids.shape[1]} positions")
    else:
        rng = np.random.default_rng([seed, 0])
        probes = list(probes_of(subject, n_sequences, rng, repeats, period))
        with progress("scores of heads", n_sequences):
            values = np.concatenate([_score_tokens(subject, torch.from_numpy(probe.tokens), None) for probe in probes])
        about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes))
    per_sequence = {name: values[:, i] for i, name in enumerate(SCORES)}
    means = {name: scores.mean(axis=0) for name, scores in per_sequence.items()}
    return HeadScores(**means, per_sequence=per_sequence, provenance=about)


@dataclass(frozen=True)
class Round:
    """One round of probes and their controls; each array has one entry per sequence first.

    `heads` (sequences, 5, n_layers, n_heads) are the four scores and the mass at a wrong shift; `control` (controlled sequences,
    n_layers, n_heads) the prefix-matching places of rows in which nothing repeats at their distances, for the sequences that are
    `controlled`; `irregular` (rows, 4, n_layers, n_heads) the mass on successors in rows whose copies come at irregular
    distances, where exactly one token matches, exactly two, and three or more, and after a break. All are empty where attention
    cannot be read, `irregular` also where the probes of a model have none. `behaviour` names first_loss, later_loss,
    first_accuracy, later_accuracy and advantage, and has as many entries as sequences of which logits were looked at.
    """

    periods: NDArray[np.int64]
    heads: Array
    control: Array
    controlled: NDArray[np.bool_]
    irregular: Array
    behaviour: Mapping[str, Array]
    described: str

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Which heads there are, (n_layers, n_heads): a layer may have fewer than another."""
        return ~np.isnan(self.heads[0, 0])

    @property
    def chance(self) -> Array:
        """What each head has of prefix matching without matching, (controlled sequences, n_layers, n_heads).

        The higher one of its mass at the same places where nothing repeats, and at wrong ones where it does.
        """
        return np.maximum(self.control, self.heads[self.controlled, 4])

    @property
    def excess(self) -> Array:
        """What is left of each head's prefix matching without that, (controlled sequences, n_layers, n_heads)."""
        return self.heads[self.controlled, 0] - self.chance

    @classmethod
    def join(cls, rounds: Sequence[Round]) -> Round:
        """All rounds as one."""
        behaviour = {name: np.concatenate([part.behaviour[name] for part in rounds]) for name in rounds[0].behaviour}
        periods, heads, control, controlled, irregular = (
            np.concatenate([getattr(part, name) for part in rounds])
            for name in ("periods", "heads", "control", "controlled", "irregular")
        )
        covered = f"periods {periods.min()} to {periods.max()}, {rounds[0].described.rpartition(', ')[2]}"
        return cls(periods, heads, control, controlled, irregular, behaviour, covered)


def probe_round(subject: ModelUnderTest, n_sequences: int, seed: int, number: int, kind: Kind = "whole") -> Round:
    """Probe with `n_sequences` repeated rows and their controls; the same for the same seed and number."""
    return subject.remember(
        ("round", n_sequences, seed, number, kind),
        lambda: measured_round(
            subject,
            draw(subject, n_sequences, np.random.default_rng([seed, 1, number]), kind=kind),
            joined=kind == "whole",
        ),
    )


def draw_round(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> Round:
    """The same as `probe_round`, from a generator, and not kept: of a model in training no round is asked for twice."""
    return measured_round(subject, draw(subject, n_sequences, rng))


@dataclass(frozen=True)
class Drawn:
    """A probe with its controls and what scores them: drawn once, and measured as often as a model changes.

    `control` (sequences, positions) are rows in which no token stands at a multiple of the period before itself; None where
    there are none. `irregular` are rows whose copies come at irregular distances: the very same rows where there are ids enough.
    """

    probe: Probe
    control: Ids | None
    scores: PeriodicScores
    irregular: IrregularRows | None = None
    logits: bool = True


def draw(
    subject: ModelUnderTest,
    n_sequences: int,
    rng: np.random.Generator,
    most_periods: int = PERIODS_AT_ONCE,
    kind: Kind = "plain",
) -> tuple[Drawn, ...]:
    """The probes of a round, one for each of at most so many periods.

    A "plain" round has unrepeated rows as its control, a "whole" one rows with irregular copies, which serve as the control where
    they can; one of "heads" has neither, and its logits are not looked at.
    """
    found = []
    for probe in list(probes_of(subject, n_sequences, rng, COPIES, None, most_periods)):
        irregular = _irregular(subject, probe, rng) if kind == "whole" else None
        if kind == "heads":
            control = None
        elif irregular is not None and irregular.n_positions == probe.n_positions:
            control = irregular.tokens
        else:
            shape = {"period": probe.period, "n_sequences": probe.n_sequences, "repeats": probe.repeats}
            control = unrepeated_sequences(subject.space, rng=rng, **shape).tokens
        shift = int(rng.integers(1, max(2, probe.period // 2)))
        scores = PeriodicScores(probe.period, probe.start, probe.n_positions, shift)
        found.append(Drawn(probe, control, scores, irregular, logits=kind != "heads"))
    return tuple(found)


def _irregular(subject: ModelUnderTest, probe: Probe, rng: np.random.Generator) -> IrregularRows | None:
    """Rows with irregular copies beside a probe; None where the model has too few ids or positions for any."""
    try:
        return irregular_sequences(
            subject.space,
            n_positions=probe.n_positions,
            rng=rng,
            n_sequences=probe.n_sequences,
            avoid_period=probe.period,
        )
    except ProbeError:
        return None


def measured_round(subject: ModelUnderTest, drawn: Sequence[Drawn], *, joined: bool = False) -> Round:
    """One round of what was drawn.

    `joined` measures a probe and its control in one pass where they are small: that halves the passes.
    """
    joined = joined and subject.way is not None and not subject.mixes_rows
    parts = [(_joined_probe if joined and _may_join(subject, each) else _one_probe)(subject, each) for each in drawn]
    whole = Round.join(parts)
    return replace(whole, described=describe([each.probe for each in drawn]))


def _one_probe(subject: ModelUnderTest, drawn: Drawn) -> Round:
    probe, scores = drawn.probe, drawn.scores

    def measured(rows: Tensor, part: slice) -> tuple[Array | None, Repetition | None]:
        if subject.way is None:
            values, logits = None, subject.logits(rows)
        else:
            values, logits = observe(subject, rows, scores, logits=drawn.logits)
        if not drawn.logits:
            return values, None
        return values, repetition(logits, rows.to(logits.device), period=probe.period, start=probe.start)

    parts = in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=drawn.logits)
    named = named_behaviour(subject, [found for _, found in parts if found is not None])
    periods = np.full(probe.n_sequences, probe.period)
    if subject.way is None:
        nothing = np.zeros((probe.n_sequences, 0))
        return Round(periods, nothing, nothing, np.zeros(probe.n_sequences, bool), nothing, named, "")
    heads = np.concatenate([values for values, _ in parts if values is not None])
    control, irregular = _controls(subject, drawn, heads.shape[2:])
    controlled = np.full(probe.n_sequences, drawn.control is not None)
    return Round(periods, heads, control, controlled, irregular, named, "")


def _controls(subject: ModelUnderTest, drawn: Drawn, heads: tuple[int, ...]) -> tuple[Array, Array]:
    """The control's mass (rows, n_layers, n_heads), and the four of irregular rows; in one pass where they are the same rows."""
    scores = drawn.scores
    if drawn.control is None:
        return np.zeros((0, *heads)), np.zeros((0, 4, *heads))
    if drawn.irregular is None:
        return masses_of(subject, drawn.control, lambda _: scores)[:, 0], np.zeros((0, 4, *heads))
    rows = drawn.irregular
    if drawn.control is drawn.irregular.tokens:
        both = masses_of(subject, drawn.control, lambda part: Together((scores, rows.scores(subject.device, part))))
        return both[:, 0], both[:, -4:]
    alone = masses_of(subject, drawn.irregular.tokens, lambda part: rows.scores(subject.device, part))
    return masses_of(subject, drawn.control, lambda _: scores)[:, 0], alone


def masses_of(subject: ModelUnderTest, tokens: Ids, scores_of: Callable[[slice], Scores], *, most: int | None = None) -> Array:
    """What rows of ids get, (rows, scores, n_layers, n_heads), in passes of at most `most` rows; `scores_of` scores a part of
    them.
    """
    rows = torch.from_numpy(tokens)
    parts = in_batches(subject, rows, lambda batch, part: observe(subject, batch, scores_of(part))[0], logits=False, most=most)
    return np.concatenate(parts)


def _may_join(subject: ModelUnderTest, drawn: Drawn) -> bool:
    """Whether a probe has one control of its own length, and the logits of both are few."""
    alone = drawn.irregular is not None and drawn.control is not drawn.irregular.tokens
    if drawn.control is None or alone or not drawn.logits:
        return False
    probe = drawn.probe
    return 2 * probe.n_sequences * probe.n_positions * subject.space.d_vocab <= MOST_JOINED


def _joined_probe(subject: ModelUnderTest, drawn: Drawn) -> Round:
    """The same as `_one_probe`, repeated rows and those of the control in one pass."""
    probe, control, irregular = drawn.probe, drawn.control, drawn.irregular
    if control is None:
        raise ValueError("a probe without a control has nothing to be joined with")
    count, lists = probe.n_sequences, [] if irregular is None else irregular.lists_behind(probe.n_sequences)

    def measured(rows: Tensor, part: slice) -> tuple[Array, Repetition | None]:
        of_keys = KeyScores.of([each[part] for each in lists], subject.device) if lists else None
        scores = drawn.scores if of_keys is None else Together((drawn.scores, of_keys))
        values, logits = observe(subject, rows, scores, logits=True)
        repeated = min(part.stop, count) - part.start  # of this batch's rows
        if repeated <= 0:
            return values, None
        given = rows[:repeated].to(logits.device)
        return values, repetition(logits[:repeated], given, period=probe.period, start=probe.start)

    parts = in_batches(subject, torch.from_numpy(np.concatenate([probe.tokens, control])), measured, logits=True)
    named = named_behaviour(subject, [found for _, found in parts if found is not None])
    values = np.concatenate([values for values, _ in parts])
    heads, masses = values[:count, :5], values[count:, 0]
    irregularly = values[count:, 5:] if lists else np.zeros((0, 4, *heads.shape[2:]))
    return Round(np.full(count, probe.period), heads, masses, np.ones(count, bool), irregularly, named, "")


def named_behaviour(subject: ModelUnderTest, behaviour: Sequence[Repetition]) -> dict[str, Array]:
    """The behaviour of all batches by name, one value for each sequence."""
    names = [field.name for field in fields(Repetition)]
    named = {name: np.concatenate([np.zeros(0), *(numbers(getattr(part, name)) for part in behaviour)]) for name in names}
    if not all(np.isfinite(values).all() for values in named.values()):
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on repeated tokens")
    return named


def probes_of(
    subject: ModelUnderTest,
    n_sequences: int,
    rng: np.random.Generator,
    repeats: int,
    period: int | None,
    most_periods: int = PERIODS_AT_ONCE,
) -> Iterator[Probe]:
    """Rows of repeated tokens, one probe for each period, the sequences dealt out evenly."""
    if period is None:
        fitting, repeats = fitting_shape(subject.space, repeats)
        periods = even_periods(fitting, min(most_periods, n_sequences))
    else:
        periods = [period]
    for index, chosen in enumerate(periods):
        share = n_sequences // len(periods) + (index < n_sequences % len(periods))
        yield repeated_sequences(subject.space, period=chosen, rng=rng, n_sequences=share, repeats=repeats)


def _score_tokens(subject: ModelUnderTest, tokens: Tensor, attention_mask: Tensor | None) -> Array:
    """The four scores of every row: (sequences, 4, n_layers, n_heads)."""

    def measured(rows: Tensor, part: slice) -> Array:
        mask = None if attention_mask is None else attention_mask[part]
        return observe(subject, rows, scores_for(rows, mask), mask)[0]

    return np.concatenate(in_batches(subject, tokens, measured, logits=False))


def observe(
    subject: ModelUnderTest,
    rows: Tensor,
    scores: Scores,
    attention_mask: Tensor | None = None,
    *,
    logits: bool = False,
    early_stop: bool = True,
) -> tuple[Array, Any]:
    """One forward pass: scores (sequences, scores, n_layers, n_heads), and the logits if asked for."""
    stream = Streamed(scores, subject.n_layers)
    predicted = subject.observe(rows, stream.add, attention_mask=attention_mask, logits=logits, early_stop=early_stop)
    chunks = [numbers(chunk) for chunk in stream.chunks()]  # each (layers, scores, batch, heads of those layers)
    if not all(np.isfinite(chunk).all() for chunk in chunks):
        raise ModelError(f"the attention of {subject.name} is not finite (NaN or infinity)")
    if (most := max(float(chunk.max(initial=0.0)) for chunk in chunks)) > 1 + ROUNDING:
        seen = f"a head attends to something with {most:.3g}, expected at most 1"
        cause = f"its attention scores are so large that rounding decides in {str(subject.dtype).removeprefix('torch.')}"
        raise UnsupportedModel(f"{subject.name}: {seen}: {cause}; give the model in float64")
    values = np.full((subject.n_layers, *chunks[0].shape[1:3], subject.n_heads), np.nan)
    start = 0
    for chunk in chunks:
        values[start : start + len(chunk), ..., : chunk.shape[-1]] = chunk
        start += len(chunk)
    return values.transpose(2, 1, 0, 3), predicted


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


def check_range(subject: ModelUnderTest, lowest: int, highest: int) -> None:
    """Raise `ArgumentError` for ids that the model does not have."""
    if lowest < 0 or highest >= subject.space.d_vocab:
        raise ArgumentError(f"token ids must lie from 0 to {subject.space.d_vocab - 1}, got {lowest} to {highest}")


def numbers(values: Tensor) -> Array:
    """As numbers of double precision, on the CPU: some devices have none."""
    return values.cpu().double().numpy(force=True)


def of_all_heads(layers: Sequence[Array], n_heads: int, dtype: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
    """Of each layer (sequences, heads) as (sequences, n_layers, n_heads), NaN for a head that a layer does not have."""
    found = np.full((len(layers[0]), len(layers), n_heads), np.nan, dtype=dtype)
    for index, layer in enumerate(layers):
        found[:, index, : layer.shape[1]] = layer
    return found


def plain(values: Array) -> Any:
    """Lists of numbers, with None where there is no number, as for a head that there is not."""
    return np.where(np.isnan(values), None, values).tolist()  # type: ignore[call-overload]


class _Scores(Protocol):
    """What scores of heads have beside them."""

    @property
    def per_sequence(self) -> Mapping[str, Array]:
        """By name, before the mean."""

    @property
    def provenance(self) -> Provenance:
        """Where they come from."""


def plain_scores(scores: _Scores, names: Sequence[str]) -> dict[str, Any]:
    """Scores of heads as plain lists and strings: those of these names, each sequence, and where they come from."""
    return {
        "schema": SCHEMA_VERSION,
        **{name: plain(getattr(scores, name)) for name in names},
        "per_sequence": {name: plain(values) for name, values in scores.per_sequence.items()},
        "provenance": scores.provenance.to_dict(),
    }


def describe(probes: Sequence[Probe]) -> str:
    """What was probed with, in a few words."""
    periods = [probe.period for probe in probes]
    span = f"period {periods[0]}" if len(periods) == 1 else f"periods {min(periods)} to {max(periods)}"
    return f"{span}, {probes[0].repeats} copies"


def provenance(subject: ModelUnderTest, *, seed: int | None = None, n_sequences: int = 0, probe: str = "") -> Provenance:
    """Where a measurement of this model comes from."""
    way = subject.way
    about = Provenance(
        model=subject.name,
        fingerprint=subject.fingerprint(),
        way_in=way.name if way else "none",
        n_layers=len(way.layers) if way else 0,
        n_heads=way.n_heads if way else 0,
        dtype=str(subject.dtype).removeprefix("torch."),
        device=str(subject.device),
        seed=seed,
        n_sequences=n_sequences,
        probe=probe,
        layers=way.layers if way else (),
        notes=subject.notes,
        versions={"python": platform.python_version(), **installed(DISTRIBUTIONS)},
    )
    if subject.intervening is None:  # what changes its passes now may be gone when it is shown
        name_subject(subject, about)
    return about
