"""Heads that match by meaning: by class, by translation and by pattern, where nothing repeats literally."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.attention.capture import Observer
from pytest_induction.attention.scores import KeyScores, PeriodicScores
from pytest_induction.deciding import ERROR_RATE
from pytest_induction.display import Displayed, Plotted, View, about, head_maps, rows_table, titled, view_of
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel, user_facing, whole_number
from pytest_induction.expectations import check_share
from pytest_induction.forward.calling import first_line
from pytest_induction.heads import criteria
from pytest_induction.heads.copying import projected
from pytest_induction.heads.prices import price_of_generality
from pytest_induction.interventions.arguments import HeadsLike, all_heads, heads_of
from pytest_induction.measuring.observing import (
    Array,
    ModelLike,
    joined,
    masses_of,
    numbers,
    observe,
    of_all_heads,
    plain,
    probes_of,
    provenance,
)
from pytest_induction.model.batching import in_batches
from pytest_induction.model.capture import HeadOutputCapture
from pytest_induction.model.circuits import circuits_of
from pytest_induction.model.head_weights import Circuits
from pytest_induction.model.load import load_model
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.probes.semantic import FAMILIES, SHAPES_AT_ONCE, AbstractProbe, Family, Meanings, chosen_families
from pytest_induction.probes.sequences import COPIES as COPIES_OF_BLOCK
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, HeadId, Provenance
from pytest_induction.spending import priced
from pytest_induction.statistics import FIRST_LOOK, mean_interval

N_SEQUENCES = 18  # of each family, where none are asked for: what all three cost stays below five bare passes
Entry = tuple[int, tuple[int, ...], tuple[int, ...]]  # a query, the tokens asked about, those they are compared with


@dataclass(frozen=True)
class Contrasts:
    """For each row as many queries, each with tokens that a head may raise and tokens that they are compared with.

    `queries` (rows, n), `tokens` and `weights` (rows, n, tokens of one query): a token that is asked about weighs one over how
    many are, one that it is compared with minus one over how many those are, and what fills a query up to the same number 0.
    """

    queries: Tensor
    tokens: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[Entry]]) -> Contrasts:
        """From the entries of each row, as many in each."""
        most = max(len(asked) + len(others) for row in rows for _, asked, others in row)
        tokens = torch.zeros(len(rows), len(rows[0]), most, dtype=torch.long)
        weights = torch.zeros(len(rows), len(rows[0]), most)
        for row, entries in enumerate(rows):
            for place, (_, asked, others) in enumerate(entries):
                count = len(asked) + len(others)
                tokens[row, place, :count] = torch.tensor((*asked, *others))
                shares = [1 / len(asked)] * len(asked) + [-1 / len(others)] * len(others)
                weights[row, place, :count] = torch.tensor(shares)
        return cls(torch.tensor([[query for query, _, _ in row] for row in rows]), tokens, weights)

    def part(self, rows: slice) -> Contrasts:
        """Of some of the rows."""
        return Contrasts(self.queries[rows], self.tokens[rows], self.weights[rows])

    def directions(self, written: Tensor) -> Tensor:
        """What is written along them raises the tokens asked about above the others: (rows, n, d_model).

        `written` (rows, n, tokens, d_model) are the directions of `tokens`.
        """
        return (written * self.weights.to(written)[..., None]).sum(-2)

    def raised(self, found: Tensor, own: Tensor) -> Tensor:
        """What heads add, (rows, n, n_heads), not yet divided by the final norm's scale.

        `found` (rows, positions, n_heads, d_head) is what heads found, `own` (rows, n, n_heads, d_head) the directions, projected
        to what each head writes along them.
        """
        rows = torch.arange(len(found), device=found.device)[:, None]
        return torch.linalg.vecdot(found[rows, self.queries.to(found.device)].to(own.dtype), own)

    def effects(self, raised: Tensor, scale: Tensor) -> Tensor:
        """The mean over the queries in nats, (rows, n_heads), with the final norm's `scale` (rows, positions) held fixed.

        A head that raises the tokens asked about by s, and the others not, has s; one that raises all alike 0.
        """
        return (raised / scale.gather(1, self.queries.to(scale.device))[..., None].to(raised)).mean(1)


MASSES = ("matching", "control", "wrong", "excess")
COPIES = ("literal_copy", "semantic_copy")


@dataclass(frozen=True, repr=False)
class FamilyScores(Displayed):
    """How heads do on one family of sequences, arrays (n_layers, n_heads) of means over sequences; NaN for a head there is not.

    `matching` is the attention mass on the places that mean what the query asks for, in [0, 1], `control` the same where meaning
    is shuffled, `wrong` the mass on as many other places, and `excess` what is left of the first without the higher one of the
    other two, sequence by sequence. `chance` is the `matching` of a head that attends to all positions evenly.

    `literal_copy` is what a head adds to the logit of the very token at the right place above that at a wrong one, in nats on the
    direct path, `semantic_copy` the same of what those tokens mean without themselves: the rest of their classes, or their
    translations. Both are None where the weights of heads are not known, `semantic_copy` also for patterns, whose labels mean
    nothing else.

    | a head that attends to the right place, and | literal copy | semantic copy |
    |---|---|---|
    | raises the token there by s | s | 0 |
    | raises its translation by s | 0 | s |
    | raises all of its class by s | s | s |
    | writes nothing | 0 | 0 |

    `per_sequence` has all of these before the mean, (n_sequences, n_layers, n_heads).
    """

    matching: Array
    control: Array
    wrong: Array
    excess: Array
    chance: float
    literal_copy: Array | None
    semantic_copy: Array | None
    per_sequence: Mapping[str, Array]

    def view(self) -> View:
        """What there is to show."""
        return view_of(self, by="excess")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, None where there is no number."""
        arrays = {name: getattr(self, name) for name in (*MASSES, *COPIES)}
        return {
            "chance": self.chance,
            **{name: None if values is None else plain(values) for name, values in arrays.items()},
            "per_sequence": {name: plain(values) for name, values in self.per_sequence.items()},
        }


