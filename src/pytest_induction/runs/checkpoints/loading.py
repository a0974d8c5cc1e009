"""From a checkpoint to a model under test, which is made and tried out once as long as checkpoints are of one architecture.

A model that is kept gets every weight of the next checkpoint or none of them, and only if that gives what a new one would give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pytest_induction.attention.backend import Attach
from pytest_induction.errors import InductionError, ModelError, RunError, because_of, first_line
from pytest_induction.files import is_file, read_json, tree_of
from pytest_induction.forward.calling import as_found, broken_weights, why_endless
from pytest_induction.model.adapt import adapt
from pytest_induction.model.adapters import fill_adapter, holds_adapter
from pytest_induction.model.conventions import find_conventions
from pytest_induction.model.factories import function_named
from pytest_induction.model.load import Loaded, load_module, module_of_config, parse_device, parse_dtype
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.model.specs import CONFIG, memory_size
from pytest_induction.observers import attached
from pytest_induction.runs.checkpoints.finding import Checkpoint
from pytest_induction.runs.checkpoints.layout import Layout
from pytest_induction.runs.checkpoints.reading import check_step, fill, fit, layout_of, on_this_machine, state_of
from pytest_induction.runs.options_named import Spelling, option
from pytest_induction.runs.places import Place
from pytest_induction.undoing import puts_back

Factory = str | Callable[[], nn.Module]


NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")  # in its config


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
    trust_remote_code: bool = False
    without_pattern: tuple[str, ...] = ()
    spelling: Spelling = "python"


@dataclass
class _Kept:
    """A model that may take the next checkpoint: of which architecture, and the types that its weights had when it was made.

    The architecture of what a factory makes is whether adapters alone are put into it.
    """

    subject: ModelUnderTest
    architecture: object
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stored:
    """The tensors of a checkpoint at a local path, which a factory's model is to take."""

    tensors: Mapping[str, Tensor]
    path: Path
    name: str

    def is_adapter_for(self, module: nn.Module) -> bool:
        """Whether they are an adapter alone, and the base stays what the factory made."""
        return holds_adapter(module, self.tensors, self.path)

    def fill(self, module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
        """Put them into the module, all or none; weights in the types that they had when it was made."""
        if self.is_adapter_for(module):
            fill_adapter(module, self.tensors, self.path, self.name)
        else:
            fill(module, fit(module, self.tensors, self.name), dtypes)


class Loader:
    """Loads one checkpoint after the other; what it gave before is then no longer of use."""

    def __init__(self, how: Loading) -> None:
        self._how = how
        self._make: Callable[[], nn.Module] | None = None
        self._kept: _Kept | None = None
        self._config = ""  # by which a model was made where no factory is given
        self._is_safe: bool | None = None  # to keep what the factory makes; not known before a checkpoint has fitted it

    def load(self, checkpoint: Checkpoint) -> ModelUnderTest:
        """The model under test with these weights. Raises `InductionError`, one line, where it cannot be one."""
        if checkpoint.kind == "hub":
            return self._of_transformers(checkpoint.place, checkpoint.place)
        if self._make is None and self._how.factory is not None:
            self._make = _imported(self._how.factory)  # before weights are read: its file may say which classes are safe in them
        with on_this_machine(checkpoint) as path:
            layout = layout_of(Place(path))
            if self._make is None and layout.maker == "transformers":
                check_step(checkpoint, layout.step(path))
                return self._of_transformers(str(path), checkpoint.name)
            make = self._make or self._of_config(layout, path, checkpoint)
            weights = layout.read(path)
            check_step(checkpoint, weights.step)
            return self._from_factory(make, _Stored(weights.tensors, path, checkpoint.name))

    def _of_config(self, layout: Layout, path: Path, checkpoint: Checkpoint) -> Callable[[], nn.Module]:
        """What makes the model by a config that lies beside the weights. Raises `RunError` where there is none."""
        directory = config_beside(path)
        if directory is None:
            layout.step(path)  # raises for what no factory would help
            raise RunError(lacks_factory(layout, checkpoint))
        config = str(_config_in(directory))
        if config != self._config:
            self._kept, self._is_safe, self._config = None, None, config
        stored = _stored_bytes(layout, path)
        trusts = self._how.trust_remote_code
        return lambda: module_of_config(directory, checkpoint.name, trust_remote_code=trusts, stored=stored)

    def _of_transformers(self, spec: str, name: str) -> ModelUnderTest:
        kept, self._kept = self._kept, None
        if kept is not None:
            _empty(kept.subject.given)  # before the next one is there: one in memory at a time
        how = self._how
        try:
            loaded = load_module(spec, device=how.device, dtype=how.dtype, trust_remote_code=how.trust_remote_code)
        except ModelError as error:
            raise ModelError(first_line(error).replace(repr(spec), name).replace(spec, name)) from error
        module, architecture = cast("nn.Module", loaded.module), _architecture(loaded)
        if kept is None or kept.architecture != architecture:
            kept = _Kept(self._adapted(module, name, loaded.tokenizer), architecture)
            kept.subject.notes += loaded.notes
        else:
            _hand_over(module, kept.subject.given)
        if kept.subject.backend is not None:
            self._kept = kept
        return _checked(kept.subject, name)

    def _from_factory(self, make: Callable[[], nn.Module], stored: _Stored) -> ModelUnderTest:
        kept = self._kept
        if kept is not None and kept.architecture == stored.is_adapter_for(kept.subject.given):
            stored.fill(kept.subject.given, kept.dtypes)
            return _checked(kept.subject, stored.name)
        if self._is_safe is None:
            used = make()
            before = _trial(used)  # whatever it keeps of its first pass, it has now
            refilled = _trial(_filled(used, stored))
            del used
            module = _filled(make(), stored)
            self._is_safe = _same(before, refilled, _trial(module))
        else:
            module = _filled(make(), stored)
        dtypes = _dtypes(module)
        subject = self._adapted(_moved_to(module, self._how), stored.name)
        if self._is_safe and subject.backend is not None:
            self._kept = _Kept(subject, stored.is_adapter_for(module), dtypes)
        return subject

    def _adapted(self, module: nn.Module, name: str, tokenizer: Any = None) -> ModelUnderTest:
        how = self._how
        memory = None if how.memory is None else memory_size(how.memory)
        attach = (*how.attach, *attached())
        measured: dict[str, Any] = {"seed": how.seed, "memory": memory, "without_pattern": how.without_pattern}
        return adapt(module, name=name, tokenizer=tokenizer, attach=attach, **measured)


def config_beside(path: Path) -> Path | None:
    """The directory with the config of transformers that the weights are of: their own, or that of the training around it."""
    for directory in (path, path.parent):
        config = _config_in(directory)
        if isinstance(config, dict) and "model_type" in config:
            return directory
    return None


def _config_in(directory: Path) -> Any:
    """What the config in a directory says, or None where there is none that can be read."""
    try:
        return read_json(directory / CONFIG, within=tree_of(directory))
    except (OSError, ValueError):
        return None


def _stored_bytes(layout: Layout, path: Path) -> int:
    """The bytes of the files that the weights are read from."""
    place = Place(path)
    if is_file(path):
        return place.size()
    return sum((place / name).size() for name in layout.parts(place, place.names()))


def lacks_factory(layout: Layout, checkpoint: Checkpoint) -> str:
    """What to do about weights that come without what makes the model."""
    lacks = "holds weights alone" if checkpoint.kind == "file" else f"has no {CONFIG}"
    of = "" if checkpoint.kind == "file" or not layout.is_of_a_library else f"is of {layout.name} and "
    return f"{checkpoint.name} {of}{lacks}: name what makes the model, {option('factory', 'path/file.py:factory')}"


def _moved_to(module: nn.Module, how: Loading) -> nn.Module:
    return module.to(device=parse_device(how.device), dtype=parse_dtype(how.dtype))


def _imported(factory: Factory) -> Callable[[], nn.Module]:
    """What makes the module; whatever goes wrong with it is a `FactoryError` that names it."""
    named = factory if isinstance(factory, str) else getattr(factory, "__qualname__", repr(factory))
    try:
        found: Callable[[], Any] = function_named(factory) if isinstance(factory, str) else factory
    except ModelError as error:
        failed = FactoryError(str(error))
        failed.raised_by_user = error.raised_by_user
        raise failed from error

    def make() -> nn.Module:
        try:
            made = found()
        except (Exception, SystemExit) as error:  # the user's own code may raise anything
            message = first_line(error) if isinstance(error, InductionError) else f"{type(error).__name__}: {first_line(error)}"
            raise because_of(FactoryError(f"the factory {named!r} makes no model: {message}"), error) from error
        if not isinstance(made, nn.Module):
            raise FactoryError(f"the factory {named!r} must return a torch module, it returned `{type(made).__name__}`")
        why = why_endless(made)
        if why:
            raise FactoryError(f"the model of the factory {named!r} {why}")
        return made

    return make


def _filled(module: nn.Module, stored: _Stored) -> nn.Module:
    stored.fill(module, _dtypes(module))
    return module


def _checked(subject: ModelUnderTest, name: str) -> ModelUnderTest:
    """The same model with other weights. Raises `ModelError` for weights that are not numbers, as `adapt` does."""
    subject.name = name
    broken = broken_weights(subject.module)
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ModelError(f"the weight `{broken[0]}` of {name}{others} holds NaN or infinity")
    return subject


def _dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in state_of(module).items()}


