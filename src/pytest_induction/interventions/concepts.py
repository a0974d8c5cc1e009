"""Concept copying: heads that, where a word is about to begin again, attend to its end and carry its meaning on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.deciding import ERROR_RATE
from pytest_induction.display import Plotted, View, view_of
from pytest_induction.errors import InductionError, ModelError, user_facing, whole_number
from pytest_induction.expectations import check_share
from pytest_induction.interventions.arguments import all_heads
from pytest_induction.interventions.few_shot import Patches, Values
from pytest_induction.interventions.function_vectors import encoder, ranked
from pytest_induction.interventions.passes import HeadSet, Passes, losses_at, tried_out
from pytest_induction.measuring.observing import Array, ModelLike, numbers, plain, provenance
from pytest_induction.model import prefix
from pytest_induction.model.batching import in_batches
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.concepts import LENGTH, WordRows, Words, positions_of, word_rows, words_of
from pytest_induction.probes.sequences import Ids
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, HeadId, Provenance
from pytest_induction.spending import Price, priced
from pytest_induction.statistics import mean_in_nats, mean_interval

N_SEQUENCES = 12  # rows that choose heads, and as many that test them together
TOP_SHARE = 0.02  # of all heads, that are patched together
KINDS = ("concept", "meaningless", "null", "token")
NAMED = 5  # heads that are named one by one
SEEN = ("concepts",)  # the key under which a model remembers what a verdict has measured, for charts
N_READ = 2  # tokens of a word that are asked for
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Restored:
    """What heads restore in rows where a word did not stand before, each of `KINDS` in `scores`, (rows, sets), in nats.

    `gain` is by how much likelier the second token of the word is in clean rows than in corrupt ones, `gain_meaningless` that of
    the meaningless string, and `log_p` the log probability in the clean rows of words, (rows,), in nats.
    """

    scores: Mapping[str, Array]
    gain: Array
    gain_meaningless: Array
    log_p: Array

    @classmethod
    def join(cls, parts: Sequence[Restored]) -> Restored:
        """All rows as one."""
        return cls(
            {kind: np.concatenate([each.scores[kind] for each in parts]) for kind in KINDS},
            *(np.concatenate([getattr(each, name) for each in parts]) for name in ("gain", "gain_meaningless", "log_p")),
        )


@dataclass(frozen=True)
class WordTask:
    """Rows that can be drawn of a model, and what its heads restore in them."""

    subject: ModelUnderTest
    words: Words
    seed: int

    def rows(self, n_sequences: int, *number: int) -> WordRows:
        """The rows of that number."""
        return word_rows(self.words, self.subject.space, n_sequences, np.random.default_rng([self.seed, 31, *number]))

    def restored(self, rows: WordRows, sets: Sequence[HeadSet]) -> Restored:
        """What each set of heads restores, all of a set at once. Raises `ModelError` for numbers that are not finite."""
        clean, found = self._seen(rows.tokens)
        clean_of_mixed, found_in_mixed = self._seen(rows.mixed)
        _, found_in_other = self._seen(rows.other)
        patches, every = Patches(self.subject), [(), *sets]  # the empty set: rows as they are, by the same way
        of_words = patches.of_sets(torch.from_numpy(rows.corrupt), [found, found_in_other], every, n_read=N_READ)
        (of_mixed,) = patches.of_sets(torch.from_numpy(rows.corrupt_of_mixed), [found_in_mixed], every, n_read=N_READ)
        (concept, null), meaningless = of_words[..., 1], of_mixed[..., 1]  # sets, rows
        scores = {"concept": concept, "meaningless": meaningless, "null": null, "token": of_mixed[..., 0]}
        return Restored(
            {kind: (values[1:] - values[0]).T for kind, values in scores.items()},
            clean[:, 1] - concept[0],
            clean_of_mixed[:, 1] - meaningless[0],
            clean[:, 1],
        )

    def _seen(self, rows: Ids) -> tuple[Array, Values]:
        """Log probabilities (rows, 2) of the first two tokens of a word, and what heads find where the first is asked for."""
        tokens = torch.from_numpy(rows).to(self.subject.device)
        at = tokens.shape[1] - 1 - N_READ
        passes = Passes(self.subject, tokens, torch.arange(at, at + N_READ))

        def measured(batch: Tensor, part: slice) -> tuple[Array, dict[int, Tensor]]:
            kept, logits = passes.clean(batch, part, range(self.subject.n_layers))
            found = {layer: each[:, :, at : at + 1].clone() for layer, each in kept.found.items()}
            return -numbers(losses_at(logits, batch, passes.queries)), found

        most = 1 if self.subject.mixes_rows else None
        log_p, found = zip(*in_batches(self.subject, tokens, measured, logits=True, most=most), strict=True)
        read = np.concatenate(log_p)
        if not np.isfinite(read).all():
            raise ModelError(f"the logits of {self.subject.name} are not finite (NaN or infinity) where words are asked for")
        return read, {layer: torch.cat([each[layer] for each in found]) for layer in found[0]}


@dataclass(frozen=True)
class ConceptHead:
    """One head: what it restores of words beyond meaningless strings, in nats, its `concept`, `meaningless` and `null`.

    The interval of `excess` holds for all heads of the model together.
    """

    layer: int
    head: int
    excess: Estimate
    concept: float
    meaningless: float
    null: float

    def __str__(self) -> str:
        return str(HeadId(self.layer, self.head))


@dataclass(frozen=True, repr=False)
class ConceptScores(Plotted):
    """What each head restores of a word that is not there, by what it found where the word was about to come again.

    Arrays (n_layers, n_heads), means over rows, in nats of log probability; NaN for a head there is not. `concept` is by how much
    the second token of the word rises, one position after the head was patched; `meaningless` the same of strings that are the
    first token of one word and the rest of another, and `null` of what the head finds where there was no word at all. `token` is
    by how much the first token of a meaningless string rises at the position itself: token copying.

    | a head, where clean rows gain g nats | concept | meaningless | null | token |
    |---|---|---|---|---|
    | that alone carries the meaning of the word | g | 0 | 0 | 0 |
    | that carries the token at the word's end, whatever it means | g | g | 0 | 0 |
    | that alone copies the next token, as an induction head does | 0 | 0 | 0 | the gain of that |
    | that attends evenly, or to the first token | about 0 | about 0 | about 0 | about 0 |

    `heads` are those with most `concept` beyond `meaningless` and `null`, and `together` the first of them, which were patched at
    once in as many other rows. `estimates`, in nats: "log_p", "gain" and "gain_meaningless" of the model over all rows; of the
    other rows "concept", "meaningless" and "null" of the heads together, and "concept_all", with all heads of the model at once.
    `per_sequence` has each score of the rows that chose, (n_rows, n_layers, n_heads).
    """

    concept: Array
    meaningless: Array
    null: Array
    token: Array
    heads: tuple[ConceptHead, ...]
    together: tuple[HeadId, ...]
    estimates: Mapping[str, Estimate]
    per_sequence: Mapping[str, Array]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="concept", units=dict.fromkeys(KINDS, "nats"))

    @property
    def excess(self) -> Array:
        """What each head restores of words beyond meaningless strings, and beyond its null, in nats, (n_layers, n_heads)."""
        return beyond(self.concept, self.meaningless, self.null)

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of the modules whose attention was measured, one for each row of the scores."""
        return self.provenance.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        return {
            "schema": SCHEMA_VERSION,
            **{name: plain(getattr(self, name)) for name in KINDS},
            "heads": [{**vars(head), "excess": vars(head.excess)} for head in self.heads],
            "together": [str(head) for head in self.together],
            "estimates": {name: vars(estimate) for name, estimate in self.estimates.items()},
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
            "provenance": self.provenance.to_dict(),
        }


