"""By which paths a model recalls: what is lost without each mixer's memory and each convolution tap, and where keys are bound."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pytest_induction.behaviour.choices import chosen
from pytest_induction.behaviour.recall import PAIRS
from pytest_induction.causal.judging import share_interval
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share
from pytest_induction.forward.changing import have_alone
from pytest_induction.interventions.mixers import (
    LISTS,
    Mixer,
    Recorded,
    ResidualStream,
    other_memory,
    reach_inside,
    recorded,
    residual_stream,
    restored,
)
from pytest_induction.interventions.taps import Tap, cut, taps_of
from pytest_induction.measuring.observing import Array, ModelLike, numbers, provenance
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.recall import Contrasts, RecallShape, recall_contrasts
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, Provenance
from pytest_induction.spending import Price, priced
from pytest_induction.statistics import mean_in_nats, mean_of_shares
from pytest_induction.undoing import Changes

ROWS = 24
Memory = Literal["other", "reordered"]
At = Literal["key", "value", "query"]
MEMORIES: tuple[Memory, ...] = ("other", "reordered")
PLACES: tuple[At, ...] = ("key", "value", "query")
Given = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Condition:
    """How one pass over the rows differs from the model as it is.

    From the first key that is asked on `mixers` see the pairs of the `memory` rows in place of the row's own; `taps` are cut.
    With `restores`, a block's number and a position, the keys of the pairs are others, and what the block gives at that
    position of every pair is restored; with None in place of the number nothing is.
    """

    mixers: tuple[Mixer, ...] = ()
    memory: Memory = "other"
    taps: tuple[Tap, ...] = ()
    restores: tuple[int | None, At] | None = None


CLEAN = Condition()
CORRUPTED = Condition(restores=(None, "key"))


@dataclass(frozen=True)
class MixerRecall:
    """Recall where one mixer, or all of a kind (`layer` None, `path` empty), sees other pairs, or the row's own in another order.

    Both are `recall_accuracy`, a share in [0, 1]. A part that recall goes through falls to a guess with other pairs and stays
    with reordered ones; one that is only damaged by the exchange falls with both.
    """

    kind: str
    layer: int | None
    path: str
    other_pairs: Estimate
    reordered_pairs: Estimate


@dataclass(frozen=True)
class TapRecall:
    """`recall_accuracy` in [0, 1] and `log_prob` in nats with the tap at `lag` cut, in one module or in all (`path` empty)."""

    lag: int
    path: str
    recall_accuracy: Estimate
    log_prob: Estimate


@dataclass(frozen=True)
class RestoredRecall:
    """What share of the log probability that is lost with other keys comes back when block `layer`'s output is restored at one of
    the positions "key", "value" (both in the pairs) or "query". 1 is all of it, 0 none, and it may lie outside.
    """

    layer: int
    at: str
    recovered: Estimate


@dataclass(frozen=True)
class RecallPaths:
    """By which paths a model recalls. `str()` gives a table; `chance` is 1 / `pairs`.

    `restored` is empty where other keys cost the model nothing, so that nothing can come back.
    """

    pairs: int
    chance: float
    recall_accuracy: Estimate
    log_prob: Estimate
    mixers: tuple[MixerRecall, ...]
    taps: tuple[TapRecall, ...]
    restored: tuple[RestoredRecall, ...]
    provenance: Provenance

    def __str__(self) -> str:
        lines = [f"recall {_in_words(self.recall_accuracy)} of {self.pairs} pairs, chance {self.chance:.3f}"]
        lines += [
            f"{each.kind + ' ' + (each.path or 'all'):<40} other pairs {_in_words(each.other_pairs)}, "
            f"reordered {_in_words(each.reordered_pairs)}"
            for each in self.mixers
        ]
        lines += [
            f"{f'lag {each.lag} cut, ' + (each.path or 'all'):<40} recall {_in_words(each.recall_accuracy)}" for each in self.taps
        ]
        lines += [
            f"{f'block {each.layer} restored at the {each.at}':<40} recovers {_in_words(each.recovered)}"
            for each in self.restored
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {"schema": SCHEMA_VERSION, **asdict(self), "provenance": self.provenance.to_dict()}


def _in_words(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f}..{found.high:.3f})"


@dataclass(frozen=True)
class Recalled:
    """Of each row (n_sequences,): the share of right answers among the row's values, and their mean log probability in nats."""

    accuracy: Array
    log_prob: Array


