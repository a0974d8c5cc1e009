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
from pytest_induction.deciding import ERROR_RATE, MAX_SEQUENCES, Judgement, more_needed, priced_claim, until_clear
from pytest_induction.display import Displayed, Plotted, View, about, head_maps, rows_table, titled, view_of
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel, user_facing, whole_number
from pytest_induction.expectations import check_share, expect
from pytest_induction.forward.calling import first_line
from pytest_induction.heads import criteria
from pytest_induction.heads.copying import projected
from pytest_induction.heads.criteria import min_excess
from pytest_induction.heads.prices import price_of_generality, price_of_generalizing
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
from pytest_induction.records import SCHEMA_VERSION, Estimate, Evidence, HeadId, Provenance, Verdict
from pytest_induction.spending import priced, spend_at_most, within_budget
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


MIN_EXCESS = min_excess()  # what a head that matches literally must have beyond its chance
NEAREST = 3  # heads of each family that are in the evidence
Ranked = list[tuple[HeadId, Estimate]]


def judge_generality(excess: Mapping[str, Array], heads: Sequence[HeadId], *, min_excess: float, error_rate: float) -> Judgement:
    """The heads are judged as a set: in each family some one of them must be above the threshold.

    `excess` has for each family the mass on the right places without the head's chance, (n_sequences, n_heads), a column for each
    of `heads`. Intervals hold for all heads and families together, at `error_rate`: SHOWN where in every family that of some
    head lies above `min_excess`, REFUTED where in some family those of all lie below.
    """
    ranked = _ranked(excess, heads, error_rate)
    best = {name: found[0] for name, found in ranked.items()}
    formed = {name: next((each for each in found if each[1].is_above(min_excess)), None) for name, found in ranked.items()}
    missing = [name for name, found in ranked.items() if all(estimate.is_below(min_excess) for _, estimate in found)]
    open_ones = [name for name in ranked if formed[name] is None and name not in missing]
    estimates = {f"{name} {head}": estimate for name, found in ranked.items() for head, estimate in found[:NEAREST]}
    if missing:
        held = [name for name, found in formed.items() if found is not None]
        also = f"; they do on {' and '.join(held)}" if held else ""
        summary = f"none of the heads matches by meaning on {_in_words(best, missing)}, below {min_excess:.3f}{also}"
        return Judgement(Verdict.REFUTED, "does_not_generalize", summary, estimates=estimates)
    if open_ones:
        near = {name: next(each for each in ranked[name] if not each[1].is_below(min_excess)) for name in open_ones}
        count = len(next(iter(excess.values())))
        more = max(more_needed(estimate, min_excess, count) for _, estimate in near.values())
        summary = f"whether a head matches by meaning on {_in_words(near, open_ones)} is too close to {min_excess:.3f} to tell"
        return Judgement(Verdict.UNDETERMINED, "generality_unclear", summary, estimates=estimates, more_sequences=more)
    clear = {name: found for name, found in formed.items() if found is not None}
    return Judgement(Verdict.SHOWN, "formed", f"heads match by meaning on {_in_words(clear, list(clear))}", estimates=estimates)


def _ranked(excess: Mapping[str, Array], heads: Sequence[HeadId], error_rate: float) -> dict[str, Ranked]:
    """The heads of each family with the interval of their excess, highest first."""
    found = mean_interval(np.concatenate(list(excess.values()), axis=1), error_rate, "excess")
    named = {}
    for number, name in enumerate(excess):
        part = found[number * len(heads) : (number + 1) * len(heads)]
        named[name] = sorted(zip(heads, part, strict=True), key=lambda each: -each[1].value)
    return named


