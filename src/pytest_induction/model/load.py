"""From what the user names to a model under test: an object as it is, a directory, a hub name, a factory.

Nothing is downloaded unless a name begins with `hf:`; code that came with weights is not run unless the user says so; every
failure is one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from logging import ERROR, getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn

from pytest_induction import alarms
from pytest_induction.attention.backend import Attach
from pytest_induction.errors import ArgumentError, InductionError, ModelError, missing, user_facing
from pytest_induction.files import expanded, is_directory, read_json
from pytest_induction.forward.calling import device_of, dtype_of, first_line, why_endless
from pytest_induction.forward.changing import Shared
from pytest_induction.model import remote_code
from pytest_induction.model.adapt import adapt
from pytest_induction.model.adapters import Adapter, check_peft, find_adapter, on_base
from pytest_induction.model.beside import tokenizer_at
from pytest_induction.model.bounds import check_counts, check_directory, check_size, stored_bytes
from pytest_induction.model.declared import paths_or_classes
from pytest_induction.model.factories import from_factory
from pytest_induction.model.gguf import read_header
from pytest_induction.model.kept import taken_in
from pytest_induction.model.placing import Placing, placed_on, placing, refuse
from pytest_induction.model.protocol import ModelUnderTest, changed_in
from pytest_induction.model.quantised import check_packages, is_packed, quantisation_of, unpacked_of
from pytest_induction.model.specs import AUTO, FORMS, check_dtype, check_spec, gguf_file, memory_size, module_names
from pytest_induction.observers import attached
from pytest_induction.undoing import Changes

HOLDERS = ("_module", "module", "model", "_model")  # the attributes of objects that hold a model
HARMLESS = re.compile(  # what old files hold beside weights: masks, positions and frequencies that are computed today
    r"(?:^|\.)(?:masked_bias|causal_mask|position_ids|(?:original_)?inv_freq|rotary_emb\.(?:cos|sin)_cached)$"
    r"|(?:^|\.)(?:attn|attention)\.(?:attention\.)?bias$"
)
UNSUPPORTED = "is not supported yet"  # in what transformers says of the architecture of a GGUF file
GGUF_READERS = {  # the modules of transformers that read these files, and their lists of architectures
    "transformers.modeling_gguf_pytorch_utils": "GGUF_SUPPORTED_ARCHITECTURES",
    "transformers.integrations.gguf": "GGUF_CONFIG_ARCHS",
}
UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "RepositoryNotFoundError")  # errors of huggingface_hub
BNB_PACKING = "support_avx512bf16_for_cpu"  # of bitsandbytes, which then packs weights in passes, and unpacks them to name them


@user_facing
def load_model(
    model: str | Path | nn.Module | ModelUnderTest,
    *,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    memory: str | None = None,
    attach: Attach | Sequence[Attach] = (),
    trust_remote_code: bool = False,
    without_pattern: str | Iterable[str] = (),
) -> ModelUnderTest:
    """Make a model under test from a model, or from whatever names one.

    `model` is a module that maps token ids (batch, positions) to logits (a Hugging Face model, a `TransformerBridge`, your
    own), what holds one (a pipeline, a `Trainer`, an NNsight model), or a string: a local directory as `save_pretrained` writes
    it (of an adapter too, which names its base), `hf:NAME[@REVISION]`, a `.gguf` file, whose weights become float32 unless
    `dtype` names another type, `module.path:factory` or `path/file.py:factory`, whose factory takes no arguments and returns the
    module. A wrapper is left aside where it changes no logits: the model inside is measured. `device` and `dtype` apply to what
    is loaded here; a module of yours is measured where and as it is. The device `"auto"` is for models that are larger than one:
    accelerate places their layers on all GPUs, in main memory and on disk.
    `trust_remote_code` lets code run that came with the weights; without it such a model is refused. `seed` is the one its
    probes are drawn with by default. `memory`, such as `"4GB"`, is what a forward pass may take; half of what is free by
    default. With the device `"auto"` it is also the most of the weights that lie in each device's memory. `attach` is one
    function or several, each given the module, that hook `expose_attention` into a model which nothing else can read and return
    what undoes it, or None for a module that they do not know. `without_pattern` names modules, by path or class, that mix
    positions and have no attention pattern, as a recurrence or linear attention of your own: nothing can check that, and a note
    says so.

    Raises `ModelError` if it cannot be found, loaded or run, `ArgumentError` for an unknown device, dtype or size.
    """
    without = module_names(without_pattern)
    if isinstance(model, ModelUnderTest):
        return _declaring(model, without, attach)
    model, tokenizer = _held_by(model)
    if isinstance(model, nn.Module) and (changed := changed_in(model)) is not None:
        return changed.subject  # tried out before it was changed
    settings: dict[str, Any] = {"seed": seed, "attach": _hooks(attach), "memory": None if memory is None else memory_size(memory)}
    settings["without_pattern"] = without
    if isinstance(model, nn.Module):
        return taken_in(model, tokenizer=tokenizer, **settings)
    if not isinstance(model, (str, Path)):
        raise ModelError(f"a model must be a torch module or a string ({FORMS}), got `{type(model).__name__}`")
    loaded = load_module(str(model), device=device, dtype=dtype, trust_remote_code=trust_remote_code, memory=settings["memory"])
    if isinstance(loaded.module, ModelUnderTest):
        return _declaring(loaded.module, without, attach)
    subject = adapt(loaded.module, name=str(model), tokenizer=loaded.tokenizer, **settings)
    subject.notes += loaded.notes
    return subject


def _hooks(attach: Attach | Sequence[Attach]) -> tuple[Attach, ...]:
    return (*((attach,) if callable(attach) else attach), *attached())


def _declaring(subject: ModelUnderTest, names: Sequence[str], attach: Attach | Sequence[Attach]) -> ModelUnderTest:
    """The same model, tried out once more where that which is declared only now may make it readable."""
    if not names:
        return subject
    paths_or_classes(subject.given, subject.module, names)  # raises for what is none
    if subject.backend is not None:
        return subject
    settings: dict[str, Any] = {"name": subject.name, "tokenizer": subject.tokenizer, "seed": subject.seed}
    again = adapt(subject.given, **settings, memory=subject.memory, attach=_hooks(attach), without_pattern=names)
    again.notes += tuple(note for note in subject.notes if note not in again.notes)
    return again


def _held_by(model: Any) -> tuple[Any, Any]:
    """The module in an object that holds one, as pipelines, trainers and tracers do, and the tokenizer beside it."""
    if isinstance(model, (nn.Module, str, Path)):
        return model, None
    held = (getattr(model, name, None) for name in HOLDERS)
    module = next((each for each in held if isinstance(each, nn.Module)), None)
    return (model, None) if module is None else (module, getattr(model, "tokenizer", None))


@dataclass(frozen=True)
class Loaded:
    """A module that is not tried out yet, the tokenizer beside it, and what there is to know of how it was loaded."""

    module: nn.Module | ModelUnderTest
    tokenizer: Any = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _How:
    """How transformers loads: in which type, whether it may run code that came with weights, where it looks and places them."""

    dtype: torch.dtype | None
    trust: bool
    where: Mapping[str, Any]
    placing: Placing | None = None  # where accelerate places the weights; on the CPU, if there is none


def load_module(
    spec: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    memory: int | None = None,
) -> Loaded:
    """What `load_model` loads, where it belongs, before it is tried out. Raises as that does.

    `memory` is how many bytes of weights may lie in each device's memory where the device is `"auto"`.
    """
    check_spec(spec)
    if device == AUTO:
        return _placed(spec, parse_dtype(dtype), memory, trust=trust_remote_code)
    target, kind = parse_device(device), parse_dtype(dtype)
    with alarms.kept():  # a factory, and transformers where it asks whether code may run, may cancel one
        loaded = _load(spec, kind, trust=trust_remote_code)
    if isinstance(loaded.module, ModelUnderTest):
        return loaded
    why = why_endless(loaded.module)
    if why:
        raise ModelError(f"the model {spec!r} {why}")
    module = loaded.module
    if is_packed(module):
        return replace(loaded, module=_run_once(_moved(module, target), kind, spec))
    return replace(loaded, module=_moved(module if kind is None else _moved(module, kind), target))


def _run_once(module: nn.Module, dtype: torch.dtype | None, spec: str) -> nn.Module:
    """A module with packed weights after its first pass, in which some kernels pack them anew.

    Raises `ModelError` where it computes in another type than the one that was asked for.
    """
    if dtype not in (None, dtype_of(module)):
        kept = f"{str(dtype_of(module)).removeprefix('torch.')}, not {str(dtype).removeprefix('torch.')}"
        raise ModelError(f"{spec!r} has {quantisation_of(module)[0]} and computes in {kept}: leave the dtype out")
    for part in module.modules():
        if hasattr(part, BNB_PACKING):
            setattr(part, BNB_PACKING, False)
    with suppress(Exception), torch.no_grad():  # what fails here fails again where it is tried out, and says why
        module(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device_of(module)))
    return module


def _placed(spec: str, dtype: torch.dtype | None, memory: int | None, *, trust: bool) -> Loaded:
    """A directory or a model of the hub, placed by accelerate as it is loaded. Raises `ModelError` for anything else."""
    if not spec.startswith("hf:"):
        _, colon, factory = spec.rpartition(":")
        if colon and factory.isidentifier():
            raise refuse(spec, "it comes from a factory", "have the factory place it, and name no device")
        if gguf_file(expanded(spec)) is not None:
            raise refuse(spec, "a GGUF file is unpacked into memory as a whole", "give a directory of safetensors files")
    places = placing(spec, memory)
    try:
        with alarms.kept():
            loaded = _load(spec, dtype, trust=trust, places=places)
    except BaseException:
        places.remove()
        raise
    module = cast("nn.Module", loaded.module)
    places.ends_with(module)
    return replace(loaded, notes=(*loaded.notes, *placed_on(module)))


def parse_device(device: str | None) -> torch.device:
    """The device of that name; the CPU by default, so that a verdict does not depend on the machine."""
    try:
        target = torch.device(device or "cpu")
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device {device!r} cannot be used here: {first_line(error)}") from None
    return target


def parse_dtype(dtype: str | None) -> torch.dtype | None:
    """The floating-point type of that name, or None to keep what was stored."""
    if not dtype:
        return None
    check_dtype(dtype)
    found: torch.dtype = getattr(torch, dtype)
    return found


def _load(spec: str, dtype: torch.dtype | None, *, trust: bool, places: Placing | None = None) -> Loaded:
    if spec.startswith("hf:"):
        name, _, revision = spec.removeprefix("hf:").partition("@")
        return _from_transformers(name, spec, _How(dtype, trust, {"revision": revision or None}, places))
    place, colon, factory = spec.rpartition(":")
    if colon and factory.isidentifier():
        return Loaded(from_factory(place, factory, spec))
    path = expanded(spec)
    file = gguf_file(path)
    if file is not None:
        return _from_gguf(file, spec, dtype)
    return _from_transformers(str(path), spec, _How(dtype, trust, {"local_files_only": True}, places))


def _moved(module: nn.Module, device: torch.device | torch.dtype) -> nn.Module:
    """The module on a device, or in a type."""
    try:
        return module.to(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:  # of the device, for packed weights, or ones not here
        raise ModelError(f"the model cannot be moved to {device}: {first_line(error)}") from None


def _transformers(spec: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelError(f"loading {spec!r} needs transformers: pip install 'pytest-induction[transformers]'") from None
    return transformers


def _from_gguf(file: Path, spec: str, dtype: torch.dtype | None) -> Loaded:
    """The model in a GGUF file, its weights as plain numbers: of float32, unless another type is asked for.

    What lies beside the file has no say, so transformers is given an empty directory and the file's whole path.
    """
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
        raise ModelError(f"loading {spec!r} needs gguf: pip install 'pytest-induction[gguf]'")
    transformers = _transformers(spec)
    header = read_header(file, spec)
    kind = dtype or torch.float32
    how = _How(kind, trust=False, where={"local_files_only": True, "gguf_file": str(file.absolute())})
    silent = _quiet(transformers, _bar_of_gguf(transformers.utils.logging))
    with silent, remote_code.never_asking(), TemporaryDirectory() as empty:
        loaded = _whole(transformers, empty, spec, how)
    module: Any = loaded.module
    module.hf_quantizer, module.is_quantized = None, False  # its weights are plain numbers by now
    module.config.__dict__.pop("quantization_config", None)
    notes = [f"{header.described}, widened to {str(kind).removeprefix('torch.')}"]
    if header.left_out:
        notes.append(f"transformers leaves out {', '.join(header.left_out)}, which scales rotary positions for long contexts")
    return replace(loaded, notes=(*notes, *loaded.notes))


def _from_transformers(place: str, spec: str, how: _How) -> Loaded:
    transformers = _transformers(spec)
    if how.where.get("local_files_only"):
        check_directory(Path(place), spec)
    with _quiet(transformers), remote_code.never_asking():
        adapter = find_adapter(transformers, place, spec, how.where)
        if adapter is not None:
            if how.placing is not None:
                raise refuse(spec, "it is an adapter", "merge it into its base, and give the merged model")
            return _from_adapter(transformers, adapter, how)
        return _whole(transformers, place, spec, how)


def _from_adapter(transformers: Any, adapter: Adapter, how: _How) -> Loaded:
    """An adapter on its base: from a directory, from the hub if the adapter is from there, else from the hub's cache alone."""
    check_peft(adapter.spec)
    if not how.trust:
        remote_code.check_tokenizer(str(adapter.directory), adapter.spec, {"local_files_only": True})
    local, on_hub = adapter.local_base, adapter.spec.startswith("hf:")
    place: str = adapter.base
    where: dict[str, Any] = {"revision": adapter.settings.get("revision"), "local_files_only": not on_hub}
    if local is not None and not on_hub:
        place, where = str(local), {"local_files_only": True}
    if local is not None and not on_hub:
        check_directory(local, adapter.spec)
    try:
        _check_no_adapter(transformers, place, where)
        base = _whole(transformers, place, f"hf:{place}" if on_hub else place, replace(how, where=where))
    except ModelError as error:
        cure = (
            f"; it is no directory here, and the cache of the hub is all that was looked at: download {place}, "
            "or write the path of a copy into `base_model_name_or_path`"
        )
        if local is not None or on_hub or " cannot be loaded: " not in str(error):
            cure = ""
        raise ModelError(f"the base of the adapter {adapter.spec!r}: {first_line(error)}{cure}") from error
    module: Any = on_base(adapter, cast("nn.Module", base.module))
    own = tokenizer_at(  # no config of a model lies there
        transformers, str(adapter.directory), {"local_files_only": True}, trust=how.trust, config=module.config
    )
    note = f"an adapter ({adapter.settings['peft_type']}) on {place}, not merged"
    return Loaded(module, base.tokenizer if own is None else own, (note, *base.notes))


