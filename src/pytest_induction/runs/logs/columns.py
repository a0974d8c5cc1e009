"""Which column of a log holds what: guessed from what trainers write, or said by the user; and which rows count."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from pytest_induction.errors import ArgumentError
from pytest_induction.runs.logs.faults import shown
from pytest_induction.runs.record import NUMBERS

MOST_SHOWN = 10
LABEL = " - "  # between the run and the measure: RUN - train/loss
# What we call it -> what others do, the best fit first. Compared in lower case, `-` and blanks as `_`, prefixes taken off.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "step": (  # what counts updates of the weights over the whole training, then what may count something else
        *("optimizer_step", "optimizer_steps", "optim_step", "opt_step", "optimizer_updates", "gradient_step", "gradient_steps"),
        *("num_updates", "n_updates", "update", "updates", "global_step", "global_steps", "global_iteration", "global_iter"),
        *("total_step", "total_steps", "total_iterations", "total_iters"),
        *("step", "steps", "num_steps", "current_step", "current_steps", "iteration_step", "step_count"),
        *("iteration", "iterations", "iter", "iter_num", "batch", "_step"),
    ),
    "tokens": (
        *("tokens", "num_input_tokens_seen", "tokens_seen", "num_tokens_seen", "n_tokens_seen", "ntokens_seen"),
        *("total_tokens_seen", "consumed_tokens", "consumed_train_tokens", "trained_tokens", "tokens_trained"),
        *("total_tokens", "num_tokens", "n_tokens"),
    ),
    "learning_rate": ("learning_rate", "lr"),
    "loss": (
        *("loss", "lm_loss", "cross_entropy_loss", "crossentropyloss", "cross_entropy", "ce_loss", "next_token_loss", "nll_loss"),
        *("loss_step", "mean_loss", "loss_mean", "avg_loss", "loss_avg", "average_loss", "global_avg_loss"),
        *("reduced_train_loss", "total_loss", "loss_total", "loss_epoch", "epoch_loss", "languagecrossentropy"),
    ),
    "icl_score": ("icl_score",),
    "early_loss": ("early_loss",),
    "late_loss": ("late_loss",),
    "first_loss": ("first_loss",),
    "repeat_loss": ("repeat_loss",),
    "repeat_accuracy": ("repeat_accuracy",),
    "advantage": ("advantage",),
    "foretold_loss": ("foretold_loss",),
    "other_loss": ("other_loss",),
    "foretold_gap": ("foretold_gap",),
    "match_gain": ("match_gain",),
    "common_advantage": ("common_advantage",),
    "rare_advantage": ("rare_advantage",),
    "markov_unigram_kl": ("markov_unigram_kl",),
    "markov_bigram_kl": ("markov_bigram_kl",),
    "in_context_preference": ("in_context_preference",),
    "prefix_matching": ("prefix_matching",),
}
MEASURES = (*NUMBERS, "prefix_matching")
OF_THE_LOG = ("step", "tokens", "learning_rate", "loss")  # what every training has; everything else are measures of ours
SHARED = ("advantage", "early_loss", "late_loss", "first_loss")  # names that other fields give to something else
OURS = "induction"  # what our own names begin with where a recorder wrote them into someone's log
WHOLE = {  # names that only as a whole say what they are
    "time/batch": ("step", "iteration"),
    "time/token": ("tokens", "total_tokens"),
    "loss/out": ("loss", "loss"),
}
_PLACES = {theirs: (ours, place) for ours, names in SYNONYMS.items() for place, theirs in enumerate(names)}
TRAINING = frozenset({"train", "training", "trainer"})
HELD_OUT = frozenset({"eval", "evaluation", "val", "valid", "validation", "test", "dev", "heldout", "held_out"})
_NEUTRAL = frozenset(
    {"metrics", "metric", "logs", "log", "scalars", "history", "stats", "optim", "throughput", "time", "loss_metrics", OURS}
)
_AUXILIARY = frozenset(  # what a loss is not, where the model is trained on a sum of several
    {
        *("aux", "auxiliary", "z", "zloss", "router", "routing", "balance", "balancing", "load", "mtp", "kl", "policy", "value"),
        *("critic", "actor", "reward", "distill", "distillation", "reg", "regularization", "regularizer", "penalty"),
        *("commitment", "vq", "contrastive", "max", "min", "std", "hparam", "hparams"),
    }
)
_SPLIT = "train|training|eval|evaluation|val|valid|validation|test|dev"
_PREFIX = re.compile(rf"({_SPLIT})_(?=.)")
_SUFFIX = re.compile(rf"(?<=.)_({_SPLIT})$")
_EPOCHS = frozenset({"epoch", "epochs", "current_epoch", "cur_epoch", "epoch_num", "epoch_idx"})


class Rank(NamedTuple):
    """How well a name fits, the smaller the better; equal ranks fit equally."""

    held_out: bool = False  # where the training's own number is wanted
    unknown: int = 0  # parts of the name that say something else
    synonym: int = 0
    written: int = 0  # 0 for a bare name, 1 with a prefix before a `/` or a `.`, more with one before a `_`


CHOSEN = Rank(synonym=-1)


def fits(name: str, chosen: Mapping[str, str]) -> dict[str, Rank]:
    """Our names that a column can stand for, and how well it fits each. What the user has chosen stands alone."""
    given = {ours: CHOSEN for ours, theirs in chosen.items() if theirs == name}
    if given:
        return given
    guessed = guess(name)
    return {} if guessed is None or guessed[0] in chosen else dict([guessed])


@lru_cache(maxsize=4096)
def guess(name: str) -> tuple[str, Rank] | None:
    """Our name for a column, and how well it fits; None for a column of something else.

    >>> guess("train/loss")
    ('loss', Rank(held_out=False, unknown=0, synonym=0, written=1))
    """
    label, rest = label_of(name), name.strip().rpartition(LABEL)[2]
    parts = _parts(rest)
    ours, base, others = _named(parts)
    if ours is None:
        return None
    words = {word for part in others for word in (part, *part.split("_"))}
    if ours in OF_THE_LOG and words & _AUXILIARY:
        return None
    if ours in SHARED and (label or (others and others[-1] != OURS)):
        return None
    unknown = bool(label) + sum(1 for part in others if part != "loss" and not _is_known(part))
    held_out = ours in OF_THE_LOG and not words.isdisjoint(HELD_OUT)
    written = int(len(parts) > 1) + 2 * (base not in parts and "/".join(parts) not in WHOLE)
    return ours, Rank(held_out, unknown, _PLACES[base][1], written)


def label_of(name: str) -> str:
    """The run that a column is of, where its name says so, as in exports of W&B; "" where it does not."""
    return name.strip().rpartition(LABEL)[0]


def _parts(name: str) -> list[str]:
    plain = re.sub(r"[-\s()\[\]{}]+", "_", name.lower())
    return [part.rstrip("_") or part for part in re.split(r"[/.]", plain) if part.strip("_")]


def _named(parts: list[str]) -> tuple[str | None, str, list[str]]:
    """What of ours the parts of a name say, the synonym by which they say it, and the parts beside it."""
    whole = WHOLE.get("/".join(parts))
    if whole is not None:
        return whole[0], whole[1], []
    for _ in parts[1:]:
        if parts[-1] in TRAINING | HELD_OUT | _NEUTRAL:
            parts = [parts[-1], *parts[:-1]]  # loss/train
    if not parts:
        return None, "", []
    *others, base = parts
    if base not in _PLACES and "loss" in others and f"{base}_loss" in _PLACES:
        base = f"{base}_loss"  # loss/train/total
    side = None if base in _PLACES else _PREFIX.match(base) or _SUFFIX.search(base)
    if side is not None:
        base, others = base[: side.start()] + base[side.end() :], [*others, side[1]]
    return (_PLACES[base][0], base, others) if base in _PLACES else (None, "", [])


def _is_known(part: str) -> bool:
    return part in _NEUTRAL or not {part, *part.split("_")}.isdisjoint(TRAINING | HELD_OUT)


@lru_cache(maxsize=4096)
def is_epoch(name: str) -> bool:
    """Whether a column holds epochs."""
    parts = _parts(name)
    return bool(parts) and parts[-1] in _EPOCHS


def is_shared(name: str) -> bool:
    """Whether a column bears a name of ours that other fields use too, with nothing that says that it is ours."""
    parts = _parts(name)
    return bool(parts) and parts[-1] in SHARED and OURS not in parts


def side_of(value: str) -> str:
    """Of which data something is, by a word such as `train_inner` or `validation`: "train", "eval", or "" if it does not say."""
    words = {word for part in _parts(value) for word in (part, *part.split("_"))}
    return "eval" if words & HELD_OUT else "train" if words & TRAINING else ""


def equal_best(candidates: Mapping[str, Rank]) -> list[str]:
    """The columns that fit best, all of those that fit equally, by name."""
    order = sorted(candidates, key=lambda name: (candidates[name], name))
    return [name for name in order if candidates[name] == candidates[order[0]]]


def listed(names: Iterable[str]) -> str:
    """At most ten names, short, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST_SHOWN} more" if len(every) > MOST_SHOWN else ""
    return ", ".join(map(shown, every[:MOST_SHOWN])) + more if every else "none"


