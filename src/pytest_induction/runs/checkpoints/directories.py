"""Directories with the weights of one step, as transformers, peft, accelerate, OLMo and litgpt write them, or an own loop."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pytest_induction.errors import RunError, reason
from pytest_induction.files import DOCUMENT, inside, is_file, open_regular, tree_of
from pytest_induction.model.specs import ADAPTER_CONFIG, CONFIG
from pytest_induction.runs.checkpoints.layout import SHARD, Layout, Weights, is_weights
from pytest_induction.runs.checkpoints.single_files import Safetensors, TorchFile
from pytest_induction.runs.places import Place

INDICES = ("model.safetensors", "pytorch_model.bin")  # each alone, or as shards that an index names
TRAINER_STATE = "trainer_state.json"
EARLY = 2**16  # bytes of one with a very long history, which comes after the step


class Directory(Layout):
    """A directory with one file of weights, or an index and its shards, and what a trainer left beside them."""

    name = "a directory with one file of weights"
    looks_like = f"a directory with {' or '.join(INDICES)}, their shards and index, or one other file of weights"
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
        said = _trainer_step(path / TRAINER_STATE)
        return said if said is not None else next((step for step in steps if step is not None), None)


class Transformers(Directory):
    """As `save_pretrained` and the Trainer write it: its config says which model it is."""

    name = "Hugging Face transformers"
    looks_like = f"a directory with {CONFIG} and the weights, as save_pretrained and the Trainer write it"
    maker = "transformers"
    beside = (CONFIG,)
    is_only_these = True


class Adapter(Directory):
    """An adapter of PEFT, which names its base."""

    name = "PEFT adapters"
    looks_like = f"a directory with {ADAPTER_CONFIG} and adapter_model.safetensors"
    maker = "transformers"
    weights = ("adapter_model.safetensors", "adapter_model.bin")

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        del place
        return ADAPTER_CONFIG in names


class Accelerate(Directory):
    """As `Accelerator.save_state` writes it: weights, and random states of every process."""

    name = "accelerate"
    looks_like = "a directory with model.safetensors or pytorch_model.bin beside random_states_0.pkl"
    beside = ("random_states_0.pkl",)
    is_only_these = True


class Olmo(Directory):
    """An unsharded checkpoint of OLMo: the model beside the states of its optimiser and its trainer."""

    name = "OLMo"
    looks_like = "a directory with model.pt (or model.safetensors) beside train.pt"
    weights = ("model.safetensors", "model.pt")
    beside = ("train.pt",)
    is_only_these = True

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        return (name for name in super().parts(place, names) if name != "train.pt")


class LitGPT(Directory):
    """As litgpt writes it: `lit_model.pth`, and what model it is in a file of its own."""

    name = "litgpt"
    looks_like = "a directory with lit_model.pth, as litgpt writes it beside model_config.yaml"
    weights = ("lit_model.pth",)
    is_only_these = True


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
