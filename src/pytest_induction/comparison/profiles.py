"""What is kept of a model to hold a later one against, as data: its heads by role and its behaviour, sequence by sequence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pytest_induction.display import Displayed, View, about, rows_table, titled
from pytest_induction.errors import BaselineError, reason
from pytest_induction.files import expanded, read_bytes
from pytest_induction.ranges import D_VOCAB, FROM_ONE, SCORES, Count, Range, Small, is_known
from pytest_induction.records import Provenance, TokenSpace
from pytest_induction.schema import Unfit, parsed, read
from pytest_induction.statistics import FIRST_LOOK

Array = NDArray[np.float64]
SCHEMA = 1
WHAT = "pytest-induction heads profile"
OF_BASELINES = "pytest-induction baseline"
KIND = "heads"  # of an entry of a baseline file
LONGEST = 2**26  # bytes of a file
DIGITS = 6
ROLES: Mapping[str, tuple[str, ...]] = {
    "induction": ("prefix_matching", "excess"),
    "previous_token": ("previous_token",),
    "duplicate_token": ("duplicate_token",),
}
"""What a head may be there for, and the scores that say how well it does."""

BEHAVIOUR = ("repeat_loss", "repeat_accuracy", "advantage", "first_loss")
OF_TEXT = ("icl_score", "late_loss")


def _spans_rise(spans: Sequence[tuple[int, int]]) -> str:
    """What is asked of spans of ids: each after the one before it, so that they are no more than the vocabulary."""
    before = [-1, *(last for _, last in spans)]
    is_so = all(end < first <= last for end, (first, last) in zip(before, spans, strict=False))
    return "" if is_so else "must be spans of ids, first and last, each after the one before"


@dataclass(frozen=True)
class HeadInRole:
    """A head and how well it does in its role: of each of the role's scores one value a sequence, (n_sequences,)."""

    role: str
    layer: int
    head: int
    scores: Mapping[str, Array]


@dataclass(frozen=True)
class Probed:
    """What a model was probed with: enough to draw the same token ids again, and to see that they are the same.

    `periods` and `repeats` are what came of it. `digest` is that of all ids, "" where nothing will be drawn again.
    """

    seed: int
    n_sequences: int
    space: TokenSpace
    periods: tuple[int, ...]
    repeats: int
    digest: str = ""


@dataclass(frozen=True)
class TextScores:
    """In-context learning on rows of a text, (n_rows,) each, in nats: the score, negative if it learns, and the late loss.

    `digest` is that of the token ids of all rows, `n_positions` their length; of a longer text `max_rows` were taken.
    """

    digest: str
    max_rows: int
    n_positions: int
    icl_score: Array
    late_loss: Array


