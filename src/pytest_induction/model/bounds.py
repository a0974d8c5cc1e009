"""What a model directory holds, checked before a library opens it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_induction.errors import ModelError, reason
from pytest_induction.files import DOCUMENT, check_regular, is_directory, is_file, names_in, open_regular, tree_of
from pytest_induction.model.tensor_files import check_torch_file, safetensors_header

OPENED = re.compile(r".*\.(json|safetensors|bin|pt|pth|model|txt|jinja|py|tiktoken)")  # by one loader or another
TEMPLATES = "additional_chat_templates"
LARGEST_VOCABULARY = 2**27  # bytes of a file of a tokenizer
WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model|consolidated)[-.\w]*\.(safetensors|bin|pt|pth)")
COUNTED = re.compile(  # keys of a config that say of how many modules a model is made
    r"(n|num)_?\w*(layers?|blocks?|heads?|experts?|stages?|codebooks?|labels|groups)|(en|de)coder_(layers|attention_heads)|depth"
)
MOST_MODULES = 10_000  # of a kind: making each takes a while
MOST_EXPERTS = 1_000_000  # in all layers
FEWEST_BITS = 1  # that a weight may be stored in
SLACK = 2**20  # weights that a config may ask for beyond what is stored: those that are shared, or made when it is loaded


def check_directory(place: Path, spec: str) -> None:
    """Raise `ModelError` where a file that would be opened is none, lies elsewhere, or promises more than it has."""
    try:
        names = names_in(place)
        tree = tree_of(place)
        inner = names_in(place / TEMPLATES) if TEMPLATES in names and is_directory(place / TEMPLATES) else []
    except OSError as error:
        raise ModelError(f"{spec!r} cannot be read: {reason(error)}") from None
    for name in (*(name for name in names if OPENED.fullmatch(name)), *(f"{TEMPLATES}/{name}" for name in inner)):
        if not is_directory(place / name):
            _checked(place / name, spec, tree)


def _checked(path: Path, spec: str, tree: str) -> None:
    try:
        _check(path, tree)
    except OSError as error:
        raise ModelError(f"{path.name} of {spec!r} cannot be read: {reason(error)}") from None


def _check(path: Path, tree: str) -> None:
    if path.suffix in (".json", ".jinja", ".py", ".txt", ".model", ".tiktoken"):
        is_config = path.name.endswith(("config.json", ".py", ".index.json"))
        check_regular(path, most=DOCUMENT if is_config else LARGEST_VOCABULARY, within=tree)
        return
    with open_regular(path, within=tree) as stream:
        size = os.fstat(stream.fileno()).st_size
        if path.suffix == ".safetensors":
            safetensors_header(stream, size)
        elif WEIGHTS.fullmatch(path.name):
            check_torch_file(stream, size)


def stored_bytes(place: Path) -> int:
    """The bytes of the files of weights in a directory."""
    return sum((place / name).stat().st_size for name in names_in(place) if WEIGHTS.fullmatch(name) and is_file(place / name))


def check_counts(config: Mapping[str, Any], spec: str) -> None:
    """Raise `ModelError` for a config that asks for more layers, heads or experts than can be made. Costs nothing."""
    found = dict(_counts(config))
    largest = max(found, key=lambda key: found[key], default="")
    if largest and found[largest] > MOST_MODULES:
        raise ModelError(f"the config of {spec!r} asks for {found[largest]} by `{largest}`, expected at most {MOST_MODULES}")
    layers, experts = (max((number for key, number in found.items() if word in key), default=1) for word in ("layer", "expert"))
    if layers * experts > MOST_EXPERTS:
        raise ModelError(f"the config of {spec!r} asks for {layers} layers of {experts} experts, expected at most {MOST_EXPERTS}")


def _counts(config: Any) -> Iterator[tuple[str, int]]:
    """Every count of modules in a config, with its key, in configs inside it too."""
    waiting = [("", config)]
    for key, value in waiting:
        if isinstance(value, Mapping):
            waiting.extend((str(name), inner) for name, inner in value.items())
        elif isinstance(value, list):
            waiting.extend((key, inner) for inner in value[:MOST_MODULES] if isinstance(inner, (Mapping, int)))
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and COUNTED.fullmatch(key):
            yield key, int(min(value, 10**30)) if value == value else 0  # noqa: PLR0124 - NaN is no number


def check_size(
    make: Callable[[], nn.Module], spec: str, *, stored: int | None, config: Mapping[str, Any], in_memory: bool = True
) -> None:
    """Raise `ModelError` where the model that `make` makes has more numbers than memory, or `stored` bytes, have room for.

    Memory counts only where all of it is to lie `in_memory`.

    It is made on the device `meta`, where it takes no memory. Where it cannot be made so, loading it says why. Code that came
    with the weights is not run for it. Quantised weights take what is stored of them, if not more.
    """
    if config.get("auto_map"):
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            made = make()
        weights, buffers = list(made.parameters()), list(made.buffers())
    except Exception:  # noqa: BLE001 - whatever a broken config makes of a model
        return
    count = sum(weight.numel() for weight in weights)
    takes = sum(each.numel() * each.element_size() for each in (*weights, *buffers))
    if stored and (count - SLACK) * FEWEST_BITS > 8 * stored:
        raise ModelError(
            f"the config of {spec!r} asks for {count} weights, and what is stored has {stored} bytes: is it the right config?"
        )
    memory = _memory()
    if config.get("quantization_config"):
        takes = stored or 0
    if in_memory and takes > memory:
        raise ModelError(
            f"the config of {spec!r} asks for {count} weights, {takes} bytes, and this machine has {memory}: to have layers that "
            'do not fit read from disk in each pass, give the device "auto"'
        )


def _memory() -> int:
    """The bytes of memory of this machine, as far as the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 2**62
