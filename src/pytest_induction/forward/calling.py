"""How a module is called, what parts and weights it has, and how it is left as it was found."""

from __future__ import annotations

import hashlib
import importlib
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from pytest_induction import errors
from pytest_induction.errors import ModelError
from pytest_induction.forward.changing import Shared, have_alone, with_weights
from pytest_induction.forward.inputs import INPUT_IDS, Inputs, parameters_of
from pytest_induction.forward.outputs import Outputs, Vocabulary, described, readings
from pytest_induction.forward.standing import Memory, all_parts, kept_in, writes
from pytest_induction.undoing import Changes

MOST_PATHS = 1_000_000  # to parts; torch walks each when it moves or saves a module, however few parts there are


def why_endless(module: nn.Module) -> str:
    """Why torch cannot walk the parts of a module, as the end of a sentence about it; "" where it can."""
    paths: dict[int, int] = {}  # of each part that is done with: to itself and all below
    below = {id(module): 1}  # the same, so far, of those on the way to where we are
    way = [("", module, iter(_children(module)))]
    while way:
        _, part, children = way[-1]
        name, child = next(children, ("", None))
        if child is None:
            paths[id(part)] = below.pop(id(part))
            way.pop()
            if way:
                below[id(way[-1][1])] += paths[id(part)]
        elif id(child) in below:
            named = ".".join([*(each for each, *_ in way[1:]), name])
            return f"has a module that holds itself, `{named}`, which torch walks without end: keep it in a list or a tuple"
        elif id(child) in paths:
            below[id(part)] += paths[id(child)]
        else:
            below[id(child)] = 1
            way.append((name, child, iter(_children(child))))
    if paths[id(module)] > MOST_PATHS:
        return (
            f"holds its {len(paths)} modules along {paths[id(module)]:.3g} paths, of which torch walks each: hold each part once"
        )
    return ""


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Those of a module under each of their names."""
    return [(name, child) for name, child in module._modules.items() if child is not None]  # noqa: SLF001 - others are told once


SAMPLED_NUMBERS = 4096  # of each tensor, that go into the fingerprint beside its sum


def broken_weights(module: nn.Module) -> list[str]:
    """Names of the weights that hold NaN or infinity. Buffers may: masks do."""
    packed = [(name, value) for name, value in module.state_dict().items() if isinstance(value, tuple)]
    weights = [*module.named_parameters(), *packed]
    return [name for name, value in weights if not all(map(is_finite, _tensors(module, name, value)))]


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
        value = offloaded(module, name, value)
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


def offloaded(module: nn.Module, name: str, placeholder: Tensor) -> Tensor:
    """The weight that accelerate keeps in memory or on disk while the module holds a placeholder; else that itself."""
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


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. What passes hand on is looked at as it lies, without a copy of it."""
    if tensor.is_meta or tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex() or tensor.element_size() == 1 or tensor.layout != torch.strided:
        return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))  # NaN where any number is


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


CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
CLOSE_OTHERWISE = 1e-2


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the size of the logits."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-3)) if one.numel() else 0.0


def close_to(logits: Tensor) -> float:
    """The largest difference from these logits that is none."""
    return CLOSE.get(logits.dtype, CLOSE_OTHERWISE)


_NOTHING = nullcontext()
PLAINLY = nn.Module.__setattr__
LONGEST_LINE = 200  # letters of an error of others
FLEX = "torch.nn.attention.flex_attention"
UNCOMPILED = "flex_attention_performance"  # torch's name of that warning


