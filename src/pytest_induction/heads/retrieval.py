"""Retrieval heads: they write the value of the fact that is asked for, where other facts of the same form stand beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.deciding import ERROR_RATE
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share
from pytest_induction.heads.prices import price_of_retrieval
from pytest_induction.interventions.function_vectors import encoder, ranked
from pytest_induction.measuring.losses import at_least_float32
from pytest_induction.measuring.observing import Array, ModelLike, joined, numbers, of_all_heads, plain, provenance
from pytest_induction.model.batching import in_batches
from pytest_induction.model.by_key import ByKey, written_by_key
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.needles import N_FACTS, NeedleRows, form_of, lengths_of, needle_rows
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, HeadId, Provenance
from pytest_induction.spending import priced
from pytest_induction.statistics import clipped_intervals, mean_in_nats, mean_interval, mean_of_shares, more_rows

N_SEQUENCES = 24  # rows of each length
KINDS = ("written", "written_null", "attention", "argmax", "argmax_null")
BEHAVIOUR = ("accuracy", "log_odds")
NAMED = 5  # heads that are named one by one
SEEN = ("retrieval",)  # the key under which a model remembers what a verdict has measured, for charts
MOST = 2.0  # nats of log odds, for which one row counts
SLACK = 1e-6  # of a mean of shares, by rounding in single precision
ROWS_OF_GUESSES = 24  # in which a model that is no better than a guess is taken for one that guesses
SAME_MASS = 1e-6  # masses that differ by less share the first place: rounding


@dataclass(frozen=True)
class RetrievalPoint:
    """How a model retrieves in rows of one `length` where the fact that is asked for stands at one `depth`, from 0 to 1.

    `accuracy` is the share of rows in which the right value is likelier than every other value of the row, `log_odds` its log
    odds among them, in nats, each with an interval by itself. `written` is that of the scores, less its null, in these rows.
    """

    length: int
    depth: float
    accuracy: Estimate
    log_odds: Estimate
    written: Array


@dataclass(frozen=True)
class RetrievalHead:
    """One head: by how much it writes more of the right value than of distractors, in nats, its `attention` and its `argmax`.

    The interval of `written`, which is less its null, holds for all heads of the model together.
    """

    layer: int
    head: int
    written: Estimate
    attention: float
    argmax: float

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))


@dataclass(frozen=True, repr=False)
class RetrievalScores(Plotted):
    """What heads write, and attend to, where one of `n_facts` facts is asked for; and whether the model tells which.

    Arrays (n_layers, n_heads), means over rows; NaN for a head there is not. With r(y, k) what a head raises the logit of y by
    from the key k alone, in nats, above the mean over the vocabulary, and c(y) = r(y, key of y) less the mean of r(y, k) over the
    keys of the other values: `written` is c of the right value, `written_null` the mean of c over the others. `attention` is the
    mass on the right value less the mean mass on the others, in [-1, 1]: its null is in it. `argmax` is the share of rows in
    which no key has more mass than the right value, in [0, 1], `argmax_null` the same of the others, the mean over them.

    | a head, with K facts in rows of T positions | written | its null | attention | argmax |
    |---|---|---|---|---|
    | that attends to the right value, and raises it by s | s - s / V | 0 | 1 | 1 |
    | that attends there and writes nothing | 0 | 0 | 1 | 1 |
    | that copies all values evenly, as an induction head does | s / K | s / K | 0 | 1 / K |
    | that attends to all others, and copies them evenly | about 0 | s / (K - 1) | -1 / (K - 1) | 0 |
    | that copies everything evenly | s / T | s / T | 0 | 1 / T |
    | that rests on the first token | 0 | 0 | 0 | 0 |

    V is the size of the vocabulary. `estimates` has of the model "accuracy" and "log_odds" over all rows, `points` the same by
    length and depth, and `heads` are those that write most beyond their null. `per_sequence` has the scores before the mean,
    (n_rows, n_layers, n_heads), and `accuracy` and `log_odds` (n_rows,), rows of one length together.
    """

    written: Array
    written_null: Array
    attention: Array
    argmax: Array
    argmax_null: Array
    n_facts: int
    estimates: Mapping[str, Estimate]
    points: tuple[RetrievalPoint, ...]
    heads: tuple[RetrievalHead, ...]
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="written", units={"written": "nats", "written_null": "nats", "attention": "from \u22121 to 1"})

    @property
    def excess(self) -> Array:
        """What each head writes of the right value beyond what it writes of distractors, in nats, (n_layers, n_heads)."""
        return self.written - self.written_null

    @property
    def chance(self) -> float:
        """The accuracy of a guess among the values of the row."""
        return 1 / self.n_facts

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            **{name: plain(getattr(self, name)) for name in KINDS},
            "n_facts": self.n_facts,
            "estimates": {name: vars(estimate) for name, estimate in self.estimates.items()},
            "points": [
                {**vars(point), **{name: vars(getattr(point, name)) for name in BEHAVIOUR}, "written": plain(point.written)}
                for point in self.points
            ],
            "heads": [{**vars(head), "written": vars(head.written)} for head in self.heads],
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


@user_facing
@priced(price_of_retrieval)
def measure_retrieval(
    model: ModelLike,
    *,
    facts: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    n_facts: int = N_FACTS,
    lengths: int | Iterable[int] | None = None,
    wording: str = "literal",
    n_sequences: int = N_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> RetrievalScores:
    """Measure which heads retrieve: they write the value of the fact asked for, not those of other facts in the row.

    In each row `n_facts` facts ("Anna lives in Rome.") stand between other sentences, and a question names one of them: "Anna
    lives in", or with `wording` "reworded" "The home of Anna is the city of". The others have the same form and stand at each
    place as often: they are the null in the row. Names and cities are those that the tokenizer has as one token each.

    `facts` are others: "names" and "values" of words or token ids, and what is "between" them (ids need no tokenizer; random ids
    stand around them). `tokenizer` is for models that have none. `lengths` are those of rows, in positions, 128 unless given or
    the context is shorter; of each `n_sequences` rows are drawn. Each place in the row has the fact that is asked for equally
    often. Of every layer the pattern of the last position is read, and logits there; two passes over each row.

    What is written goes straight to the logits: norms are folded, and their scales held fixed. A head that later layers make use
    of need not raise the logit itself. A score above its null says that a head tells facts apart, also where the model does not:
    see `estimates`. In random tokens `argmax` would be prefix matching over a long gap: compare it with `measure_heads`.

    Raises `TextError` where there is no tokenizer, `ProbeError` where too few words are one token each or rows do not fit,
    `ArgumentError` for what are no facts, `UnsupportedModel` where weights or attention cannot be read. Source: `argmax` is Wu et
    al. 2024 (arXiv 2404.15574), with the answer given instead of generated; `written` follows Gema et al. 2026 (2607.01002), who
    take the mean over all other keys, where we take distractors, norms folded.

    >>> from pytest_induction.planted import retrieval_head
    >>> model = retrieval_head()
    >>> scores = measure_retrieval(model, facts=model.facts)
    >>> str(scores.heads[0]), round(float(scores.excess[1, 1]), 2), scores.estimates["accuracy"].value
    ('L1H1', 15.75, 1.0)
    """
    whole_number("n_facts", n_facts, least=1)
    whole_number("n_sequences", n_sequences, least=2 * n_facts)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    form = form_of(subject.space, encoder(subject, tokenizer), facts, wording)
    asked = lengths_of(form, subject.space, lengths, n_facts)
    drawn = [
        needle_rows(
            form,
            subject.space,
            length,
            n_facts,
            rng=np.random.default_rng([seed, 22, length]),
            places=[number % n_facts for number in range(n_sequences)],
            n_sequences=n_sequences,
        )
        for length in asked
    ]
    with progress("retrieval", 2 * n_sequences * len(asked)):
        found = [scores_of(subject, rows) | behaviour_of(subject, rows) for rows in drawn]
    values = joined(found)
    points = tuple(_point(*each, place, error_rate) for each in zip(drawn, found, strict=True) for place in range(n_facts))
    means = {name: values[name].mean(0) for name in KINDS}
    about = provenance(subject, seed=seed, n_sequences=len(values["log_odds"]), probe=described(n_facts, asked, wording))
    about = replace(about, notes=(*about.notes, *circuits_of(subject).notes))
    estimates = estimates_of(values, error_rate)
    heads = strongest(values, error_rate)
    return RetrievalScores(
        **means, n_facts=n_facts, estimates=estimates, points=points, heads=heads, per_sequence=values, provenance=about
    )


def described(n_facts: int, lengths: Sequence[int], wording: str) -> str:
    """What rows are made of, in a few words."""
    return f"{n_facts} facts between other tokens, {', '.join(map(str, lengths))} positions, {wording} question"


def scores_of(subject: ModelUnderTest, rows: NeedleRows) -> dict[str, Array]:
    """Each of `KINDS` of every head in every row, (rows, n_layers, n_heads). Raises `ModelError` where they are not finite."""
    circuits = circuits_of(subject)
    keys, values = (torch.from_numpy(each).to(subject.device) for each in (rows.keys, rows.values))

    def measured(batch: Tensor, part: slice) -> dict[str, Array]:
        layers = written_by_key(subject, circuits, batch, keys[part], values[part])
        scored = [scores_by_key(layer, keys[part]) for layer in layers]
        return {name: of_all_heads([numbers(layer[name]) for layer in scored], subject.n_heads) for name in KINDS}

    found = joined(in_batches(subject, torch.from_numpy(rows.tokens), measured, logits=False))
    exists = np.arange(subject.n_heads) < np.array(subject.reading.heads)[:, None]
    if not all(np.isfinite(each[:, exists]).all() for each in found.values()):
        raise ModelError(f"what the heads of {subject.name} attend to or write is not finite (NaN or infinity)")
    return found


def scores_by_key(layer: ByKey, keys: Tensor) -> dict[str, Tensor]:
    """Each of `KINDS` of a layer, (rows, n_heads): of what it raises of each value (token) from the key of each value."""
    own = layer.raised.diagonal(dim1=-2, dim2=-1)  # rows, heads, values
    n_others = own.shape[-1] - 1
    contrast = own - (layer.raised.sum(-1) - own) / n_others
    places = keys.to(layer.pattern.device)[:, None].expand(-1, layer.pattern.shape[1], -1)
    mass = layer.pattern.gather(-1, places)
    most = layer.pattern.amax(-1, keepdim=True) - SAME_MASS
    first = (mass >= most) / (layer.pattern >= most).sum(-1, keepdim=True)
    return {
        "written": contrast[..., 0],
        "written_null": contrast[..., 1:].mean(-1),
        "attention": mass[..., 0] - mass[..., 1:].mean(-1),
        "argmax": first[..., 0],
        "argmax_null": first[..., 1:].mean(-1),
    }


def behaviour_of(subject: ModelUnderTest, rows: NeedleRows) -> dict[str, Array]:
    """Each of `BEHAVIOUR` in every row, (rows,), by the logits at the last position. Raises `ModelError` where not finite."""
    last, values = torch.tensor([rows.n_positions - 1]), torch.from_numpy(rows.values)

    def measured(batch: Tensor, part: slice) -> Array:
        logits = subject.logits(batch, positions=last)[:, 0]
        return numbers(best_of(logits.gather(-1, values[part].to(logits.device))))

    parts = in_batches(subject, torch.from_numpy(rows.tokens), measured, logits=True)
    return named_behaviour(subject, np.concatenate(parts))


def named_behaviour(subject: ModelUnderTest, read: Array) -> dict[str, Array]:
    """What `best_of` gives, by name, (rows,). Raises `ModelError` where it is not finite."""
    if not np.isfinite(read).all():
        raise ModelError(f"the logits of {subject.name} are not finite (NaN or infinity) where facts are asked for")
    return dict(zip(BEHAVIOUR, np.moveaxis(read, -1, 0), strict=True))


def best_of(logits: Tensor) -> Tensor:
    """Of the logits of all values (..., values), the right one first: whether it leads, and its log odds in nats, (..., 2).

    Where it shares the first place, one over how many do.
    """
    logits = at_least_float32(logits)
    own, others = logits[..., 0], logits[..., 1:]
    most = logits.amax(-1)
    leads = (own >= most) / (logits == most[..., None]).sum(-1).clamp_min(1)
    return torch.stack([leads.to(logits.dtype), own - others.logsumexp(-1)], dim=-1)


def estimates_of(found: Mapping[str, Array], error_rate: float) -> dict[str, Estimate]:
    """The behaviour of the model, each with an interval by itself."""
    return {
        "accuracy": mean_of_shares(found["accuracy"], error_rate),
        "log_odds": mean_in_nats(found["log_odds"], error_rate),
    }


def _point(rows: NeedleRows, found: Mapping[str, Array], place: int, error_rate: float) -> RetrievalPoint:
    of_place = {name: values[rows.places == place] for name, values in found.items()}
    depth = float(rows.keys[rows.places == place, 0].mean() / (rows.n_positions - 1))
    written = (of_place["written"] - of_place["written_null"]).mean(0)
    return RetrievalPoint(rows.n_positions, depth, **estimates_of(of_place, error_rate), written=written)


def strongest(found: Mapping[str, Array], error_rate: float) -> tuple[RetrievalHead, ...]:
    """The heads that write most beyond their null, with intervals that hold for all heads of the model together."""
    values = found["written"] - found["written_null"]
    places = ranked(values.mean(0))
    columns = values[:, [head.layer for head in places], [head.head for head in places]]
    return tuple(
        RetrievalHead(
            head.layer,
            head.head,
            written,
            *(float(found[name][:, head.layer, head.head].mean()) for name in ("attention", "argmax")),
        )
        for head, written in list(zip(places, mean_interval(columns, error_rate, "nats"), strict=True))[:NAMED]
    )


def bounded_log_odds(values: Array, error_rate: float) -> Estimate:
    """The mean of differences of log odds, (rows,), each row counted as `MOST` at most: an interval that holds at every look."""
    return clipped_intervals(values[:, None], MOST, error_rate, error_rate)[0]


def not_better_than_guessing(accuracy: Estimate, chance: float, count: int) -> tuple[bool, int]:
    """Of a model that is not shown to beat a guess in so many rows: whether it seems to guess, and how many more would tell."""
    if accuracy.value < chance + SLACK:
        return True, max(0, ROWS_OF_GUESSES - count)
    return False, more_rows(accuracy, chance, count)
