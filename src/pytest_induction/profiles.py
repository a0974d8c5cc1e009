"""What is kept of a model to hold a later one against, as data: its heads by role and its behaviour, sequence by sequence."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.errors import BaselineError, reason
from pytest_induction.paths import expanded
from pytest_induction.records import Provenance, TokenSpace
from pytest_induction.statistics import FIRST_LOOK

Array = NDArray[np.float64]
SCHEMA = 1
WHAT = "pytest-induction heads profile"
OF_BASELINES = "pytest-induction baseline"
KIND = "heads"  # of an entry of a baseline file
LONGEST = 2**26  # bytes of a file
DIGITS = 6
MOST_IDS = 2**26  # far beyond any vocabulary
ROLES: Mapping[str, tuple[str, ...]] = {
    "induction": ("prefix_matching", "excess"),
    "previous_token": ("previous_token",),
    "duplicate_token": ("duplicate_token",),
}
"""What a head may be there for, and the scores that say how well it does."""

BEHAVIOUR = ("later_loss", "later_accuracy", "advantage", "first_loss")
OF_TEXT = ("in_context_learning", "late_loss")


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
    in_context_learning: Array
    late_loss: Array


@dataclass(frozen=True)
class HeadsProfile:
    """What is kept of a model. `heads` by role and place, None where its attention cannot be read.

    `behaviour` has, of the same sequences (n_sequences,), `later_loss` and `first_loss`, the losses on later copies and on the
    first, `later_accuracy`, and the `advantage` of the successor (docs/metrics.md). `text` is None where none was given.
    """

    heads: tuple[HeadInRole, ...] | None
    behaviour: Mapping[str, Array]
    text: TextScores | None
    probed: Probed
    provenance: Provenance

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
            return cls(**_read(data))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            raise BaselineError(f"{where} is damaged: {said}; take it anew") from None


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


def _read(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a profile. Raises `ValueError` and what wrong kinds raise by themselves."""
    probed = _probed(data["probed"])
    count = probed.n_sequences
    heads = None if data["heads"] is None else tuple(_head(each, count) for each in data["heads"])
    if heads is not None and len({(head.role, head.layer, head.head) for head in heads}) < len(heads):
        raise ValueError("a head is there twice in one role")
    about, text = data["provenance"], data["text"]
    if text is not None:
        rows = len(text[OF_TEXT[0]])
        score, late = (_numbers(text[name], rows, name) for name in OF_TEXT)
        text = TextScores(str(text["digest"]), _whole(text["max_rows"], 1), _whole(text["n_positions"], 1), score, late)
    return {
        "heads": heads,
        "behaviour": {name: _numbers(data["behaviour"][name], count, name) for name in BEHAVIOUR},
        "text": text,
        "probed": probed,
        "provenance": Provenance(**{**about, "notes": tuple(about["notes"]), "layers": tuple(about["layers"])}),
    }


def _probed(data: Mapping[str, Any]) -> Probed:
    given = data["space"]
    spans = [(_whole(first), _whole(last)) for first, last in given["excluded"]]
    d_vocab = _whole(given["d_vocab"], 1)
    if d_vocab > MOST_IDS:
        raise ValueError(f"a vocabulary of {d_vocab} ids")
    excluded = frozenset(token for first, last in spans for token in range(first, min(last, d_vocab) + 1))
    n_ctx, bos_id = (None if given[name] is None else _whole(given[name]) for name in ("n_ctx", "bos_id"))
    return Probed(
        _whole(data["seed"]),
        _whole(data["n_sequences"], FIRST_LOOK),
        TokenSpace(d_vocab, n_ctx, bos_id, excluded),
        tuple(_whole(period, 1) for period in data["periods"]),
        _whole(data["repeats"], 2),
        str(data["digest"]),
    )


def _head(data: Mapping[str, Any], count: int) -> HeadInRole:
    if data["role"] not in ROLES:
        raise ValueError(f"a head has the role {data['role']!r}, expected one of {', '.join(ROLES)}")
    scores = {name: _numbers(data[name], count, name) for name in ROLES[data["role"]]}
    return HeadInRole(data["role"], _whole(data["layer"]), _whole(data["head"]), scores)


def _numbers(values: Sequence[float], count: int, name: str) -> Array:
    kinds = all(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values)
    if not isinstance(values, list) or len(values) != count or not kinds:
        raise ValueError(f"`{name}` must be {count} finite numbers")
    return np.array(values, dtype=np.float64)


def _whole(value: object, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected a whole number from {least} up, got {value!r}")
    return value


def read_profile(path: str | os.PathLike[str], entry: str | None = None) -> HeadsProfile:
    """The profile in a JSON file: the file's own, or that of one entry of a baseline file, named where it has several.

    Raises `BaselineError` where there is none; the message says which file, what is wrong, what to do.
    """
    where = f"{os.fspath(path)!r}"
    try:
        with expanded(path).open(encoding="utf-8") as stream:
            data = json.loads(stream.read(LONGEST))
    except OSError as error:
        raise BaselineError(f"{where} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
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
