"""What a model's own eager attention says of its heads: dense scores of the patterns that it returns, and a comparison with ours.

Written from the definitions in docs/metrics.md, over whole (positions x positions) patterns; nothing of the package's capture
is used. The twin that returns the patterns has the same weights, and must give the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytest_induction import measure_heads
from pytest_induction.errors import InductionError

SCORES = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
BAR = 1e-4


@dataclass
class Eager:
    """What a forward pass with `output_attentions` gave: causal self-attention patterns in order, and the rest in words."""

    patterns: list[Tensor]
    others: list[str] = field(default_factory=list)
    logits: Tensor | None = None


def patterns_of(twin: nn.Module, tokens: Tensor) -> Eager:
    """Every tensor of attention that the model returns, sorted into causal self-attention (batch, heads, T, T) and others."""
    with torch.no_grad():
        output = twin(input_ids=tokens, output_attentions=True, use_cache=False)
    found = Eager([], logits=output.logits.double())
    for entry in getattr(output, "attentions", None) or ():
        told = _told(entry, tokens)
        if told:
            found.others.append(told)
        else:
            found.patterns.append(entry.double())
    return found


def _told(entry: Any, tokens: Tensor) -> str:
    """Why this is no causal self-attention pattern, or nothing."""
    if not isinstance(entry, Tensor):
        return type(entry).__name__
    batch, positions = tokens.shape
    if entry.ndim != 4 or entry.shape[0] != batch or tuple(entry.shape[2:]) != (positions, positions):
        return "x".join(str(size) for size in entry.shape)
    if float(entry.triu(1).abs().max()) > 0:
        return "not causal"
    sums = entry.sum(-1)
    return "" if float(sums.max()) <= 1 + 1e-3 and float(entry.min()) >= 0 else f"rows sum to {float(sums.max()):.3g}"


def dense_scores(pattern: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The four scores of a pattern (batch, heads, T, T): name -> (batch, heads)."""
    earlier = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)  # batch, query, key
    successor = torch.zeros_like(earlier)
    successor[:, :, 1:] = earlier[:, :, :-1]
    counted = earlier.any(2)

    def over_matches(places: Tensor) -> Tensor:
        mass = (pattern * places[:, None]).sum(-1)
        return (mass * counted[:, None]).sum(-1) / counted.sum(-1)[:, None]

    return {
        "prefix_matching": over_matches(successor),
        "previous_token": pattern.diagonal(-1, -2, -1)[..., 1:].mean(-1),
        "duplicate_token": over_matches(earlier),
        "first_token": pattern[:, :, 2:, 0].mean(-1),
    }


def stacked(patterns: list[Tensor], tokens: Tensor) -> dict[str, np.ndarray]:
    """The scores of all layers: name -> (batch, layers, most heads), NaN where a layer has fewer heads."""
    most = max(pattern.shape[1] for pattern in patterns)
    shape = (len(tokens), len(patterns), most)
    found = {name: np.full(shape, np.nan) for name in SCORES}
    for layer, pattern in enumerate(patterns):
        for name, values in dense_scores(pattern, tokens).items():
            found[name][:, layer, : values.shape[1]] = values.numpy()
    return found


def worst_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any score; infinite where a layer or a head is on one side only, or a score is not finite."""
    worst = 0.0
    for name in SCORES:
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
            return float("inf")
        worst = max(worst, float(np.nanmax(np.abs(one - other))))
    return worst


def spread(patterns: list[Tensor]) -> float:
    """How far the flattest layer lies from attention that is uniform over the past, largest entry: 0 would test nothing."""
    positions = patterns[0].shape[-1]
    uniform = torch.ones(positions, positions, dtype=torch.float64).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    return min(float((pattern - uniform).abs().max()) for pattern in patterns)


def compare(model: Any, twin: nn.Module, probes: list[Tensor]) -> dict[str, Any]:
    """Measure `model` on every probe and compare with its eager twin. The record says how it ended, and why."""
    eager = [patterns_of(twin, tokens) for tokens in probes]
    record: dict[str, Any] = {"patterns": len(eager[0].patterns), "others": sorted(set(eager[0].others))}
    try:
        found = [measure_heads(model, tokens=tokens) for tokens in probes]
    except InductionError as error:
        return {**record, "status": "refused", "reason": str(error)}
    about = found[0].provenance
    record |= {"way": about.way_in, "measured": about.n_layers, "notes": list(about.notes)}
    if not eager[0].patterns:
        return {**record, "status": "unchecked", "reason": "measured, and eager attention returns no pattern to compare with"}
    worst = max(
        worst_difference(ours.per_sequence, stacked(theirs.patterns, tokens))
        for ours, theirs, tokens in zip(found, eager, probes, strict=True)
    )
    record |= {"worst": worst, "spread": spread(eager[0].patterns), "heads": sorted({p.shape[1] for p in eager[0].patterns})}
    return {**record, "status": "measured" if worst <= BAR else "wrong"}
