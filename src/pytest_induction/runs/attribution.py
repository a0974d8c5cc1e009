"""What each head is worth to in-context learning, and to the change of a training: every head ablated, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_induction.behaviour.text import row_length, rows_of, windows_of
from pytest_induction.causal.ablating import in_context_attribution
from pytest_induction.causal.in_context import before_and_after
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ArgumentError, user_facing, whole_number
from pytest_induction.interventions.arguments import HeadsLike, all_heads, heads_of
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import Ablating, Passes, tried_out
from pytest_induction.measuring.observing import Array, ModelLike, plain, provenance
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Provenance
from pytest_induction.runs.measuring import TEXT_ROWS, fixed_tokens
from pytest_induction.spending import Price, priced

MOST_APART = 0.05  # nats in the mean, between losses that are of the same model: half precision is off by a tenth of that


@dataclass(frozen=True, repr=False)
class HeadAttributions(Plotted):
    """What a text's losses lose with each head ablated alone, (n_layers, n_heads); NaN for one that was not measured.

    `in_context` is by how many nats the in-context learning score rises: positive where the head contributes. `before_and_after`
    is how far losses move along the way that they went between two snapshots, negative where it undoes that (see
    runs/attribution.py); None where no snapshots were given. `per_row` has `in_context` before the mean, (rows, n_layers,
    n_heads).
    """

    in_context: Array
    before_and_after: Array | None
    per_row: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, units=dict.fromkeys(("in_context", "before_and_after"), "nats"))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            "in_context": plain(self.in_context),
            "before_and_after": None if self.before_and_after is None else plain(self.before_and_after),
            "per_row": {name: plain(values) for name, values in self.per_row.items()},
            "provenance": self.provenance.to_dict(),
        }


def price_of_attributions(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of each row of the text as it is, for each head once more, and once for what is put in its place."""
    heads = sum(subject.reading.heads) if given["heads"] is None else len(heads_of(subject, given["heads"]))
    each = (heads + 2 + (given["how"] != "zero")) * row_length(subject)
    return Price(2 * (heads + 1) * row_length(subject), given["max_rows"] * each + tried_out(subject))


@user_facing
@priced(price_of_attributions)
def measure_attributions(
    model: ModelLike,
    text: Any,
    *,
    losses_start: Any = None,
    losses_end: Any = None,
    losses_here: Any = None,
    heads: HeadsLike | None = None,
    how: Replacement = "zero",
    pattern_preserving: bool = True,
    max_rows: int = TEXT_ROWS,
    seed: int | None = None,
) -> HeadAttributions:
    """Measure how much each head, ablated alone, contributes to in-context learning on a text and to a phase change.

    `losses_start` and `losses_end` are the token losses of a training at two snapshots, before and after its change, as
    `run.token_losses()` gives them; `model` is that of the second one, or of the snapshot that `losses_here` are of. `text` and
    `max_rows` are those that the run was recorded with, and `seed` the run's. With `pattern_preserving` all heads attend as
    without the ablation, as in the paper: then a head that others find their place by, like a previous-token head, shows nothing.

    Raises `ArgumentError` where `model` is not the model of those losses, or losses cannot be used; otherwise as
    `measure_ablations` and `assert_learns_in_context`. Source: Olsson et al. 2022, argument 3.

    >>> index, losses = run.token_losses()                                                  # doctest: +SKIP
    >>> found = measure_attributions(model, text, losses_start=losses[3], losses_end=losses[9])     # doctest: +SKIP
    >>> found.before_and_after.round(1)                                                      # doctest: +SKIP
    array([[ 0.1,  0. ], [-4.2,  0. ]])
    """
    if (losses_start is None) != (losses_end is None) or (losses_end is None and losses_here is not None):
        raise ArgumentError("`losses_start` and `losses_end` belong together, and `losses_here` to both, got only some of them")
    subject = load_model(model)
    chosen = all_heads(subject) if heads is None else heads_of(subject, heads)
    if not chosen:
        raise ArgumentError("`heads` names no head")
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = rows_of(subject, text, whole_number("max_rows", max_rows, least=2))
    tokens, positions = torch.from_numpy(rows).to(subject.device), torch.arange(rows.shape[1] - 1)
    other = torch.from_numpy(np.roll(rows, 1, 0)) if how == "resample" else None
    with progress("attributions of heads", len(rows) * (len(chosen) + 1)):
        found = Passes(subject, tokens, positions, Ablating(how, pattern_preserving), other).losses([[head] for head in chosen])
    first_token, windows = windows_of(subject, rows)
    numbers = np.arange(first_token, first_token + len(positions))
    early, late = ((numbers >= span[0]) & (numbers <= span[1]) for span in (windows.early, windows.late))
    counted = early | late
    effects = in_context_attribution(found.clean[:, counted], found.ablated[..., counted], late[counted])
    shape = (subject.n_layers, subject.n_heads)
    where = tuple(np.array([(head.layer, head.head) for head in chosen]).T)
    per_row = np.full((len(rows), *shape), np.nan)
    per_row[:, *where] = effects.T
    moved = None
    if losses_start is not None:
        moved = np.full(shape, np.nan)
        name, here = ("losses_end", losses_end) if losses_here is None else ("losses_here", losses_here)
        kept = _checked_places(name, np.asarray(here), found.clean, seed)
        whole, without = found.clean.reshape(-1)[kept], found.ablated.reshape(len(chosen), -1)[:, kept]
        moved[where] = before_and_after(losses_start, losses_end, whole, without)
    about = provenance(subject, seed=seed, n_sequences=len(rows), probe=f"rows of {rows.shape[1]} tokens of text")
    return HeadAttributions(per_row.mean(0), moved, {"in_context": per_row}, about)


def _checked_places(name: str, losses: Array, clean: Array, seed: int) -> NDArray[np.int64]:
    """Which of the losses (rows, tokens), as places in the flat array, a run keeps; raises unless `losses` are those of them."""
    kept = fixed_tokens(seed, clean, max(1, losses.size))
    if losses.shape != kept.shape:
        raise ArgumentError(f"`{name}` must be the losses of {len(kept)} tokens, as this text gives, got {losses.shape}")
    apart = float(np.abs(clean.reshape(-1)[kept] - losses).mean())
    if not apart <= MOST_APART:
        raise ArgumentError(
            f"`{name}` must be the losses of this model on this text, they are {apart:.2f} nats off: take the model of that "
            "snapshot, and the text, `max_rows` and `seed` of the run"
        )
    return kept
