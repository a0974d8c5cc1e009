"""What was hunted at a snapshot, as it stands in a line of a run: plain numbers, lists and texts, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_induction.probes.answers import ProbeSequence
from pytest_induction.runs.record import Hunted

COUNTS = ("shortest_period", "fewest_copies")
TEXTS = ("said", "problem")


def hunts_to(hunts: Mapping[str, Hunted]) -> dict[str, dict[str, Any]]:
    """Each property -> what was found, without what is empty."""
    return {name: _plain(hunted) for name, hunted in hunts.items()}


def hunts_from(data: Any) -> dict[str, Hunted]:
    """The inverse. Raises `ValueError` for whatever is not what it must be; names that are not known are passed over."""
    if not isinstance(data, dict) or not all(isinstance(each, dict) for each in data.values()):
        raise ValueError("`hunts` must be an object of objects")
    return {name: _hunted(each) for name, each in data.items()}


def _plain(hunted: Hunted) -> dict[str, Any]:
    found: dict[str, Any] = {"n_examples": hunted.n_examples}
    found |= {name: value for name in (*COUNTS, *TEXTS) if (value := getattr(hunted, name)) not in (None, "")}
    if hunted.margin is not None and math.isfinite(hunted.margin):
        found["margin"] = float(f"{hunted.margin:.7g}")
    if hunted.is_replayed:
        found["is_replayed"] = True
    if hunted.counterexample:
        found["counterexample"] = [_sequence(each) for each in hunted.counterexample]
    return found


def _sequence(probe: ProbeSequence) -> dict[str, Any]:
    plain = {"tokens": list(probe.tokens), "period": probe.period, "repeats": probe.repeats, "breaks": list(probe.breaks)}
    rest = {"first": probe.first, "lures": [list(lure) for lure in probe.lures]}
    return plain | {name: value for name, value in rest.items() if value}


def _hunted(data: Mapping[str, Any]) -> Hunted:
    known: dict[str, Any] = {name: _count(name, data[name]) for name in COUNTS if name in data}
    known |= {name: data[name] for name in TEXTS if name in data}
    if not all(isinstance(known.get(name, ""), str) for name in TEXTS):
        raise ValueError("`said` and `problem` of a hunt must be texts")
    margin = data.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin)):
        raise ValueError("`margin` of a hunt must be a finite number")
    found = data.get("counterexample", [])
    if not isinstance(found, list):
        raise ValueError("`counterexample` must be a list of sequences")  # noqa: TRY004 - see `runs.lines`
    return Hunted(
        n_examples=_count("n_examples", data.get("n_examples", 0)),
        counterexample=tuple(map(_probe, found)),
        margin=margin,
        is_replayed=data.get("is_replayed") is True,
        **known,
    )


def _probe(data: Any) -> ProbeSequence:
    if not isinstance(data, dict) or not isinstance(data.get("tokens"), list):
        raise ValueError("`counterexample` must be a list of sequences")  # noqa: TRY004 - see `runs.lines`
    lists = {name: data.get(name, []) for name in ("tokens", "breaks", "lures")}
    if not all(isinstance(each, list) for each in lists.values()):
        raise ValueError("a sequence of a hunt must have lists of numbers")
    lures = tuple(tuple(lure) if isinstance(lure, list) else lure for lure in lists["lures"])
    sizes = {name: data[name] for name in ("period", "repeats") if name in data}
    plain: dict[str, Any] = {"tokens": tuple(lists["tokens"]), "breaks": tuple(lists["breaks"]), "lures": lures, **sizes}
    return ProbeSequence(**plain, first=data.get("first") is True)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` of a hunt must be a whole number from 0 up")
    return value