def contrasts_of(subject: ModelUnderTest, pairs: object, count: int, rng: np.random.Generator) -> Contrasts:
    """Rows whose queries lie further behind the pairs than any mixer's taps reach, so that only its memory has them."""
    return recall_contrasts(subject.space, shape_of(subject, pairs), rng=rng, n_sequences=count)


def shape_of(subject: ModelUnderTest, pairs: object) -> RecallShape:
    """Of such rows."""
    count, lists = whole_number("pairs", pairs, least=2), [each for each in subject.module.modules() if isinstance(each, LISTS)]
    reach = max((reach_inside(part) for each in lists for part in each.children()), default=0)
    return RecallShape.of(subject.space, count, 2 * count + reach)


def recall_under(subject: ModelUnderTest, rows: Contrasts, conditions: Sequence[Condition]) -> list[Recalled]:
    """Recall of the same rows under each of these conditions. Raises `ModelError` where logits are not finite."""
    stream = residual_stream(subject)
    measure = partial(_under, subject, stream, rows, conditions)
    found = np.concatenate(
        in_batches(subject, torch.from_numpy(rows.rows.tokens), measure, logits=True, most=1 if subject.mixes_rows else None),
        axis=2,
    )
    if not np.isfinite(found).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on random tokens")
    return [Recalled(each[0], each[1]) for each in found]


def _under(
    subject: ModelUnderTest, stream: ResidualStream, rows: Contrasts, conditions: Sequence[Condition], tokens: Tensor, part: slice
) -> Array:
    """Accuracy and log probability (conditions, 2, rows) of a batch."""
    device, asked = subject.device, rows.rows
    right = torch.from_numpy(asked.values)[part]
    candidates = right[:, None, :].expand(-1, asked.n_pairs, -1)
    mixers = [each.module for each in stream.mixers]
    memories = {each.memory for each in conditions if each.mixers}
    sources = {
        name: _recorded(subject, mixers, torch.from_numpy(getattr(rows, name))[part]) for name in MEMORIES if name in memories
    }
    clean = _recorded(subject, stream.blocks, tokens) if any(each.restores for each in conditions) else Recorded({}, {})
    other_keys = torch.from_numpy(rows.corrupted)[part]
    places = {"key": rows.keys, "value": rows.values, "query": asked.queries}
    found: list[Array] = []
    for condition in conditions:
        changed: AbstractContextManager[object] = nullcontext()
        if condition.mixers:
            changed = other_memory(subject, condition.mixers, sources[condition.memory].given, rows.pairs, rows.begin)
        if condition.restores is not None and condition.restores[0] is not None:
            block, at = stream.blocks[condition.restores[0]], torch.from_numpy(places[condition.restores[1]]).to(device)
            changed = restored(block, clean.gave[block], at)
        with Changes() as changes, changed:
            have_alone(changes, subject.module)
            cut(changes, condition.taps)
            run = other_keys if condition.restores is not None else tokens
            best, _, log_prob, _ = chosen(subject, torch.from_numpy(asked.queries), right, candidates, run, slice(None))
        found.append(numbers(torch.stack([best.mean(1), log_prob.mean(1)])))
    return np.stack(found)


def _recorded(subject: ModelUnderTest, parts: Any, tokens: Tensor) -> Recorded:
    with recorded(parts) as seen:
        subject.logits(tokens, positions=torch.tensor([tokens.shape[1] - 1]))
    return seen


@dataclass(frozen=True)
class Plan:
    """What is measured: mixers by kind, layer and path, taps by lag and path, and blocks by number and position."""

    mixers: Mapping[tuple[str, int | None, str], tuple[Mixer, ...]]
    taps: Mapping[tuple[int, str], tuple[Tap, ...]]
    blocks: tuple[tuple[int, At], ...]

    @classmethod
    def of(cls, stream: ResidualStream, taps: Sequence[Tap]) -> Plan:
        """All mixers of a kind and each by itself, all taps of a lag and each by itself, every block at every position."""
        kept = [each for each in stream.mixers if each.kind != "convolution"]
        mixers: dict[tuple[str, int | None, str], tuple[Mixer, ...]] = {
            (each.kind, None, ""): stream.of_kind(each.kind) for each in kept
        }
        mixers |= {(each.kind, each.layer, each.path): (each,) for each in kept}
        of_lags = {(lag, ""): tuple(tap for tap in taps if tap.lag == lag) for lag in sorted({tap.lag for tap in taps})}
        of_lags |= {(tap.lag, tap.path): (tap,) for tap in taps}
        return cls(mixers, of_lags, tuple((number, at) for number in range(len(stream.blocks)) for at in PLACES))

    @property
    def conditions(self) -> dict[Hashable, Condition]:
        """Each condition under what it is of: a mixer has its memory's name behind its own."""
        found: dict[Hashable, Condition] = {"clean": CLEAN, "corrupted": CORRUPTED}
        for part, mixers in self.mixers.items():
            found |= {(*part, memory): Condition(mixers=mixers, memory=memory) for memory in MEMORIES}
        found |= {part: Condition(taps=taps) for part, taps in self.taps.items()}
        return found | {("block", *place): Condition(restores=place) for place in self.blocks}