@puts_back
def _trial(module: nn.Module) -> Tensor | None:
    """The logits of a few tokens that every model has, or None where it does not run on them."""
    with as_found(module):
        try:
            return next(find_conventions(module, type(module).__name__)).logits
        except Exception:  # noqa: BLE001 - `adapt` says what is wrong with it
            return None


def _same(before: Tensor | None, refilled: Tensor | None, new: Tensor | None) -> bool | None:
    """Whether a model that was used before and refilled gives what a new one gives; None where weights are no numbers."""
    if new is not None and not bool(torch.isfinite(new).all()):
        return None
    return before is not None and refilled is not None and new is not None and torch.equal(refilled, new)


def _architecture(loaded: Loaded) -> object:
    """What is the same of two models of transformers that differ in the numbers of their weights only."""
    module: Any = loaded.module
    configs = (module.config, getattr(module, "generation_config", None), *getattr(module, "peft_config", {}).values())
    settings = [each.to_dict() for each in configs if each is not None]
    described = [sorted((key, repr(value)) for key, value in each.items() if key not in NOT_OF_THE_MODEL) for each in settings]
    table = [(name, value.shape, value.dtype) for name, value in _tensors(module).items()]
    return type(module), described, table, _vocabulary(loaded.tokenizer)


def _vocabulary(tokenizer: Any) -> object:
    """What tells whether two tokenizers do the same."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return type(tokenizer), tuple(tokenizer.all_special_ids), hashlib.blake2b(rules.encode()).digest()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _empty(module: nn.Module) -> None:
    """Let go of the weights; the module is of no use until it is given others."""
    for weight in module.parameters():
        weight.data = weight.data.new_empty(0)


def _hand_over(source: nn.Module, target: nn.Module) -> None:
    """Give all that `source` holds to `target`, buffers too, so that nothing there is of the checkpoint before."""
    given = _tensors(source)
    for name, tensor in _tensors(target).items():
        tensor.data = given[name].data
