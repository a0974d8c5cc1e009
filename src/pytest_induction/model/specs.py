"""What a string that names a model may look like. Standard library only, so that a typing error costs no time."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pytest_induction.errors import ArgumentError, ModelError, missing, reason
from pytest_induction.files import expanded, is_directory, is_file, is_there, names_in, seen_at
from pytest_induction.spending import Budget

AUTO = "auto"  # the device of models that accelerate places on all there are
DTYPES = ("float32", "float64", "bfloat16", "float16")
CONFIG, ADAPTER_CONFIG, GGUF = "config.json", "adapter_config.json", ".gguf"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth")  # of other formats
RUN_HEADER = "run.json"  # of a recorded run
CHECKPOINT = re.compile(r"(step|checkpoint|epoch|iter|global_step)\w*?[-_=]?\d+", re.IGNORECASE)  # in the names of checkpoints
PART = re.compile(r"-(\d+)-of-(\d+)\.gguf$")  # how llama.cpp names the parts of a file
SHOWN_FILES = 6
FORMS = "a local directory, hf:NAME[@REVISION], a .gguf file, module.path:factory or path/file.py:factory"


def check_spec(spec: str) -> None:
    """Raise `ModelError` if nothing of that name can be loaded; cheap, and says what to write instead."""
    if not spec.strip():
        raise ModelError(f"no model is named: expected {FORMS}")
    if spec.startswith("hf:") and spec != "hf:":
        return
    place, colon, factory = spec.rpartition(":")
    if colon and factory.isidentifier():
        if place.endswith(".py") and not is_file(place):
            what = f"{place} {seen_at(place)}" if os.path.lexists(place) else f"no file {place}{_nearest(expanded(place))}"
            error = ModelError(f"{what}: the model {spec!r} is to come from a factory in it")
            raise error if os.path.lexists(place) else missing(error)
        return
    path = expanded(spec)
    if not is_there(path):
        hub = (
            f"; to download it from the hub write hf:{spec}"
            if spec.count("/") <= 1 and ":" not in spec and not spec.startswith((".", "/", "~")) and spec.isprintable()
            else ""
        )
        what = f"{spec!r} {seen_at(path)}" if os.path.lexists(path) else f"no model at {spec!r}{_nearest(path)}"
        error = ModelError(f"{what}: expected {FORMS}{hub}")
        raise error if os.path.lexists(path) else missing(error)
    if gguf_file(path) is not None:
        return
    if not is_directory(path):
        raise ModelError(f"{spec!r} {'is a file' if is_file(path) else seen_at(path)}: expected {FORMS}")
    if not any(os.path.lexists(path / name) for name in (CONFIG, ADAPTER_CONFIG)):  # reading them says what they are
        if (held := _looks_like_run(path)) is not None:
            raise ModelError(f"{spec!r} holds {held}: give it as a run, with --induction-run or as `run` of a gate")
        raise ModelError(f"{spec!r} has no config.json: expected a directory as `save_pretrained` writes it, or a factory for it")


def _nearest(path: Path) -> str:
    """What lies beside a path that is not there and has nearly its name, as it stands in a message."""
    try:
        near = difflib.get_close_matches(path.name, names_in(path.parent), n=1)
    except (OSError, ValueError):  # a name that no system has
        return ""
    return f" (there is {str(path.parent / near[0])!r})" if near else ""


def _looks_like_run(path: Path) -> str | None:
    """What of a training a directory holds, by the names in it; None where it is not known as one."""
    try:
        names = names_in(path)
    except OSError:
        return None
    if RUN_HEADER in names:
        return "a training run"
    return "checkpoints of a training" if sum(map(bool, map(CHECKPOINT.search, names))) > 1 else None


def gguf_file(path: Path) -> Path | None:
    """The GGUF file at a path, or in a directory that has no other weights; None where there is none.

    Raises `ModelError` for one of several parts, and for a directory with several files.
    """
    if path.suffix == GGUF and is_file(path):
        return _whole(path)
    if not is_directory(path) or is_file(path / ADAPTER_CONFIG):
        return None
    try:
        names = names_in(path)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {reason(error)}") from None
    found = sorted(name for name in names if name.endswith(GGUF))
    if not found or any(name.endswith(WEIGHTS) for name in names):
        return None
    if len(found) > 1 and not all(PART.search(name) for name in found):
        named = ", ".join(found[:SHOWN_FILES]) + (f" and {len(found) - SHOWN_FILES} more" if len(found) > SHOWN_FILES else "")
        raise ModelError(f"{str(path)!r} has {len(found)} GGUF files ({named}): name the one that is meant")
    return _whole(path / found[0])


def _whole(path: Path) -> Path:
    """The same path. Raises `ModelError` for a file that is by its name one of several parts."""
    part = PART.search(path.name)
    if part and int(part[2]) > 1:
        raise ModelError(f"{str(path)!r} is one of the {int(part[2])} parts of a GGUF file: {merging(path.name)}")
    return path


def merging(name: str) -> str:
    """How to put together a GGUF file of several parts, of which this is one."""
    first, whole = PART.sub(r"-00001-of-\2.gguf", name), PART.sub(GGUF, name)
    return f"put them together with `llama-gguf-split --merge {first} {whole}` of llama.cpp"


def check_text(path: Path) -> None:
    """Raise `ArgumentError` for what is no file, or has nothing in it."""
    if not is_file(path):
        what = f", it {seen_at(path)}" if os.path.lexists(path) else ""
        error = ArgumentError(f"{str(path)!r} is not a file{what}")
        raise error if what else missing(error)
    if not path.stat().st_size:
        raise ArgumentError(f"{str(path)!r} is empty")


class IfThere(str):
    """A name of modules without a pattern that a model need not have: it was meant for another one."""

    __slots__ = ()


def module_names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Paths and classes of modules: several, or some in one string, by commas. Raises `ArgumentError` for anything else."""
    several = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not (isinstance(given, Iterable) and all(isinstance(each, str) for each in several)):
        raise ArgumentError(f'`without_pattern` must be names of modules, such as a class "Scan" or a path, got {given!r}')
    names = (type(each)(name.strip()) for each in several for name in each.split(",") if name.strip())
    return tuple(dict.fromkeys(names))