def price_of_concept_copying(subject: ModelUnderTest, given: Given) -> Price:
    """Of `measure_concept_copying`: every head patched in rows that choose, and two sets of heads in as many others."""
    count = given["n_sequences"]
    chosen, tested = price_of_choice(subject, given, count), count * row_price(subject, given, 2)
    return Price(chosen.least, chosen.most + tested)


def price_of_choice(subject: ModelUnderTest, given: Given, count: int) -> Price:
    """Of the scores of every head in so many rows."""
    once = tried_out(subject) + prefix.TRIED
    each = row_price(subject, given, sum(subject.reading.heads))
    return Price(3 * count * _positions(subject, given), count * each + once)


def row_price(subject: ModelUnderTest, given: Given, n_sets: int) -> int:
    """The most tokens of a row in which so many sets of heads are patched: where passes cannot begin after a prefix."""
    return (5 + 3 * (n_sets + 1)) * _positions(subject, given)


def _positions(subject: ModelUnderTest, given: Given) -> int:
    """Positions of a row; what is usual where the call is refused."""
    try:
        return positions_of(words_of(subject.space, encoder(subject, given["tokenizer"]), given["words"]), subject.space)
    except InductionError:
        usual, room = 2 * LENGTH, subject.space.n_ctx
        return usual if room is None else min(usual, room)


