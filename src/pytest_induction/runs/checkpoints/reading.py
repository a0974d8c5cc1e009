"""What a checkpoint holds, brought to this machine, read by its layout, and put into a module: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pytest_induction.errors import RunError
from pytest_induction.forward.calling import uncompiled
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.checkpoints.layout import DESCRIBES, Layout
from pytest_induction.runs.checkpoints.layouts import layout_at
from pytest_induction.runs.checkpoints.layouts.directory import Directory
from pytest_induction.runs.places import Place

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")  # what libraries put into names
DISTRIBUTED = "module"  # so does DistributedDataParallel; but it may be a name of the model's own


def fit(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What `load_state_dict` is to get: names of the module -> tensors, in the types of these.

    Names are compared without what wrappers put into them: `torch.compile`, FSDP, activation checkpointing and
    DistributedDataParallel, in the file and in the module. A prefix that all of a model's weights have in the file (`model.` of
    Lightning) or in the module (the attribute by which a wrapper of the user's own has it) is taken away. A weight that is
    missing in the file is another name of one that is there, or an error. Raises `RunError` of one line that says which tensor,
    what was expected, what was seen.
    """
    expected = state_of(module)
    matched = _matched(tensors, expected, name)
    given, wanted = matched.given, matched.wanted
    left_over = sorted(given.keys() - wanted.keys())
    if left_over:
        count = len(left_over)
        raise RunError(f"{name} has {count} tensors that the model lacks, the first is `{left_over[0]}`; is it the right model?")
    fitted = {wanted[key]: value for key, value in given.items() if key in wanted}
    for key, value in fitted.items():
        _check(key, expected[key], value, name)
    lying = {_lies(key, expected): value for key, value in fitted.items()}
    fitted |= {key: lying[_lies(key, expected)] for key in expected.keys() - fitted.keys()}
    _check_shared(expected, fitted, name)
    return fitted


