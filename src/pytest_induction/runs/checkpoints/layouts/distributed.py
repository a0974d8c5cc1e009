"""torch.distributed.checkpoint: tensors cut over files, and `.metadata` that says where each piece lies."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_induction.errors import RunError, first_line, reason
from pytest_induction.files import is_file, names_in, open_regular, read_bytes, tree_of
from pytest_induction.model.pickles import check_pickle
from pytest_induction.model.tensor_files import LONGEST_METADATA, is_shape
from pytest_induction.runs.checkpoints.layout import NestedLayout, Weights, entries
from pytest_induction.runs.places import Place
from pytest_induction.schema import shown

if TYPE_CHECKING:
    from torch import Tensor

METADATA, BESIDE = ".metadata", "meta.pt"  # in the latter Lightning has what is no tensor
INNER = ("model", "model_and_optim", "pytorch_model_fsdp_0", "weights", "checkpoint", "app", "state")
_NOT_OF_THE_MODEL = re.compile(
    r"(.*\.)?(optim(?:izers?)?(?:_states?(?:_dict)?)?(?:_\d+)?|lr_schedulers?|schedulers?|data_?loader|rng\w*)(\.|$)"
)
_NOT_OF_THE_MODEL_AT_THE_TOP = re.compile(r"(train_state|trainer|step|global_step|epoch)(\.|$)")
_OF_TORCH = "torch.distributed.checkpoint."
_CLASSES = {  # what `.metadata` is made of; nothing else in it is loaded
    *((f"{_OF_TORCH}metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((f"{_OF_TORCH}metadata", name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    (f"{_OF_TORCH}metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_OF_TORCH}filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath", "WindowsPath")),
}


class Distributed(NestedLayout):
    """As torchtitan, FSDP2 with `dcp.save`, OLMo-core, Lightning, and accelerate and the Trainer under FSDP write it."""

    name = "torch.distributed.checkpoint"
    looks_like = f"a directory with {METADATA} and .distcp files (torchtitan, FSDP), or one with such a directory in it"

    def inner(self, place: Place, names: Sequence[str]) -> str | None:
        return _inner(place, names)

    def held(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in (METADATA, BESIDE) or name.endswith(".distcp")]

    def read(self, path: Path) -> Weights:
        stored = _Stored(path)
        tensors = {name: stored.tensor(name) for name in stored.of_the_model()}
        if not tensors:
            raise RunError(f"{path.name} holds no tensors of a model: its {METADATA} lists {stored.seen()}")
        return Weights(tensors, self.step(path))

    def step(self, path: Path) -> int | None:
        from pytest_induction.runs.checkpoints.stored import steps_of_pickle

        found = _Stored(path).step()
        return steps_of_pickle(path / BESIDE)[0] if found is None and is_file(path / BESIDE) else found


def _inner(place: Place, names: Sequence[str]) -> str | None:
    """The directory in it that holds `.metadata`, "" for itself; None where there is none."""
    if METADATA in names:
        return ""
    if any(name.endswith(".distcp") for name in names):
        return ""  # it was not finished, as reading it will say
    inside = (name for name in INNER if name in names)
    return next((name for name in inside if METADATA in entries(place / name)), None)


class _Stored:
    """What `.metadata` lists, and the pieces that it names."""

    def __init__(self, path: Path) -> None:
        from pytest_induction.runs.checkpoints import stored

        self._load, self._stored = stored.load_safely, stored
        inner = _inner(Place(path), Place(path).names())
        self._path, self._name = path / (inner or ""), path.name
        self._metadata = _metadata(self._path / METADATA, self._name)
        self._left = 2 * sum(size for name in names_in(self._path) if (size := _size(self._path / name)))
        self._where = {(index.fqn, _place(index.offset)): info for index, info in self._metadata.storage_data.items()}

    def seen(self) -> str:
        """What it lists, shortly."""
        names = list(self._metadata.state_dict_metadata)
        return ", ".join(f"`{name}`" for name in names[:3]) or "nothing"

    def of_the_model(self) -> Iterator[str]:
        """The names of the tensors that are neither an optimiser's nor a trainer's."""
        for name, about in self._metadata.state_dict_metadata.items():
            if hasattr(about, "chunks") and not _NOT_OF_THE_MODEL.match(name) and not _NOT_OF_THE_MODEL_AT_THE_TOP.match(name):
                yield name

    def step(self) -> int | None:
        """The step that a trainer stored beside the weights."""
        names = [name for name in self._metadata.state_dict_metadata if not _NOT_OF_THE_MODEL.match(name)]
        for name in sorted(names, key=lambda name: name.count(".")):
            if name.rpartition(".")[2] not in self._stored.STEPS and name != "train_state":
                continue
            about = self._metadata.state_dict_metadata[name]
            try:
                value = self.tensor(name) if hasattr(about, "chunks") else self._piece(name, None)
            except RunError:  # it is no plain value, or what is wrong shows with the weights
                continue
            found = self._stored.step_of(value) if isinstance(value, Mapping) else self._stored.whole(value)
            if found is not None:
                return found
        return None

    def tensor(self, name: str) -> Tensor:
        """A tensor, put together from its pieces. Raises `RunError` where they do not make all of it."""
        import torch

        about = self._metadata.state_dict_metadata[name]
        if not is_shape(about.size):
            raise RunError(f"`{name}` in {self._name} has a shape that is none")
        takes = math.prod(about.size) * about.properties.dtype.itemsize
        held = sum(self._info(name, chunk.offsets).length for chunk in about.chunks)
        if takes > held:
            raise RunError(f"`{name}` in {self._name} is not whole: it would take {takes} bytes, and its pieces have {held}")
        tensor = torch.empty(about.size, dtype=about.properties.dtype)
        filled = 0
        for chunk in about.chunks:
            piece = self._piece(name, chunk.offsets)
            target = tensor
            for axis, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(axis, offset, size)
            if not isinstance(piece, torch.Tensor) or piece.shape != target.shape:
                raise RunError(f"`{name}` in {self._name} is not what its {METADATA} says")
            target.copy_(piece)
            filled += target.numel()
        if filled != tensor.numel():
            raise RunError(f"`{name}` in {self._name} is not whole: {filled} of its {tensor.numel()} numbers are there")
        return tensor

    def _info(self, name: str, offset: Any) -> Any:
        """Where a piece lies. Raises `RunError` where that is nowhere in this directory."""
        info = self._where.get((name, _place(offset)))
        if info is None or Path(info.relative_path).name != info.relative_path:
            raise RunError(f"`{name}` in {self._name} lies nowhere that its {METADATA} says")
        is_count = all(type(number) is int and number >= 0 for number in (info.offset, info.length))
        if not is_count or info.length > self._left:
            raise RunError(f"`{name}` in {self._name} would have {shown(info.length)} bytes, more than there are")
        return info

    def _piece(self, name: str, offset: Any) -> Any:
        info = self._info(name, offset)
        self._left -= info.length  # many names of one piece are not to make more of it
        if getattr(info, "transform_descriptors", None):
            raise RunError(f"`{name}` in {self._name} is stored as {shown(info.transform_descriptors)}: save it as it is")
        try:
            with open_regular(self._path / info.relative_path, within=tree_of(self._path)) as stream:
                stream.seek(info.offset)
                content = stream.read(info.length)
        except (OSError, ValueError, OverflowError) as error:
            raise RunError(f"{info.relative_path} of {self._name} cannot be read: {reason(error)}") from None
        return self._load(io.BytesIO(content), f"{info.relative_path} of {self._name}")


def _size(path: Path) -> int:
    return path.stat().st_size if is_file(path) else 0


def _place(offset: Any) -> tuple[int, ...] | None:
    return None if offset is None else tuple(offset)


def _metadata(path: Path, name: str) -> Any:
    """What `.metadata` says. Raises `RunError` where it is missing, broken, or names anything that is not a part of one."""
    if not os.path.lexists(path):
        raise RunError(f"{name} has no {METADATA}, which is written last: its saving was broken off")
    try:
        content = read_bytes(path, LONGEST_METADATA, within=tree_of(path.parent))
        check_pickle(content)
        found = _Unpickler(io.BytesIO(content)).load()
        found.state_dict_metadata.items(), found.storage_data.items()
    except RunError as error:
        raise RunError(f"{METADATA} of {name} {error}") from None
    except OSError as error:
        raise RunError(f"{METADATA} of {name} cannot be read: {reason(error)}") from None
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes a parser raise
        raise RunError(f"{METADATA} of {name} cannot be read: {first_line(error)}") from None
    return found


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what `.metadata` is made of."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _CLASSES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise RunError(f"names `{module}.{name}`, which is not a part of it and may run code: it was not read")
