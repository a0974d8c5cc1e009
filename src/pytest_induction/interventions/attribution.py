"""What ablating each head would do to the right answer, to first order, for all heads by one forward and one backward pass.

The change of a logit is about (r - z) . dlogit/dz, summed over positions and d_head, with z what a head finds and r what it gives
instead. The logit is that of the right token above the mean of all: a loss is flat where the model is sure, and would hide what
makes it so. Heads whose effect is large are mostly among the first of these; a head whose pattern is saturated, so that a small
change of its queries and keys does nothing, hides those that it finds its place by.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pytest_induction.batching import in_batches
from pytest_induction.errors import UnsupportedModel
from pytest_induction.interventions.passes import Passes, repeated
from pytest_induction.models.acting import Part, Step
from pytest_induction.models.calling import first_line
from pytest_induction.models.intervening import acting
from pytest_induction.models.kernels import Call
from pytest_induction.observing import Array, numbers, of_all_heads


class Leaf(Step):
    """Keeps what heads found, to ask for the gradient with respect to it."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_output(self, output: Tensor, call: Call | None, part: Part) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self.found.append(output)
        return output


def attributions(passes: Passes) -> Array:
    """By how much the right token's logit, above the mean of all, would fall at the queries with each head ablated, in nats.

    The mean over the queries of each row, (rows, n_layers, n_heads).

    Raises `UnsupportedModel` where no gradient can be had.
    """

    def measured(rows: Tensor, part: slice) -> Array:
        kept, _ = passes.clean(rows, part)
        leaves = {layer: Leaf() for layer in range(passes.subject.n_layers)}
        steps: dict[int, list[Step]] = {layer: [leaf] for layer, leaf in leaves.items()}
        for layer, step in kept.frozen.items():
            steps[layer].append(repeated(step, 1))
        with acting(passes.subject, rows, steps):
            logits = passes.subject.logits(rows, positions=passes.queries, gradients=True)
        found_by_all = [each for leaf in leaves.values() for each in leaf.found]
        gradients = _gradients(passes, _right_ones(logits, rows, passes.queries), found_by_all)
        layers: list[Array] = []
        for layer, leaf in leaves.items():
            own = [next(gradients) for _ in leaf.found]
            found, slope = torch.cat([each.detach() for each in leaf.found], 1), torch.cat(own, 1)
            instead = kept.values.get(layer)
            change = found if instead is None else found - instead.to(found)
            layers.append(numbers((change * slope).float().sum((2, 3))))
        return of_all_heads(layers, passes.subject.n_heads)

    most = 1 if passes.subject.mixes_rows else None
    return np.concatenate(in_batches(passes.subject, passes.rows, measured, logits=True, most=most))


def _right_ones(logits: Tensor, rows: Tensor, queries: Tensor) -> Tensor:
    """The logits of the tokens after the queries above the mean of all, the mean over queries, summed over rows."""
    targets = rows[:, queries.to(rows.device) + 1].to(logits.device)
    above = logits.gather(-1, targets[..., None])[..., 0] - logits.mean(-1)
    return above.float().mean(1).sum()


def _gradients(passes: Passes, value: Tensor, found: list[Tensor]) -> Iterator[Tensor]:
    try:
        return iter(torch.autograd.grad(value, found))
    except RuntimeError as error:
        raise UnsupportedModel(
            f"heads of {passes.subject.name} cannot be screened, for there is no gradient of its logits: {first_line(error)}; "
            "measure all of them with screen=False"
        ) from error