@dataclass(frozen=True)
class CallConvention:
    """How a module is called and where its logits are, as found by calling it.

    It takes at most `most_rows` rows at a time (None: any number), of lengths that are multiples of `multiple`.
    """

    inputs: Inputs = field(default_factory=Inputs)
    outputs: Outputs | None = None
    most_rows: int | None = None
    multiple: int = 1

    def length(self, positions: int) -> int:
        """How long a row of so many positions is when it is given, filled up behind; the last ones may have no logits."""
        short = 0 if self.outputs is None else self.outputs.short
        return -(-(positions + short) // self.multiple) * self.multiple

    def filled(self, tokens: Tensor) -> Tensor:
        """Token ids (rows, positions), as long as the module takes them. What stands behind changes nothing before it."""
        more = self.length(tokens.shape[1]) - tokens.shape[1]
        return torch.cat([tokens, tokens[:, -1:].expand(-1, more)], dim=1) if more else tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of it."""
        found = [*self.inputs.notes, *(() if self.outputs is None else self.outputs.notes)]
        found += ["measured one row at a time: it takes no more"] if self.most_rows == 1 else []
        found += [f"rows are filled up to multiples of {self.multiple} positions, behind"] if self.multiple > 1 else []
        short = self.outputs is not None and self.outputs.short
        found += ["one more token is given behind each row, as the last has no logits"] if short else []
        return tuple(found)


class Caller:
    """Calls a module with token ids by the convention that it has, and finds the logits in what comes back.

    It keeps the module alive until it is told that others do.
    """

    def __init__(self, module: nn.Module, convention: CallConvention | None = None) -> None:
        module = uncompiled(module)
        self._module = ref(module)
        self._held: tuple[nn.Module, ...] = (module,)
        self.calls_flex: bool | None = None  # whether it attends by `flex_attention`, once a verification pass was looked at
        self.exposes: bool | None = None  # whether it calls `expose_attention` by itself, once a pass was looked at
        self._parameters = _forward_parameters(module)
        self.d_vocab: int | None = None  # how many ids there are, once that is known
        self.convention = convention or CallConvention(Inputs(INPUT_IDS if INPUT_IDS in self._parameters else ""))
        base = getattr(module, "base_model", None)
        plain = self.convention.inputs.is_plain and isinstance(base, nn.Module) and base is not module
        self._base: ref[nn.Module] | None = ref(base) if plain and base is not None else None
        self._base_parameters = frozenset() if self.base is None else _forward_parameters(self.base)

    @property
    def module(self) -> nn.Module:
        """The module that is called."""
        found = self._module()
        if found is None:
            raise ReferenceError("the module that was measured is gone")
        return found

    @property
    def base(self) -> nn.Module | None:
        """The model in the module that gives no logits, where it is called as the module is."""
        return None if self._base is None else self._base()

    def let_go(self) -> None:
        """Keep the module alive no longer."""
        self._held = ()

    @property
    def is_unchanged_transformers(self) -> bool:
        """Whether the module runs a forward that transformers wrote, with nobody's hooks or replacements around it."""
        own = type(self.module).forward.__module__.startswith("transformers.") and "forward" not in vars(self.module)
        return own and not self.module._forward_hooks and not self.module._forward_pre_hooks  # noqa: SLF001 - nothing else tells

    @property
    def takes_mask(self) -> bool:
        """Whether padding can be marked."""
        return self.convention.inputs.takes_padding and ("attention_mask" in self._parameters or "**" in self._parameters)

    def knows(self, keyword: str) -> bool:
        """Whether the module's forward names this keyword."""
        return keyword in self._parameters

    def __call__(self, tokens: Tensor, attention_mask: Tensor | None = None, *, logits: bool = True, **extra: Any) -> Any:
        """One forward pass. Without `logits` only the base model runs, where the module has one."""
        module = self.module if logits or self.base is None else self.base
        parameters = self._parameters if module is self.module else self._base_parameters
        keywords = dict(extra)
        if attention_mask is not None:
            if not self.takes_mask:
                raise ModelError(
                    f"`{type(module).__name__}` takes no `attention_mask`: measure rows of one length, without padding"
                )
            keywords["attention_mask"] = attention_mask
        if "use_cache" in parameters:
            keywords["use_cache"] = False
        if module is not self.module and INPUT_IDS not in parameters:
            return module(tokens, **keywords)
        args, options = self.convention.inputs.arguments_of(tokens, keywords)
        return module(*args, **options)

    def logits_of(self, output: Any, tokens: Tensor) -> Tensor:
        """The logits (rows, positions, d_vocab) in what the module returned for these ids. Raises `ModelError` where none are."""
        outputs = self.convention.outputs
        if outputs is None:
            outputs = next(iter(readings(output, tokens, Vocabulary())), None)
        if outputs is None:
            raise ModelError(f"no logits of token ids {tuple(tokens.shape)} in what the model returned, {described(output)}")
        return outputs.logits(output, tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        """The logits of a pass over these ids."""
        return self.logits_of(self(tokens), tokens)

    def tokens_in(self, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
        """The token ids (rows, positions) that the module was called with; None where there are none."""
        return self.convention.inputs.found(args, options)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, where `torch.compile` has wrapped it."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was applied to the module or to a part of it, as a module."""
    if uncompiled(module) is not module:
        return True
    return any(getattr(part, "_compiled_call_impl", None) or uncompiled(part) is not part for part in module.modules())


def _forward_parameters(module: nn.Module) -> frozenset[str]:
    """Names of the forward's parameters; `**` where it takes any keyword."""
    parameters = parameters_of(module).values()
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters if p.kind is not p.VAR_POSITIONAL)


SHORT_PASS = 100_000_000  # multiply-adds that one thread does in some milliseconds, most of which are Python's
LONGEST_SHORT = 256  # positions, beyond which attention may take more than the weights
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # in the weights of modules


def in_one_thread(changes: Changes, module: nn.Module, rows: int, positions: int, *, most: int = SHORT_PASS) -> None:
    """Run a short pass, of at most so many multiply-adds, in one thread until the changes are undone.

    Several threads wait for each other at the end of every kernel. That saves a short pass little on an idle machine, and on a
    busy one each wait takes as long as the system lets something else run. Other threads keep their number, but for those that
    call torch for the first time meanwhile.
    """
    threads = torch.get_num_threads()
    if threads == 1 or positions > LONGEST_SHORT:
        return
    if module not in _numbers:
        _numbers[module] = sum(weight.numel() for weight in module.parameters())
    if _numbers[module] * rows * positions <= most and device_of(module).type == "cpu":
        changes.undone_by(partial(torch.set_num_threads, threads))
        torch.set_num_threads(1)


@contextmanager
def as_found(module: nn.Module, *, draws: bool = False, tokens: Tensor | None = None) -> Iterator[bool]:
    """Evaluate without gradients; on the way out, also of an exception, modes and random states are what they were.

    Gives whether somebody's hooks wait for the end of a part of the module. `draws` says that the module draws random numbers of
    Python or numpy: few do, and to keep these takes long. With `tokens` (rows, positions) it is a pass over these, which runs
    `in_one_thread` where it is short.

    Modes are set part by part: `eval` may do more than that, as layers do that merge what they learn into their weights. What
    `torch.compile` has compiled runs as it was written: every other length of a probe would compile it again.

    Tensors that a verification saw its passes write to (see `Memory`) are put back too, and plain attributes with them.
    """
    with Changes() as changes:
        weighted = have_alone(changes, module)
        if tokens is not None:
            in_one_thread(changes, module, *tokens.shape)
        if draws:
            changes.undone_by(OtherRandom().restore)
        _keep_random_state(changes, _device_in(weighted) or device_of(module))
        if names := writes.get(uncompiled(module)):
            changes.undone_by(partial(Memory(module, names).restore, also=True))
        training, hooked = _walked(module)
        changes.undone_by(partial(_set_training, training, to=True))
        ended: list[bool] = []
        changes.undone_by(partial(_offload_again, module, unless=ended))
        _set_training(training, to=False)
        run_as_written(changes)
        with torch.no_grad():
            yield hooked
        ended.append(True)


def _set_training(parts: Sequence[nn.Module], *, to: bool) -> None:
    for part in parts:
        own = part.__dict__
        if "training" in own and type(part).__setattr__ is PLAINLY:
            own["training"] = to  # as that would do, in a tenth of the time
        else:
            part.training = to


_random_states: dict[int, Tensor] = {}
"""What torch's state was before any thread measured, of each thread that does: the last one that ends leaves that."""


def _keep_random_state(changes: Changes, device: torch.device) -> None:
    """Have torch's random states put back. The one of the CPU is one for all threads."""
    if device.type == "cuda":  # of all: the layers of a model may lie on several
        changes.undone_by(partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    state, thread = torch.get_rng_state(), get_ident()
    if thread not in _random_states:
        state = next(iter([*_random_states.values()]), state)
        changes.undone_by(partial(_random_states.pop, thread, None))
        _random_states[thread] = state
    changes.undone_by(partial(torch.set_rng_state, state))


class OtherRandom:
    """The random states of Python and numpy at one moment."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that a model would use

    def restore(self) -> bool:
        """Set them back, and tell whether they had changed."""
        now = OtherRandom()
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002 - as above
        return now._python != self._python or not all(map(np.array_equal, now._numpy, self._numpy))


def _walked(module: nn.Module) -> tuple[list[nn.Module], bool]:
    """The parts in training mode, and whether any part has hooks that run at its end.

    This runs before every pass, so it walks by hand, several times as fast as `modules()`.
    """
    found, hooked = [], False
    ahead: list[nn.Module | None] = [module, *kept_in(module)]
    met: set[int] = set()  # a part may have several parents, or be one of its own
    while ahead:
        part = ahead.pop()
        if part is None or id(part) in met:
            continue
        met.add(id(part))
        if part.training:
            found.append(part)
        if part._forward_hooks:  # noqa: SLF001 - nothing else tells
            hooked = True
        if part._modules:  # noqa: SLF001 - see above
            ahead += part._modules.values()  # noqa: SLF001 - see above
    return found, hooked


def _offload_again(module: nn.Module, *, unless: Sequence[bool]) -> None:
    """Where a pass broke off between the two hooks by which accelerate fetches a module's weights and puts them away."""
    for part in () if any(unless) else module.modules():
        hook: Any = getattr(part, "_hf_hook", None)
        if any(_has_brought(part, each) for each in (hook, *getattr(hook, "hooks", ()))):
            hook.post_forward(part, None)


def _has_brought(part: nn.Module, hook: Any) -> bool:
    """Whether a hook of accelerate has fetched weights of a module and not put them away; before it ever did it cannot."""
    if not getattr(hook, "offload", False):
        return False
    return any(not weight.is_meta for weight in part.parameters(recurse=getattr(hook, "place_submodules", False)))


def _compiling() -> tuple[Any, bool]:
    """Torch's stance, and whether `flex_attention` has given its advice: to compile what is kept from being compiled here."""
    stance = sys.modules["torch._dynamo.eval_frame"]._stance  # noqa: SLF001 - torch's own way sets another one first
    return stance, UNCOMPILED in getattr(sys.modules.get(FLEX), "_WARNINGS_SHOWN", ())


def _compile(found: tuple[Any, bool]) -> None:
    stance, advised = found
    if isinstance(stance, str):
        torch.compiler.set_stance(stance)
    else:
        sys.modules["torch._dynamo.eval_frame"]._set_stance(stance)  # noqa: SLF001 - see above
    if FLEX in sys.modules:
        given: set[str] = getattr(sys.modules[FLEX], "_WARNINGS_SHOWN", set())
        (given.add if advised else given.discard)(UNCOMPILED)


_uncompiled = Shared(_compiling, _compile, ("force_eager", True))


@contextmanager
def as_written() -> Iterator[None]:
    """What `torch.compile` has compiled runs as it was written inside the block, in all threads: they have one setting."""
    with Changes() as changes:
        run_as_written(changes)
        yield


def run_as_written(changes: Changes) -> None:
    """The same until the changes are undone."""
    if "torch._dynamo" in sys.modules or FLEX in sys.modules:  # which compiles what it is called with
        if "torch._dynamo.eval_frame" not in sys.modules:
            importlib.import_module("torch._dynamo.eval_frame")
        _uncompiled.hold(changes)


def full_precision(device: str) -> AbstractContextManager[Any]:
    """No autocast inside the block."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


def device_of(module: nn.Module) -> torch.device:
    """Where token ids go: where the first weights are, or where accelerate brings them for a pass."""
    first = with_weights(module)
    found = _device_in(first) or _brought_to(first)
    return found or next((tensor.device for tensor in module.parameters() if not tensor.is_meta), torch.device("cpu"))


def _device_in(part: nn.Module) -> torch.device | None:
    """The device of a part's own weights, found several times as fast as by `parameters()`."""
    for tensor in part._parameters.values():  # noqa: SLF001 - see above
        if tensor is not None and not tensor.is_meta:
            return tensor.device
    return None


def devices_of(module: nn.Module) -> list[torch.device]:
    """Every device on which a pass computes, the one of the token ids first."""
    found = dict.fromkeys([device_of(module), *(tensor.device for tensor in module.parameters() if not tensor.is_meta)])
    if any(tensor.is_meta for tensor in module.parameters()):
        found |= dict.fromkeys(brought for part in module.modules() if (brought := _brought_to(part)) is not None)
    return list(found)


def _brought_to(part: nn.Module) -> torch.device | None:
    """The device to which accelerate brings the weights of a module while it runs; None where it brings none."""
    hook = getattr(part, "_hf_hook", None)
    found = next((each for each in (hook, *getattr(hook, "hooks", ())) if getattr(each, "offload", False)), None)
    device = getattr(found, "execution_device", None)
    return None if device is None else torch.device(device)


def dtype_of(module: nn.Module) -> torch.dtype:
    return next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), torch.float32)


def condition(module: nn.Module) -> str:
    """Changes whenever the module may compute something else: other weights, hooks, replaced forwards, modes."""
    parts = [
        f"{part.training}:{[*hooks['_forward_hooks']]}:{[*hooks['_forward_pre_hooks']]}:{id(hooks.get('forward'))}"
        for part in all_parts(module)
        for hooks in (vars(part),)
    ]
    return hashlib.blake2b("".join([fingerprint(module), *parts]).encode(), digest_size=8).hexdigest()


def quoted(path: str) -> str:
    """A module's path as messages have it."""
    return f"`{path}`" if path else "the model itself"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises, on any device, where memory does not last."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    message = str(error)
    return any(words in message for words in ("not enough memory", "can't allocate memory", "out of memory"))


def with_kind(error: Exception) -> str:
    """The first line of what went wrong, with its kind where that is none of ours."""
    return f"{'' if isinstance(error, ModelError) else f'{type(error).__name__}: '}{first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough to stand in one of ours."""
    return errors.first_line(error, LONGEST_LINE)