def memory_size(text: str) -> int:
    """The bytes that a size like `4GB`, `512 MB` or `800MiB` means. Raises `ArgumentError` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ArgumentError(f"memory must be a size like 4GB or 512MB, got {text!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


def check_dtype(text: str) -> None:
    """Raise `ArgumentError` for what is no floating-point type that a model is loaded in."""
    if text not in DTYPES:
        raise ArgumentError(f"dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {text!r}")


def check_device(text: str) -> None:
    """Raise `ArgumentError` for what cannot be the name of a device, here or elsewhere."""
    if text != AUTO and not re.fullmatch(r"(cpu|cuda|mps|xpu|xla|hpu|npu|mtia|privateuseone)(:\d+)?", text):
        raise ArgumentError(f"device must be like cpu, cuda, cuda:1, mps or {AUTO}, got {text!r}")


def check_seed(text: str) -> None:
    """Raise `ArgumentError` for what is no whole number from 0 up."""
    if not text.isdecimal():
        raise ArgumentError(f"it must be a whole number from 0 up, got {text!r}")


def check_bound(text: str) -> None:
    """Raise `ArgumentError` for what is no number above 0."""
    try:
        bound = float(text)
    except ValueError:
        bound = 0.0
    if not 0 < bound < float("inf"):
        raise ArgumentError(f"it must be a number above 0, got {text!r}")


def check_budget(text: str) -> None:
    """Raise `ArgumentError` for what is no budget of bare passes or seconds."""
    Budget.of(text)