def price_of_paths(subject: ModelUnderTest, given: Given) -> Price:
    """Of each row two others, itself, and a pass for every mixer, tap and restored block; at most two mixers a block."""
    taps = taps_of(subject.module)
    blocks = max((len(each) for each in subject.module.modules() if isinstance(each, LISTS)), default=1)
    fewest, most = (
        5 + 2 * (mixers + kinds) + len(taps) + len({tap.lag for tap in taps}) + 3 * blocks
        for mixers, kinds in ((1, 1), (2 * blocks, 2))
    )
    row = given["n_sequences"] * (shape_of(subject, given["pairs"]).length + 1)
    return Price(row * min(fewest, most) // 2, row * most + TRIED)


TRIED = 2 * 2 * 64  # tokens at most on which blocks and mixers are found


@user_facing
@priced(price_of_paths)
def measure_recall_paths(
    model: ModelLike, *, pairs: int = PAIRS, n_sequences: int = ROWS, error_rate: float = ERROR_RATE, seed: int | None = None
) -> RecallPaths:
    """Measure the paths by which the model recalls key-value pairs: mixers, convolution taps, and the position of binding.

    The rows are those of `measure_recall`, with as many tokens between the pairs and the first key that is asked as the taps of
    one mixer reach. For every mixer (attention, or what keeps a state), and all of a kind, recall is measured where from the
    first question on that mixer sees the pairs of another row, and as a control the same pairs in another order. For every
    convolution tap, and all of one lag, it is measured with that tap cut. Then the keys of all pairs are exchanged for other
    tokens, and each block's output is restored at the keys, the values or the queries: the share of the lost log probability
    that comes back at the values is what was bound there, as an induction head's previous-token head binds it; where it comes
    back at the queries alone, keys are compared with the query itself.

    For attention, state-space and hybrid models alike. Intervals are of each number by itself, over rows. Raises
    `UnsupportedModel` where the blocks of the model are not found, and `ProbeError` where its context or vocabulary is too
    small. After Arora et al. 2025 (arXiv 2505.15105), who restore the outputs of mixers too; that other pairs are read from
    another row is ours.

    >>> from pytest_induction.planted import induction_head
    >>> found = measure_recall_paths(induction_head(), n_sequences=4)
    >>> [round(each.other_pairs.value, 1) for each in found.mixers if each.path][-1] < found.recall_accuracy.value
    True
    """
    check_share("error_rate", error_rate)
    subject, count = load_model(model), whole_number("n_sequences", n_sequences, least=2)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    rows = contrasts_of(subject, pairs, count, np.random.default_rng([seed, 17]))
    plan = Plan.of(residual_stream(subject), taps_of(subject.module))
    conditions = plan.conditions
    with progress(f"recall under {len(conditions)} conditions", count):
        found = dict(zip(conditions, recall_under(subject, rows, list(conditions.values())), strict=True))
    clean, lost = found["clean"], found["clean"].log_prob - found["corrupted"].log_prob
    accuracy = {name: mean_of_shares(each.accuracy, error_rate) for name, each in found.items()}
    back = {} if mean_in_nats(lost, error_rate).low <= 0 else {place: found["block", *place] for place in plan.blocks}
    return RecallPaths(
        rows.rows.n_pairs,
        1 / rows.rows.n_pairs,
        accuracy["clean"],
        mean_in_nats(clean.log_prob, error_rate),
        tuple(MixerRecall(*part, accuracy[(*part, "other")], accuracy[(*part, "reordered")]) for part in plan.mixers),
        tuple(TapRecall(*part, accuracy[part], mean_in_nats(found[part].log_prob, error_rate)) for part in plan.taps),
        tuple(
            RestoredRecall(*place, share_interval(each.log_prob - found["corrupted"].log_prob, lost, error_rate))
            for place, each in back.items()
        ),
        provenance(subject, seed=seed, n_sequences=count, probe=described(rows)),
    )


def described(rows: Contrasts) -> str:
    """The probe, in words."""
    return f"{rows.rows.n_pairs} key-value pairs of random tokens, against other pairs and other orders"
