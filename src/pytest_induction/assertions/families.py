"""What a family is made of: models or training runs, each with a name of its own, and the differences of its pairs."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_induction.errors import ArgumentError
from pytest_induction.paths import expanded, is_there
from pytest_induction.runs.record import TrainingRun
from pytest_induction.specs import FORMS
from pytest_induction.statistics import Interval, Mean, Pair

if TYPE_CHECKING:
    from pytest_induction.observing import Array, ModelLike

    Member: TypeAlias = ModelLike | TrainingRun | os.PathLike[str]
    Family: TypeAlias = Sequence[Member] | Mapping[str, Member]
FEWEST = 2


def members_of(family: Family) -> tuple[tuple[str, ...], tuple[Any, ...], bool]:
    """Names (empty where they are to be those of the members themselves), members, and whether they are training runs.

    Raises `ArgumentError` for fewer than two, for what is neither, and for both.
    """
    if isinstance(family, (str, bytes, os.PathLike, TrainingRun)) or _is_model(family) or not isinstance(family, Iterable):
        raise ArgumentError(f"`family` must be models or training runs, two at least, got one `{type(family).__name__}`")
    names = tuple(map(str, family)) if isinstance(family, Mapping) else ()
    members = tuple(family.values()) if isinstance(family, Mapping) else tuple(family)
    if len(members) < FEWEST:
        raise ArgumentError(f"`family` must have {FEWEST} members at least, to compare with each other, got {len(members)}")
    kinds = [_is_run(member) for member in members]
    if len(set(kinds)) > 1:
        model, run = kinds.index(False), kinds.index(True)
        raise ArgumentError(
            f"`family` must be models or training runs, got both: member {model} is a model, member {run} a run (counted from 0)"
        )
    return names, members, kinds[0]


def _is_model(given: Any) -> bool:
    """Whether it is a module, or one under test. Where nobody has imported torch there are none, and it is not imported."""
    if "torch" not in sys.modules:
        return False
    from torch import nn

    from pytest_induction.models.protocol import ModelUnderTest

    return isinstance(given, (nn.Module, ModelUnderTest))


def _is_run(member: Any) -> bool:
    if isinstance(member, TrainingRun) or _is_model(member):
        return isinstance(member, TrainingRun)
    if not isinstance(member, (str, os.PathLike)):
        raise ArgumentError(f"`family` must have models or training runs, got `{type(member).__name__}`")
    text = os.fspath(member)
    place, colon, factory = text.rpartition(":")
    if text.startswith("hf:") or (place and colon and factory.isidentifier()):
        return False
    path = expanded(text)
    if "://" not in text and not is_there(path):
        raise ArgumentError(f"`family` has {text!r}, where there is neither a model nor a run: expected {FORMS}, or a run")
    return not (path / "config.json").is_file()


def unlike(names: Iterable[str]) -> tuple[str, ...]:
    """The names, those of which there are several numbered."""
    every = list(names)
    return tuple(
        name if every.count(name) == 1 else f"{name} ({every[: place + 1].count(name)})" for place, name in enumerate(every)
    )


def paired(samples: Sequence[Array], unit: str) -> dict[Pair, Interval]:
    """The difference of every pair of samples (n,) of the same rows."""
    return {(i, j): Mean.of(samples[i] - samples[j], unit).interval for i, j in itertools.combinations(range(len(samples)), 2)}


def unpaired(means: Sequence[Mean]) -> dict[Pair, Interval]:
    """The difference of every pair of means over rows of their own."""
    return {(i, j): means[i].minus(means[j]).interval for i, j in itertools.combinations(range(len(means)), 2)}