@dataclass(frozen=True, repr=False)
class HeadsProfile(Displayed):
    """What is kept of a model. `heads` by role and place, None where its attention cannot be read.

    `behaviour` has, of the same sequences (n_sequences,), `repeat_loss` and `first_loss`, the losses on later copies and on the
    first, `repeat_accuracy`, and the `advantage` of the successor (docs/metrics.md). `text` is None where none was given.
    """

    heads: tuple[HeadInRole, ...] | None
    behaviour: Mapping[str, Array]
    text: TextScores | None
    probed: Probed
    provenance: Provenance

    def view(self) -> View:
        """What there is to show."""
        heads = [
            {
                "role": head.role,
                "layer": head.layer,
                "head": head.head,
                **{name: float(values.mean()) for name, values in head.scores.items()},
            }
            for head in self.heads or ()
        ]
        text = {} if self.text is None else {"icl_score": self.text.icl_score, "late_loss": self.text.late_loss}
        behaviour = [{"measure": name, "mean": float(values.mean())} for name, values in {**self.behaviour, **text}.items()]
        facts = (*about(self), *(["its attention cannot be read: no heads are kept"] if self.heads is None else []))
        return View(titled(self), facts, (rows_table("heads", heads), rows_table("behaviour", behaviour)))

    def first(self, n_sequences: int) -> HeadsProfile:
        """The same of fewer sequences."""
        heads = self.heads and tuple(
            replace(head, scores={name: values[:n_sequences] for name, values in head.scores.items()}) for head in self.heads
        )
        return replace(self, heads=heads, behaviour={name: values[:n_sequences] for name, values in self.behaviour.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, of six digits, strings, lists and dicts, with the version of this layout under `schema`."""
        heads = None if self.heads is None else [_head_to_dict(head) for head in self.heads]
        text = (
            None if self.text is None else {**vars(self.text), **{name: _rounded(getattr(self.text, name)) for name in OF_TEXT}}
        )
        return {
            "schema": SCHEMA,
            "what": WHAT,
            "probed": {**vars(self.probed), "periods": list(self.probed.periods), "space": _space_to_dict(self.probed.space)},
            "heads": heads,
            "behaviour": {name: _rounded(self.behaviour[name]) for name in BEHAVIOUR},
            "text": text,
            "provenance": self.provenance.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "the profile") -> HeadsProfile:
        """The inverse of `to_dict`. Raises `BaselineError`, which names `where`, for anything else."""
        if not isinstance(data, Mapping) or data.get("what") != WHAT or data.get("schema") != SCHEMA:
            seen = data.get("schema") if isinstance(data, Mapping) and data.get("what") == WHAT else None
            kind = "no profile of heads" if seen is None else f"a profile of schema {seen!r}"
            raise BaselineError(f"{where} is {kind}: expected schema {SCHEMA} as `HeadsProfile.to_dict()` makes it; take it anew")
        try:
            return _profile(read(ProfileData, data))
        except Unfit as error:
            raise BaselineError(f"{where} is damaged: {error}; take it anew") from None


class SpaceData(TypedDict):
    """`TokenSpace`, the excluded ids as spans, first and last."""

    d_vocab: Annotated[int, D_VOCAB]
    n_ctx: Count | None
    bos_id: Count | None
    excluded: Annotated[list[tuple[Count, Count]], _spans_rise]


class ProbedData(TypedDict):
    """`Probed`."""

    seed: Count
    n_sequences: Annotated[int, Range(FIRST_LOOK, 2**24)]
    space: SpaceData
    periods: list[Annotated[int, FROM_ONE]]
    repeats: Annotated[int, Range(2, 2**24)]
    digest: str


class HeadData(TypedDict):
    """`HeadInRole`, with the scores of its role."""

    role: Literal["induction", "previous_token", "duplicate_token"]
    layer: Small
    head: Small
    prefix_matching: NotRequired[list[Annotated[float, SCORES["prefix_matching"], is_known]]]
    excess: NotRequired[list[Annotated[float, SCORES["excess"], is_known]]]
    previous_token: NotRequired[list[Annotated[float, SCORES["previous_token"], is_known]]]
    duplicate_token: NotRequired[list[Annotated[float, SCORES["duplicate_token"], is_known]]]


class BehaviourData(TypedDict):
    """What `BEHAVIOUR` names."""

    repeat_loss: list[Annotated[float, SCORES["repeat_loss"], is_known]]
    repeat_accuracy: list[Annotated[float, SCORES["repeat_accuracy"], is_known]]
    advantage: list[Annotated[float, SCORES["advantage"], is_known]]
    first_loss: list[Annotated[float, SCORES["first_loss"], is_known]]


class TextData(TypedDict):
    """`TextScores`."""

    digest: str
    max_rows: Annotated[int, FROM_ONE]
    n_positions: Annotated[int, FROM_ONE]
    icl_score: list[Annotated[float, SCORES["icl_score"], is_known]]
    late_loss: list[Annotated[float, SCORES["late_loss"], is_known]]


class ProfileData(TypedDict):
    """A profile as a file has it."""

    schema: int
    what: str
    probed: ProbedData
    heads: list[HeadData] | None
    behaviour: BehaviourData
    text: TextData | None
    provenance: Provenance


def _head_to_dict(head: HeadInRole) -> dict[str, Any]:
    scores = {name: _rounded(head.scores[name]) for name in ROLES[head.role]}
    return {"role": head.role, "layer": head.layer, "head": head.head, **scores}


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _space_to_dict(space: TokenSpace) -> dict[str, Any]:
    """With the excluded ids as spans, first and last: padding of a vocabulary may be thousands of them."""
    spans: list[list[int]] = []
    ids = sorted(space.excluded)
    for before, token in pairwise([-2, *ids]):
        if token == before + 1:
            spans[-1][1] = token
        else:
            spans.append([token, token])
    return {"d_vocab": space.d_vocab, "n_ctx": space.n_ctx, "bos_id": space.bos_id, "excluded": spans}


def _profile(data: ProfileData) -> HeadsProfile:
    """The profile that a file has. Raises `Unfit` for what its types do not say: as many numbers of each, no head twice."""
    probed, text = data["probed"], data["text"]
    count = probed["n_sequences"]
    heads = None if data["heads"] is None else tuple(_head(each, place, count) for place, each in enumerate(data["heads"]))
    if heads is not None and len({(head.role, head.layer, head.head) for head in heads}) < len(heads):
        raise Unfit("has a head twice in one role", ".heads")
    return HeadsProfile(
        heads=heads,
        behaviour={name: _numbers(data["behaviour"], name, count, ".behaviour") for name in BEHAVIOUR},
        text=None if text is None else _text(text),
        probed=_probed(probed),
        provenance=data["provenance"],
    )


def _probed(data: ProbedData) -> Probed:
    periods = tuple(data["periods"])
    return Probed(data["seed"], data["n_sequences"], _space(data["space"]), periods, data["repeats"], data["digest"])


def _space(data: SpaceData) -> TokenSpace:
    spans = (range(first, min(last, data["d_vocab"]) + 1) for first, last in data["excluded"])
    return TokenSpace(data["d_vocab"], data["n_ctx"], data["bos_id"], frozenset(chain.from_iterable(spans)))


def _text(data: TextData) -> TextScores:
    score, late = (_numbers(data, name, len(data["icl_score"]), ".text") for name in OF_TEXT)
    return TextScores(data["digest"], data["max_rows"], data["n_positions"], score, late)


def _head(data: HeadData, place: int, count: int) -> HeadInRole:
    scores = {name: _numbers(data, name, count, f".heads[{place}]") for name in ROLES[data["role"]]}
    return HeadInRole(data["role"], data["layer"], data["head"], scores)


def _numbers(data: Mapping[str, Any], name: str, count: int, where: str) -> Array:
    values = data.get(name, ())
    if len(values) != count:
        raise Unfit(f"must be {count} finite numbers, got {len(values)}", f"{where}.{name}")
    return np.array(values, dtype=np.float64)


def read_profile(path: str | os.PathLike[str], entry: str | None = None) -> HeadsProfile:
    """The profile in a JSON file: the file's own, or that of one entry of a baseline file, named where it has several.

    Raises `BaselineError` where there is none; the message says which file, what is wrong, what to do.
    """
    where = f"{os.fspath(path)!r}"
    try:
        data = parsed(read_bytes(expanded(path), LONGEST))
    except OSError as error:
        raise BaselineError(f"{where} cannot be read: {reason(error)}") from None
    except ValueError as error:
        raise BaselineError(
            f"{where} is no JSON: {str(error).partition(chr(10))[0]}; expected a profile or a baseline file"
        ) from None
    if not isinstance(data, dict) or data.get("what") != OF_BASELINES:
        if entry is not None:
            raise BaselineError(f"{where} is no baseline file, which alone has entries: leave `entry` out")
        return HeadsProfile.from_dict(data, where)
    return _of_entry(data, where, entry)


def _of_entry(data: Mapping[str, Any], where: str, entry: str | None) -> HeadsProfile:
    entries = data.get("entries")
    if data.get("schema") != SCHEMA or not isinstance(entries, dict):
        raise BaselineError(f"{where} is a baseline file of schema {data.get('schema')!r}, expected {SCHEMA}: write it anew")
    named = [name for name, each in entries.items() if isinstance(each, dict) and each.get("kind") == KIND]
    if entry is None and len(named) == 1:
        entry = named[0]
    if entry not in named:
        listed = ", ".join(map(repr, named[:10])) or "none"
        asked = "name one with `entry=`" if entry is None else f"got `entry={entry!r}`"
        raise BaselineError(f"{where} has {len(named)} entries of heads ({listed}): {asked}")
    return HeadsProfile.from_dict(entries[entry].get("profile"), f"entry {entry!r} of {where}")
