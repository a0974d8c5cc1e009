"""One line of `snapshots.jsonl`: a snapshot as a JSON object. What is not finite has no number in JSON and becomes null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pytest_induction.runs.record import ARRAYS, NUMBERS, Floats, Snapshot

MOST_INLINE = 2048  # numbers of an array that stand in the line itself
DIGITS = 7  # of every number that is written: as many as float32 can tell apart


def from_line(line: bytes, beside: Callable[[str], Mapping[str, Floats]]) -> Snapshot:
    """The snapshot of a line; `beside` reads the arrays of a file that lies beside it. Raises `ValueError` and its like."""
    data = json.loads(line)
    step = data["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError(f"the step must be a whole number from 0 up, got {step!r}")
    arrays = beside(data["arrays"]) if "arrays" in data else {}
    known: dict[str, Any] = {name: float(data[name]) for name in (*NUMBERS, "seconds") if data.get(name) is not None}
    errors: dict[str, Any] = {name: _value(value) for name, value in data.get("errors", {}).items()}
    for name in ARRAYS:
        if name in data:
            known[name] = _value(data[name])
        if name in arrays:
            known[name] = arrays[name]
        if f"errors.{name}" in arrays:
            errors[name] = arrays[f"errors.{name}"]
    tokens = data.get("tokens")
    return Snapshot(
        step=step,
        tokens=None if tokens is None else int(tokens),
        errors=errors,
        n_sequences=int(data.get("n_sequences", 0)),
        fingerprint=str(data.get("fingerprint", "")),
        problem=str(data.get("problem", "")),
        **known,
    )


def _value(value: Any) -> float | Floats:
    return np.array(value, dtype=np.float32) if isinstance(value, list) else float(value)  # None becomes NaN


def to_line(snapshot: Snapshot) -> tuple[bytes, dict[str, Floats]]:
    """The line of a snapshot, without its end, and the arrays that are too large for it."""
    data: dict[str, Any] = {"step": snapshot.step}
    beside: dict[str, Floats] = {}
    for name in ("tokens", *NUMBERS, "seconds"):
        value = getattr(snapshot, name)
        if value is not None:
            data[name] = value if isinstance(value, int) else _rounded(value)
    for name in ARRAYS:
        _put(data, beside, name, name, getattr(snapshot, name))
    errors: dict[str, Any] = {}
    for name, value in snapshot.errors.items():
        _put(errors, beside, name, f"errors.{name}", value)
    rest = {
        "errors": errors,
        "n_sequences": snapshot.n_sequences,
        "fingerprint": snapshot.fingerprint,
        "problem": snapshot.problem,
    }
    data |= {name: value for name, value in rest.items() if value}
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode(), beside


def _put(data: dict[str, Any], beside: dict[str, Floats], name: str, name_beside: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, np.ndarray):
        data[name] = _rounded(value)
    elif value.size > MOST_INLINE:
        beside[name_beside] = np.ascontiguousarray(value, dtype=np.float32)
    else:
        data[name] = _plain(value.tolist())


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list) else _rounded(value)


def _rounded(value: float) -> float | None:
    """The number to seven digits; None for what is not finite, which JSON has no word for."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
