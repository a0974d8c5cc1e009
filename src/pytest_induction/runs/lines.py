"""One line of `snapshots.jsonl`: a snapshot as a JSON object. What is not finite has no number in JSON and becomes null."""

from __future__ import annotations

import base64
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pytest_induction.formatting import in_json
from pytest_induction.probes.sequences import ProbeSequence
from pytest_induction.ranges import MASS, SCORES, Range, error_of
from pytest_induction.runs.record import ARRAYS, BY_ROW, HEADS, NUMBERS, Floats, Hunted, Snapshot, TrainingRun
from pytest_induction.schema import Unfit, parsed, read, shown

COUNTS = ("shortest_period", "fewest_copies")
TEXTS = ("failure", "problem")


def hunts_to(hunts: Mapping[str, Hunted]) -> dict[str, dict[str, Any]]:
    """Each property -> what was found, without what is empty."""
    return {name: _plain_hunt(hunted) for name, hunted in hunts.items()}


def hunts_from(data: Any) -> dict[str, Hunted]:
    """The inverse. Raises `Unfit` for whatever is not what it must be; names that are not known are passed over."""
    try:
        return read(dict[str, Hunted], data, more=True)
    except Unfit as error:
        raise error.within(".hunts") from None


def _plain_hunt(hunted: Hunted) -> dict[str, Any]:
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


def hunted_steps(run: TrainingRun, label: str) -> list[tuple[int, Hunted]]:
    """At which snapshots of the run this was hunted, places in it, and what was found."""
    return [(place, each.hunts[label]) for place, each in enumerate(run.snapshots) if label in each.hunts]


def labels_of(run: TrainingRun) -> list[str]:
    """What was hunted in the run."""
    return list(dict.fromkeys(label for each in run.snapshots for label in each.hunts))


ADDED = "added."  # before the name of a score that does not come with the package
ADDED_NAME = re.compile(r"added\.[a-z][a-z0-9_]{,99}")
MOST_INLINE = 2048  # numbers of an array that stand in the line itself
BY_ROWS = "rows."  # before the name of a value of which each row's is kept
# Lists that stand there as base64: a half or a third as long, and exact.
PACKED = ("icl_rows", "token_losses", "index_losses", *(f"{BY_ROWS}{name}" for name in BY_ROW))
TYPES: dict[str, np.dtype[np.floating[Any]]] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4")}
DIGITS = 7  # of every number that is written: as many as float32 can tell apart


def from_line(line: bytes, beside: Callable[[str], Mapping[str, Floats]]) -> Snapshot:
    """The snapshot of a line; `beside` reads the arrays of a file that lies beside it.

    Raises `ValueError` for whatever is not what it must be, and what json and `beside` raise. Names that are not known are
    passed over: a later version may write more.
    """
    data = parsed(line)
    if not isinstance(data, dict) or "step" not in data:
        raise ValueError("it is no object with a step")
    arrays = beside(data["arrays"]) if "arrays" in data else {}
    known: dict[str, Any] = {
        name: _number(name, data[name], SCORES[name]) for name in (*NUMBERS, "seconds") if data.get(name) is not None
    }
    packed = _unpacked(data.get("packed", {})) | _lying_rows(arrays)
    rows = {name.removeprefix(BY_ROWS): values for name, values in packed.items() if name.startswith(BY_ROWS)}
    known |= _arrays(data, arrays, "") | {name: values for name, values in packed.items() if not name.startswith(BY_ROWS)}
    added = _added(data.get("added", {}), arrays)
    spreads = _object("errors", data.get("errors", {}))
    errors: dict[str, Any] = {name: _spread(name, spreads[name]) for name in NUMBERS if name in spreads}
    errors |= _arrays(spreads, arrays, "errors.")
    _check_shapes({**known, **{f"errors.{name}": value for name, value in errors.items()}}, added)
    return Snapshot(
        step=_count("step", data["step"]),
        tokens=None if data.get("tokens") is None else _count("tokens", data["tokens"]),
        errors=errors,
        rows=rows,
        hunts=hunts_from(data.get("hunts", {})),
        added=added,
        n_sequences=_count("n_sequences", data.get("n_sequences", 0)),
        fingerprint=_text("fingerprint", data.get("fingerprint", "")),
        problem=_text("problem", data.get("problem", "")),
        **known,
    )