@user_facing
@priced(price_of_concept_copying)
def measure_concept_copying(
    model: ModelLike,
    *,
    words: Iterable[str] | Iterable[Iterable[int]] | None = None,
    tokenizer: Any = None,
    top_share: float = TOP_SHARE,
    n_sequences: int = N_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> ConceptScores:
    """Measure concept copying: which heads carry the meaning of a word of several tokens to where it is about to come again.

    In a clean row random tokens r and a word stand twice, the second time without the word's end: r, word, r, first token. In a
    corrupt row other random tokens stand in place of the first r and word. What a head finds at the last token of the second r in
    the clean row is given by it there in the corrupt one. Scores are by how much the log probability of the word's second token
    rises then, one position on; in nats, as in probability small effects of single heads do not show.

    `words` are texts, or token ids of each word (which need no tokenizer), of two to five tokens; unless given, those of 50
    English words that have so many. `tokenizer` is for models that have none. `n_sequences` rows rank the heads, and in
    as many others the first `top_share` of all, one at least, are patched together. Patched heads of a row share passes over two
    tokens each where the model takes a prefix back, as those of transformers do; else each takes a pass begun at its layer.

    Raises `TextError` where there is no tokenizer, `ProbeError` where too few words have so many tokens or the context is too
    short, `ArgumentError` for what are no words, `UnsupportedModel` where what heads find cannot be edited. Source: Feucht et al.
    2025 (arXiv 2504.03022), who take probabilities and texts as r; meaningless strings and the null are ours.

    >>> from pytest_induction.planted import concept_head
    >>> model = concept_head()
    >>> scores = measure_concept_copying(model, words=model.words)
    >>> str(scores.heads[0]), round(float(scores.meaningless[1, 1]), 2)
    ('L1H1', 0.0)
    """
    whole_number("n_sequences", n_sequences, least=2)
    for name, value in (("top_share", top_share), ("error_rate", error_rate)):
        check_share(name, value)
    task = task_of(model, words, tokenizer, seed)
    with progress("concept copying", 6 * n_sequences):
        chosen = chosen_by(task, n_sequences)
        values = by_head(task.subject, chosen)
        means = {kind: each.mean(0) for kind, each in values.items()}
        together = first_of(beyond(*(means[kind] for kind in KINDS[:3])), top_share)
        tested = task.restored(task.rows(n_sequences, 1), [together, all_heads(task.subject)])
    scores = tested.scores
    estimates = {name: mean_in_nats(each, error_rate) for name, each in behaviour_of([chosen, tested]).items()}
    estimates |= {kind: mean_in_nats(scores[kind][:, 0], error_rate) for kind in KINDS[:3]}
    estimates["concept_all"] = mean_in_nats(scores["concept"][:, 1], error_rate)
    about = provenance(task.subject, seed=task.seed, n_sequences=2 * n_sequences, probe=described(task))
    heads = strongest(values, error_rate)
    return ConceptScores(**means, heads=heads, together=together, estimates=estimates, per_sequence=values, provenance=about)


def task_of(model: ModelLike, words: Any, tokenizer: Any, seed: int | None) -> WordTask:
    """The task of a model, with what was asked for checked."""
    subject = load_model(model)
    _ = subject.reading  # refuse by name here, before anything is measured
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    return WordTask(subject, words_of(subject.space, encoder(subject, tokenizer), words), seed)


def described(task: WordTask) -> str:
    """What rows are made of, in a few words."""
    return f"{len(task.words.words)} words of several tokens after random ones that repeat"


def chosen_by(task: WordTask, n_sequences: int) -> Restored:
    """What every head restores by itself, in the rows by which heads are chosen."""
    return task.restored(task.rows(n_sequences, 0), [[head] for head in all_heads(task.subject)])


def by_head(subject: ModelUnderTest, found: Restored) -> dict[str, Array]:
    """Scores of every head by itself as (rows, n_layers, n_heads); NaN for a head there is not."""
    heads = all_heads(subject)
    shaped = {}
    for kind, values in found.scores.items():
        shaped[kind] = np.full((len(values), subject.n_layers, subject.n_heads), np.nan)
        shaped[kind][:, [head.layer for head in heads], [head.head for head in heads]] = values
    return shaped


def beyond(concept: Array, meaningless: Array, null: Array) -> Array:
    """What is restored of words beyond the larger of both that are no words."""
    return concept - np.maximum(meaningless, null)


def first_of(excess: Array, top_share: float) -> tuple[HeadId, ...]:
    """The first heads of all by their excess (n_layers, n_heads): such a share of all, one at least."""
    order = ranked(excess)
    return tuple(order[: max(1, math.ceil(top_share * len(order) - 1e-9))])  # a share of exactly so many heads may round up


def behaviour_of(found: Sequence[Restored]) -> dict[str, Array]:
    """What the model does with whole rows, (rows,), in nats."""
    return {name: np.concatenate([getattr(each, name) for each in found]) for name in ("log_p", "gain", "gain_meaningless")}


def strongest(values: Mapping[str, Array], error_rate: float) -> tuple[ConceptHead, ...]:
    """The heads with most beyond both nulls, with intervals of what is beyond meaningless strings, for all heads together."""
    means = {kind: each.mean(0) for kind, each in values.items()}
    places = ranked(beyond(*(means[kind] for kind in KINDS[:3])))
    columns = (values["concept"] - values["meaningless"])[:, [head.layer for head in places], [head.head for head in places]]
    return tuple(
        ConceptHead(head.layer, head.head, excess, *(float(means[kind][head.layer, head.head]) for kind in KINDS[:3]))
        for head, excess in list(zip(places, mean_interval(columns, error_rate, "nats"), strict=True))[:NAMED]
    )
