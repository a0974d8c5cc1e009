"""Tensors out of single files, without running anything that these bring along, and without mapping them."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import os
import pathlib
import pickle
import re
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from pytest_induction import files
from pytest_induction.errors import RunError, first_line, reason
from pytest_induction.files import open_regular, tree_of
from pytest_induction.model.tensor_files import Header, check_torch_file, opened_archive, record_in, safetensors_header
from pytest_induction.runs.checkpoints.layout import Weights


def _of_numpy() -> list[Any]:
    """What an array or a number of numpy is made of, under the names that either of its versions writes."""
    multiarray: Any = np.zeros(0).__reduce__()[0]  # numpy's `_reconstruct`
    scalar: Any = np.float64(0).__reduce__()[0]
    both = [
        (each, f"{module}.multiarray.{each.__name__}")
        for module in ("numpy.core", "numpy._core")
        for each in (multiarray, scalar)
    ]
    codes = "?bBhHiIlLqQefdFDUS"
    return [*both, (np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype"), *{type(np.dtype(code)) for code in codes}]


HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    collections.deque,
    TorchVersion,
    dt.timedelta,
    dt.datetime,
    dt.date,
    *(getattr(pathlib, name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *_of_numpy(),
)


NESTED = (  # where trainers put the weights in a larger state
    ("state_dict",),
    ("model_state_dict",),
    ("state", "model"),
    ("model",),
    ("module",),
    ("net",),
)
STEPS = ("step", "global_step", "global_steps")
COUNTS = (  # what some trainers count their steps by, and others something else
    *(
        (outer, name)
        for outer in ("trainer", "trainer_state", "train_state", "training", "state", "meta", "progress")
        for name in STEPS
    ),
    *((name,) for name in ("step_count", "completed_steps", "current_step", "train_step", "optimizer_step", "num_updates")),
    *((name,) for name in ("iter_num", "iteration", "iter", "update", "steps")),
    ("state", "timestamp", "batch"),
    ("state", "timestamp", "Timestamp", "batch"),
)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> Weights:
    """All tensors of a safetensors file. Raises `RunError` for one that is not whole."""
    with _reading(path, "safetensors file"), open_regular(path) as stream:
        header = _header(stream, path)
        tensors = {name: _tensor(stream, header.begin, about) for name, about in header.tensors.items()}
    return Weights(checked(path, tensors), step_of(header.metadata))


def step_of_safetensors(path: Path) -> int | None:
    """The step in the metadata of a safetensors file. Raises `RunError` for one that is not whole."""
    with _reading(path, "safetensors file"), open_regular(path) as stream:
        return step_of(_header(stream, path).metadata)


def read_pickle(path: Path) -> Weights:
    """The tensors of the model in what `torch.save` wrote. Raises `RunError` for what cannot be read, or not safely."""
    loaded = _unpickled(path, "meta" if _has_offsets(path) else "cpu")
    tensors = model_state(path, loaded)
    strange = next((name for name, value in tensors.items() if value.layout != torch.strided), None)
    if strange is not None:
        raise RunError(f"`{strange}` in {path.name} is of the layout {tensors[strange].layout}, which is not read: save it dense")
    if any(value.is_meta for value in tensors.values()):
        with _reading(path, "file of weights"), open_regular(path) as stream:
            filled = _filled(stream, tensors)
        tensors = model_state(path, _unpickled(path, "cpu")) if filled is None else filled
    return Weights(checked(path, tensors), _first_step(path, loaded, [(name,) for name in STEPS]))


def steps_of_pickle(path: Path) -> tuple[int | None, int | None]:
    """The step that it states in so many words, and the one that it counts under another name."""
    loaded = _unpickled(path, "meta" if _has_offsets(path) else "cpu")
    return _first_step(path, loaded, [(name,) for name in STEPS]), _first_step(path, loaded, COUNTS)


def load_safely(file: BinaryIO, name: str, place: str = "cpu") -> Any:
    """What `torch.save` wrote, of tensors, plain values and what is harmless; else `RunError`. On `meta`, without the numbers.

    Nothing in it takes more memory than the file has bytes for.
    """
    try:
        check_torch_file(file, file.seek(0, os.SEEK_END))
    except OSError as error:
        raise RunError(f"{name} is no whole file of weights: {reason(error)}") from None
    file.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_allowed()):
            warnings.simplefilter("ignore")  # about formats of old, which are read all the same or refused below
            return torch.load(file, map_location=place, weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes a parser raise
        raise RunError(f"{name} {_refusal(error)}") from None


def model_state(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The tensors of the model in the state that a trainer saved. Raises `RunError` where there is no such thing."""
    if not isinstance(loaded, Mapping):
        raise RunError(f"{path.name} must hold a state dict, it holds a `{type(loaded).__name__}`: save model.state_dict()")
    inner = next((found for keys in NESTED if _has_tensors(found := _inside(loaded, keys))), loaded)
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if inner is loaded and any(name in loaded for name in STEPS):
        tensors = {name: value for name, value in tensors.items() if name not in STEPS}
    return tensors


def checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors. Raises `RunError` where there are none, or where they are those of one process of several."""
    if not tensors:
        raise RunError(f"{path.name} holds no tensors")
    empty = next((name for name, value in tensors.items() if value.is_meta), None)
    if empty is not None:
        raise RunError(f"`{empty}` in {path.name} has a shape and no numbers: it was saved from the device `meta`")
    spread = next((name for name, value in tensors.items() if hasattr(value, "device_mesh")), None)
    if spread is not None:
        raise RunError(f"{path.name} holds but a part of `{spread}`, from one of several processes: save the whole state dict")
    return tensors


def step_of(state: Any) -> int | None:
    """The step that a state or metadata says under a name that means nothing else."""
    if not isinstance(state, Mapping):
        return None
    return next((step for step in (whole(state.get(name)) for name in STEPS) if step is not None), None)


def whole(value: Any) -> int | None:
    """The number, if it is a whole one, also as a text (safetensors keeps no other) or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta and not value.is_complex():
        value = value.item()
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `RunError` where it is none."""
    try:
        return files.read_json(path, within=tree_of(path.parent))
    except (OSError, ValueError) as error:
        raise RunError(f"{path.parent.name}/{path.name} cannot be read: {reason(error)}") from None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:
        raise RunError(f"{path.name} is no whole {what}: {reason(error).splitlines()[0]}") from None


def _header(stream: BinaryIO, path: Path) -> Header:
    """What a safetensors file says of its tensors. Raises `RunError` for a type that is not read, `OSError` for the rest."""
    header = safetensors_header(stream, os.fstat(stream.fileno()).st_size)
    strange = next((name for name, about in header.tensors.items() if about["dtype"] not in DTYPES), None)
    if strange is not None:
        kind = header.tensors[strange]["dtype"]
        raise RunError(f"`{strange}` in {path.name} is of the type {kind}, which is not read: widen it first")
    return header


def _tensor(stream: BinaryIO, begin: int, about: Mapping[str, Any]) -> Tensor:
    first, end = about["data_offsets"]
    dtype = DTYPES[about["dtype"]]
    content = _bytes(stream, begin + first, end - first)
    return (torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)).reshape(about["shape"])


def _bytes(stream: BinaryIO, offset: int, size: int) -> bytearray:
    stream.seek(offset)
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]  # a file that is opened for bytes has it
        if not count:
            raise EOFError("it ends early")
        view = view[count:]
    return content


def _has_offsets(path: Path) -> bool:
    """Whether torch will tell where in the file each tensor lies, whose bytes are then those of this machine."""
    try:
        with open_regular(path) as stream, opened_archive(stream, os.fstat(stream.fileno()).st_size) as archive:
            order = next((name for name in archive.namelist() if name.endswith("/byteorder")), None)
            return order is None or record_in(archive, order).decode("ascii", "replace") == sys.byteorder
    except OSError:
        return False  # which reading it says


def _filled(stream: BinaryIO, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors with their numbers; None where torch does not say where these lie. Tensors that share memory go on doing so."""
    storages: dict[int, torch.UntypedStorage] = {}
    filled = {}
    size = left = os.fstat(stream.fileno()).st_size
    for name, empty in tensors.items():
        kind = empty.untyped_storage()
        offset = getattr(kind, "_checkpoint_offset", None)
        if offset is None or empty.is_quantized or type(empty) not in (Tensor, torch.nn.Parameter):
            return None
        if offset not in storages:
            left -= kind.nbytes()
            if left < 0 or offset + kind.nbytes() > size:
                raise EOFError("it ends early")
            content = _bytes(stream, offset, kind.nbytes())
            storages[offset] = torch.frombuffer(content or bytearray(1), dtype=torch.uint8).untyped_storage()
        place = (empty.storage_offset(), empty.size(), empty.stride())
        filled[name] = torch.empty(0, dtype=empty.dtype).set_(storages[offset], *place)
    return filled


def _unpickled(path: Path, place: str) -> Any:
    with _reading(path, "file of weights"), open_regular(path) as stream:
        return load_safely(stream, path.name, place)


def _first_step(path: Path, loaded: Any, places: Iterable[tuple[str, ...]]) -> int | None:
    """The first whole number at one of these places in a state."""
    for keys in places:
        value = _inside(loaded, keys)
        if isinstance(value, Tensor) and value.is_meta and value.numel() == 1:
            with _reading(path, "file of weights"), open_regular(path) as stream:
                filled = _filled(stream, {"": value})
            value = _inside(_unpickled(path, "cpu"), keys) if filled is None else filled[""]
        step = whole(value)
        if step is not None:
            return step
    return None


def _allowed() -> list[Any]:
    return list(HARMLESS)


def _inside(loaded: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        loaded = loaded.get(key) if isinstance(loaded, Mapping) else None
    return loaded


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())


def _refusal(error: Exception) -> str:
    """Why torch did not read a file, in a line."""
    message = str(error)
    needs = re.search(r"(?:GLOBAL|global:?|class|instance) ([\w]+(?:\.[\w]+)+)", message)
    if isinstance(error, pickle.UnpicklingError) and needs is not None:
        cure = "save model.state_dict() alone, or name it in torch.serialization.add_safe_globals in the factory's file"
        return f"needs `{needs[1]}`, which is more than weights and may run code: {cure}"
    if isinstance(error, pickle.UnpicklingError):
        reason = re.search(r"(Unsupported \w+ [^\n]*|Unsupported persistent[^\n]*)", message)
        return f"is no file of weights that can be read safely{': ' + reason[1] if reason else ''}"
    return f"is no whole file of weights: {first_line(error).split('. This is an internal')[0] or 'it ends early'}"