TOKENS_UNIT = "tokens_unit"
UNITS = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "g": 1e9, "billion": 1e9, "t": 1e12, "trillion": 1e12}
COLUMN_OPTION, WHERE_OPTION = "--induction-column", "--induction-where"


@dataclass(frozen=True)
class Choice:
    """Names of ours -> columns of the log; columns -> what stands in the rows that count; how many tokens one of the log's is."""

    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    tokens_unit: float | None = None


def checked(columns: Mapping[str, object] | None, where: Mapping[str, object] | None = None) -> Choice:
    """The choice as it was made. Raises `ArgumentError` for names that are not ours, and values that name no column."""
    names = dict(columns or {})
    unit = names.pop(TOKENS_UNIT, None)
    for ours, theirs in names.items():
        if ours not in SYNONYMS:
            known = ", ".join((*SYNONYMS, TOKENS_UNIT))
            raise ArgumentError(f"`columns` must map names among {known} to names of the log, got {shown(ours)}")
        if not isinstance(theirs, str):
            raise ArgumentError(f"`columns[{ours!r}]` must be the name of a column of the log, got {shown(theirs)}")
    for column, value in (where or {}).items():
        if not isinstance(column, str) or isinstance(value, (bool, dict, list)) or value is None:
            raise ArgumentError(f"`where` must map columns of the log to a text or number, got {shown(column)}: {shown(value)}")
    return Choice(
        {ours: str(theirs) for ours, theirs in names.items()},
        {column: str(value) for column, value in (where or {}).items()},
        None if unit is None else _unit(unit),
    )


