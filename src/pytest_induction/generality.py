"""Measure whether heads generalise: whether they match by class, by translation and by pattern, where nothing repeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_induction.batching import in_batches
from pytest_induction.errors import ArgumentError, ModelError, UnsupportedModel, user_facing, whole_number
from pytest_induction.interventions.chosen import HeadsLike, all_heads, heads_of
from pytest_induction.measure import measure_heads
from pytest_induction.metrics.contrasts import Contrasts
from pytest_induction.metrics.copying import projected
from pytest_induction.metrics.keys import KeyScores
from pytest_induction.models.calling import first_line
from pytest_induction.models.circuits import circuits_of
from pytest_induction.models.head_weights import Circuits
from pytest_induction.models.load import load_model
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.watching import Watch
from pytest_induction.observing import Array, ModelLike, numbers, observe, of_all_heads, plain, provenance
from pytest_induction.probes.fuzzy import FAMILIES, Family, FuzzyProbe
from pytest_induction.probes.meanings import Meanings, chosen_families
from pytest_induction.progress import progress
from pytest_induction.records import SCHEMA_VERSION, Estimate, HeadId, Provenance
from pytest_induction.statistics import mean_interval

MASSES = ("matching", "control", "wrong", "excess")
COPIES = ("literal_copy", "semantic_copy")


@dataclass(frozen=True)
class FamilyScores:
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


@dataclass(frozen=True)
class GeneralityScores:
    """What heads do on each family, `families[name]`, and `literal`, their prefix matching on repeated random tokens.

    `heads` are the heads that were asked for, in each family, highest excess first; their intervals hold together.
    """

    families: Mapping[str, FamilyScores]
    literal: Array
    heads: tuple[HeadGenerality, ...]
    provenance: Provenance

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
def measure_generality(
    model: ModelLike,
    heads: HeadsLike | None = None,
    probes: str | Iterable[str] = FAMILIES,
    *,
    classes: Any = None,
    pairs: Any = None,
    n_sequences: int = 24,
    confidence: float = 0.999,
    seed: int | None = None,
) -> GeneralityScores:
    """Measure whether heads attend by meaning where nothing repeats: by class, to the translation, to lines of the same pattern.

    `heads`, all unless given, are written "L1H3", (1, 3) or as a `HeadId`. `probes` are families of `n_sequences` sequences each:

    - "classes": a block of tokens again, each by another one of its class; right is what followed the earlier ones of the class;
    - "translation": words, then their translations in another order of phrases; right is what followed the word translated;
    - "patterns": lines "word word: label", the label by the classes of both words; right are earlier lines like this one.

    `classes`, lists of token ids, and `pairs`, of an id and what it translates to, say what means alike. Without them they are of
    words that the tokenizer has as one token each (months, animals, ...; English and German or French); without a tokenizer of
    ids that are next to each other, which need not mean anything to the model, and a note says so. Patterns take the first four
    of `classes` that have four ids or more.

    A head that matches by meaning has an excess of about 1 and one that matches literally, attends by position or evenly none
    above 0. Raises `ProbeError` where there are too few words or positions, `ArgumentError` for what cannot be used,
    `ModelError` for a model whose attention cannot be read. Source: Olsson et al. 2022, argument 4.

    >>> from pytest_induction.models.planted import class_induction_head
    >>> best = measure_generality(class_induction_head(), "L1H0", "classes").heads[0]
    >>> round(best.matching, 3), round(best.excess.value, 3), round(best.literal_copy, 3)
    (1.0, 1.0, 16.0)
    """
    whole_number("n_sequences", n_sequences, least=2)
    if not 0 < confidence < 1:
        raise ArgumentError(f"`confidence` must lie between 0 and 1, got {confidence}")
    subject = load_model(model)
    seed = subject.seed if seed is None else whole_number("seed", seed, least=0)
    asked = named_heads(subject, heads)
    families, notes = families_of(subject, probes, classes, pairs)
    circuits, unknown = circuits_or_none(subject)
    scores = {}
    with progress("generality of heads", 2 * len(families) * n_sequences):
        for number, (name, family) in enumerate(families.items()):
            drawn = family.probes(subject.space, n_sequences, np.random.default_rng([seed, 5, number]))
            scores[name] = _scores(subject, drawn, circuits)
    literal = measure_heads(subject, n_sequences=n_sequences, seed=seed).prefix_matching
    about = provenance(subject, seed=seed, n_sequences=n_sequences, probe=described(families))
    about = replace(about, notes=about.notes + notes + unknown)
    return GeneralityScores(scores, literal, _named(scores, literal, asked, confidence), about)


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
    meanings = Meanings(subject.space, None if subject.tokenizer is None else subject.encode, classes, pairs)
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


def masses_of(subject: ModelUnderTest, probes: Sequence[FuzzyProbe]) -> Array:
    """The four masses of every head on every row, in the order of `MASSES`: (sequences, 4, n_layers, n_heads)."""
    return np.concatenate([_masses(subject, probe) for probe in probes])


def copies_of(subject: ModelUnderTest, circuits: Circuits, probes: Sequence[FuzzyProbe]) -> Array:
    """Literal and semantic copy of every head on every row, or the first alone: (sequences, 1 or 2, n_layers, n_heads), nats."""
    return np.concatenate([_copies(subject, circuits, probe) for probe in probes])


def _scores(subject: ModelUnderTest, probes: Sequence[FuzzyProbe], circuits: Circuits | None) -> FamilyScores:
    masses = masses_of(subject, probes)
    per_sequence = {name: masses[:, place] for place, name in enumerate(MASSES)}
    if circuits is not None:
        copies = copies_of(subject, circuits, probes)
        per_sequence |= {name: copies[:, place] for place, name in enumerate(COPIES[: copies.shape[1]])}
    means = {name: values.mean(axis=0) for name, values in per_sequence.items()}
    chance = sum(probe.chance * probe.n_sequences for probe in probes) / len(masses)
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


def _named(
    scores: Mapping[str, FamilyScores], literal: Array, asked: Sequence[HeadId], confidence: float
) -> tuple[HeadGenerality, ...]:
    """Every head that is asked for, in every family, highest excess first."""
    places = [(name, head) for name in scores for head in asked]
    columns = np.stack([scores[name].per_sequence["excess"][:, head.layer, head.head] for name, head in places], axis=1)
    found = []
    for (name, head), excess in zip(places, mean_interval(columns, 1 - confidence, "excess"), strict=True):
        family, at = scores[name], (head.layer, head.head)
        copies = [None if values is None else float(values[at]) for values in (family.literal_copy, family.semantic_copy)]
        matching = float(family.matching[at])
        found.append(HeadGenerality(name, *at, matching, excess, matching / family.chance, float(literal[at]), *copies))
    order = list(scores)
    return tuple(sorted(found, key=lambda head: (order.index(head.family), -head.excess.value)))


def _masses(subject: ModelUnderTest, probe: FuzzyProbe) -> Array:
    def of_rows(tokens: np.ndarray[Any, Any], *keyed: Sequence[Mapping[int, tuple[int, ...]]]) -> Array:
        def measured(rows: Tensor, part: slice) -> Array:
            lists = [[_pairs(places) for places in each[part]] for each in keyed]
            return observe(subject, rows, KeyScores.of(lists, subject.device))[0]

        return np.concatenate(in_batches(subject, torch.from_numpy(tokens), measured, logits=False))

    matching, wrong = of_rows(probe.tokens, probe.right, probe.wrong).swapaxes(0, 1)
    control = of_rows(probe.control, probe.right)[:, 0]
    return np.stack([matching, control, wrong, matching - np.maximum(control, wrong)], axis=1)


def _pairs(places: Mapping[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(query, key) for query, keys in places.items() for key in keys]


def _copies(subject: ModelUnderTest, circuits: Circuits, probe: FuzzyProbe) -> Array:
    literal = Contrasts.of([[(each.query, *each.literal) for each in row] for row in probe.contrasts])
    kinds = [literal]
    if all(all(each.semantic) for row in probe.contrasts for each in row):
        kinds.append(Contrasts.of([[(each.query, *each.semantic) for each in row] for row in probe.contrasts]))
    watch = Watch(subject, circuits)

    def measured(rows: Tensor, part: slice) -> Array:
        chosen = [kind.part(part) for kind in kinds]
        directions = [kind.directions(circuits.written(kind.tokens)) for kind in chosen]
        raised: list[list[Tensor]] = []

        def take(layer: int, found: Tensor, pattern: Tensor | None) -> None:
            outs = circuits.layers[layer].outs
            raised.append([kind.raised(found, projected(along, outs)) for kind, along in zip(chosen, directions, strict=True)])

        scale = watch(rows, take)
        each = [[numbers(kind.effects(layer[place], scale)) for layer in raised] for place, kind in enumerate(chosen)]
        return np.stack([of_all_heads(layers, subject.n_heads) for layers in each], axis=1)

    found = np.concatenate(in_batches(subject, torch.from_numpy(probe.tokens), measured, logits=False))
    exists = np.arange(subject.n_heads) < np.array(subject.reading.heads)[:, None]
    if not np.isfinite(found[..., exists]).all():
        raise ModelError(f"what the heads of {subject.name} write is not finite (NaN or infinity)")
    return found
