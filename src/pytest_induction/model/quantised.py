"""Models whose weights are quantised: by which method, in how many bits, and what loading them needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from pytest_induction.errors import ModelError

CONFIG = "quantization_config"  # of a model's config
BITS = ("bits", "w_bit", "nbits", "weight_bits", "num_bits")  # keys of its settings
TYPES = ("bnb_4bit_quant_type", "weights_dtype", "weights", "fmt")  # that say more of the numbers
QUANTISERS = ("bitsandbytes", "hqq", "optimum", "torchao")  # packages with kinds of tensors of their own
DYNAMIC = "torch.ao.nn.quantized"


class Method(NamedTuple):
    """A method by which weights on the hub are quantised, as it is called, and what loading them needs."""

    name: str
    modules: tuple[str, ...] = ()
    packages: str = ""
    hardware: str = ""


METHODS: Mapping[str, Method] = {
    "aqlm": Method("AQLM", ("aqlm",), "aqlm[gpu,cpu]"),
    "auto-round": Method("AutoRound", ("auto_round",), "auto-round"),
    "awq": Method("AWQ", ("gptqmodel",), "gptqmodel", "a GPU for most of its kernels"),
    "bitsandbytes": Method("bitsandbytes", ("bitsandbytes", "accelerate"), "bitsandbytes accelerate"),
    "bitnet": Method("BitNet", ("accelerate",), "accelerate"),
    "compressed-tensors": Method("compressed-tensors", ("compressed_tensors",), "compressed-tensors"),
    "eetq": Method("EETQ", ("kernels", "accelerate"), "kernels accelerate", "a GPU"),
    "fbgemm_fp8": Method("FBGEMM FP8", ("kernels", "accelerate"), "kernels accelerate", "a GPU"),
    "fp8": Method("FP8", ("accelerate",), "accelerate"),
    "gptq": Method("GPTQ", ("optimum", "gptqmodel"), "optimum gptqmodel", "a GPU for most of its kernels"),
    "hqq": Method("HQQ", ("hqq",), "hqq"),
    "mxfp4": Method("MXFP4", ("accelerate",), "accelerate"),
    "quanto": Method("Quanto", ("optimum.quanto", "accelerate"), "optimum-quanto accelerate"),
    "torchao": Method("torchao", ("torchao",), "torchao"),
}


def check_packages(config: Mapping[str, Any], spec: str) -> None:
    """Raise `ModelError` where a model's config names a quantisation whose package is not installed."""
    settings = config.get(CONFIG)
    method = METHODS.get(str(settings.get("quant_method"))) if isinstance(settings, Mapping) else None
    if method is None or all(map(_is_there, method.modules)):
        return
    hardware = f", and {method.hardware}" if method.hardware else ""
    needs = f"pip install {method.packages}{hardware}"
    raise ModelError(f"{spec!r} has weights {_described(settings)}, which needs what is not installed: {needs}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False


def is_packed(module: Any) -> bool:
    """Whether transformers keeps the module's weights quantised: they cannot be turned into another type."""
    return getattr(module, "hf_quantizer", None) is not None


def unpacked_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where a config says that weights are quantised, for a model that has them as plain numbers."""
    settings = config.get(CONFIG)
    return (f"weights {_described(settings)}, unpacked as they were loaded",) if isinstance(settings, Mapping) else ()


def quantisation_of(module: nn.Module) -> tuple[str, ...]:
    """A note on how the weights of a model are quantised, by its config or by its layers; none where they are not."""
    for part in module.modules():
        settings = _plain(getattr(getattr(part, "config", None), CONFIG, None))
        if settings:
            return (f"weights {_described(settings)}",)
    dynamic = {type(part).__name__ for part in module.modules() if type(part).__module__.startswith(DYNAMIC)}
    if dynamic:
        return (f"weights quantised by torch ({', '.join(sorted(dynamic))} of {DYNAMIC})",)
    kinds = {kind for kind in map(type, module.parameters()) if kind.__module__.partition(".")[0] in QUANTISERS}
    named = sorted(f"{kind.__module__.partition('.')[0]} ({kind.__name__})" for kind in kinds)
    return tuple(f"weights quantised by {name}" for name in named)


def _plain(settings: Any) -> Mapping[str, Any]:
    if isinstance(settings, Mapping):
        return settings
    found = settings.to_dict() if hasattr(settings, "to_dict") else {}
    return found if isinstance(found, Mapping) else {}


def _described(settings: Any) -> str:
    """Such as: quantised by GPTQ (4 bits)."""
    settings = _plain(settings)
    named = settings.get("quant_method", "")
    named = str(getattr(named, "value", named))
    method = METHODS.get(named)
    known = [text for text in (_bits(settings), *_types(settings)) if text]
    details = f" ({', '.join(known)})" if known else ""
    return f"quantised by {method.name if method else named}{details}"


def _bits(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_4bit"):
        return "4 bits"
    if settings.get("load_in_8bit"):
        return "8 bits"
    found = next((each for each in _values(settings, BITS) if isinstance(each, int)), None)
    return "" if found is None else f"{found} bits"


def _types(settings: Mapping[str, Any]) -> list[str]:
    if settings.get("load_in_8bit"):
        return []
    return [each for each in _values(settings, (*TYPES, "_type")) if isinstance(each, str)][:1]


def _values(settings: Mapping[str, Any], keys: tuple[str, ...]) -> list[Any]:
    """What stands under these keys, those of the settings themselves first."""
    own = [settings[key] for key in keys if key in settings]
    inner = [each for value in settings.values() if isinstance(value, Mapping) for each in _values(value, keys)]
    return own + inner
