"""A directory with the weights of one step: one file, or shards and their index. Layouts of libraries derive from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pytest_induction.errors import RunError, reason
from pytest_induction.files import DOCUMENT, inside, is_file, open_regular, tree_of
from pytest_induction.runs.checkpoints.layout import SHARD, Layout, Weights, is_weights
from pytest_induction.runs.checkpoints.layouts.safetensors import Safetensors
from pytest_induction.runs.checkpoints.layouts.torch_file import TorchFile
from pytest_induction.runs.places import Place

INDICES = ("model.safetensors", "pytorch_model.bin")  # each alone, or as shards that an index names
TRAINER_STATE = "trainer_state.json"
EARLY = 2**16  # bytes of one with a very long history, which comes after the step


class WeightsDirectory(Layout, abstract=True):
    """A directory with one file of weights, or an index and its shards, and what a trainer left beside them."""

    weights: ClassVar[tuple[str, ...]] = INDICES
    """The names that the file of weights may have; tried in this order."""
    is_only_these: ClassVar[bool] = False
    beside: ClassVar[tuple[str, ...]] = ()
    """Files of which one must lie beside it."""

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        del place
        if self.beside and not any(name in names for name in self.beside):
            return False
        if any(name in names or f"{name}.index.json" in names for name in self.weights):
            return True
        return not self.is_only_these and any(is_weights(name) for name in names)

    def read(self, path: Path) -> Weights:
        parts = [_file(each).read(each) for each in self.files(path)]
        tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
        return Weights(tensors, self._stated(path, [part.step for part in parts]))

    def step(self, path: Path) -> int | None:
        return self._stated(path, [_file(each).step(each) for each in self.files(path)])

    def hinted_step(self, path: Path) -> int | None:
        return self._stated(path, [_file(each).hinted_step(each) for each in self.files(path)])

    def files(self, path: Path) -> list[Path]:
        """The files of weights. Raises `RunError` where there are none, some are missing, or links lead elsewhere."""
        found = self._named(path)
        try:
            return [Path(inside(each, tree_of(path))) for each in found]
        except OSError as error:
            raise RunError(f"{error.filename} cannot be read: {reason(error)}") from None

    def _named(self, path: Path) -> list[Path]:
        for name in self.weights:
            if os.path.lexists(path / name):
                return [path / name]
            index = path / f"{name}.index.json"
            if os.path.lexists(index):
                return _shards(index)
        held = Place(path).names()
        names = [name for name in held if is_weights(name) and not SHARD.search(name)]
        if len(names) != 1:
            seen = ", ".join(held[:5]) or "nothing"
            raise RunError(f"{path.name} must hold {' or '.join(INDICES)}, their shards, or one file of weights; it has {seen}")
        return [path / names[0]]

    def _stated(self, path: Path, steps: Sequence[int | None]) -> int | None:
        step_of_trainer = _trainer_step(path / TRAINER_STATE)
        return step_of_trainer if step_of_trainer is not None else next((step for step in steps if step is not None), None)


class Directory(WeightsDirectory):
    """One that nothing else tells more of, as loops of one's own write it."""

    name = "a directory with one file of weights"
    looks_like = f"a directory with {' or '.join(INDICES)}, their shards and index, or one other file of weights"
    is_of_a_library = False


def _file(path: Path) -> Layout:
    return Safetensors() if path.suffix == ".safetensors" else TorchFile()


def _shards(index: Path) -> list[Path]:
    from pytest_induction.runs.checkpoints.stored import read_json

    listed = read_json(index)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and Path(name).name == name for name in names.values()):
        raise RunError(f"{index.parent.name}/{index.name} names no shards")
    files = [index.parent / name for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not os.path.lexists(file)]
    if missing:
        raise RunError(f"{index.parent.name} lacks {len(missing)} of its {len(files)} shards, the first is {missing[0]}")
    return files


def _trainer_step(path: Path) -> int | None:
    from pytest_induction.runs.checkpoints.stored import read_json, whole

    if not os.path.lexists(path):
        return None
    if is_file(path) and path.stat().st_size > DOCUMENT:
        return _early_step(path)
    state = read_json(path)
    return whole(state.get("global_step")) if isinstance(state, dict) else None


def _early_step(path: Path) -> int | None:
    """The step that a state gives before its history."""
    try:
        with open_regular(path, within=tree_of(path.parent)) as stream:
            begun = stream.read(EARLY).partition(b'"log_history"')[0]
    except OSError as error:
        raise RunError(f"{path.parent.name}/{path.name} cannot be read: {reason(error)}") from None
    found = re.search(rb'"global_step"\s*:\s*(\d{1,15})\b', begun)
    return None if found is None else int(found[1])
