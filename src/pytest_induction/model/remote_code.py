"""Code that came with weights: it is never run, and nobody is asked to run it, unless the user says so in so many words.

What transformers could run of a model directory, and what keeps it from that:
- classes that `auto_map` names: `trust_remote_code=False` goes with every call, and a tokenizer of its own is refused by name;
- a question on the terminal, also from code of transformers that was told nothing: its waiting time is 0, so that it raises;
- attention kernels that a config names: refused before anything is fetched;
- pickles: transformers and peft read them with `weights_only=True`.
Chat templates and `custom_generate` are run by nothing that measures.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pytest_induction.errors import ModelError
from pytest_induction.forward.changing import Shared
from pytest_induction.undoing import Changes

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
KERNELS = re.compile(r"_?(attn|experts)_implementation(_internal)?")  # keys of a config that may name a kernel
FLASH = re.compile(r"(paged\|)?flash_attention_\d")  # fetched from the hub where `kernels` is there and they are not
CONSENT = (
    "if you trust it, say so: --induction-trust-remote-code, `trust_remote_code = true` in a gate file, "
    "or load_model(..., trust_remote_code=True)"
)


@contextmanager
def never_asking() -> Iterator[None]:
    """Inside the block transformers raises where it would ask whether to run code.

    The question would wait for a terminal, take a `y` of another program for an answer, and cancel an alarm of pytest-timeout.
    """
    with Changes() as changes:
        _unasked.hold(changes)
        yield


def _waiting() -> Any:
    from transformers import dynamic_module_utils as asking

    return asking.TIME_OUT_REMOTE_CODE


def _wait(seconds: Any) -> None:
    from transformers import dynamic_module_utils as asking

    asking.TIME_OUT_REMOTE_CODE = seconds


_unasked = Shared(_waiting, _wait, 0)


def config_of(transformers: Any, place: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's config.json says, as it is written; nothing where it cannot be read, which the loader will say."""
    read = transformers.PreTrainedConfig.get_config_dict
    try:
        found, _ = read(place, **where)
    except Exception:  # noqa: BLE001 - whatever a broken file makes a parser raise
        return {}
    return found if isinstance(found, dict) else {}


def check_kernels(config: Mapping[str, Any], spec: str) -> None:
    """Raise `ModelError` where a config names an attention kernel that would be fetched from the hub and run."""
    for key, kernel in _kernels(config):
        if "/" in kernel or (FLASH.fullmatch(kernel) and _is_fetched(kernel)):
            raise ModelError(
                f"{CONFIG} of {spec!r} names a kernel, `{key}` {kernel!r}, which would be fetched from the hub and run: "
                f'it was not; write "sdpa" or "eager" there, or, {CONSENT}'
            )


def check_tokenizer(place: str, spec: str, where: Mapping[str, Any]) -> None:
    """Raise `ModelError` where the tokenizer is code that came with it: without that its special ids are not known."""
    read = importlib.import_module("transformers.models.auto.tokenization_auto").get_tokenizer_config
    try:
        auto = read(place, **where).get("auto_map")
    except Exception:  # noqa: BLE001 - a broken tokenizer is none
        return
    named = auto.get("AutoTokenizer") if isinstance(auto, Mapping) else auto
    if named:
        raise refused(spec, TOKENIZER_CONFIG, named)


def asks_for_code(error: BaseException) -> bool:
    """Whether transformers raised because it may not run code of the model's."""
    return "trust_remote_code" in str(error)


def refused(spec: str, file: str, named: Any) -> ModelError:
    """The error for a file that names code to be run; `named` is what stands under its `auto_map`."""
    names = named.values() if isinstance(named, Mapping) else named if isinstance(named, (list, tuple)) else [named]
    first = next((name for name in names if isinstance(name, str)), None)
    code = "" if first is None else f" (`auto_map`: {first})"
    return ModelError(f"{file} of {spec!r} asks to run code that came with it{code}: it was not run; {CONSENT}")


def left_aside(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where a config names code, and transformers has a class of its own for the model, which was taken."""
    if not config.get("auto_map"):
        return ()
    return (f"{CONFIG} names code that came with the weights; it was not run, transformers has the model type itself",)


def _kernels(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every implementation that a config names, with its key, in configs inside it too."""
    if isinstance(value, str):
        if KERNELS.fullmatch(key):
            yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _kernels(inner, key if KERNELS.fullmatch(key) else str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _kernels(inner, key)


def _is_fetched(kernel: str) -> bool:
    """Whether transformers would fetch flash attention, for it is not installed but the package that fetches is."""
    from transformers.utils import import_utils

    if importlib.util.find_spec("kernels") is None:
        return False
    check = getattr(import_utils, f"is_flash_attn_{kernel[-1]}_available", None)
    return check is None or not check()