def _in_words(best: Mapping[str, tuple[HeadId, Estimate]], names: Sequence[str]) -> str:
    *others, last = [f"{name} ({best[name][0]} has excess {_interval(best[name][1])})" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"


@user_facing
@priced_claim(price_of_generalizing)
def assert_heads_generalize(
    model: ModelLike,
    heads: HeadsLike,
    probes: str | Iterable[str] = FAMILIES,
    *,
    min_excess: float = MIN_EXCESS,
    classes: Any = None,
    pairs: Any = None,
    max_sequences: int = MAX_SEQUENCES,
    budget: float | str | None = None,
    error_rate: float = ERROR_RATE,
    seed: int | None = None,
) -> Evidence:
    """Assert that the heads match by meaning too: by class, to the translation and by pattern, where nothing repeats literally.

    `heads`, `probes`, `classes` and `pairs` are those of `measure_generality`. The heads are judged as a set: in each family that
    is asked for some one of them must do it, and the evidence names which. It does where its attention mass on the places of the
    right meaning, without the higher one of what it has there when meaning is shuffled and on as many other places, lies with
    its whole interval above `min_excess`. REFUTED where in some family all of them lie below. What they copy is reported, and
    does not count: the paper's translation head has a copying score of 0.2.

    Sequences are drawn in rounds until every family is clear, at most `max_sequences` of each; then the verdict is UNDETERMINED,
    which fails too and says what would settle it. `budget` is as for `assert_has_induction_head`; what is reported beside the
    verdict is left out where it has no room for that. `error_rate` is for all heads, families and rounds together. One that is
    clear in the first round or the second costs about four forward passes of 12 rows of 101 tokens.

    Returns the evidence: `.estimates` has under "classes L1H0" and the like the excess of the strongest three heads in each
    family, under "classes L1H0 literal copy" and "... semantic copy" what the best one adds to the logit of the token that it
    should attend to and to that of what the token means, in nats, where weights are known, and under "literal L1H0" its prefix
    matching on repeated random tokens. Raises `ExpectationFailed`, which carries it, `ProbeError` where there are too few words
    or positions, or `ModelError` for a model whose attention cannot be read. Source: Olsson et al. 2022, argument 4.

    >>> from pytest_induction.planted import class_induction_head
    >>> assert_heads_generalize(class_induction_head(), "L1H0", "classes").reason
    'formed'
    """
    spend_at_most(budget)
    check_share("min_excess", min_excess)
    check_share("error_rate", error_rate)
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = named_heads(subject, heads)
    families, notes = families_of(subject, probes, classes, pairs)
    judge = partial(_judged, asked, min_excess)
    circuits, unknown = circuits_or_none(subject)
    sequences = _Sequences(subject, families, seed, max(head.layer for head in asked) + 1, circuits, unknown)
    rounds, found, settle = until_clear(sequences.round, judge, whole_number("max_sequences", max_sequences, least=1), error_rate)
    best = {name: _best(found, name, asked) for name in families}
    about = provenance(subject, seed=seed, n_sequences=_count(rounds), probe=described(families))
    literal = within_budget(lambda: _literal(subject, best, seed, error_rate), dict[str, Estimate]())
    evidence = Evidence(
        claim="heads_generalize",
        verdict=found.verdict,
        reason=found.reason,
        summary=found.summary,
        provenance=replace(about, notes=about.notes + notes + sequences.unknown),
        estimates={**(found.estimates or {}), **_copies(rounds[0], best, error_rate), **literal},
        thresholds={"min_excess": min_excess},
        confidence=1 - error_rate,
        next_step=settle,
    )
    return expect(evidence)


Drawn = Mapping[str, Mapping[str, Array]]  # of each family the excess and copies, (n_sequences, n_layers, n_heads), by name


@dataclass
class _Sequences:
    """Rounds of sequences of each family: masses of heads in the first `depth` layers, in the first round copies too.

    `unknown` says why copies are not known, where they are not: nothing that was measured is lost.
    """

    subject: ModelUnderTest
    families: Mapping[str, Family]
    seed: int
    depth: int
    circuits: Circuits | None
    unknown: tuple[str, ...]

    def round(self, n_sequences: int, number: int) -> Drawn:
        """One round of each family; the same for the same seed and number, whatever other families are asked for."""
        with progress("heads_generalize", 2 * len(self.families) * n_sequences):
            return {name: self._scores(name, n_sequences, number) for name in self.families}

    def _scores(self, name: str, n_sequences: int, number: int) -> Mapping[str, Array]:
        family, circuits = self.families[name], self.circuits if number == 0 else None
        key = ("generality", family, n_sequences, self.seed, number, self.depth, circuits is None)
        drawn = partial(family.probes, self.subject.space, n_sequences)
        rng = partial(np.random.default_rng, [self.seed, 6, FAMILIES.index(name), number])
        try:
            return self.subject.remember(key, lambda: scores_of(self.subject, drawn(rng()), circuits, depth=self.depth))
        except ModelError as error:
            if circuits is None:
                raise
            self.circuits, self.unknown = None, (f"what heads copy is not known: {first_line(error)}",)
            return self._scores(name, n_sequences, number)


def _judged(heads: Sequence[HeadId], min_excess: float, rounds: Sequence[Drawn], error_rate: float) -> Judgement:
    places = [head.layer for head in heads], [head.head for head in heads]
    excess = {name: np.concatenate([drawn[name]["excess"] for drawn in rounds])[:, places[0], places[1]] for name in rounds[0]}
    return judge_generality(excess, heads, min_excess=min_excess, error_rate=error_rate)


def _count(rounds: Sequence[Drawn]) -> int:
    return sum(len(next(iter(drawn.values()))["excess"]) for drawn in rounds)


def _best(found: Judgement, family: str, heads: Sequence[HeadId]) -> HeadId:
    """The head with the highest excess in a family."""
    estimates = found.estimates or {}
    named = [head for head in heads if f"{family} {head}" in estimates]
    return max(named, key=lambda head: estimates[f"{family} {head}"].value)


def _copies(first: Drawn, best: Mapping[str, HeadId], error_rate: float) -> dict[str, Estimate]:
    """What each family's best head copies, in nats, as far as that is known; patterns have no semantic copies."""
    found: dict[str, Estimate] = {}
    for name, head in best.items():
        for kind in (kind for kind in COPIES if kind in first[name]):
            of_head = first[name][kind][:, head.layer, head.head][:, None]
            found[f"{name} {head} {kind.replace('_', ' ')}"] = mean_interval(of_head, error_rate, "nats")[0]
    return found


def _literal(subject: ModelUnderTest, best: Mapping[str, HeadId], seed: int, error_rate: float) -> dict[str, Estimate]:
    """The prefix matching of the best heads on repeated random tokens."""
    heads = sorted(set(best.values()), key=lambda head: (head.layer, head.head))
    values = literal_scores(subject, seed, depth=heads[-1].layer + 1)
    return {f"literal {head}": mean_interval(values[:, head.layer, head.head][:, None], error_rate)[0] for head in heads}
