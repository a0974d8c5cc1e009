"""What a model's own eager attention says of its heads: scores of the whole patterns that it returns, and a comparison with ours.

Written from the definitions in docs/metrics.md, over (positions x positions) patterns; nothing of the package's capture is used.
The twin that returns the patterns has the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pytest_induction import measure_heads
from pytest_induction.errors import InductionError

SCORES = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
THRESHOLD = 1e-4
SAME_MODEL = 1e-3  # difference of the logits, relative to the largest, up to which a twin computes the same


class Batch(NamedTuple):
    """Token ids (batch, T), and the attention mask that marks padding with 0, or None."""

    tokens: Tensor
    real: Tensor | None = None

    @property
    def kept(self) -> Tensor:
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.real is None else self.real.bool()


@dataclass(frozen=True)
class Outcome:
    """How a comparison ended: measured, refused, wrong, or unchecked where there is nothing to compare with."""

    status: str
    reason: str = ""
    backend: str = ""
    measured: int = 0  # layers that we have scores of
    patterns: int = 0  # layers whose causal self-attention pattern the twin returned
    others: list[str] = field(default_factory=list)  # whatever else it returned, in words
    worst: float | None = None
    spread: float | None = None


def run(model: nn.Module, batch: Batch, **options: Any) -> Any:
    """What a forward pass without a cache returns."""
    mask = {} if batch.real is None else {"attention_mask": batch.real}
    with torch.no_grad():
        return model(input_ids=batch.tokens, use_cache=False, **mask, **options)


def returned_patterns(twin: nn.Module, batch: Batch) -> tuple[list[Tensor], list[str]]:
    """The causal self-attention patterns (batch, heads, T, T) that the model returns, in order, and the rest in words."""
    output = run(twin, batch, output_attentions=True)
    patterns, others = [], []
    for entry in getattr(output, "attentions", None) or ():
        told = _shape_told(entry, batch)
        if not told:  # what a query of padding attends to is nobody's business
            pattern = entry.double().masked_fill(~batch.kept[:, None, :, None], 0)
            told = _values_told(pattern)
        if told:
            others.append(told)
        else:
            patterns.append(pattern)
    return patterns, sorted(set(others))


def _shape_told(entry: Any, batch: Batch) -> str:
    """Why this cannot be a pattern over all positions, or nothing."""
    if not isinstance(entry, Tensor):
        return type(entry).__name__
    rows, positions = batch.tokens.shape
    fits = entry.ndim == 4 and entry.shape[0] == rows and tuple(entry.shape[2:]) == (positions, positions)
    return "" if fits else " x ".join(str(size) for size in entry.shape)


def _values_told(pattern: Tensor) -> str:
    """Why this is no causal pattern, or nothing. A sink may take mass out of a row, nothing adds to it."""
    if not bool(torch.isfinite(pattern).all()):
        return "not finite"
    if float(pattern.triu(1).abs().max()) > 0:
        return "not causal"
    sums = float(pattern.sum(-1).max())
    return "" if sums <= 1 + 1e-3 and float(pattern.min()) >= 0 else f"rows that sum to {sums:.3g}"


def dense_scores(pattern: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The four scores of a pattern (batch, heads, T, T): name -> (batch, heads)."""
    kept = batch.kept
    earlier = (batch.tokens[:, :, None] == batch.tokens[:, None, :]).tril(-1)  # batch, query, key
    earlier &= kept[:, :, None] & kept[:, None, :]
    successor = torch.zeros_like(earlier)
    successor[:, :, 1:] = earlier[:, :, :-1]
    late = kept & (kept.cumsum(1) > 2)
    first = torch.nn.functional.one_hot(kept.int().argmax(1), kept.shape[1]).bool()[:, None, :].expand_as(earlier)
    previous = torch.eye(kept.shape[1], dtype=torch.bool).roll(-1, 1).tril(-1).expand_as(earlier)

    def mean(places: Tensor, queries: Tensor) -> Tensor:
        mass = (pattern * places[:, None]).sum(-1)
        return (mass * queries[:, None]).sum(-1) / queries.sum(-1)[:, None]

    return {
        "prefix_matching": mean(successor, earlier.any(2)),
        "previous_token": mean(previous, late),
        "duplicate_token": mean(earlier, earlier.any(2)),
        "first_token": mean(first, late),
    }


def stacked(patterns: Sequence[Tensor], batch: Batch) -> dict[str, np.ndarray]:
    """The scores of all layers: name -> (batch, layers, most heads), NaN where a layer has fewer heads."""
    most = max(pattern.shape[1] for pattern in patterns)
    found = {name: np.full((len(batch.tokens), len(patterns), most), np.nan) for name in SCORES}
    for layer, pattern in enumerate(patterns):
        for name, values in dense_scores(pattern, batch).items():
            found[name][:, layer, : values.shape[1]] = values.numpy()
    return found


def worst_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any score; infinite where a layer, a head or a number is on one side only."""
    worst = 0.0
    for name in SCORES:
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
            return float("inf")
        worst = max(worst, float(np.nanmax(np.abs(one - other))))
    return worst


def spread(patterns: Sequence[Tensor]) -> float:
    """The largest entry by which the flattest layer differs from attention that is uniform over the past: 0 tests nothing."""
    uniform = torch.ones(patterns[0].shape[-2:], dtype=torch.float64).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    return min(float((pattern - uniform).abs().max()) for pattern in patterns)


def drift(model: nn.Module, twin: nn.Module, batch: Batch) -> float:
    """How far the logits of the twin are from the model's at tokens that are not padding, relative to the largest."""
    one, other = (run(part, batch).logits[batch.kept].double() for part in (model, twin))
    return float((one - other).abs().max() / one.abs().max())


def refusal(error: InductionError) -> str:
    """What the backends said that have anything to do with such a model, or the error itself."""
    said = [each for each in getattr(error, "tried", ()) if not each.startswith(("expose_attention", "TransformerLens"))]
    return "; ".join(said) or str(error)


def compare(model: nn.Module, twin: nn.Module, batches: Sequence[Batch]) -> Outcome:
    """Measure `model` on every batch, and compare with the patterns that its eager twin returns."""
    eager = [returned_patterns(twin, batch) for batch in batches]
    patterns, others = eager[0]
    told = {"patterns": len(patterns), "others": others}
    try:
        found = [measure_heads(model, tokens=batch.tokens, attention_mask=batch.real) for batch in batches]
    except InductionError as error:
        return Outcome("refused", refusal(error), **told)
    told |= {"backend": found[0].provenance.backend, "measured": found[0].prefix_matching.shape[0]}
    if not patterns:
        return Outcome("unchecked", "measured, but eager attention returns no pattern to compare with", **told)
    apart = max(drift(model, twin, batch) for batch in batches)
    if apart > SAME_MODEL:
        return Outcome("unchecked", f"eager attention gives other logits, which differ by {apart:.2g}", **told)
    if told["measured"] != len(patterns):
        return Outcome("wrong", f"{told['measured']} layers measured, {len(patterns)} patterns returned", **told)
    worst = max(
        worst_difference(ours.per_sequence, stacked(theirs, batch))
        for ours, (theirs, _), batch in zip(found, eager, batches, strict=True)
    )
    reason = "" if worst <= THRESHOLD else f"scores differ by {worst:.2g}"
    return Outcome("wrong" if reason else "measured", reason, worst=worst, spread=spread(patterns), **told)
