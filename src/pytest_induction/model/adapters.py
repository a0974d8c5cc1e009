"""Adapters as PEFT writes them: a directory that names its base, and the weights that are put on it, unmerged.

An adapter is believed only when every tensor of its file has arrived in the model, and the model has no other.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import InductionError, ModelError, reason
from pytest_induction.files import expanded, is_directory, is_file, is_there, read_json, tree_of
from pytest_induction.forward.calling import first_line, uncompiled
from pytest_induction.model.specs import ADAPTER_CONFIG

BASE = "base_model_name_or_path"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
OF_OTHERS = ("XLORA", "POLY")  # they name further adapters, or need a task for each row
NOT_COMPARED = {  # settings of an adapter that do not change what it does to a model
    BASE,
    "auto_mapping",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "lora_dropout",
    "module_dropout",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
INIT = "init_lora_weights"
HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva")  # the others change the base too


@dataclass(frozen=True)
class Adapter:
    """An adapter in a local directory: what its config says, and what the user calls it."""

    directory: Path
    settings: Mapping[str, Any]
    spec: str

    @property
    def base(self) -> str:
        """The name of its base. Raises `ModelError` where it has none."""
        named = self.settings.get(BASE)
        if not isinstance(named, str) or not named.strip():
            raise ModelError(f"the adapter {self.spec!r} names no base: write `{BASE}` into its {ADAPTER_CONFIG}")
        return named

    @property
    def local_base(self) -> Path | None:
        """The directory of its base, if there is one: beside the adapter, or from where we are."""
        named = expanded(self.base)
        return next((path for path in (self.directory / named, named) if is_directory(path)), None)


def read_adapter(directory: Path, spec: str) -> Adapter:
    """The adapter in a directory. Raises `ModelError`, one line, for one that cannot be had."""
    settings = _settings_in(directory, spec)
    if not any(is_file(directory / name) for name in WEIGHTS):
        raise ModelError(f"the adapter {spec!r} has no weights: expected {' or '.join(WEIGHTS)} beside its {ADAPTER_CONFIG}")
    if any(is_file(directory / name) for name in WHOLE):
        raise ModelError(f"{spec!r} holds a whole model and an adapter: put the adapter into a directory of its own")
    if settings.get("peft_type") in OF_OTHERS:
        raise ModelError(f"the adapter {spec!r} is of the kind {settings['peft_type']}, which is not loaded: use a factory")
    if settings.get("megatron_config"):
        raise ModelError(f"`megatron_config` in {ADAPTER_CONFIG} of {spec!r} would import a module that it names: use a factory")
    return Adapter(directory, settings, spec)


def _settings_in(directory: Path, spec: str) -> dict[str, Any]:
    try:
        settings = read_json(directory / ADAPTER_CONFIG, within=tree_of(directory))
    except (OSError, ValueError) as error:
        raise ModelError(f"{ADAPTER_CONFIG} of {spec!r} cannot be read: {reason(error)}") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{ADAPTER_CONFIG} of {spec!r} must hold a table of settings")
    return settings


def find_adapter(transformers: Any, place: str, spec: str, where: Mapping[str, Any]) -> Adapter | None:
    """The adapter at a local place or, where `where` allows it, of that name on the hub; None where it is another model."""
    if where.get("local_files_only") and is_there(place):
        return read_adapter(Path(place), spec) if is_file(Path(place) / ADAPTER_CONFIG) else None

    def here(name: str) -> str | None:
        found: str | None = transformers.utils.cached_file(
            place,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **where,
        )
        return found

    try:
        config = here(ADAPTER_CONFIG)
    except Exception:  # noqa: BLE001 - the loader of models says what is wrong
        return None
    if config is None:
        return None
    if here(WEIGHTS[0]) is None:
        here(WEIGHTS[1])
    return read_adapter(Path(config).parent, spec)


def check_peft(spec: str) -> None:
    """Raise `ModelError` where the library that adapters need is not there."""
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ModelError(f"{spec!r} is an adapter, and loading it needs peft: pip install 'pytest-induction[peft]'") from None


def on_base(adapter: Adapter, base: nn.Module) -> nn.Module:
    """The base with the adapter on it, as peft runs it. Raises `ModelError` where not all of the adapter fits it."""
    import peft

    place, spec = str(adapter.directory), adapter.spec
    with _telling(f"{spec!r} cannot be loaded"):
        tensors = peft.utils.load_peft_weights(place, device="cpu")
        kinds: Mapping[Any, Any] = peft.PEFT_TYPE_TO_CONFIG_MAPPING
        kind = kinds.get(adapter.settings.get("peft_type"))
        if kind is None:
            raise ModelError(
                f"the adapter {spec!r} is of the kind {adapter.settings.get('peft_type')!r}, which peft does not know"
            )
        settings = kind.from_pretrained(place)
        settings.inference_mode = True
        model: nn.Module = peft.PeftModel.from_pretrained(base, place, config=settings, torch_device="cpu")
    whole = model.state_dict()
    _check_arrived(model, tensors, spec, of_base=lambda key: key in whole)  # embeddings with new rows lie beside an adapter
    return model


def is_adapted(module: nn.Module) -> bool:
    """Whether a module is a `PeftModel`; peft is not imported to find out."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(uncompiled(module), peft.PeftModel)


def holds_adapter(module: nn.Module, tensors: Mapping[str, Tensor], place: Path) -> bool:
    """Whether what is stored is an adapter alone, which `module` is to take."""
    if is_file(place / ADAPTER_CONFIG) or place.name in WEIGHTS:
        return True
    if not is_adapted(module):
        return False
    return bool(tensors.keys() & (_state(uncompiled(module)).keys() - uncompiled(module).state_dict().keys()))


