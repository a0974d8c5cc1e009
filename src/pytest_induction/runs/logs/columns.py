"""Which column of a log holds what: names are guessed from what trainers write, and can be said instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.logs.faults import shown
from pytest_induction.runs.record import NUMBERS

MOST_SHOWN = 10
# What we call it -> what others do, the best fit first. Compared in lower case, `-` and blanks as `_`, prefixes taken off.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter", "iterations", "steps", "num_updates", "update", "_step"),
    "tokens": (
        "tokens",
        "num_input_tokens_seen",
        "tokens_seen",
        "num_tokens_seen",
        "consumed_tokens",
        "total_tokens",
        "num_tokens",
        "n_tokens",
    ),
    "learning_rate": ("learning_rate", "lr"),
    "loss": ("loss", "lm_loss", "cross_entropy_loss", "crossentropyloss", "ce_loss", "nll_loss", "loss_step", "loss_epoch"),
    "icl_score": ("icl_score", "in_context_learning_score", "icl"),
    "early_loss": ("early_loss", "loss_early"),
    "late_loss": ("late_loss", "loss_late"),
    "first_loss": ("first_loss", "first_copy_loss", "loss_first"),
    "repeat_loss": ("repeat_loss", "later_loss", "repeated_loss", "repeated_token_loss", "repeated_tokens_loss", "loss_repeat"),
    "repeat_accuracy": ("repeat_accuracy", "later_accuracy", "repeated_accuracy", "repeated_token_accuracy"),
    "advantage": ("advantage", "repeat_advantage"),
    "prefix_matching": (
        "prefix_matching",
        "prefix_matching_score",
        "max_prefix_matching",
        "max_prefix_matching_score",
        "best_prefix_matching",
        "induction_score",
        "max_induction_score",
    ),
}
MEASURES = (*NUMBERS, "prefix_matching")
_OURS = {theirs: (ours, place) for ours, names in SYNONYMS.items() for place, theirs in enumerate(names)}
_TRAINING = frozenset({"train", "training", "trainer"})
_HELD_OUT = frozenset({"eval", "evaluation", "val", "valid", "validation", "test", "dev", "heldout", "held_out"})
_NEUTRAL = frozenset({"metrics", "metric", "logs", "log", "scalars", "history", "stats"})
_PREFIX = re.compile(r"(train|training|eval|evaluation|val|valid|validation|test|dev)_(?=.)")


class Rank(NamedTuple):
    """How well a name fits, the smaller the better; equal ranks fit equally."""

    unknown: int = 0  # parts of the name that say something else
    held_out: bool = False  # where the training's own number is wanted
    synonym: int = 0
    written: int = 0  # 0 for a bare name, 1 with a prefix before a `/` or a `.`, more with one before a `_`


CHOSEN = Rank(synonym=-1)


def checked(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The user's own choice of columns. Raises `ArgumentError` for names that are not ours."""
    known = tuple(SYNONYMS)
    chosen = dict(columns or {})
    for ours, theirs in chosen.items():
        if ours not in known:
            raise ArgumentError(f"`columns` must map names among {', '.join(known)} to names of the log, got {shown(ours)}")
        if not isinstance(theirs, str):
            raise ArgumentError(f"`columns[{ours!r}]` must be the name of a column of the log, got {shown(theirs)}")
    return chosen


def fits(name: str, chosen: Mapping[str, str]) -> dict[str, Rank]:
    """Our names that a column can stand for, and how well it fits each. What the user has chosen stands alone."""
    said = {ours: CHOSEN for ours, theirs in chosen.items() if theirs == name}
    if said:
        return said
    guessed = guess(name)
    return {} if guessed is None or guessed[0] in chosen else dict([guessed])


@lru_cache(maxsize=1024)
def guess(name: str) -> tuple[str, Rank] | None:
    """Our name for a column, and how well it fits; None for a column of something else.

    >>> guess("train/loss")
    ('loss', Rank(unknown=0, held_out=False, synonym=0, written=1))
    """
    parts = [part for part in re.split(r"[/.]", re.sub(r"[- ]", "_", name.strip().lower())) if part]
    words = [part for part in parts if part not in _TRAINING | _HELD_OUT | _NEUTRAL]
    if not words:
        return None
    base, written = words[-1], int(len(parts) > 1)
    prefix = _PREFIX.match(base)
    if base not in _OURS and prefix is not None:
        base, written = base[prefix.end() :], written + 2
        parts.append(prefix[1])
    if base not in _OURS:
        return None
    ours, synonym = _OURS[base]
    own = ours in ("step", "tokens", "learning_rate", "loss")
    return ours, Rank(len(words) - 1, own and not _HELD_OUT.isdisjoint(parts), synonym, written)


def best(ours: str, candidates: Mapping[str, Rank]) -> str:
    """The column that fits best, of at least one. Raises `RunError` where two fit equally."""
    order = sorted(candidates, key=lambda name: (candidates[name], name))
    equal = [name for name in order if candidates[name] == candidates[order[0]]]
    if len(equal) > 1:
        choice = f"columns={{{ours!r}: {shown(equal[0])}}}"
        raise RunError(f"{listed(equal)} fit `{ours}` equally: choose one, as with {choice}")
    return order[0]


def listed(names: Iterable[str]) -> str:
    """At most ten names, short, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST_SHOWN} more" if len(every) > MOST_SHOWN else ""
    return ", ".join(map(shown, every[:MOST_SHOWN])) + more if every else "none"
