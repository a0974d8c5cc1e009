"""Weights read from a file without running anything that it brings along: safetensors, or `torch.load(weights_only=True)`."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytest_induction.errors import RunError
from pytest_induction.runs.checkpoints import DESCRIBES, SHARD, Checkpoint, is_weights
from pytest_induction.runs.places import Place
from pytest_induction.runs.streams import first_line

NESTED = ("state_dict", "model_state_dict", "model", "module", "net")  # where trainers put the weights in a larger state
STEPS = ("step", "global_step")
TRAINER_STATE = "trainer_state.json"
INDICES = ("model.safetensors", "pytorch_model.bin")  # each alone, or as shards that an index names
LONGEST_JSON = 2**26  # bytes


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, as far as possible not read into memory but mapped; and the step that the file says."""

    tensors: Mapping[str, Tensor]
    step: int | None = None


@contextmanager
def on_this_machine(checkpoint: Checkpoint) -> Iterator[Path]:
    """A local path to the checkpoint inside the block: where it lies, or a copy of what is needed of it."""
    place = Place(checkpoint.place)
    if place.local is not None:
        yield place.local
        return
    with tempfile.TemporaryDirectory(prefix="induction-") as directory:
        copy = Path(directory) / Path(place.name).name
        if checkpoint.kind == "file":
            _copy(place, copy)
        else:
            copy.mkdir()
            for name in place.names():
                if is_weights(name) or name.endswith(".json") or DESCRIBES.fullmatch(name):
                    _copy(place / name, copy / Path(name).name)
        yield copy


def _copy(place: Place, path: Path) -> None:
    with place.open() as stream, path.open("wb") as target:
        shutil.copyfileobj(stream, target, 2**22)


def read_weights(path: Path) -> Weights:
    """The weights in a file or in a directory, sharded or not. Raises `RunError`, one line, for whatever they are not."""
    if path.is_dir():
        return _read_directory(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def check_step(checkpoint: Checkpoint, stored: int | None) -> None:
    """Raise `RunError` where what a checkpoint says of its step is not what its name says."""
    if stored is not None and stored != checkpoint.step:
        raise RunError(
            f"{checkpoint.name} holds step {stored}, and its name says {checkpoint.step}: rename it, or find the right file"
        )


def _read_directory(path: Path) -> Weights:
    parts = [read_weights(each) for each in _files(path)]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    said = _trainer_step(path / TRAINER_STATE)
    return Weights(tensors, said if said is not None else next((part.step for part in parts if part.step is not None), None))


def _files(path: Path) -> list[Path]:
    """The files of weights in a directory. Raises `RunError` where there are none, or some are missing."""
    for name in INDICES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    names = sorted(each.name for each in path.iterdir() if is_weights(each.name) and not SHARD.search(each.name))
    if len(names) != 1:
        seen = ", ".join(sorted(each.name for each in path.iterdir())[:5]) or "nothing"
        raise RunError(f"{path.name} must hold {' or '.join(INDICES)}, their shards, or one file of weights; it has {seen}")
    return [path / names[0]]


def _shards(index: Path) -> list[Path]:
    listed = _json(index)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and Path(name).name == name for name in names.values()):
        raise RunError(f"{index.parent.name}/{index.name} names no shards")
    files = [index.parent / name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise RunError(f"{index.parent.name} lacks {len(missing)} of its {len(files)} shards, the first is {missing[0]}")
    return files


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            return json.loads(stream.read(LONGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path.parent.name}/{path.name} cannot be read: {first_line(error)}") from None


def _trainer_step(path: Path) -> int | None:
    if not path.is_file():
        return None
    state = _json(path)
    return _whole(state.get("global_step")) if isinstance(state, dict) else None


def _read_safetensors(path: Path) -> Weights:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            said = file.metadata() or {}
    except Exception as error:  # noqa: BLE001 - safetensors has an error class of its own
        raise RunError(f"{path.name} is no whole safetensors file: {first_line(error)}") from None
    return Weights(_checked(path, tensors), _step(said))


def _read_pickle(path: Path) -> Weights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of old, which are read all the same or refused below
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes a parser raise
        raise RunError(f"{path.name} {_refusal(error)}") from None
    if not isinstance(loaded, Mapping):
        raise RunError(f"{path.name} must hold a state dict, it holds a `{type(loaded).__name__}`: save model.state_dict()")
    inner = next((loaded[name] for name in NESTED if _has_tensors(loaded.get(name))), loaded)
    tensors = {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}
    step = _step(loaded)
    if inner is loaded and step is not None:
        tensors = {name: value for name, value in tensors.items() if name not in STEPS}
    return Weights(_checked(path, tensors), step)


def _refusal(error: Exception) -> str:
    """Why torch did not read a file, in a line."""
    said = str(error)
    needs = re.search(r"(?:GLOBAL|global:?|class|instance) ([\w]+(?:\.[\w]+)+)", said)
    if isinstance(error, pickle.UnpicklingError) and needs is not None:
        cure = "save model.state_dict() alone, or name it in torch.serialization.add_safe_globals in the factory's file"
        return f"needs `{needs[1]}`, which is more than weights and may run code: {cure}"
    if isinstance(error, pickle.UnpicklingError):
        reason = re.search(r"(Unsupported \w+ [^\n]*|Unsupported persistent[^\n]*)", said)
        return f"is no file of weights that can be read safely{': ' + reason[1] if reason else ''}"
    return f"is no whole file of weights: {first_line(error).split('. This is an internal')[0] or 'it ends early'}"


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not tensors:
        raise RunError(f"{path.name} holds no tensors")
    spread = next((name for name, value in tensors.items() if hasattr(value, "device_mesh")), None)
    if spread is not None:
        raise RunError(f"{path.name} holds but a part of `{spread}`, from one of several processes: save the whole state dict")
    return tensors


def _step(said: Mapping[Any, Any]) -> int | None:
    return next((step for step in (_whole(said.get(name)) for name in STEPS) if step is not None), None)


def _whole(value: Any) -> int | None:
    """The number, if it is a whole one, also as a text (safetensors keeps no other) or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta and not value.is_complex():
        value = value.item()
    if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
