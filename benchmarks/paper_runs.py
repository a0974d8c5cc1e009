"""What was measured of the zoo, for the paper's table: its kinds of models, their runs, which heads are what, and the windows."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pytest_induction import load_run
from pytest_induction.errors import RunError
from pytest_induction.heads.criteria import MIN_PREFIX_MATCHING, MIN_PREVIOUS_TOKEN
from pytest_induction.runs import PhaseChange, TrainingRun, find_phase_changes

ROOT = Path(__file__).parents[1]
COMMAND = "python fixtures/make.py zoo"
INDUCTION, PREVIOUS_TOKEN = MIN_PREFIX_MATCHING, MIN_PREVIOUS_TOKEN  # scores at the end of a run, from which a head counts as one
OTHER, PREVIOUS, INDUCES = 0, 1, 2  # what a head is
FIRST_STEP = 10  # that is drawn: before it next to nothing happens on an axis of logarithms
CAUSES = ("qk_trace", "qk_eigenvalue", "before_and_after", "in_context", "in_context_full")
SCHEMA = 1
PARTS = ("run.json", "snapshots.jsonl", "causes.json")  # the last is written last


@dataclass(frozen=True)
class Kind:
    """One kind of model: `name` is what its runs begin with, `heading` and `detail` are what a reader sees."""

    name: str
    heading: str
    detail: str
    parameters: int
    is_natural: bool = False

    @property
    def family(self) -> str:
        """What it shares with the kinds that differ from it in the number of layers only."""
        return re.sub(r"\d+l", "", self.name)

    @property
    def is_one_layer(self) -> bool:
        return "1l" in self.name.split("-")

    def __str__(self) -> str:
        return f"{self.heading}, {self.detail}{', natural text' if self.is_natural else ''}"


@dataclass(frozen=True, eq=False)
class Measured:
    """One run of the zoo. `causes` are (snapshots, layers, heads), at the `steps`, None where a model has no such number.

    `window` is in log10 tokens, from the snapshot before the onset of the change to that after its end. Of a run that has no
    change (`is_change` false) it is the mean one of its kind's family, None where that has none either.
    """

    kind: Kind
    seed: int
    run: TrainingRun
    steps: np.ndarray
    causes: Mapping[str, np.ndarray | None]
    window: tuple[float, float] | None
    is_change: bool

    @property
    def name(self) -> str:
        return f"{self.kind.name}-s{self.seed}"

    @cached_property
    def found(self) -> PhaseChange:
        return find_phase_changes(self.run)

    @cached_property
    def x(self) -> np.ndarray:
        """log10 of the tokens trained on at every snapshot, -inf before the first step, (snapshots,)."""
        with np.errstate(divide="ignore"):
            return np.log10(self.run.tokens)

    @cached_property
    def drawn(self) -> np.ndarray:
        """Which snapshots are drawn along the axis of tokens, (snapshots,)."""
        return (self.run.steps >= FIRST_STEP) & (self.x > -np.inf)

    @cached_property
    def types(self) -> np.ndarray:
        """What each head is at the end: OTHER, PREVIOUS or INDUCES, (layers, heads)."""
        end = self.run.snapshots[-1]
        matches, before = (np.array(each, dtype=np.float64) for each in (end.prefix_matching, end.previous_token))
        return np.where(matches >= INDUCTION, INDUCES, np.where(before >= PREVIOUS_TOKEN, PREVIOUS, OTHER))

    def x_of(self, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """log10 of the tokens at some steps that were recorded."""
        return self.x[np.searchsorted(self.run.steps, steps)]

    def values(self, name: str) -> np.ndarray | None:
        """One of the causes, (snapshots, layers, heads); what an ablation does to a change only where there is one."""
        return None if name == "before_and_after" and not self.is_change else self.causes[name]


Zoo = dict[Kind, list[Measured]]  # the runs of a kind by their seeds


def read_zoo(root: Path, kinds: Iterable[Kind], seeds: Sequence[int]) -> Zoo:
    """All runs of the kinds; of natural text those that there are. Ends with one line where another is missing."""
    zoo: Zoo = {}
    for kind in kinds:
        names = {seed: f"{kind.name}-s{seed}" for seed in seeds}
        there = {seed: name for seed, name in names.items() if all((root / name / part).is_file() for part in PARTS)}
        for name in [] if kind.is_natural else sorted({*names.values()} - {*there.values()}):
            raise SystemExit(f"the zoo has no {name}: train and measure what is missing with `{COMMAND}`")
        if there:
            zoo[kind] = [_read(root / name, kind, seed) for seed, name in there.items()]
    _check_are_of_the_same_tokens(zoo)
    return _with_windows(zoo)


def _read(place: Path, kind: Kind, seed: int) -> Measured:
    try:
        run, raw = load_run(place), json.loads((place / "causes.json").read_text(encoding="utf-8"))
    except (RunError, ValueError) as error:
        raise SystemExit(f"{place.name} cannot be read: {error}; make it again with `{COMMAND} {place.name}`") from None
    steps = np.array(raw.get("steps", ()), dtype=np.int64)
    if raw.get("schema") != SCHEMA or not np.isin([*steps, *raw["window"]], run.steps).all():
        raise SystemExit(f"causes.json of {place.name} is not of its run: make it again with `{COMMAND} {place.name}`")
    causes = {name: _array(raw[name]) for name in CAUSES}
    found = Measured(kind, seed, run, steps, causes, None, bool(raw["is_change"]))
    first, last = found.x_of(raw["window"])
    return replace(found, window=(float(first), float(last))) if found.is_change else found


def _array(rows: Sequence[Any]) -> np.ndarray | None:
    return None if rows[0] is None else np.array(rows, dtype=np.float64)


def _check_are_of_the_same_tokens(zoo: Zoo) -> None:
    """One plane for all is of the losses of the same tokens."""
    for kinds in blocks(zoo):
        first, *others = [one for kind in kinds for one in zoo[kind]]
        for one in others:
            if _tokens_of(one) != _tokens_of(first):
                raise SystemExit(f"{first.name} and {one.name} have losses of other tokens: make both again with `{COMMAND}`")


def _tokens_of(one: Measured) -> tuple[Any, ...]:
    """What the choice of tokens depends on, and how many they are."""
    return one.run.token_losses()[1].shape[1], one.run.about.get("seed"), one.run.about.get("probe")


def blocks(zoo: Zoo) -> list[list[Kind]]:
    """The kinds that are drawn side by side: those on synthetic text, and those on natural text if there are any."""
    parts = ([kind for kind in zoo if kind.is_natural is is_natural] for is_natural in (False, True))
    return [part for part in parts if part]


def _with_windows(zoo: Zoo) -> Zoo:
    """The same with the mean window, in tokens, of its family for each run that has no change."""
    windows: dict[str, list[tuple[float, float]]] = {}
    for one in (one for runs in zoo.values() for one in runs if one.window is not None):
        windows.setdefault(one.kind.family, []).append(one.window)
    means = {family: np.log10(np.mean(10 ** np.array(each), axis=0)) for family, each in windows.items()}
    return {kind: [_in_window(one, means.get(kind.family)) for one in runs] for kind, runs in zoo.items()}


def _in_window(one: Measured, mean: np.ndarray | None) -> Measured:
    return one if one.is_change or mean is None else replace(one, window=(float(mean[0]), float(mean[1])))


def kinds_of_the_zoo() -> tuple[list[Kind], tuple[int, ...]]:
    """The kinds as `fixtures/zoo.py` trains them, and their seeds."""
    sys.path.insert(0, str(ROOT / "fixtures"))
    from zoo import MODELS_OF_THE_ZOO, NATURAL, SEEDS

    every = [(name, training, name in NATURAL) for name, training in (MODELS_OF_THE_ZOO | NATURAL).items()]
    return [_kind(name, training, is_natural=natural) for name, training, natural in every], SEEDS


def _kind(name: str, training: Any, *, is_natural: bool) -> Kind:
    parts = [part for part, is_so in (("MLPs", training.d_mlp), ("smeared keys", training.smeared)) if is_so]
    heading = f"{training.n_layers} layer{'s' if training.n_layers > 1 else ''}"
    detail = f"with {' and '.join(parts)}" if parts else "attention only"
    return Kind(name, heading, detail, sum(each.numel() for each in training.build().parameters()), is_natural)
