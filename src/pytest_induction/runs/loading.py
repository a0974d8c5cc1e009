"""From a checkpoint to a model under test, which is made and tried out once as long as checkpoints are of one architecture.

A model that is kept gets every weight of the next checkpoint or none of them, and only if that gives what a new one would give.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import InductionError, ModelError, RunError
from pytest_induction.journal import attached
from pytest_induction.models.adapt import TRIALS, adapt
from pytest_induction.models.calling import Caller, as_found, device_of, logits_of
from pytest_induction.models.load import function_named, load_model, parse_device, parse_dtype
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.shown import Attach
from pytest_induction.models.weights import broken_weights
from pytest_induction.runs.checkpoints import CONFIG, DESCRIBES, Checkpoint
from pytest_induction.runs.fitting import LeftOver, fill, fit, state_of
from pytest_induction.runs.reading import check_step, on_this_machine, read_weights
from pytest_induction.runs.streams import first_line
from pytest_induction.specs import memory_size

Factory = str | Callable[[], nn.Module]


class FactoryError(ModelError):
    """What is to make the model does not; no checkpoint can be measured."""


@dataclass(frozen=True)
class Loading:
    """How checkpoints are loaded: what makes the model, where it runs, in which type, within how much memory."""

    factory: Factory | None = None
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None
    seed: int = 0
    attach: tuple[Attach, ...] = ()


@dataclass
class _Kept:
    """A model that may take the next checkpoint: of which architecture, and the types that its weights had when it was made."""

    subject: ModelUnderTest
    architecture: object
    dtypes: Mapping[str, torch.dtype]


class Loader:
    """Loads one checkpoint after the other; what it gave before is then no longer of use."""

    def __init__(self, how: Loading) -> None:
        self._how = how
        self._kept: _Kept | None = None
        self._is_safe: bool | None = None  # to keep what the factory makes; not known before a checkpoint has fitted it

    def load(self, checkpoint: Checkpoint) -> ModelUnderTest:
        """The model under test with these weights. Raises `InductionError`, one line, where it cannot be one."""
        if checkpoint.kind == "hub":
            self._kept = None  # before the next one is there: one in memory at a time
            return self._loaded(checkpoint.place, checkpoint.place)
        with on_this_machine(checkpoint) as path:
            weights = read_weights(path)
            check_step(checkpoint, weights.step)
            if self._how.factory is not None:
                return self._from_factory(weights.tensors, checkpoint.name)
            if not (path / CONFIG).is_file():
                raise RunError(f"{checkpoint.name} has no {CONFIG}: name what makes the model, --factory path/file.py:factory")
            return self._from_directory(path, weights.tensors, checkpoint.name)

    def _from_directory(self, path: Path, tensors: Mapping[str, Tensor], name: str) -> ModelUnderTest:
        architecture = _architecture(path, tensors)
        kept = self._kept
        if kept is not None and kept.architecture == architecture:
            module = kept.subject.module
            return _refilled(kept, fit(module, tensors, name, _unused(module, tensors)), name)
        self._kept = kept = None
        subject = self._loaded(str(path), name)
        try:
            fitted = fit(subject.module, tensors, name, _unused(subject.module, tensors))
        except LeftOver:
            raise
        except RunError:  # transformers renames or joins what is stored, and only its own loader can
            return subject
        if subject.way is not None and _holds(subject.module, fitted):
            self._kept = _Kept(subject, architecture, _dtypes(subject.module))
        return subject

    def _loaded(self, spec: str, name: str) -> ModelUnderTest:
        how = self._how
        try:
            subject = load_model(spec, device=how.device, dtype=how.dtype, seed=how.seed, memory=how.memory, attach=how.attach)
        except ModelError as error:
            raise type(error)(first_line(error).replace(repr(spec), name)) from error
        subject.name = name
        return subject

    def _from_factory(self, tensors: Mapping[str, Tensor], name: str) -> ModelUnderTest:
        kept = self._kept
        if kept is not None:
            return _refilled(kept, fit(kept.subject.module, tensors, name), name)
        if self._is_safe is None:
            used = self._made()
            before = _trial(used)  # whatever it keeps of its first pass, it has now
            fill(used, fit(used, tensors, name), _dtypes(used))
            refilled = _trial(used)
            del used
            module = self._filled(tensors, name)
            self._is_safe = _same(before, refilled, _trial(module))
        else:
            module = self._filled(tensors, name)
        dtypes = _dtypes(module)
        subject = self._adapted(module, name)
        if self._is_safe and subject.way is not None:
            self._kept = _Kept(subject, None, dtypes)
        return subject

    def _filled(self, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
        module = self._made()
        fill(module, fit(module, tensors, name), _dtypes(module))
        return module

    def _made(self) -> nn.Module:
        factory = self._how.factory
        named = factory if isinstance(factory, str) else getattr(factory, "__qualname__", repr(factory))
        try:
            made: Any = function_named(factory)() if isinstance(factory, str) else factory() if factory else None
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            said = first_line(error) if isinstance(error, InductionError) else f"{type(error).__name__}: {first_line(error)}"
            raise FactoryError(f"the factory {named!r} makes no model: {said}") from error
        if not isinstance(made, nn.Module):
            raise FactoryError(f"the factory {named!r} must return a torch module, it returned `{type(made).__name__}`")
        return made

    def _adapted(self, module: nn.Module, name: str) -> ModelUnderTest:
        how = self._how
        target, kind = parse_device(how.device), parse_dtype(how.dtype)
        module = module.to(device=target, dtype=kind)
        memory = None if how.memory is None else memory_size(how.memory)
        return adapt(module, name=name, seed=how.seed, memory=memory, attach=(*how.attach, *attached()))


def _refilled(kept: _Kept, fitted: Mapping[str, Tensor], name: str) -> ModelUnderTest:
    module = kept.subject.module
    fill(module, fitted, kept.dtypes)
    kept.subject.name = name
    broken = broken_weights(module)
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"the weight `{broken[0]}` of {name}{others} holds NaN or infinity")
    return kept.subject


def _dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in state_of(module).items()}


def _trial(module: nn.Module) -> Tensor | None:
    """The logits of a few tokens that every model has, or None where it does not run on them."""
    with as_found(module):
        for lengths in TRIALS:
            tokens = (torch.arange(lengths[0], device=device_of(module)) % 2)[None]
            try:
                return logits_of(Caller(module)(tokens), tokens)
            except Exception:  # noqa: BLE001, S112 - a model may be made for longer sequences, or for shorter ones
                continue
    return None


def _same(before: Tensor | None, refilled: Tensor | None, new: Tensor | None) -> bool | None:
    """Whether a model that was used before and refilled gives what a new one gives; None where weights are no numbers."""
    if new is not None and not bool(torch.isfinite(new).all()):
        return None
    return before is not None and refilled is not None and new is not None and torch.equal(refilled, new)


def _architecture(path: Path, tensors: Mapping[str, Tensor]) -> object:
    """What must be the same for the loader of transformers to do the same: config, tokenizer, and the weights' table."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(each.name for each in path.iterdir() if DESCRIBES.fullmatch(each.name)):
        content = (path / name).read_bytes()
        digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return digest.digest(), frozenset((name, value.shape, value.dtype) for name, value in tensors.items())


def _unused(module: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Tensors of a file that a model of transformers makes itself: buffers that older versions stored, and what it says."""
    patterns = (*(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq$")
    buffers = {name for name, _ in module.named_buffers()}
    return {name for name in tensors if name in buffers or any(re.search(pattern, name) for pattern in patterns)}


def _holds(module: nn.Module, fitted: Mapping[str, Tensor]) -> bool:
    """Whether the module has these very numbers."""
    state = state_of(module)
    return all(torch.equal(state[key].cpu(), value.to(state[key].dtype)) for key, value in fitted.items())
