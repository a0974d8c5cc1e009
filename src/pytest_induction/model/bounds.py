"""What a model directory or a GGUF file holds, checked before a library opens it."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from pytest_induction.errors import ModelError, reason
from pytest_induction.files import DOCUMENT, UnfitFileError, check_regular, is_directory, is_file, names_in, open_regular, tree_of
from pytest_induction.model.tensor_files import check_torch_file, safetensors_header

MOST_AXES = 8
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type of value
_TEXT, _LIST = 8, 9


def check_gguf(stream: BinaryIO, size: int) -> None:
    """Raise `OSError` for a GGUF file whose values, texts, lists or tensors would lie beyond its end."""
    gguf = _Gguf(stream, size)
    if gguf.take(4) != b"GGUF":
        raise UnfitFileError("it does not begin as a GGUF file")
    gguf.turn(gguf.number(4))
    tensors, values = gguf.number(8), gguf.number(8)
    if tensors * 24 + values * 12 > size:  # the fewest bytes that each takes
        raise UnfitFileError(f"it would have {tensors} tensors and {values} values, and the file has {size} bytes")
    for _ in range(values):
        gguf.skip(gguf.number(8))
        gguf.value(gguf.number(4))
    numbers = 0
    for _ in range(tensors):
        gguf.skip(gguf.number(8))
        axes = gguf.number(4)
        if axes > MOST_AXES:
            raise UnfitFileError(f"one of its tensors would have {axes} axes")
        shape = [gguf.number(8) for _ in range(axes)]
        gguf.skip(4)
        numbers += math.prod(shape)
        if numbers > 8 * size or gguf.number(8) > size:  # a number has a bit at least
            raise UnfitFileError(f"one of its tensors, of shape {shape}, lies beyond its {size} bytes")


class _Gguf:
    """A stream that is read from its beginning, and never beyond its end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left, self._size = stream, size, size
        self._order: Any = "little"
        stream.seek(0)

    def turn(self, version: int) -> None:
        """Go by the order of bytes that the version shows."""
        if version & 0xFFFF == 0:
            self._order = "big"

    def take(self, count: int) -> bytes:
        self._spend(count)
        return self._stream.read(count)

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), self._order)

    def skip(self, count: int) -> None:
        self._spend(count)
        self._stream.seek(count, io.SEEK_CUR)

    def value(self, kind: int) -> None:
        """Pass over a value."""
        if kind == _TEXT:
            self.skip(self.number(8))
        elif kind == _LIST:
            kind, count = self.number(4), self.number(8)
            if kind in _WIDTHS:
                self.skip(count * _WIDTHS[kind])
            elif kind == _TEXT:
                self._texts(count)
            else:
                raise UnfitFileError(f"a list in it has values of a type {kind} that is not known")
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        else:
            raise UnfitFileError(f"it has a value of a type {kind} that is not known")

    def _texts(self, count: int) -> None:
        if count * 8 > self._left:
            raise UnfitFileError(f"a list in it would have {count} texts, and the file has {self._size} bytes")
        for _ in range(count):
            self.skip(self.number(8))

    def _spend(self, count: int) -> None:
        if count > self._left:
            raise UnfitFileError(f"it ends early: something in it would have {count} bytes, and the file has {self._size}")
        self._left -= count


OPENED = re.compile(r".*\.(json|safetensors|bin|pt|pth|gguf|model|txt|jinja|py|tiktoken)")  # by one loader or another
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


def check_file(path: Path, spec: str) -> None:
    """The same for a model that is one file, which the user names. Raises `ModelError`."""
    _checked(path, spec, None)


def _checked(path: Path, spec: str, tree: str | None) -> None:
    try:
        _check(path, tree)
    except OSError as error:
        raise ModelError(f"{path.name} of {spec!r} cannot be read: {reason(error)}") from None


def _check(path: Path, tree: str | None) -> None:
    if path.suffix in (".json", ".jinja", ".py", ".txt", ".model", ".tiktoken"):
        is_config = path.name.endswith(("config.json", ".py", ".index.json"))
        check_regular(path, most=DOCUMENT if is_config else LARGEST_VOCABULARY, within=tree)
        return
    with open_regular(path, within=tree) as stream:
        size = os.fstat(stream.fileno()).st_size
        if path.suffix == ".safetensors":
            safetensors_header(stream, size)
        elif path.suffix == ".gguf":
            check_gguf(stream, size)
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
    with the weights is not run for it, and how much memory quantised weights take is not known before.
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
    if in_memory and takes > memory and not config.get("quantization_config"):
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
