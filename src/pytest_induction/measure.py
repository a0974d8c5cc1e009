"""Probe a model: token ids in, numbers per sequence, layer and head out. One forward pass per batch, reduced on the fly."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_induction.errors import ArgumentError, ModelError, TextError, user_facing
from pytest_induction.metrics.attention import SCORES, AttentionReader, PairScores, PeriodicScores, scores_for
from pytest_induction.metrics.loss import Windows, repetition, token_losses
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe, fitting_shape, repeated_sequences, unrepeated_sequences
from pytest_induction.records import SCHEMA_VERSION, Provenance

Array = NDArray[np.float64]
ModelLike = str | Path | nn.Module | ModelUnderTest
PERIODS_AT_ONCE = 6  # different periods in each round of probes
POSITIONS_AT_ONCE = 4096  # sequences x positions in one forward pass
LOGITS_AT_ONCE = 50_000_000  # numbers of logits held at a time
TEXT_TOKENS = 512  # per row of text, as in the paper
DISTRIBUTIONS = ("pytest-induction", "torch", "transformers", "transformer-lens", "numpy")


@dataclass(frozen=True)
class HeadScores:
    """Four scores of every head, each an array (n_layers, n_heads) of means over sequences, in [0, 1].

    `per_sequence` holds the same before the mean: name -> (n_sequences, n_layers, n_heads).
    """

    prefix_matching: Array
    previous_token: Array
    duplicate_token: Array
    first_token: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            **{name: getattr(self, name).tolist() for name in SCORES},
            "per_sequence": {name: values.tolist() for name, values in self.per_sequence.items()},
            "provenance": {**vars(self.provenance), "notes": list(self.provenance.notes)},
        }


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
    subject = load_model(model)
    seed = subject.seed if seed is None else seed
    if tokens is not None:
        ids, mask = _checked_tokens(subject, tokens, attention_mask)
        values = _score_tokens(subject, ids, mask)
        about = provenance(subject, n_sequences=len(ids), probe=f"given ids, {ids.shape[1]} positions")
    else:
        rng = np.random.default_rng([seed, 0])
        probes = list(_probes(subject, n_sequences, rng, repeats, period))
        values = np.concatenate([_score_tokens(subject, torch.from_numpy(probe.tokens), None) for probe in probes])
        about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes))
    per_sequence = {name: values[:, i] for i, name in enumerate(SCORES)}
    means = {name: scores.mean(axis=0) for name, scores in per_sequence.items()}
    return HeadScores(**means, per_sequence=per_sequence, provenance=about)


@dataclass(frozen=True)
class Round:
    """One round of probes and their controls; each array has one entry per sequence first.

    `heads` (sequences, 5, n_layers, n_heads) are the four scores and the mass at a wrong shift, `control` (sequences,
    n_layers, n_heads) the prefix-matching places of unrepeated rows; both empty where attention cannot be read.
    `behaviour` names first_loss, later_loss, first_accuracy, later_accuracy and advantage.
    """

    periods: NDArray[np.int64]
    heads: Array
    control: Array
    behaviour: Mapping[str, Array]
    described: str

    @classmethod
    def join(cls, rounds: Sequence[Round]) -> Round:
        """All rounds as one."""
        behaviour = {name: np.concatenate([part.behaviour[name] for part in rounds]) for name in rounds[0].behaviour}
        periods, heads, control = (
            np.concatenate([getattr(part, name) for part in rounds]) for name in ("periods", "heads", "control")
        )
        covered = f"periods {periods.min()} to {periods.max()}, {rounds[0].described.rpartition(', ')[2]}"
        return cls(periods, heads, control, behaviour, covered)


def probe_round(subject: ModelUnderTest, n_sequences: int, seed: int, number: int) -> Round:
    """Probe with `n_sequences` repeated rows and as many unrepeated ones; the same for the same seed and number."""
    return subject.remember(
        ("round", n_sequences, seed, number),
        lambda: _probe_round(subject, n_sequences, np.random.default_rng([seed, 1, number])),
    )


def _probe_round(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> Round:
    probes = list(_probes(subject, n_sequences, rng, COPIES, None))
    parts = []
    for probe in probes:
        control = unrepeated_sequences(
            subject.space, period=probe.period, rng=rng, n_sequences=probe.n_sequences, repeats=probe.repeats
        )
        shift = int(rng.integers(1, max(2, probe.period // 2)))
        parts.append(_one_probe(subject, probe, control, shift))
    joined = Round.join(parts)
    return Round(joined.periods, joined.heads, joined.control, joined.behaviour, describe(probes))


def _one_probe(subject: ModelUnderTest, probe: Probe, control: Probe, shift: int) -> Round:
    scores = PeriodicScores(probe.period, probe.start, probe.n_positions, shift)
    heads, masses, behaviour = [], [], []
    for rows, unrepeated in zip(_batches(subject, probe.tokens), _batches(subject, control.tokens), strict=True):
        if subject.way is None:
            logits = subject.logits(rows)
        else:
            values, logits = _observe(subject, rows, scores, logits=True)
            heads.append(values)
            masses.append(_observe(subject, unrepeated, scores, logits=False)[0][:, 0])
        behaviour.append(repetition(logits, rows.to(logits.device), period=probe.period, start=probe.start))
    named = {name: np.concatenate([_numbers(getattr(part, name)) for part in behaviour]) for name in vars(behaviour[0])}
    if not all(np.isfinite(values).all() for values in named.values()):
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on repeated tokens")
    empty = np.zeros((probe.n_sequences, 0))
    return Round(
        np.full(probe.n_sequences, probe.period),
        np.concatenate(heads) if heads else empty,
        np.concatenate(masses) if masses else empty,
        named,
        "",
    )


def measure_text(subject: ModelUnderTest, text: Any) -> tuple[Array, int, Windows]:
    """Losses of every token of a text cut into rows: (rows, tokens), the number of the first token, and the two windows.

    `text` is the text itself, a path to it, or token ids: one long row to be cut, or rows. Raises `TextError` where it makes
    fewer than two rows.
    """
    rows = _text_rows(subject, text)
    first_token = 2 if subject.space.bos_id is None else 1
    losses = subject.remember(("text", rows.tobytes(), rows.shape), lambda: _row_losses(subject, rows))
    return losses, first_token, Windows.for_tokens(losses.shape[1] + first_token - 1)


def _row_losses(subject: ModelUnderTest, rows: NDArray[np.int64]) -> Array:
    parts = [token_losses(subject.logits(batch), batch.to(subject.device)) for batch in _batches(subject, rows)]
    losses = np.concatenate([_numbers(part) for part in parts])
    if not np.isfinite(losses).all():
        raise ModelError(f"the loss of {subject.name} is not finite on this text")
    return losses


def _text_rows(subject: ModelUnderTest, text: Any) -> NDArray[np.int64]:
    ids = _text_ids(subject, text)
    if ids.ndim == 2:
        if subject.space.n_ctx is not None and ids.shape[1] > subject.space.n_ctx:
            raise TextError(f"rows of {ids.shape[1]} token ids do not fit the context of {subject.space.n_ctx}")
        return ids
    bos = [] if subject.space.bos_id is None else [subject.space.bos_id]
    room = TEXT_TOKENS if subject.space.n_ctx is None else min(TEXT_TOKENS, subject.space.n_ctx - len(bos))
    n_rows = len(ids) // room
    if n_rows < 2:
        raise TextError(f"the text has {len(ids)} tokens: at least {2 * room} are needed, two rows of {room}")
    rows = ids[: n_rows * room].reshape(n_rows, room)
    return np.concatenate([np.full((n_rows, len(bos)), bos or 0, dtype=np.int64), rows], axis=1)


def _text_ids(subject: ModelUnderTest, text: Any) -> NDArray[np.int64]:
    if isinstance(text, Path):
        text = read_text(text)
    if isinstance(text, str):
        if not text.strip():
            raise TextError("the text is empty")
        return np.asarray(subject.encode(text), dtype=np.int64)
    ids = np.asarray(text)
    if ids.ndim not in (1, 2) or ids.dtype.kind not in "iu" or ids.size == 0:
        raise TextError(f"`text` must be a string, a path or integer token ids, got {ids.dtype} {ids.shape}")
    _check_range(subject, ids)
    return ids.astype(np.int64)


def read_text(path: Path) -> str:
    """A text file's content. Raises `TextError` if it is missing, empty or not UTF-8."""
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"the text {str(path)!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"the text {str(path)!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not content.strip():
        raise TextError(f"the text {str(path)!r} is empty")
    return content


def _probes(
    subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator, repeats: int, period: int | None
) -> Iterator[Probe]:
    """Rows of repeated tokens, one probe for each period, the sequences dealt out evenly."""
    if n_sequences < 1:
        raise ArgumentError(f"`n_sequences` must be at least 1, got {n_sequences}")
    if period is None:
        fitting, repeats = fitting_shape(subject.space, repeats)
        count = min(PERIODS_AT_ONCE, len(fitting), n_sequences)
        periods = sorted(int(chosen) for chosen in rng.choice(np.asarray(fitting), size=count, replace=False))
    else:
        periods = [period]
    for index, chosen in enumerate(periods):
        share = n_sequences // len(periods) + (index < n_sequences % len(periods))
        yield repeated_sequences(subject.space, period=chosen, rng=rng, n_sequences=share, repeats=repeats)


def _score_tokens(subject: ModelUnderTest, tokens: Tensor, attention_mask: Tensor | None) -> Array:
    """The four scores of every row: (sequences, 4, n_layers, n_heads)."""
    parts = []
    at_once = max(1, POSITIONS_AT_ONCE // tokens.shape[1])
    for start in range(0, len(tokens), at_once):
        rows = tokens[start : start + at_once]
        mask = None if attention_mask is None else attention_mask[start : start + at_once]
        parts.append(_observe(subject, rows, scores_for(rows, mask), mask)[0])
    return np.concatenate(parts)


def _observe(
    subject: ModelUnderTest,
    rows: Tensor,
    scores: PeriodicScores | PairScores,
    attention_mask: Tensor | None = None,
    *,
    logits: bool = False,
) -> tuple[Array, Any]:
    """One forward pass: scores (sequences, scores, n_layers, n_heads), and the logits if asked for."""
    layers: list[Tensor] = []

    def score(layer: int, attention: AttentionReader) -> None:
        layers.append(scores(attention))

    found = subject.observe(rows, score, attention_mask=attention_mask, logits=logits)
    values = _numbers(torch.stack([layer.to(layers[0].device) for layer in layers], dim=2).movedim(1, 0))
    if not np.isfinite(values).all():
        raise ModelError(f"the attention of {subject.name} is not finite (NaN or infinity)")
    return values, found


def _batches(subject: ModelUnderTest, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    """The rows in batches whose positions and logits stay within bounds."""
    positions = rows.shape[1]
    at_once = max(1, min(POSITIONS_AT_ONCE // positions, LOGITS_AT_ONCE // (positions * subject.space.d_vocab)))
    for start in range(0, len(rows), at_once):
        yield torch.from_numpy(rows[start : start + at_once])


def _checked_tokens(subject: ModelUnderTest, tokens: Any, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
    ids = torch.as_tensor(tokens)
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool or ids.numel() == 0:
        raise ArgumentError(f"`tokens` must be integer ids (sequences, positions), got {ids.dtype} {tuple(ids.shape)}")
    _check_range(subject, ids.numpy(force=True))
    if subject.space.n_ctx is not None and ids.shape[1] > subject.space.n_ctx:
        raise ArgumentError(f"`tokens` has {ids.shape[1]} positions, the context has {subject.space.n_ctx}")
    mask = None if attention_mask is None else torch.as_tensor(attention_mask)
    if mask is not None and mask.shape != ids.shape:
        raise ArgumentError(f"`attention_mask` must have the shape of `tokens`, {tuple(ids.shape)}, got {tuple(mask.shape)}")
    return ids.long().to(subject.device), None if mask is None else mask.long().to(subject.device)


def _check_range(subject: ModelUnderTest, ids: NDArray[Any]) -> None:
    if ids.min() < 0 or ids.max() >= subject.space.d_vocab:
        raise ArgumentError(f"token ids must lie from 0 to {subject.space.d_vocab - 1}, got {ids.min()} to {ids.max()}")


def _numbers(values: Tensor) -> Array:
    return values.double().numpy(force=True)


def describe(probes: Sequence[Probe]) -> str:
    """What was probed with, in a few words."""
    periods = [probe.period for probe in probes]
    span = f"period {periods[0]}" if len(periods) == 1 else f"periods {min(periods)} to {max(periods)}"
    return f"{span}, {probes[0].repeats} copies"


def provenance(subject: ModelUnderTest, *, seed: int | None = None, n_sequences: int = 0, probe: str = "") -> Provenance:
    """Where a measurement of this model comes from."""
    way = subject.way
    return Provenance(
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
        notes=subject.notes,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
