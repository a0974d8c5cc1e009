"""What the heads of a model do for it: the loss with each one ablated, to first order too, against heads drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.edits import Edit, LayerPart
from pytest_induction.attention.kernels import AttentionCall
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ArgumentError, UnsupportedModel, user_facing, whole_number
from pytest_induction.forward.calling import first_line
from pytest_induction.interventions.active import apply_edits
from pytest_induction.interventions.arguments import HeadsLike, all_heads, heads_of
from pytest_induction.interventions.edits import Replacement
from pytest_induction.interventions.passes import Ablating, HeadSet, Passes, repeated, tried_out
from pytest_induction.measuring.observing import Array, ModelLike, describe, numbers, of_all_heads, plain, probes_of, provenance
from pytest_induction.measuring.rounds import price_of_probes
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, Probe
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, HeadId, Provenance
from pytest_induction.spending import WITH_GRADIENTS, BudgetSpent, Price, priced, spend_at_most

Heads = tuple[HeadId, ...]


@dataclass(frozen=True)
class Controls:
    """Different sets of heads, each as large as the set that they are controls of, and with none of its heads.

    `relaxed` are the layers with too few other heads: for these some come from the layers nearest to them. `complete` says that
    there are no further such sets.
    """

    sets: tuple[Heads, ...]
    relaxed: tuple[int, ...] = ()
    complete: bool = False


def matched_controls(heads: Sequence[HeadId], counts: Sequence[int], n_sets: int, rng: np.random.Generator) -> Controls:
    """At most `n_sets` different sets with as many heads of each layer as `heads` has, and none of these; all of them, of fewer.

    `counts` is how many heads each layer of the model has. A layer with too few other heads shares those of the layers nearest to
    it, on both sides, of the fewest that have enough; no sets where the whole model has too few.
    """
    chosen = set(heads)
    others = [
        [each for number in range(count) if (each := HeadId(layer, number)) not in chosen] for layer, count in enumerate(counts)
    ]
    needed = {layer: sum(head.layer == layer for head in chosen) for layer in {head.layer for head in chosen}}
    relaxed = tuple(sorted(layer for layer, need in needed.items() if len(others[layer]) < need))
    if sum(map(len, others)) < len(chosen):
        return Controls((), relaxed, complete=True)
    pools = [
        ([head for layer in group for head in others[layer]], sum(needed.get(layer, 0) for layer in group))
        for group in _groups(needed, others)
    ]
    total = prod(comb(len(pool), need) for pool, need in pools)
    if total <= n_sets:
        every = product(*(combinations(pool, need) for pool, need in pools))
        return Controls(tuple(_one(parts) for parts in every), relaxed, complete=True)
    drawn: dict[Heads, None] = {}
    while len(drawn) < n_sets:
        drawn[_one([[pool[place] for place in rng.permutation(len(pool))[:need]] for pool, need in pools])] = None
    return Controls(tuple(drawn), relaxed)


def _one(parts: Sequence[Sequence[HeadId]]) -> Heads:
    return tuple(sorted((head for part in parts for head in part), key=lambda head: (head.layer, head.head)))


def _groups(needed: dict[int, int], others: Sequence[Sequence[HeadId]]) -> Iterator[tuple[int, ...]]:
    """Layers that share their heads, each in one group: by itself where it has enough, else with those nearest to it."""
    groups = [{layer} for layer in sorted(needed)]
    while short := [group for group in groups if _lacks(group, needed, others)]:
        wider = {layer + step for layer in short[0] for step in (-1, 0, 1)} & set(range(len(others)))
        touched = [group for group in groups if group & wider]
        groups = [group for group in groups if group not in touched] + [wider.union(*touched)]
    return iter(sorted(tuple(sorted(group)) for group in groups))


def _lacks(group: set[int], needed: dict[int, int], others: Sequence[Sequence[HeadId]]) -> bool:
    return sum(len(others[layer]) for layer in group) < sum(needed.get(layer, 0) for layer in group)


class Leaf(Edit):
    """Keeps what heads found, to ask for the gradient with respect to it."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def on_output(self, output: Tensor, call: AttentionCall | None, part: LayerPart) -> Tensor:
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
        edits: dict[int, list[Edit]] = {layer: [leaf] for layer, leaf in leaves.items()}
        for layer, edit in kept.frozen.items():
            edits[layer].append(repeated(edit, 1))
        with apply_edits(passes.subject, rows, edits):
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