def _unit(given: object) -> float:
    text = str(given).strip().lower()
    try:
        size = UNITS[text] if text in UNITS else float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ArgumentError(f"`{TOKENS_UNIT}` must be how many tokens one of the log's is, as 1e9, k, M or B, got {shown(given)}")
    return size


def pairs(option: str, given: list[str]) -> dict[str, str]:
    """What was given as NAME=VALUE, again and again. Raises `ArgumentError` for something else, and a name given twice."""
    found: dict[str, str] = {}
    form = "NAME=COLUMN" if option.endswith("column") else "COLUMN=VALUE"
    for each in given:
        name, equals, value = each.partition("=")
        if not (name.strip() and equals and value.strip()):
            raise ArgumentError(f"{option} must be {form}, got {each!r}")
        if name.strip() in found:
            raise ArgumentError(f"{option} names {name.strip()!r} twice")
        found[name.strip()] = value.strip()
    return found


def say_column(ours: str, theirs: str) -> str:
    """How to choose a column: on the command line, and in Python. An ini or gate file has `induction_column` and `column`."""
    return f"{COLUMN_OPTION} {_quoted(f'{ours}={theirs}')} (in Python columns={{{ours!r}: {theirs!r}}})"


def say_where(column: str, value: str) -> str:
    """How to choose rows."""
    return f"{WHERE_OPTION} {_quoted(f'{column}={value}')} (in Python where={{{column!r}: {value!r}}})"


def _quoted(text: str) -> str:
    return shlex.quote(text.replace("\n", " ")[:300])