def _number(name: str, value: Any, known: Range) -> float:
    """A number within its range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise Unfit(f"must be a number, got {shown(value)}", f".{name}")
    problem = known(value)
    if problem:
        raise Unfit(problem, f".{name}")
    return float(value)


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit(f"must be an object, got {shown(value)}", f".{name}")
    return value


def _spread(name: str, value: Any) -> float:
    """A standard error; that of a single row is not known and was written as null."""
    return math.nan if value is None else _number(f"errors.{name}", value, error_of(name))


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not SCORES[name].holds(value):
        raise Unfit(f"must be a whole number from 0 up, got {shown(value)}", f".{name}")
    return value


def _text(name: str, value: Any) -> str:
    try:
        return read(str, value)
    except Unfit as error:
        raise error.within(f".{name}") from None


def _arrays(data: Mapping[str, Any], beside: Mapping[str, Floats], prefix: str) -> dict[str, Floats]:
    """The arrays of a line, whether they stand in it or beside it."""
    found = {name: _array(f"{prefix}{name}", _listed(f"{prefix}{name}", data[name])) for name in ARRAYS if name in data}
    lying = {name: beside[f"{prefix}{name}"] for name in ARRAYS if f"{prefix}{name}" in beside}
    return found | {name: _array(f"{prefix}{name}", values) for name, values in lying.items()}


def _lying_rows(beside: Mapping[str, Floats]) -> dict[str, Floats]:
    """Values of each row that are too many for the line."""
    return {name: _array(name, values) for name, values in beside.items() if name in PACKED and name.startswith(BY_ROWS)}


def _added(data: Any, beside: Mapping[str, Floats]) -> dict[str, Floats]:
    """Scores of heads that do not come with the package, in the line or beside it: shares, whatever they are."""
    found = {f"{ADDED}{name}": value for name, value in _object("added", data).items()}
    lying = {name: values for name, values in beside.items() if name.startswith(ADDED)}
    for name in (*found, *lying):
        if not ADDED_NAME.fullmatch(name):
            raise Unfit(f"must have names of lower-case letters, digits and _, got {shown(name.removeprefix(ADDED))}", ".added")
    arrays = {name: _listed(name, value) for name, value in found.items()} | lying
    return {name.removeprefix(ADDED): _array(name, values) for name, values in arrays.items()}


def _is_of_heads(name: str) -> bool:
    return name.startswith(ADDED) or (name.rpartition(".")[2] in HEADS and not name.startswith(BY_ROWS))


def _listed(name: str, value: Any) -> Floats:
    """Lists of numbers as an array, null as NaN. Texts and truth values, which numpy would take for numbers, are none."""
    rows = value if _is_of_heads(name) else [value]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"`{name}` must be lists of numbers")
    if not {kind for row in rows for kind in set(map(type, row))} <= {int, float, type(None)}:
        raise ValueError(f"`{name}` must hold nothing but numbers")
    return np.array(value, dtype=np.float64)  # raises `ValueError` for rows of different lengths


def _array(name: str, values: Floats) -> Floats:
    dimensions = 2 if _is_of_heads(name) else 1
    if values.dtype.kind != "f" or values.ndim != dimensions or values.size == 0:
        raise ValueError(f"`{name}` must be numbers in {dimensions} dimensions, got {values.dtype} {values.shape}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    score, is_error = name.rpartition(".")[2], name.startswith("errors.")
    known = MASS if name.startswith(ADDED) else error_of(score) if is_error else SCORES[score]
    wrong = (values < known.least) | (values > known.most)  # NaN, of a head that there is not, is neither
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), values.shape)
        raise Unfit(known(float(values[place])), f".{name}{''.join(f'[{index}]' for index in place)}")
    return values


def _unpacked(packed: Any) -> dict[str, Floats]:
    """Lists that stand in the line as the type of their numbers and their bytes in base64."""
    packed, found = _object("packed", packed), {}
    for name in PACKED:
        if name in packed:
            kind, _, content = _text(name, packed[name]).partition(":")
            if kind not in TYPES:
                raise ValueError(f"`{name}` must be packed as {' or '.join(TYPES)}")
            found[name] = _array(name, np.frombuffer(base64.b64decode(content, validate=True), dtype=TYPES[kind]))
    return found


def _packed(values: Floats) -> str:
    """The numbers as bytes in base64, in half precision where that is exact; what is not finite as NaN."""
    values = _compact(np.where(np.isfinite(values), values, np.nan))
    kind = "f2" if values.itemsize == 2 else "f4"
    return f"{kind}:{base64.b64encode(values.astype(TYPES[kind]).tobytes()).decode()}"


def _compact(values: Floats) -> Floats:
    """The same in half precision where that loses nothing, else in single precision."""
    single = np.ascontiguousarray(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        half = single.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), single, equal_nan=True) else single


def _check_shapes(arrays: Mapping[str, Any], added: Mapping[str, Floats]) -> None:
    """All scores are of the same heads, and so are their standard errors."""
    shapes = {value.shape for name, value in arrays.items() if _is_of_heads(name)} | {value.shape for value in added.values()}
    if len(shapes) > 1:
        raise ValueError(f"the scores of heads have different shapes: {', '.join(map(str, sorted(shapes)))}")


def to_line(snapshot: Snapshot) -> tuple[bytes, dict[str, Floats]]:
    """The line of a snapshot, without its end, and the arrays that are too large for it."""
    data: dict[str, Any] = {"step": operator.index(snapshot.step)}
    if snapshot.tokens is not None:
        data["tokens"] = int(snapshot.tokens)
    beside: dict[str, Floats] = {}
    for name in (*NUMBERS, "seconds"):
        value = getattr(snapshot, name)
        if value is not None:
            data[name] = _rounded(value)
    packed: dict[str, Any] = {}
    for name in ARRAYS:
        _put(packed if name in PACKED else data, beside, name, name, getattr(snapshot, name))
    for name, values in snapshot.rows.items():
        _put(packed, beside, f"{BY_ROWS}{name}", f"{BY_ROWS}{name}", values)
    if packed:
        data["packed"] = packed
    errors: dict[str, Any] = {}
    for name, value in snapshot.errors.items():
        _put(errors, beside, name, f"errors.{name}", value)
    added: dict[str, Any] = {}
    for name, value in snapshot.added.items():
        _put(added, beside, name, f"{ADDED}{name}", value)
    rest = {
        "errors": errors,
        "added": added,
        "hunts": hunts_to(snapshot.hunts),
        "n_sequences": operator.index(snapshot.n_sequences),
        "fingerprint": snapshot.fingerprint,
        "problem": snapshot.problem,
    }
    data |= {name: value for name, value in rest.items() if value}
    return in_json(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))).encode(), beside


def _put(data: dict[str, Any], beside: dict[str, Floats], name: str, name_beside: str, value: Any) -> None:
    if value is None or np.size(value) == 0:
        return
    if not isinstance(value, np.ndarray):
        data[name] = _rounded(value)
    elif value.size > MOST_INLINE:
        beside[name_beside] = _compact(value) if name_beside in PACKED else np.ascontiguousarray(value, dtype=np.float32)
    elif name_beside in PACKED:
        data[name] = _packed(value)
    else:
        data[name] = _plain(value.tolist())


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list) else _rounded(value)


def _rounded(value: float) -> float | None:
    """The number to seven digits; None for what is not finite, which JSON has no word for."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
