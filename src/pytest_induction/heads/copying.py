"""Whether heads copy what they attend to: by their weights, by what they raise, by what they do to the right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.forward.calling import with_kind
from pytest_induction.heads.criteria import PERIOD_DETECTOR, SILENT, SUPPRESSES, suppresses
from pytest_induction.measuring.losses import advantage
from pytest_induction.measuring.observing import (
    Array,
    ModelLike,
    describe,
    joined,
    numbers,
    of_all_heads,
    plain_scores,
    probes_of,
    provenance,
)
from pytest_induction.measuring.rounds import price_of_scores
from pytest_induction.model.batching import in_batches
from pytest_induction.model.capture import HeadOutputCapture
from pytest_induction.model.circuits import TRIED, circuits_of
from pytest_induction.model.head_weights import Circuits, upcast
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.sequences import COPIES, LONGEST_PERIOD, Ids, Probe, usable_ids
from pytest_induction.progress import progress
from pytest_induction.records import HeadEvidence, Provenance
from pytest_induction.spending import Price, priced
from pytest_induction.statistics import known_mean, mean_interval

Share = TypeVar("Share", float, Tensor, NDArray[np.float64])
CHUNK = 8192  # tokens that are turned into single precision at a time
LEAST_RAISED = 1e-6  # nats; below it a ratio would be one of rounding
NO_SCORE = 1e-30  # a spectrum below it is that of a head that writes nothing


def product_of_embeddings(unembedding: Tensor, embedding: Tensor) -> Tensor:
    """W_U W_E, (d_model, d_model), of (d_model, d_vocab) and (d_vocab, d_model): the same for all heads, at least float32."""
    dtype = torch.promote_types(unembedding.dtype, torch.float32)
    if unembedding.dtype == dtype:
        return unembedding @ embedding
    parts = zip(unembedding.split(CHUNK, 1), embedding.split(CHUNK, 0), strict=True)
    return sum((one.to(dtype) @ other.to(dtype) for one, other in parts), unembedding.new_zeros((), dtype=dtype))


def ov_eigenvalue_scores(values: Tensor, product: Tensor, outs: Tensor) -> Tensor:
    """The OV eigenvalue copying score of a layer's heads, (n_heads,), in [-1, 1].

    `values` is W_V (n_heads, d_model, d_head), `product` W_U W_E (d_model, d_model) between the two norms, `outs` W_O (n_heads,
    d_head, d_model). The eigenvalues of the (d_head x d_head) matrix W_O W_U W_E W_V are the nonzero ones of the (d_vocab x
    d_vocab) matrix W_E W_V W_O W_U, which says how much a head that attends to one token raises every other.

    A head that raises each token's own logit, and no other, has 1, one that lowers it -1, a random one about 0; one that writes
    nothing, or nothing that the unembedding reads, has 0. It is not proof: eigenvectors need not be orthogonal, so that all
    eigenvalues may be positive and some token lower its own logit. Source: Elhage et al. 2021. There the norms are folded as
    here, the unembedding is not centred over the vocabulary, and neither is it here.
    """
    dtype = torch.promote_types(product.dtype, torch.float32)
    circuits = outs.to(dtype) @ (product.to(dtype) @ values.to(dtype))
    found = torch.linalg.eigvals(circuits.cpu())
    size = found.abs().sum(-1)
    return torch.where(size > NO_SCORE, found.real.sum(-1) / size.clamp_min(NO_SCORE), 0.0)


def own_logits(found: Tensor, own: Tensor) -> Tensor:
    """Whether heads raise the tokens that they attend to: (2, n_heads), shares of the tokens, in [0, 1].

    `found` (tokens, n_heads, d_head) is what a head finds in each token's embedding, `own` the same tokens' directions,
    `projected`. The first share is of those whose own logit the head raises above the mean over the vocabulary, the second of
    those whose own logit it raises more than that of any other of them. NaN for a head that writes nothing.

    What eigenvalues may hide: all of them can be positive while some token lowers its own logit. Source: Elhage et al. 2021.
    """
    raised = torch.einsum("thd,uhd->htu", found.to(own), own)  # by a head that attends to t, of u
    diagonal = raised.diagonal(dim1=1, dim2=2).clone()
    writes = (raised != 0).flatten(1).any(1)
    raised.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    shares = torch.stack([diagonal > 0, diagonal > raised.amax(-1)]).to(own.dtype).mean(-1)
    return torch.where(writes, shares, torch.nan)


def projected(directions: Tensor, outs: Tensor) -> Tensor:
    """Directions (batch, tokens, d_model) as each head's own, (batch, tokens, n_heads, d_head).

    The product with what a head found is what W_O makes of it along the direction.
    """
    flat = directions.to(outs.device) @ outs.to(directions.dtype).flatten(0, 1).mT
    return flat.unflatten(-1, outs.shape[:2])


def raised_in_row(found: Tensor, pattern: Tensor, own: Tensor) -> Tensor:
    """How much heads raise tokens of the row: those that they attend to, and all: (2, batch, n_heads, queries).

    `found` (batch, positions, n_heads, d_head) is what heads found, `pattern` (batch, n_heads, positions, positions) where, `own`
    the direction of each position's token, `projected`. Tokens must be distinct in a row.

    With l[t] what a head raises token t by at query q, above the mean over the vocabulary and 0 where it lowers it, and a the
    pattern, the first is the sum over k of a[q, k] l[t_k], the second that of l over all tokens of the row, also those to come.
    Neither is divided by the final norm's scale.
    """
    dtype = torch.promote_types(pattern.dtype, own.dtype)
    raised = torch.einsum("bqhd,bthd->bhqt", found.to(dtype), own.to(dtype)).relu_()
    return torch.stack([(raised * pattern.to(dtype)).sum(-1), raised.sum(-1)])


def copying_shares(raised: Tensor, scale: Tensor, *, first: int = 0) -> Tensor:
    """The share p of what heads raise of a row that is on what they attend to, (batch, n_heads), the mean over queries.

    Of what `raised_in_row` gives, with the final norm's `scale` (batch, positions); queries count from `first` on, and where a
    head raises the row's tokens by more than a millionth of a nat; NaN where it does nowhere.

    A head that gives all its attention to one token, and raises that one only, has 1, one that raises only others 0, one that
    raises all n tokens alike 1 / n. A head that attends to k tokens evenly and copies each has 1 / k: what it raises of one is
    weighed with the attention to that one.

    Source: Olsson et al. 2022, the copying evaluator. Chosen where it is open: the attended token is the attention-weighted
    mean; the mean taken off is that over the vocabulary; the ratio is of all tokens of the row, the first one too.
    """
    on_attended, on_all = raised[..., first:]
    counted = on_all > LEAST_RAISED * scale[:, None, first:].to(on_all)
    return torch.where(counted, on_attended / on_all, torch.nan).nanmean(-1)


def rescaled(share: Share) -> Share:
    """The paper's copying score 4 p / (1 + p) - 1 of a share p: p = 0 gives -1, p = 1/3 gives 0, p = 1 gives 1.

    The paper's ratio has what is on the attended token in both sums, p / (1 + p), which lies between 0 and 0.5, times 4 less 1.
    """
    return 4 * share / (1 + share) - 1


@dataclass(frozen=True)
class RepeatedBlock:
    """Rows in which a block of `period` tokens, beginning at `start`, stands `copies` times, up to the end.

    At each position of a later copy the right token is the next one of the block: an induction head has seen it follow. So there
    are period * (copies - 1) queries.
    """

    period: int
    copies: int
    start: int

    @property
    def queries(self) -> slice:
        """The positions of the later copies."""
        return slice(self.start + self.period, self.start + self.period * self.copies)

    def raised(self, found: Tensor, own: Tensor) -> Tensor:
        """What heads add to the right token's logit, (2, batch, queries, n_heads), not yet divided by the final norm's scale.

        `found` (batch, positions, n_heads, d_head) is what heads found, `own` (batch, period, n_heads, d_head) the directions of
        the block's tokens, `projected`. The first is above the mean over the vocabulary, the second above the mean over the
        block's other tokens: what a head adds to whatever it has seen cancels there.
        """
        later = found[:, self.queries].to(own.dtype).unflatten(1, (self.copies - 1, self.period))
        right = torch.linalg.vecdot(later, own.roll(-1, dims=1)[:, None])
        whole_block = torch.linalg.vecdot(later, own.sum(1)[:, None, None])
        others = (whole_block - right) / (self.period - 1)
        return torch.stack([right, right - others]).flatten(2, 3)

    def direct_effects(self, raised: Tensor, scale: Tensor) -> Tensor:
        """The mean over the queries in nats, (effects, batch, n_heads) in the order of `EFFECTS`.

        The final norm's `scale` (batch, positions) is held fixed.

        A head that attends to the right token and raises what it attends to by 16 has 16 - 16 / d_vocab and 16, one that
        suppresses it the negative of these, one that raises all tokens alike, or writes nothing, 0. A head that copies the whole
        block evenly has about 16 / period, and 0.

        Source: Olsson et al. 2022, direct logit attribution. The second is ours; both are of the path straight to the logits,
        and not of what later layers make of it.
        """
        return (raised / scale[:, self.queries, None].to(raised)).mean(2)


MOST_TOKENS = 512  # compared with each other
COPY_PERIODS = 3  # of such rows: short ones, of which few share a pass that could take many
TWICE = 2  # copies in rows on which only what is copied counts: half as long
EFFECTS = ("direct_effect", "copy_effect")
WITHOUT_FIRST = "copying_share_without_first_token"


@dataclass(frozen=True, repr=False)
class CopyingScores(Plotted):
    """How much every head copies, each an array (n_layers, n_heads). NaN for a head that a layer does not have.

    | score | a copier has | a suppressor | a random head | one that writes nothing |
    |---|---|---|---|---|
    | `ov_eigenvalue`, of the weights alone | 1 | -1 | about 0 | 0 |
    | `own_logit_raised`, share of tokens whose own logit the head raises | 1 | 0 | about 0.5 | NaN |
    | `own_logit_first`, share of those whose own logit it raises most | 1 | 0 | 1 / min(V, 512) | NaN |
    | `copying_share` p, of what is raised of an unrepeated row, on what is attended to | 1 | 0 | about 0.04 | NaN |
    | `copying`, the same as the paper scales it, 4 p / (1 + p) - 1 | 1 | -1 | about -0.85 | NaN |
    | `direct_effect` on the right token in repeated rows, above the vocabulary, nats | s - s / V | s / V - s | about 0 | 0 |
    | `copy_effect`, the same above the other tokens of the block, nats | s | -s | about 0 | 0 |

    Shares are those of heads that attend to one token; one that copies k tokens evenly has 1 / k. Effects are those of heads that
    attend to the right token and raise or lower what they attend to by s; V is the size of the vocabulary. A head that writes
    nothing, or rests on the first token and writes nothing there, has no share: NaN, which meets
    no threshold.

    `per_sequence` has the shares and effects before the mean, (n_sequences, n_layers, n_heads), and under
    `copying_share_without_first_token` the shares of the same blocks without the token that begins the model's sequences, as the
    paper has them; absent where the model has none. metrics/copying.py defines all of them.
    """

    ov_eigenvalue: Array
    own_logit_raised: Array
    own_logit_first: Array
    copying: Array
    copying_share: Array
    direct_effect: Array
    copy_effect: Array
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        nats = dict.fromkeys(("direct_effect", "copy_effect"), "nats")
        signed = dict.fromkeys(("ov_eigenvalue", "copying"), "from \u22121 to 1")
        return view_of(self, by="copy_effect", units=nats | signed)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return plain_scores(self, [each.name for each in fields(self) if each.name not in ("per_sequence", "provenance")])


def price_of_copying(subject: ModelUnderTest, given: Mapping[str, Any]) -> Price:
    """Of one pass over repeated rows, and two over unrepeated blocks."""
    rows = price_of_scores(subject, given)
    return Price(rows.least, rows.most + given["n_sequences"] * 2 * (LONGEST_PERIOD + 1) + TRIED)


@user_facing
@priced(price_of_copying)
def measure_copying(model: ModelLike, *, n_sequences: int = 24, seed: int | None = None) -> CopyingScores:
    """Measure whether each head copies what it attends to, on the direct path to the logits.

    Effects are measured on the `n_sequences` rows of repeated random tokens that `measure_heads` has at that seed, shares on as
    many unrepeated blocks of 25 random tokens. Norms are folded into the weights; the scales of the final norm and of norms
    behind attention are held fixed at each position.

    Raises `UnsupportedModel` where the weights of the heads are not known or the model does something else with them (it is tried
    out: models/circuits.py says how), `ProbeError` where no probe fits the model, `ArgumentError` for a number out of range.

    >>> from pytest_induction.planted import induction_head
    >>> scores = measure_copying(induction_head())
    >>> round(float(scores.copy_effect[1, 0]), 3), round(float(scores.ov_eigenvalue[1, 0]), 3)
    (16.0, 1.0)
    """
    whole_number("n_sequences", n_sequences, least=1)
    if seed is not None:
        whole_number("seed", seed, least=0)
    subject = load_model(model)
    circuits = circuits_of(subject)
    seed = subject.seed if seed is None else seed
    rng = np.random.default_rng([seed, 0])
    probes = list(probes_of(subject, n_sequences, rng, COPIES, None))
    rows = unrepeated_blocks(subject, n_sequences, rng)
    begins = rows.shape[1] > 1 and subject.space.bos_id is not None
    with progress("copying of heads", (2 + begins) * n_sequences):
        per_sequence = joined([direct_effects(subject, circuits, probe) for probe in probes])
        per_sequence["copying_share"] = block_shares(subject, circuits, rows, first=int(begins))
        if begins:
            per_sequence[WITHOUT_FIRST] = block_shares(subject, circuits, rows[:, 1:], first=0)
    raised, first = own_logit_shares(subject, circuits)
    share = known_mean(per_sequence["copying_share"])
    about = provenance(
        subject, seed=seed, n_sequences=n_sequences, probe=f"{describe(probes)}; {rows.shape[1]} unrepeated tokens"
    )
    return CopyingScores(
        ov_eigenvalue=ov_eigenvalues(subject, circuits),
        own_logit_raised=raised,
        own_logit_first=first,
        copying=rescaled(share),
        copying_share=share,
        direct_effect=per_sequence["direct_effect"].mean(axis=0),
        copy_effect=per_sequence["copy_effect"].mean(axis=0),
        per_sequence=per_sequence,
        provenance=replace(about, notes=about.notes + circuits.notes),
    )


def ov_eigenvalues(subject: ModelUnderTest, circuits: Circuits) -> Array:
    """The OV eigenvalue score of every head, (n_layers, n_heads); what all heads share is computed once for a model."""
    product = subject.remember(
        ("product of embeddings",), lambda: product_of_embeddings(circuits.unembedding, circuits.embedding)
    )
    between = circuits.final_norm.folded(product) * (circuits.embedding_factor * circuits.logit_factor)
    layers = [ov_eigenvalue_scores(layer.norm.folded(layer.values), between, layer.outs) for layer in circuits.layers]
    return _of_all_heads(subject, [layer[None] for layer in layers])[0]


def own_logit_shares(subject: ModelUnderTest, circuits: Circuits) -> Array:
    """Of every head, (2, n_layers, n_heads): of how many tokens it raises the own logit, and of how many most of all.

    Of the whole vocabulary, or of 512 tokens spread evenly over a larger one, which are then also those that are compared.
    """
    usable = usable_ids(subject.space)
    chosen = torch.from_numpy(usable[np.linspace(0, len(usable) - 1, min(MOST_TOKENS, len(usable))).round().astype(int)])
    entries = upcast(circuits.embedding[chosen.to(circuits.embedding.device)]) * circuits.embedding_factor
    directions = circuits.written(chosen)[None]
    layers = []
    for layer in circuits.layers:
        found = torch.einsum("td,hde->the", entries.to(layer.outs.device), layer.norm.folded(layer.values))
        layers.append(own_logits(found, projected(directions, layer.outs)[0]))
    return _of_all_heads(subject, layers)


def copy_effects(subject: ModelUnderTest, n_sequences: int, seed: int) -> Array:
    """The copy effect of every head, (n_sequences, n_layers, n_heads) in nats, on repeated rows; measured or remembered."""

    def measured() -> Array:
        circuits = circuits_of(subject)
        probes = probes_of(subject, n_sequences, np.random.default_rng([seed, 3]), COPIES, None)
        return np.concatenate([direct_effects(subject, circuits, probe)["copy_effect"] for probe in probes])

    return subject.remember(("copy effects", n_sequences, seed), measured)


@dataclass(frozen=True)
class CopyRound:
    """What heads write and what the model does with it, on rows in which a block stands twice.

    `effects` (sequences, n_layers, n_heads) are copy effects in nats, None where the weights of heads are not known: `why_not`
    says why. `advantage` (sequences,) is that of `Repetition`, in nats.
    """

    effects: Array | None
    advantage: Array
    why_not: str = ""


def copy_round(subject: ModelUnderTest, n_sequences: int, seed: int, number: int) -> CopyRound:
    """A round of such rows, measured or remembered: what heads write and what is predicted, from the same passes."""
    return subject.remember(
        ("copy round", n_sequences, seed, number),
        lambda: _copy_round(subject, n_sequences, np.random.default_rng([seed, 3, number])),
    )


def _copy_round(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> CopyRound:
    probes = list(probes_of(subject, n_sequences, rng, TWICE, None, COPY_PERIODS))
    why_not = ""
    try:
        circuits = circuits_of(subject)
        parts = [_effects_and_advantage(subject, circuits, probe) for probe in probes]
        effects: Array | None = np.concatenate([effects for effects, _ in parts])
        gained = [each for _, each in parts]
    except Exception as error:  # noqa: BLE001 - whatever it is: the advantage says whether the model copies
        why_not = with_kind(error)
        effects, gained = None, [_advantage(subject, probe) for probe in probes]
    return CopyRound(effects, np.concatenate(gained), why_not)


def _advantage(subject: ModelUnderTest, probe: Probe) -> Array:
    """The advantage on the rows of a probe."""

    def measured(rows: Tensor, part: slice) -> Tensor:
        logits = subject.logits(rows)
        return advantage(logits, rows.to(logits.device), period=probe.period, start=probe.start)

    return _finite_advantage(subject, in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=True))


def _finite_advantage(subject: ModelUnderTest, parts: Sequence[Tensor]) -> Array:
    found = np.concatenate([numbers(part) for part in parts])
    if not np.isfinite(found).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) on repeated tokens")
    return found


def _effects_and_advantage(subject: ModelUnderTest, circuits: Circuits, probe: Probe) -> tuple[Array, Array]:
    """Copy effects of every head on the rows of a probe, (sequences, n_layers, n_heads), and the advantage there."""
    block = RepeatedBlock(probe.period, probe.repeats, probe.start)
    capture = HeadOutputCapture(subject, circuits)

    def measured(rows: Tensor, part: slice) -> tuple[dict[str, Array], Tensor]:
        raised: list[Tensor] = []
        scale, logits = capture.with_logits(rows, _raising(block, circuits, probe, rows, raised))
        gained = advantage(logits, rows.to(logits.device), period=probe.period, start=probe.start)
        return _effects_of(subject, block, raised, scale), gained

    parts = in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=True)
    found = _all_finite(subject, joined([effects for effects, _ in parts]))
    return found["copy_effect"], _finite_advantage(subject, [gained for _, gained in parts])


def _raising(
    block: RepeatedBlock, circuits: Circuits, probe: Probe, rows: Tensor, raised: list[Tensor]
) -> Callable[[int, Tensor, Tensor | None], None]:
    """What adds to `raised`, layer by layer, what its heads add to the logits of the block."""
    directions = circuits.written(rows[:, probe.start : probe.start + probe.period])

    def take(layer: int, found: Tensor, pattern: Tensor | None) -> None:
        raised.append(block.raised(found, projected(directions, circuits.layers[layer].outs)))

    return take


def _effects_of(subject: ModelUnderTest, block: RepeatedBlock, raised: Sequence[Tensor], scale: Tensor) -> dict[str, Array]:
    by_layer = [dict(zip(EFFECTS, block.direct_effects(each, scale), strict=True)) for each in raised]
    return {name: _of_all_heads(subject, [effects[name] for effects in by_layer]) for name in EFFECTS}


def direct_effects(subject: ModelUnderTest, circuits: Circuits, probe: Probe) -> dict[str, Array]:
    """Direct and copy effects of every head on the rows of a probe, by the names of `EFFECTS`: (sequences, n_layers, n_heads)."""
    block = RepeatedBlock(probe.period, probe.repeats, probe.start)
    capture = HeadOutputCapture(subject, circuits)

    def measured(rows: Tensor, part: slice) -> dict[str, Array]:
        raised: list[Tensor] = []
        scale = capture(rows, _raising(block, circuits, probe, rows, raised))
        return _effects_of(subject, block, raised, scale)

    return _all_finite(subject, joined(in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=False)))


def block_shares(subject: ModelUnderTest, circuits: Circuits, rows: Ids, *, first: int) -> Array:
    """The copying share of every head on rows of distinct tokens, (sequences, n_layers, n_heads), over queries from `first` on.

    Queries at which a head raises none of the row's tokens do not count; NaN where none counts.
    """
    capture = HeadOutputCapture(subject, circuits)

    def measured(batch: Tensor, part: slice) -> Array:
        directions = circuits.written(batch)
        raised: list[Tensor] = []

        def take(layer: int, found: Tensor, pattern: Tensor | None) -> None:
            if pattern is None:
                raise TypeError("a copying share needs the pattern")
            raised.append(raised_in_row(found, pattern, projected(directions, circuits.layers[layer].outs)))

        scale = capture(batch, take, patterns=True)
        return _of_all_heads(subject, [copying_shares(each, scale, first=first) for each in raised])

    return np.concatenate(in_batches(subject, torch.from_numpy(rows), measured, logits=False))


def unrepeated_blocks(subject: ModelUnderTest, n_sequences: int, rng: np.random.Generator) -> Ids:
    """Rows of 25 different random tokens each, fewer where the model has no room, after the one that begins its sequences."""
    space = subject.space
    ids, first = usable_ids(space), [] if space.bos_id is None else [space.bos_id]
    length = min(LONGEST_PERIOD, len(ids), LONGEST_PERIOD if space.n_ctx is None else space.n_ctx - len(first))
    return np.stack([np.concatenate([first, rng.choice(ids, size=length, replace=False)]) for _ in range(n_sequences)]).astype(
        np.int64
    )


def _of_all_heads(subject: ModelUnderTest, layers: Sequence[Tensor]) -> Array:
    """Of each layer (sequences, heads), a tensor, as (sequences, n_layers, n_heads)."""
    return of_all_heads([numbers(layer) for layer in layers], subject.n_heads)


def _all_finite(subject: ModelUnderTest, found: dict[str, Array]) -> dict[str, Array]:
    exists = np.arange(subject.n_heads) < np.array(subject.reading.heads)[:, None]
    if not all(np.isfinite(effects[:, exists]).all() for effects in found.values()):
        raise ModelError(f"what the heads of {subject.name} write is not finite (NaN or infinity)")
    return found


def of_heads(heads: Sequence[HeadEvidence], effects: Array, error_rate: float) -> list[HeadEvidence]:
    """The heads with the copy effect of each; one that suppresses what it matches has that as its kind.

    `effects` (sequences, n_layers, n_heads) are copy effects in nats: what a head adds to the logit of the successor above the
    rest of the block, on the direct path. Only an interval below -0.25 says that a head suppresses: what it writes may be used
    by later layers without raising the logit itself. `error_rate` is for all of these heads together.
    """
    columns = np.stack([effects[:, head.layer, head.head] for head in heads], axis=1)
    found = mean_interval(columns, error_rate, "nats")
    return [
        replace(head, copy_effect=effect, kind=SUPPRESSES if suppresses(effect) else head.kind)
        for head, effect in zip(heads, found, strict=True)
    ]


def named_ruled_out(heads: Sequence[HeadEvidence]) -> str:
    """Which heads do not count, and why, in words."""
    parts = []
    for kind, does in (
        (SUPPRESSES, ("lowers what it matches", "lower what they match")),
        (SILENT, ("writes nothing", "write nothing")),
        (PERIOD_DETECTOR, ("only follows the period", "only follow the period")),
    ):
        of_kind = [head for head in heads if head.kind == kind]
        if not of_kind:
            continue
        first = of_kind[0].copy_effect
        by = f" by {-first.value:.2f} nats" if kind == SUPPRESSES and first is not None else ""
        more = f" and {len(of_kind) - 1} more" if len(of_kind) > 1 else ""
        parts.append(f"{of_kind[0]}{more} {does[len(of_kind) > 1]}{by}")
    return ", ".join(parts)
