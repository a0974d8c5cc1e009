"""What a picture of a run shows, as plain lists: curves, the map of slopes along the context, the path of the training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_induction.head_score import CHANCE_OF
from pytest_induction.records import Change, Moment, Verdict
from pytest_induction.runs.phase_change.finding import PhaseChange, find_phase_changes, has_changed
from pytest_induction.runs.record import Axis, Hunted, TrainingRun
from pytest_induction.runs.trajectory import loss_slopes, principal_path
from pytest_induction.statistics import SHARE

Floats = NDArray[np.float64]
MOST_POINTS = 240  # of a curve: more than a picture has room for
MOST_HEADS = 32  # those with the highest scores
MOST_ADDED = 6  # scores of others
INDICES = 5  # curves of the loss along the context
CURVES = (("loss", "loss", "nats"), ("icl_score", "in-context learning score", "nats"))
ALSO = (  # drawn where they were recorded, and not missed elsewhere
    ("advantage", "advantage on repeated tokens", "nats"),
    ("common_advantage", "advantage on common ids", "nats"),
    ("rare_advantage", "advantage on rare ids", "nats"),
    ("markov_unigram_kl", "distance from the in-context unigram", "nats"),
    ("markov_bigram_kl", "distance from the in-context bigram", "nats"),
    ("in_context_preference", "preference for the row over the weights", "nats"),
    ("match_gain", "gain of three matching tokens over one", "nats"),
    ("foretold_gap", "tokens foretold by a match cost less by", "nats"),
)


def picture_of(run: TrainingRun, found: PhaseChange | None = None) -> dict[str, Any]:
    """What `report.run_picture` draws of a run: strings, numbers, lists and None.

    Places are logarithms (base 10) of tokens, or of steps where tokens are not known. `found` is what `find_phase_changes` found,
    which is else found here. `missing` names what was not recorded. Raises `RunError` for fewer than two snapshots.
    """
    found = find_phase_changes(run) if found is None else found
    axis = Axis.of(run)
    kept = _kept(axis.x)
    where = f"{len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}, from a {run.source}"
    picture: dict[str, Any] = {
        "title": run.name,
        "subtitle": where,
        "unit": "steps" if axis.tokens is None else "tokens",
        "range": [float(axis.x[0]), float(axis.x[-1])],
        "begins_at_0": not (run.steps[0] if axis.tokens is None else run.tokens[0]),
        "verdict": None if found.induction is None else str(found.induction.verdict),
        "window": _window(found.induction, axis),
        "reach": _window(found.induction, axis, "low", "high"),
        "changes": [_change(change, axis) for change in found.changes],
        "curves": [_curve(run, axis, kept, *each) for each in (*CURVES, *ALSO) if run.has(each[0])] + _of_best(run, axis, kept),
        "heads": _heads(run, axis, kept),
        "hunts": _hunts(run, axis),
        "n_heads": max((each.prefix_matching.size for each in run.snapshots if each.prefix_matching is not None), default=0),
        "index": [],
        "map": None,
        "path": None,
        "missing": [words for name, words, _ in CURVES if not run.has(name)],
    }
    parts = (("index_losses", "losses by token index", _along_context), ("token_losses", "losses of single tokens", _path))
    for name, words, part in parts:
        drawn = part(run, axis, kept, found) if run.has(name) else {}
        picture |= drawn
        if not any(drawn.values()):
            picture["missing"].append(words)
    if not picture["heads"]:
        picture["missing"].append("scores of heads")
    return picture


def _kept(x: Floats) -> set[int]:
    """The snapshots that are drawn: all, or of many those nearest to so many even parts of the axis."""
    if len(x) <= MOST_POINTS:
        return set(range(len(x)))
    return {int(np.abs(x - place).argmin()) for place in np.linspace(x[0], x[-1], MOST_POINTS)}


def _log(moment: Moment | None, axis: Axis, side: str = "value") -> float | None:
    if moment is None:
        return None
    estimate = moment.step if axis.tokens is None or moment.tokens is None else moment.tokens
    return float(np.log10(max(getattr(estimate, side), 1e-9)))


def _window(change: Change | None, axis: Axis, onset: str = "value", end: str = "value") -> list[float] | None:
    """Where induction formed, from onset to end, each the value or an end of its interval; None where it did not."""
    if change is None or change.verdict is Verdict.REFUTED or not has_changed(change):
        return None
    first, last = _log(change.onset, axis, onset), _log(change.end, axis, end)
    return None if first is None or last is None else [first, last]


def _change(change: Change, axis: Axis) -> dict[str, Any]:
    shown = change.midpoint if change.verdict is not Verdict.REFUTED else None
    return {
        "name": change.series.replace("_", " "),
        "verdict": str(change.verdict),
        "midpoint": _log(shown, axis),
        "low": _log(shown, axis, "low"),
        "high": _log(shown, axis, "high"),
    }


def _curve(run: TrainingRun, axis: Axis, kept: set[int], name: str, words: str, unit: str) -> dict[str, Any]:
    return _points(axis, kept, words, unit, run.column(name))


def _points(axis: Axis, kept: set[int], words: str, unit: str, values: Floats) -> dict[str, Any]:
    index = [place for place in np.flatnonzero(np.isfinite(values)).tolist() if place in kept]
    return {"name": words, "unit": unit, "x": axis.x[index].tolist(), "y": values[index].tolist()}


def _of_best(run: TrainingRun, axis: Axis, kept: set[int]) -> list[dict[str, Any]]:
    """The preference for longer matches, and each score of heads that does not come with the package: their best heads."""
    names = [name for name in run.added if not name.startswith(CHANCE_OF)][:MOST_ADDED]
    units = {"preference": "preference"} if run.has("preference") else {}
    units |= dict.fromkeys(names, SHARE)
    words = {name: f"{name.replace('_', ' ')}, best head" for name in names} | {"preference": "preference for the longer match"}
    return [_points(axis, kept, words[name], unit, run.best_of_heads(name)[0]) for name, unit in units.items()]


def _heads(run: TrainingRun, axis: Axis, kept: set[int]) -> list[dict[str, Any]]:
    """Prefix matching of each head, the highest ever first."""
    index = [place for place, each in enumerate(run.snapshots) if each.prefix_matching is not None and place in kept]
    if not index:
        return []
    scores = np.array([run.snapshots[place].prefix_matching for place in index], dtype=np.float64)
    highest = np.nanmax(np.where(np.isfinite(scores), scores, -1.0), axis=0)
    order = [head for head in np.argsort(-highest, axis=None).tolist() if highest.flat[head] >= 0][:MOST_HEADS]
    heads = []
    for place in order:
        layer, head = divmod(place, scores.shape[2])
        known = np.isfinite(scores[:, layer, head])
        x, y = axis.x[index][known], scores[known, layer, head]
        heads.append({"name": f"L{layer}H{head}", "x": x.tolist(), "y": y.tolist()})
    return heads


def _hunts(run: TrainingRun, axis: Axis) -> list[dict[str, Any]]:
    """What was hunted at which snapshots: where it holds, and the shortest period and fewest copies of what fails elsewhere."""
    found: dict[str, list[tuple[float, Hunted]]] = {}
    for place, snapshot in enumerate(run.snapshots):
        for name, hunted in snapshot.hunts.items():
            if hunted.holds is not None:
                found.setdefault(name, []).append((float(axis.x[place]), hunted))
    return [_hunt(name, looked) for name, looked in found.items()]


def _hunt(name: str, looked: list[tuple[float, Hunted]]) -> dict[str, Any]:
    failing = [(x, hunted) for x, hunted in looked if not hunted.holds]
    last = failing[-1][0] if failing else None
    after = [x for x, _ in looked if last is None or x > last]
    return {
        "name": name,
        "x": [x for x, _ in looked],
        "period": [hunted.shortest_period for _, hunted in looked],
        "copies": [hunted.fewest_copies for _, hunted in looked],
        "holds": [x for x, hunted in looked if hunted.holds],
        "fails": [x for x, _ in failing],
        "from": after[0] if after else None,
        "texts": [", ".join(map(repr, hunted.counterexample)) or f"holds on {hunted.n_examples}" for _, hunted in looked],
    }


def _along_context(run: TrainingRun, axis: Axis, kept: set[int], found: PhaseChange) -> dict[str, Any]:
    """Losses of a few bins of token numbers, and the map of slopes between them."""
    index, tokens, losses = run.loss_by_index()
    drawn = [place for place, snapshot in enumerate(index.tolist()) if snapshot in kept]
    slopes = loss_slopes(losses[drawn], int(tokens[0]))
    x = axis.x[index[drawn]].tolist()
    bins = np.unique(np.linspace(0, len(slopes.bins) - 1, INDICES).round().astype(int)).tolist()
    curves = [{"token": float(slopes.bins[b]), "x": x, "y": _plain(slopes.means[:, b])} for b in bins]
    rows = [_plain(column) for column in slopes.slopes.T]
    return {"index": curves, "map": {"x": x, "tokens": slopes.tokens.tolist(), "slopes": rows}}


def _plain(values: Floats) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _path(run: TrainingRun, axis: Axis, kept: set[int], found: PhaseChange) -> dict[str, Any]:
    """The path on its principal plane, which snapshots lie in the window, and which is nearest to the turn."""
    index, losses = run.token_losses()
    drawn = [place for place, snapshot in enumerate(index.tolist()) if snapshot in kept]
    if len(drawn) < 3 or losses.shape[1] < 2 or not np.ptp(losses, axis=0).any():
        return {"path": None}
    path = principal_path(losses, 2)
    x = axis.x[index[drawn]]
    window, turn = _window(found.induction, axis), None
    if found.turn is not None and found.turn.verdict is Verdict.SHOWN:
        turn = int(np.abs(x - (_log(found.turn.midpoint, axis) or 0.0)).argmin())
    inside = [] if window is None else np.flatnonzero((x >= window[0]) & (x <= window[1])).tolist()
    return {
        "path": {
            "x": path.places[drawn, 0].tolist(),
            "y": path.places[drawn, 1].tolist(),
            "at": x.tolist(),
            "shares": path.shares.tolist(),
            "inside": inside,
            "turn": turn,
            "turn_at": None if turn is None or found.turn is None else _log(found.turn.midpoint, axis),
        }
    }