@dataclass(frozen=True)
class HeadGenerality:
    """One head on one family. `literal` is its prefix matching on repeated random tokens; the rest is of `FamilyScores`.

    `ratio` is `matching` over `chance`: how many times as much as a head that attends to all positions evenly.
    """

    family: str
    layer: int
    head: int
    matching: float
    excess: Estimate
    ratio: float
    literal: float
    literal_copy: float | None
    semantic_copy: float | None

    def __str__(self) -> str:
        return f"{self.family} {HeadId(self.layer, self.head)}"


@dataclass(frozen=True, repr=False)
class GeneralityScores(Plotted):
    """What heads do on each family, `families[name]`, and `literal`, their prefix matching on repeated random tokens.

    `heads` are the heads that were asked for, in each family, highest excess first; their intervals hold together.
    """

    families: Mapping[str, FamilyScores]
    literal: Array
    heads: tuple[HeadGenerality, ...]
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        maps = {f"{name}, without chance": scores.excess for name, scores in self.families.items()}
        rows = rows_table("heads", self.heads)
        units = dict.fromkeys(maps, "from \u22121 to 1")
        return View(titled(self), about(self), (rows,), lambda: head_maps({**maps, "literal": self.literal}, units))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, None where there is no number, with the version of this layout under `schema`."""
        heads = [
            {**{each.name: getattr(head, each.name) for each in fields(head)}, "excess": vars(head.excess)} for head in self.heads
        ]
        return {
            "schema": SCHEMA_VERSION,
            "families": {name: scores.to_dict() for name, scores in self.families.items()},
            "literal": plain(self.literal),
            "heads": heads,
            "provenance": self.provenance.to_dict(),
        }


@user_facing
@priced(price_of_generality)
def measure_generality(
    model: ModelLike,
    heads: HeadsLike | None = None,
    probes: str | Iterable[str] = FAMILIES,
    *,
    classes: Any = None,
    pairs: Any = None,
    n_sequences: int = N_SEQUENCES,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> GeneralityScores:
    """Measure whether heads attend by meaning where nothing repeats: by class, to the translation, to lines of the same pattern.

    `heads`, all unless given, are written "L1H3", (1, 3) or as a `HeadId`. `probes` are families of `n_sequences` sequences each:

    - "classes": a block of tokens again, each by another one of its class; right is what followed the earlier ones of the class;
    - "translation": words, then their translations in another order of phrases; right is what followed the word translated;
    - "patterns": lines "word word: label", the label by the classes of both words; right are earlier lines like this one.

    `classes`, lists of token ids, and `pairs`, of an id and what it translates to, say what means alike. Without them they are of
    words that the tokenizer has as one token each (months, animals, ...; English and that of five languages which has most of
    them); without a tokenizer of ids that are next to each other, which need not mean anything to the model, and a note says so.
    Patterns draw four of the `classes` that have four ids or more in each sequence.

    All three families cost about five forward passes of 12 rows of 101 tokens. `literal` is of 12 rows of repeated tokens.

    A head that matches by meaning has an excess of about 1 and one that matches literally, attends by position or evenly none
    above 0. Raises `ProbeError` where there are too few words or positions, `ArgumentError` for what cannot be used,
    `ModelError` for a model whose attention cannot be read. Source: Olsson et al. 2022, argument 4.

    >>> from pytest_induction.planted import class_induction_head
    >>> best = measure_generality(class_induction_head(), "L1H0", "classes").heads[0]
    >>> round(best.matching, 3), round(best.excess.value, 3), round(best.literal_copy, 3)
    (1.0, 1.0, 16.0)
    """
    whole_number("n_sequences", n_sequences, least=2)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = named_heads(subject, heads)
    families, notes = families_of(subject, probes, classes, pairs)
    circuits, unknown = circuits_or_none(subject)
    scores = {}
    with progress("generality of heads", 2 * len(families) * n_sequences):
        for number, (name, family) in enumerate(families.items()):
            drawn = family.probes(subject.space, n_sequences, np.random.default_rng([seed, 5, number]))
            scores[name] = _scores(scores_of(subject, drawn, circuits), drawn)
    literal = literal_scores(subject, seed).mean(axis=0)
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=described(families))
    about = replace(about, notes=about.notes + notes + unknown)
    return GeneralityScores(scores, literal, _named(scores, literal, asked, error_rate), about)


def named_heads(subject: ModelUnderTest, heads: HeadsLike | None) -> tuple[HeadId, ...]:
    """The heads that are asked for, all unless given. Raises `ArgumentError` for none."""
    found = all_heads(subject) if heads is None else heads_of(subject, heads)
    if not found:
        raise ArgumentError("`heads` must be at least one head, got none")
    return found


def families_of(
    subject: ModelUnderTest, probes: Any, classes: Any = None, pairs: Any = None
) -> tuple[dict[str, Family], tuple[str, ...]]:
    """The families that are asked for, made of what means alike to this model, and what is to be known of them."""
    names = chosen_families(probes)
    encode = None if subject.tokenizer is None else subject.encode
    called = f"the tokenizer of {subject.name} ({type(subject.tokenizer).__name__})"
    meanings = Meanings(subject.space, encode, classes, pairs, tokenizer=called)
    return meanings.families(names), meanings.notes


def described(families: Mapping[str, Family]) -> str:
    """What heads were probed with, in a few words."""
    return "; ".join(f"{name}: {family.described}" for name, family in families.items())


def circuits_or_none(subject: ModelUnderTest) -> tuple[Circuits | None, tuple[str, ...]]:
    """The weights of heads where they are known, else None and a note on why not."""
    try:
        return circuits_of(subject), ()
    except UnsupportedModel as error:
        return None, (f"what heads copy is not known: {first_line(error)}",)


def scores_of(
    subject: ModelUnderTest, probes: Sequence[AbstractProbe], circuits: Circuits | None = None, *, depth: int | None = None
) -> dict[str, Array]:
    """Each of `MASSES` of every head on every row, by name, (sequences, n_layers, n_heads).

    With `circuits`, the weights of heads, each of `COPIES` too, or the literal one alone.

    Rows and their controls share passes, and copies are taken in the same ones. Without `circuits` these end after the first
    `depth` layers, and the others are NaN.
    """
    return joined([_scores_of_probe(subject, probe, circuits, depth) for probe in probes])


def _scores(per_sequence: Mapping[str, Array], probes: Sequence[AbstractProbe]) -> FamilyScores:
    means = {name: values.mean(axis=0) for name, values in per_sequence.items()}
    chance = sum(probe.chance * probe.n_sequences for probe in probes) / len(per_sequence["matching"])
    return FamilyScores(
        matching=means["matching"],
        control=means["control"],
        wrong=means["wrong"],
        excess=means["excess"],
        chance=chance,
        literal_copy=means.get("literal_copy"),
        semantic_copy=means.get("semantic_copy"),
        per_sequence=per_sequence,
    )


def literal_scores(subject: ModelUnderTest, seed: int, depth: int | None = None) -> Array:
    """Prefix matching on a few rows of repeated random tokens, (sequences, n_layers, n_heads)."""
    rows = probes_of(subject, FIRST_LOOK, np.random.default_rng([seed, 0]), COPIES_OF_BLOCK, None, SHAPES_AT_ONCE)
    scored = [(probe.tokens, PeriodicScores(probe.period, probe.start, probe.tokens.shape[1])) for probe in rows]
    parts = [masses_of(subject, tokens, partial(_same, scores), depth=depth) for tokens, scores in scored]
    return joined(parts)["prefix_matching"]


def _same(scores: PeriodicScores, part: slice) -> PeriodicScores:
    return scores


def _named(
    scores: Mapping[str, FamilyScores], literal: Array, asked: Sequence[HeadId], error_rate: float
) -> tuple[HeadGenerality, ...]:
    """Every head that is asked for, in every family, highest excess first."""
    places = [(name, head) for name in scores for head in asked]
    columns = np.stack([scores[name].per_sequence["excess"][:, head.layer, head.head] for name, head in places], axis=1)
    found = []
    for (name, head), excess in zip(places, mean_interval(columns, error_rate, "excess"), strict=True):
        family, at = scores[name], (head.layer, head.head)
        copies = [None if values is None else float(values[at]) for values in (family.literal_copy, family.semantic_copy)]
        matching = float(family.matching[at])
        found.append(HeadGenerality(name, *at, matching, excess, matching / family.chance, float(literal[at]), *copies))
    order = list(scores)
    return tuple(sorted(found, key=lambda head: (order.index(head.family), -head.excess.value)))


def _scores_of_probe(
    subject: ModelUnderTest, probe: AbstractProbe, circuits: Circuits | None, depth: int | None
) -> dict[str, Array]:
    count = probe.n_sequences
    nothing: tuple[Mapping[int, tuple[int, ...]], ...] = ({},) * count
    keyed = {"matching": (*probe.right, *nothing), "wrong": (*probe.wrong, *nothing), "control": (*nothing, *probe.right)}
    copies = None if circuits is None else _Copies(subject, circuits, probe)

    def measured(rows: Tensor, part: slice) -> dict[str, Array]:
        lists = {name: [_pairs(places) for places in each[part]] for name, each in keyed.items()}
        scores = KeyScores.of(lists, subject.device)
        if copies is None or part.start >= count:
            return observe(subject, rows, scores, depth=depth)[0]
        found, copied = observe(subject, rows, scores, run=partial(copies, rows, part))
        return found | copied

    parts = in_batches(subject, torch.from_numpy(np.concatenate([probe.tokens, probe.control])), measured, logits=False)
    masses = joined([{name: part[name] for name in keyed} for part in parts])
    found = {name: values[count:] if name == "control" else values[:count] for name, values in masses.items()}
    chance = criteria.own_chance({"control": found["control"], "wrong_shift": found["wrong"]})
    found["excess"] = criteria.excess({"prefix_matching": found["matching"], "chance": chance})
    copied = [{name: part[name] for name in COPIES if name in part} for part in parts]
    return {name: found[name] for name in MASSES} | ({} if copies is None else joined([part for part in copied if part]))


def _pairs(places: Mapping[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(query, key) for query, keys in places.items() for key in keys]


class _Copies:
    """What heads copy on the rows of a probe, which come before their controls."""

    def __init__(self, subject: ModelUnderTest, circuits: Circuits, probe: AbstractProbe) -> None:
        self._subject = subject
        self._circuits = circuits
        self._capture = HeadOutputCapture(subject, circuits)
        self._count = probe.n_sequences
        self._kinds = {"literal_copy": Contrasts.of([[(each.query, *each.literal) for each in row] for row in probe.contrasts])}
        if all(all(each.semantic) for row in probe.contrasts for each in row):
            semantic = Contrasts.of([[(each.query, *each.semantic) for each in row] for row in probe.contrasts])
            self._kinds["semantic_copy"] = semantic

    def __call__(self, rows: Tensor, part: slice, observer: Observer) -> dict[str, Array]:
        """One pass over part of the rows and controls, shown to `observer`: each of `COPIES` of the rows among them, in nats.

        Raises `ModelError` where these are not finite.
        """
        chosen = {name: kind.part(slice(part.start, min(part.stop, self._count))) for name, kind in self._kinds.items()}
        own = min(part.stop, self._count) - part.start
        directions = {name: kind.directions(self._circuits.written(kind.tokens)) for name, kind in chosen.items()}
        raised: list[dict[str, Tensor]] = []

        def take(layer: int, found: Tensor, pattern: Tensor | None) -> None:
            outs = self._circuits.layers[layer].outs
            raised.append({name: kind.raised(found[:own], projected(directions[name], outs)) for name, kind in chosen.items()})

        scale = self._capture(rows, take, observer=observer)[:own]
        return {name: self._of_heads([kind.effects(layer[name], scale) for layer in raised]) for name, kind in chosen.items()}

    def _of_heads(self, layers: Sequence[Tensor]) -> Array:
        subject = self._subject
        found = of_all_heads([numbers(layer) for layer in layers], subject.n_heads)
        exists = np.arange(subject.n_heads) < np.array(subject.reading.heads)[:, None]
        if not np.isfinite(found[:, exists]).all():
            raise ModelError(f"what the heads of {subject.name} write is not finite (NaN or infinity)")
        return found