def _check_no_adapter(transformers: Any, place: str, where: Mapping[str, Any]) -> None:
    if find_adapter(transformers, place, place, where) is not None:
        raise ModelError(f"{place!r} is an adapter itself: merge it, or make the model in a factory")


def _whole(transformers: Any, place: str, spec: str, how: _How) -> Loaded:
    """A model that is no adapter, with every weight that its config asks for, and none besides."""
    config = remote_code.config_of(transformers, place, how.where)
    check_counts(config, spec)
    check_packages(config, spec)
    if not how.trust:
        remote_code.check_kernels(config, spec)
        remote_code.check_tokenizer(place, spec, how.where)
    _check_size(transformers, place, spec, how, config)
    try:
        loader: Any = transformers.AutoModelForCausalLM
        wanted = {
            **how.where,
            "dtype": how.dtype or "auto",
            "trust_remote_code": how.trust,
            **_unpacked(transformers, how, config),
            **({} if how.placing is None else how.placing.options),
        }
        module, report = loader.from_pretrained(place, **wanted, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:  # whatever a broken file makes a parser raise
        if not how.trust and remote_code.asks_for_code(error):
            raise remote_code.refused(spec, remote_code.CONFIG, config.get("auto_map")) from None
        if "gguf_file" in how.where and UNSUPPORTED in str(error):
            raise ModelError(f"{spec!r} cannot be loaded: {first_line(error)} {_read_of_gguf(transformers)}") from None
        hint = "; is the network there, and the name right?" if spec.startswith("hf:") else _no_transformers(place)
        failed = ModelError(f"{spec!r} cannot be loaded: {type(error).__name__}: {first_line(error)}{hint}")
        raise missing(failed) if spec.startswith("hf:") and _is_unreached(error) else failed from error
    _check_report(report, spec)
    notes = () if how.trust else remote_code.left_aside(config)
    if not is_packed(module):
        notes += unpacked_of(config)
    return Loaded(module, tokenizer_at(transformers, place, how.where, trust=how.trust), notes)


def _is_unreached(error: BaseException | None) -> bool:
    """Whether a model of the hub is neither kept here nor to be had: no network, an offline session, or no such name."""
    while error is not None:
        if type(error).__name__ in UNREACHED:
            return True
        error = error.__cause__ or error.__context__
    return False


def _unpacked(transformers: Any, how: _How, config: Mapping[str, Any]) -> dict[str, Any]:
    """What else the loader needs for a GGUF file: its config, which takes long to read, and that its weights are to be unpacked.

    Left to itself transformers may fetch kernels from the hub, which run on packed weights.
    """
    if "gguf_file" not in how.where or not config:
        return {}
    packed = getattr(transformers, "GgufConfig", None)  # older versions always unpack
    unpacked = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    return {"config": transformers.AutoConfig.for_model(**config), **unpacked}


def _read_of_gguf(transformers: Any) -> str:
    """Which architectures this version of transformers reads from GGUF files."""
    names: set[str] = set()
    for place, name in (
        ("modeling_gguf_pytorch_utils", "GGUF_SUPPORTED_ARCHITECTURES"),
        ("integrations.gguf", "GGUF_CONFIG_ARCHS"),
    ):
        with suppress(ImportError):  # where another version has none
            names.update(getattr(importlib.import_module(f"transformers.{place}"), name, ()))
    return f"transformers {transformers.__version__} reads {', '.join(sorted(names - {'general', 'tokenizer'}))}"


def _check_size(transformers: Any, place: str, spec: str, how: _How, config: Mapping[str, Any]) -> None:
    """Raise `ModelError` for a model that is larger than memory, or than what is stored of it."""
    file = how.where.get("gguf_file")

    def made() -> nn.Module:
        if file is None:
            settings = transformers.AutoConfig.from_pretrained(place, **how.where, trust_remote_code=False)
        else:
            settings = transformers.AutoConfig.for_model(**config)
        settings.dtype = how.dtype or settings.dtype
        module: nn.Module = transformers.AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        return module

    is_here = how.where.get("local_files_only") and is_directory(place)
    stored = Path(file).stat().st_size if file is not None else stored_bytes(Path(place)) if is_here else None
    check_size(made, spec, stored=stored, config=config, in_memory=how.placing is None)


def module_of_config(directory: Path, spec: str, *, trust_remote_code: bool, stored: int | None = None) -> nn.Module:
    """A model of transformers as the config in a directory describes it, with weights yet to come. Raises `ModelError`.

    `stored` are the bytes of these weights.
    """
    transformers = _transformers(spec)
    place, where = str(directory), {"local_files_only": True}
    check_directory(directory, spec)
    with _quiet(transformers), remote_code.never_asking():
        config = remote_code.config_of(transformers, place, where)
        check_counts(config, spec)
        if not trust_remote_code:
            remote_code.check_kernels(config, spec)
        try:
            settings = transformers.AutoConfig.from_pretrained(place, **where, trust_remote_code=trust_remote_code)
            maker: Any = transformers.AutoModelForCausalLM
            check_size(lambda: maker.from_config(settings, trust_remote_code=False), spec, stored=stored, config=config)
            made: nn.Module = maker.from_config(settings, trust_remote_code=trust_remote_code)
        except InductionError:
            raise
        except Exception as error:
            if not trust_remote_code and remote_code.asks_for_code(error):
                raise remote_code.refused(spec, remote_code.CONFIG, config.get("auto_map")) from None
            raise ModelError(f"no model can be made for {spec!r} by its config: {first_line(error)}") from error
    return made


def _check_report(report: Any, spec: str) -> None:
    """Raise `ModelError` where weights and config are not of one model.

    Weights that are missing the loader made up, and those of another shape; those left over are of a part that would not run.
    """
    absent, others = sorted(report.get("missing_keys", ())), sorted(report.get("mismatched_keys", ()))
    left_over = sorted(name for name in report.get("unexpected_keys", ()) if not HARMLESS.search(name))
    if others:
        name, seen, expected = others[0]
        raise ModelError(
            f"`{name}` in {spec!r} has shape {tuple(seen)}, its config asks for {tuple(expected)}; "
            f"{len(others)} weights have another shape"
        )
    if absent:
        raise ModelError(
            f"{spec!r} lacks weights that its config asks for, and they would be random: "
            f"{len(absent)} of them, the first is `{absent[0]}`"
        )
    if left_over:
        raise ModelError(
            f"{spec!r} has {len(left_over)} tensors that its config has no use for, the first is `{left_over[0]}`; "
            "is it the right config?"
        )


def _no_transformers(place: str) -> str:
    """What to do about a directory of another library's, whose config names no model that transformers knows."""
    try:
        config = read_json(Path(place) / "config.json")
    except (OSError, ValueError):
        return ""
    if isinstance(config, dict) and "model_type" not in config:
        return "; it is not of transformers: name a function that makes the model, path/file.py:factory"
    return ""


@contextmanager
def _quiet(transformers: Any, *more: Shared) -> Iterator[None]:
    """No progress bars and no reports from the loader inside the block; the user's own settings afterwards."""
    with Changes() as changes:
        for setting in (*_silenced(transformers.utils.logging), *more):
            setting.hold(changes)
        yield


@cache
def _bar_of_gguf(logging: Any) -> Shared:
    """The progress bar of reading a GGUF file, which goes by no setting of transformers'."""
    reading = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    return Shared(lambda: getattr(reading, "tqdm", None), lambda bar: setattr(reading, "tqdm", bar), logging.tqdm)


@cache
def _silenced(logging: Any) -> tuple[Shared, ...]:
    """What the libraries that load say, a setting of all threads."""
    loggers = (getLogger("huggingface_hub"), getLogger("accelerate.big_modeling"))  # every try to reach it; what lies on disk

    def show_bars(shown: bool) -> None:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()

    return (
        Shared(logging.get_verbosity, logging.set_verbosity, ERROR),
        Shared(logging.is_progress_bar_enabled, show_bars, value=False),
        *(Shared(partial(getattr, each, "level"), each.setLevel, ERROR) for each in loggers),
    )