AT_ONCE = 8  # heads, where a budget may end after any of them
SCREENED = 6  # one of so many heads is measured after a screening
FEWEST_SCREENED = 8


@dataclass(frozen=True, repr=False)
class AblationScores(Plotted):
    """By how many nats the loss on the last copy of repeated tokens rises when a head is ablated.

    `effect` (n_layers, n_heads) is the mean over sequences; NaN for one that was not measured. `attribution`, same shape, is by
    how much the right token's logit would fall to first order, in nats, where heads were screened, else None. `of_all` is the
    effect of ablating every head at once: where it is 0, the loss does not depend on attention, and no effect says anything.
    `per_sequence` holds `effect` and `attribution`, (n_sequences, n_layers, n_heads), and `of_all` and the `loss` of the model as
    it is, (n_sequences,).
    """

    effect: Array
    attribution: Array | None
    of_all: float
    loss: float
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, units=dict.fromkeys(("effect", "attribution"), "nats"))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            "effect": plain(self.effect),
            "attribution": None if self.attribution is None else plain(self.attribution),
            "of_all": self.of_all,
            "loss": self.loss,
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


def price_of_ablations(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of each row as it is, with all heads ablated and with each one that is measured; and of a screening, with its gradient."""
    every = sum(subject.reading.heads) if given["heads"] is None else len(heads_of(subject, given["heads"]))
    count = _screened(given["screen"], every)
    ordered = bool(count) or given["budget"] is not None
    others = {"zero": 0, "mean": 1, "resample": 2}[given["how"]] + (1 + WITH_GRADIENTS) * ordered
    rows = price_of_probes(subject.space, given["n_sequences"])
    chunks = -(-every // AT_ONCE) if given["budget"] is not None else 1
    passes = (count or every) + 1 + chunks
    return Price(rows.least * passes, rows.most * (passes + others * 2) + tried_out(subject))


@user_facing
@priced(price_of_ablations)
def measure_ablations(
    model: ModelLike,
    *,
    heads: HeadsLike | None = None,
    how: Replacement = "zero",
    pattern_preserving: bool = False,
    screen: bool | int = False,
    n_sequences: int = 6,
    budget: float | str | None = None,
    seed: int | None = None,
) -> AblationScores:
    """Measure how much the loss on repeated random tokens rises when each head, or each of those given, is ablated.

    `how` is what a head gives instead of what it finds: "zero", "mean" (over all rows and positions) or "resample" (what it finds
    on another row of repeated tokens). Everything after the head is computed anew, unless `pattern_preserving`: then all heads
    attend as without the ablation, so that a head that others find their place by, as a previous-token head is, shows nothing.
    `screen` estimates all heads by one backward pass and measures only those with the largest estimates, a sixth of all or as
    many as are given. The loss is that of the last copy without its first token, in nats.

    `budget` is what the call may spend, in bare passes (a number, "60 passes") or seconds ("30 s"). Then heads are measured in
    the order of their estimates, the largest first, for as long as it lasts; the others stay NaN, and a note says how many.

    Exactly what one forward pass per head gives, where it is the model's own arithmetic that does not depend on the batch.
    Raises `UnsupportedModel` for a model whose heads cannot be edited, and as `measure_heads`.

    >>> scores = measure_ablations(model)                            # doctest: +SKIP
    >>> scores.effect.round(1)                                       # doctest: +SKIP
    array([[4.1, 0. ], [0. , 4.1]])
    """
    spend_at_most(budget)
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    ablating = Ablating(how, pattern_preserving)
    subject = load_model(model)
    chosen = all_heads(subject) if heads is None else heads_of(subject, heads)
    if not chosen:
        raise ArgumentError("`heads` names no head")
    count = _screened(screen, len(chosen))
    seed = subject.seed if seed is None else seed
    rng = np.random.default_rng([seed, 0])
    probes = list(probes_of(subject, n_sequences, rng, COPIES, None))
    others = [_another(subject, probe, rng) for probe in probes] if how == "resample" else [None] * len(probes)
    passes = [last_copy(subject, probe, ablating, other) for probe, other in zip(probes, others, strict=True)]
    estimates = None
    if count or budget is not None:
        estimates = np.concatenate([attributions(each) for each in passes])
        strength = np.abs(estimates.mean(0))
        chosen = tuple(sorted(chosen, key=lambda head: -strength[head.layer, head.head])[: count or None])
    with progress(f"ablations of {len(chosen)} heads", n_sequences * (len(chosen) + 1)):
        loss, effects = _best_first(passes, chosen, len(chosen) if budget is None else AT_ONCE)
    asked, chosen = len(chosen), chosen[: effects.shape[1] - 1]
    whole = np.full((n_sequences, subject.n_layers, subject.n_heads), np.nan)
    for number, head in enumerate(chosen):
        whole[:, head.layer, head.head] = effects[:, number + 1]
    per_sequence = {"effect": whole, "of_all": effects[:, 0], "loss": loss}
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=describe(probes))
    if len(chosen) < asked:
        about = replace(about, notes=(*about.notes, f"{len(chosen)} of {asked} heads are measured, the largest estimates first"))
    per_sequence |= {} if estimates is None else {"attribution": estimates}
    return AblationScores(
        effect=whole.mean(0),
        attribution=None if estimates is None else estimates.mean(0),
        of_all=float(effects[:, 0].mean()),
        loss=float(loss.mean()),
        per_sequence=per_sequence,
        provenance=about,
    )


def _best_first(passes: Sequence[Passes], chosen: Heads, at_once: int) -> tuple[Array, Array]:
    """Of each row the loss (rows,), and what it rises by (rows, 1 + heads) with all heads ablated and with each of the chosen, or
    the first of them for which there was room; so many are measured at once.
    """
    done: list[tuple[Array, Array]] = []
    for start in range(0, len(chosen), at_once):
        sets: list[HeadSet] = [[head] for head in chosen[start : start + at_once]]
        every: list[HeadSet] = [] if done else [all_heads(passes[0].subject)]
        try:
            found = [rises(each, [*every, *sets]) for each in passes]
        except BudgetSpent:
            if not done:
                raise
            break
        done.append((np.concatenate([loss for loss, _ in found]), np.concatenate([effects for _, effects in found])))
    return done[0][0], np.concatenate([effects for _, effects in done], axis=1)


def screened(count: int) -> int:
    """How many of so many heads are measured after a screening, where that is not said."""
    return min(count, max(FEWEST_SCREENED, -(-count // SCREENED)))


def last_copy(subject: ModelUnderTest, probe: Probe, ablating: Ablating, other: Probe | None = None) -> Passes:
    """Passes over a probe, whose losses are those of the last copy without its first token."""
    start = probe.n_positions - probe.period
    queries = torch.arange(start, probe.n_positions - 1)
    rows, others = torch.from_numpy(probe.tokens), None if other is None else torch.from_numpy(other.tokens)
    return Passes(subject, rows.to(subject.device), queries, ablating, others)


def _another(subject: ModelUnderTest, probe: Probe, rng: np.random.Generator) -> Probe:
    """Another probe of the same shape."""
    return next(iter(probes_of(subject, probe.n_sequences, rng, probe.repeats, probe.period)))


def rises(passes: Passes, sets: Sequence[HeadSet]) -> tuple[Array, Array]:
    """Of each row the mean loss (rows,), and what it rises by (rows, sets) with each set of heads ablated."""
    found = passes.losses(sets)
    clean, ablated = found.clean.mean(-1), found.ablated.mean(-1)
    return clean, (ablated - clean).T


def _screened(screen: bool | int, count: int) -> int:
    """How many heads are measured after a screening; 0 for all of them, without one."""
    if screen is False:
        return 0
    if screen is True:
        return screened(count)
    return min(count, whole_number("screen", screen, least=1))