def fill(module: nn.Module, fitted: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Copy what `fit` gave into the module, through the types that its weights had when it was made."""
    values = {key: value.to(dtypes[key]) for key, value in fitted.items()}
    uncompiled(module).load_state_dict(values, strict=True)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module keeps in its state. Raises `RunError` where it keeps anything else there."""
    state = uncompiled(module).state_dict()
    other = next((key for key, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise RunError(f"`{other}` of `{type(module).__name__}` is no tensor: checkpoints of such a model are not read")
    return state


@dataclass(frozen=True)
class _Matched:
    """Names that a file and a module have in common -> the tensor in the file, and -> the whole name in the module."""

    given: Mapping[str, Tensor]
    wanted: Mapping[str, str]


def _matched(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> _Matched:
    """The first way to read the names by which the file has all that the module needs. Raises `RunError` where there is none."""
    problem = ""
    for words in (WRAPPERS, (*WRAPPERS, DISTRIBUTED)):
        plain, names = ({_without(words, key): key for key in keys} for keys in (tensors, expected))
        if len(plain) < len(tensors) or len(names) < len(expected):
            continue  # two names became one
        for own in _common_prefixes(names):
            wanted = {key.removeprefix(own): whole for key, whole in names.items()}
            needed = _needed(wanted, expected)
            prefix, counts = _prefix(plain, wanted, needed, name)
            if prefix is not None:
                kept = {key.removeprefix(prefix): tensors[whole] for key, whole in plain.items() if key.startswith(prefix)}
                return _Matched(kept, wanted)
            problem = problem or _lacking(plain, needed, counts, name)
    raise RunError(problem)


def _without(words: Collection[str], key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in words)


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """What may stand before all names of a module, as a wrapper has the model as an attribute: nothing, `model.` and so on."""
    shared = [set(parts) for parts in zip(*(key.split(".")[:-1] for key in names), strict=False)]
    found = [""]
    for parts in shared:
        if len(parts) > 1 or any(part.isdigit() for part in parts):  # a number is a place in a list of layers
            break
        found.append(f"{found[-1]}{parts.pop()}.")
    return found


def _prefix(
    plain: Collection[str], wanted: Collection[str], needed: Sequence[Sequence[str]], name: str
) -> tuple[str | None, Mapping[str, int]]:
    """What stands before the names of the model's weights in the file, if all are there; and how many any prefix has.

    Raises `RunError` where the file has several such models.
    """
    counts: dict[str, int] = {"": sum(key in plain for key in wanted)}
    for key in plain:
        parts = key.split(".")
        for depth in range(1, len(parts)):
            if ".".join(parts[depth:]) in wanted:
                prefix = ".".join(parts[:depth]) + "."
                counts[prefix] = counts.get(prefix, 0) + 1
    whole = [prefix for prefix in counts if all(any(prefix + key in plain for key in keys) for keys in needed)]
    if "" in whole:
        return "", counts
    if len(whole) > 1:
        several = " and ".join(f"`{each}*`" for each in sorted(whole))
        raise RunError(f"{name} holds several such models, {several}: save the one that is meant")
    return (whole[0] if whole else None), counts


def _lacking(plain: Collection[str], needed: Sequence[Sequence[str]], counts: Mapping[str, int], name: str) -> str:
    """What the file lacks, by the prefix that most of the weights have."""
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    missing = [keys[0] for keys in needed if not any(best + key in plain for key in keys)]
    count = f"{len(missing)} of the model's {len(needed)}"
    return f"{name} lacks {count} tensors, the first is `{best}{missing[0]}`; is it the right model?"


def _needed(wanted: Mapping[str, str], expected: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each tensor of the model; tied ones have several, of which one is enough."""
    groups: dict[object, list[str]] = {}
    for key, full in wanted.items():
        groups.setdefault(_lies(full, expected), []).append(key)
    return list(groups.values())


def _lies(key: str, expected: Mapping[str, Tensor]) -> object:
    """Where a tensor of the model lies, the same for two names of one; its name where nothing lies anywhere."""
    value = expected[key]
    if value.is_meta or not value.numel() or value.layout != torch.strided:
        return key
    return value.data_ptr(), value.shape, value.stride()


def _check(key: str, expected: Tensor, value: Tensor, name: str) -> None:
    if value.shape != expected.shape:
        raise RunError(f"`{key}` in {name} has shape {tuple(value.shape)}, the model's has {tuple(expected.shape)}")
    kinds = [(each.is_floating_point(), each.is_complex()) for each in (value, expected)]
    if kinds[0] != kinds[1] or value.is_quantized or value.layout != torch.strided:
        raise RunError(f"`{key}` in {name} is {value.dtype} ({value.layout}), the model's is {expected.dtype}")


def _check_shared(expected: Mapping[str, Tensor], fitted: Mapping[str, Tensor], name: str) -> None:
    """Raise `RunError` where one tensor of the model is two different ones in the file: one would be lost."""
    first: dict[object, str] = {}
    for key in expected:
        other = first.setdefault(_lies(key, expected), key)
        if other != key and fitted[key] is not fitted[other] and not torch.equal(fitted[key], fitted[other]):
            raise RunError(f"`{other}` and `{key}` are one tensor in the model and two different ones in {name}")


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
            names = place.names()
            beside = [name for name in names if name.endswith(".json") or DESCRIBES.fullmatch(name)]
            for name in dict.fromkeys([*layout_of(place).parts(place, names), *beside]):
                _copy(place / name, copy / name)
        yield copy


def _copy(place: Place, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with place.open() as stream, path.open("wb") as target:
        shutil.copyfileobj(stream, target, 2**22)


def layout_of(place: Place) -> Layout:
    """The layout of what was found to be a checkpoint; where nothing in it tells, that of a directory, which will say so."""
    return layout_at(place) or Directory()


def stated_step(path: Path) -> int | None:
    """The step that a checkpoint states, at the cost of its header. Raises `RunError` where it cannot be read."""
    return layout_of(Place(path)).step(path)


def check_step(checkpoint: Checkpoint, stored: int | None) -> None:
    """Raise `RunError` where what a checkpoint says of its step is not what its name says."""
    if stored is not None and stored != checkpoint.step:
        raise RunError(
            f"{checkpoint.name} holds step {stored}, and its name says {checkpoint.step}: rename it, or find the right file"
        )
