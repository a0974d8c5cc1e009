"""One pass of a model under test: what its heads attend to, reduced on the fly, as numbers; and where these come from."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_induction.attention.capture import Observer
from pytest_induction.attention.scores import AttentionReader, Scores, Streamed
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel
from pytest_induction.measuring.added import check_added
from pytest_induction.measuring.losses import Repetition
from pytest_induction.model.batching import in_batches
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.observers import track_subject
from pytest_induction.probes.sequences import Ids, Probe, even_periods, fitting_shape, repeated_sequences
from pytest_induction.ranges import ROUNDING
from pytest_induction.records import SCHEMA_VERSION, Provenance, installed
from pytest_induction.spending import notes as budget_notes

Array = NDArray[np.float64]
ModelLike: TypeAlias = str | Path | nn.Module | ModelUnderTest
"""What `load_model` takes: a directory, hub name or factory as a string or path, a module, or what it returned before."""
PERIODS_AT_ONCE = 7  # different periods in each round of probes
DISTRIBUTIONS = ("pytest-induction", "torch", "transformers", "transformer-lens", "numpy")


def masses_of(
    subject: ModelUnderTest,
    tokens: Ids,
    scores_of: Callable[[slice], Scores],
    *,
    most: int | None = None,
    depth: int | None = None,
) -> dict[str, Array]:
    """What rows of ids get of each score, (rows, n_layers, n_heads), in passes of at most `most` rows; `scores_of` scores a part
    of them. With `depth` of the first layers only, NaN in the others.
    """

    def measured(rows: Tensor, part: slice) -> dict[str, Array]:
        return observe(subject, rows, scores_of(part), depth=depth)[0]

    return joined(in_batches(subject, torch.from_numpy(tokens), measured, logits=False, most=most))


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Scores by name of several batches of rows, as those of all their rows."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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


def observe(
    subject: ModelUnderTest,
    rows: Tensor,
    scores: Scores,
    attention_mask: Tensor | None = None,
    *,
    logits: bool = False,
    early_stop: bool = True,
    depth: int | None = None,
    run: Callable[[Observer], Any] | None = None,
) -> tuple[dict[str, Array], Any]:
    """One forward pass: each score by its name, (sequences, n_layers, n_heads), and the logits if asked for.

    Of the first `depth` layers only where it is given, NaN in the others: what comes after them need not be run. `run` makes the
    pass instead, in which more is looked at; what it gives is given in the place of logits.
    """
    stream = Streamed(scores, subject.n_layers if depth is None else depth)

    def add(layer: int, attention: AttentionReader) -> None:
        if depth is None or layer < depth:
            stream.add(layer, attention)

    options: dict[str, Any] = {"logits": logits, "early_stop": early_stop, "n_layers": depth}
    predicted = subject.observe(rows, add, attention_mask=attention_mask, **options) if run is None else run(add)
    chunks = [numbers(chunk) for chunk in stream.chunks()]  # each (layers, scores, batch, heads of those layers)
    added = getattr(scores, "added_names", ())
    own = [chunk[:, : len(scores.names) - len(added)] for chunk in chunks]
    if not all(np.isfinite(chunk).all() for chunk in own):
        raise ModelError(f"the attention of {subject.name} is not finite (NaN or infinity)")
    if (most := max(float(chunk.max(initial=0.0)) for chunk in own)) > 1 + ROUNDING:
        seen = f"a head attends to something with {most:.3g}, expected at most 1"
        cause = f"its attention scores are so large that rounding decides in {str(subject.dtype).removeprefix('torch.')}"
        raise UnsupportedModel(f"{subject.name}: {seen}: {cause}; give the model in float64")
    values = np.full((subject.n_layers, *chunks[0].shape[1:3], subject.n_heads), np.nan)
    start = 0
    for chunk in chunks:
        values[start : start + len(chunk), ..., : chunk.shape[-1]] = chunk
        start += len(chunk)
    by_name = values.transpose(1, 2, 0, 3)  # scores, sequences, layers, heads
    found = dict(zip(scores.names, by_name, strict=True))
    check_added({name: found[name] for name in added})
    return found, predicted


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
    backend = subject.backend
    about = Provenance(
        model=subject.name,
        fingerprint=subject.fingerprint(),
        backend=backend.name if backend else "none",
        n_layers=len(backend.layers) if backend else 0,
        n_heads=backend.n_heads if backend else 0,
        dtype=str(subject.dtype).removeprefix("torch."),
        device=str(subject.device),
        seed=seed,
        n_sequences=n_sequences,
        probe=probe,
        layers=backend.layers if backend else (),
        notes=(*subject.notes, *budget_notes()),
        versions={"python": platform.python_version(), **installed(DISTRIBUTIONS)},
    )
    if subject.intervening is None:  # what changes its passes now may be gone when it is shown
        track_subject(subject, about)
    return about
