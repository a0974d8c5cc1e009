"""The weights of a module as plain tensors, whatever they are packed, wrapped or offloaded in, and a short name for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError
from pytest_induction.models.graph import why_endless

SAMPLED_NUMBERS = 4096  # of each tensor, that go into the fingerprint beside its sum


def broken_weights(module: nn.Module) -> list[str]:
    """Names of the weights that hold NaN or infinity. Buffers may: masks do."""
    packed = [(name, value) for name, value in module.state_dict().items() if isinstance(value, tuple)]
    weights = [*module.named_parameters(), *packed]
    return [name for name, value in weights if not all(map(_is_finite, _tensors(module, name, value)))]


def fingerprint(module: nn.Module) -> str:
    """A short name of the weights and buffers: their names, shapes, exact sums of their bits, and a sample of them."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        state = module.state_dict()
    except RecursionError:
        raise ModelError(f"`{type(module).__name__}` {why_endless(module) or 'is nested too deep for torch'}") from None
    for name, value in state.items():
        for tensor in _tensors(module, name, value):
            if not tensor.is_meta:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(_bits(tensor))
    return digest.hexdigest()


def digests(module: nn.Module) -> dict[str, bytes]:
    """For each weight of the module a few bytes that are others where it holds other numbers."""
    return {name: _digest(_tensors(module, name, weight)) for name, weight in module.named_parameters()}


def _digest(tensors: Iterator[Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        if not tensor.is_meta:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode() + _bits(tensor))
    return digest.digest()


def _tensors(module: nn.Module, name: str, value: Any) -> Iterator[Tensor]:
    """The plain tensors of one entry of the module's state."""
    if isinstance(value, Tensor) and value.is_meta:
        value = _offloaded(module, name, value)
    elif isinstance(value, Tensor) and value.numel() == 0:
        value = _own_part(module, name, value)
    yield from _plain(value)


def _plain(value: Any) -> Iterator[Tensor]:
    """Each of a tuple's tensors, the parts of a wrapper (torch's own protocol for them), the numbers of a quantised one."""
    if isinstance(value, tuple):
        for part in value:
            yield from _plain(part)
    elif hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain(getattr(value, part))
    elif isinstance(value, Tensor):
        yield value.detach().dequantize() if value.is_quantized else value.detach()


def _offloaded(module: nn.Module, name: str, placeholder: Tensor) -> Tensor:
    """The weight that accelerate keeps in memory or on disk while the module holds a placeholder."""
    path = name.split(".")
    for depth in reversed(range(len(path))):
        try:
            hook = getattr(module.get_submodule(".".join(path[:depth])), "_hf_hook", None)
        except AttributeError:  # a state may have names of its own
            continue
        for each in (hook, *getattr(hook, "hooks", ())):
            weights = getattr(each, "weights_map", None)
            if weights is not None and ".".join(path[depth:]) in weights:
                return weights[".".join(path[depth:])]
    return placeholder


def _own_part(module: nn.Module, name: str, emptied: Tensor) -> Tensor:
    """What this process has of a weight that DeepSpeed's ZeRO-3 spreads over processes, and empties between passes."""
    try:
        return getattr(module.get_parameter(name), "ds_tensor", emptied)
    except AttributeError:  # a buffer
        return emptied


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _bits(tensor: Tensor) -> bytes:
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return repr(tensor.shape).encode()
    octets = tensor.contiguous().flatten().view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = len(octets) // 8 * 8
    words = octets[:whole].view(torch.int64)  # eight bytes at a time, as summing is what takes the time
    sample = words[:: max(1, len(words) // SAMPLED_NUMBERS)]
    parts = words.sum()[None], sample.clone(), octets[whole:].clone()  # as what shares memory with numpy cannot be freed by FSDP
    return b"".join(part.cpu().numpy().tobytes() for part in parts)