def fill_adapter(module: nn.Module, tensors: Mapping[str, Tensor], place: Path, name: str) -> None:
    """Put a stored adapter into a `PeftModel`, whole or not at all. Raises `ModelError`, one line, where it does not fit."""
    import peft

    model: Any = uncompiled(module)
    if not is_adapted(model):
        raise ModelError(
            f"{name} holds an adapter, and the factory gives a `{type(model).__name__}`: let it return a `PeftModel`, or leave "
            "it out, so that the base is loaded that the adapter names"
        )
    if is_file(place / ADAPTER_CONFIG):
        _check_same_kind(model.peft_config[_active(model)], _settings_in(place, name), name)
    whole = model.state_dict()

    def of_base(key: str) -> bool:
        return key in whole and whole[key].shape == tensors[key].shape and _are_same(whole[key], tensors[key])

    _check_names(tensors, _state(model), name, of_base=of_base)
    with _telling(f"{name} cannot be loaded"):
        peft.set_peft_model_state_dict(model, dict(tensors), adapter_name=_active(model))
    _check_arrived(model, tensors, name, of_base=of_base)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Without warnings, which our own checks replace; whatever goes wrong inside is a `ModelError` of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InductionError:
        raise
    except Exception as error:  # whatever a broken file makes a parser raise
        raise ModelError(f"{what}: {type(error).__name__}: {_message(error)}") from error


def _message(error: Exception) -> str:
    """The words of an error; of one that begins with what it was doing, what it found wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else first_line(error)


def _active(model: Any) -> str:
    """The adapter that a model runs with. Raises `ModelError` where that is not one."""
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ModelError(
            f"the model runs with {len(active)} adapters, and a checkpoint holds one: activate the one that is meant"
        )
    return str(active[0])


def _state(model: Any) -> dict[str, Tensor]:
    """The tensors of a model's adapter, by the names that they are stored under."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, Tensor] = peft.get_peft_model_state_dict(model, adapter_name=_active(model), save_embedding_layers=False)
    return found


def _check_names(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str, *, of_base: Callable[[str], bool]
) -> None:
    """Raise `ModelError` unless a stored adapter has the tensors that the model's has, and none but those `of_base` besides."""
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} of the adapter's {len(wanted)} tensors, and they would be random: "
            f"the first is `{missing[0]}`"
        )
    left_over = sorted(key for key in tensors.keys() - wanted.keys() if not of_base(key))
    if left_over:
        raise ModelError(
            f"{name} has {len(left_over)} tensors that the adapted model has no place for, the first is `{left_over[0]}`; "
            "is it for another base, or another kind of adapter?"
        )
    for key, value in tensors.items():
        if key in wanted and value.shape != wanted[key].shape:
            raise ModelError(f"`{key}` in {name} has shape {tuple(value.shape)}, the model's has {tuple(wanted[key].shape)}")


def _check_arrived(model: nn.Module, tensors: Mapping[str, Tensor], spec: str, *, of_base: Callable[[str], bool]) -> None:
    """Raise `ModelError` unless the model now holds what is stored, and all that its adapter has was stored."""
    found = _state(model)
    _check_names(tensors, found, spec, of_base=of_base)
    whole = {**model.state_dict(), **found}
    for key, value in tensors.items():
        now = whole.get(key)
        if now is None or now.shape != value.shape or not _are_same(now, value):
            raise ModelError(f"`{key}` of {spec} was not loaded into the model: its base or the version of peft differs")


def _are_same(now: Tensor, stored: Tensor) -> bool:
    """Whether a tensor holds what is stored, as far as its type can."""
    return torch.allclose(now.cpu(), stored.to(now.dtype).cpu(), rtol=0, atol=0, equal_nan=True)


def _check_same_kind(ours: Any, stored: Mapping[str, Any], name: str) -> None:
    """Raise `ModelError` where an adapter was stored with other settings than the factory gives its own."""
    plain = json.loads(json.dumps(ours.to_dict(), default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
    for key in sorted(plain.keys() & stored.keys() - NOT_COMPARED):
        one, other = (each[key] for each in (plain, stored))
        same = one == other or (isinstance(one, list) and isinstance(other, list) and sorted(one) == sorted(other))
        harmless = key == INIT and one in HARMLESS_INITS and other in HARMLESS_INITS
        if not (same or harmless):
            raise ModelError(f"{name} was trained with `{key}` {other!r}, the factory's adapter has {one!r}")
    if stored.get("peft_type") not in (None, plain.get("peft_type")):
        raise ModelError(f"{name} is an adapter of the kind {stored['peft_type']}, the factory's is {plain.get('peft_type')}")
    bases = [each.get(BASE) for each in (plain, stored)]
    if _are_others(*bases):
        raise ModelError(f"{name} is an adapter for {bases[1]!r}, the factory's is on {bases[0]!r}")


def _are_others(one: Any, other: Any) -> bool:
    """Whether two names of a base are those of two models, as far as that can be told."""
    if not (isinstance(one, str) and isinstance(other, str) and one and other):
        return False
    places = [expanded(each) for each in (one, other)]
    if all(is_directory(place) for place in places):
        return places[0].resolve() != places[1].resolve()
    are_names = all(
        HUB_NAME.fullmatch(each) and "/" in each and not is_there(place) for each, place in zip((one, other), places, strict=True)
    )
    return are_names and one != other
