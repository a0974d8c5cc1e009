"""What a model under test is, how it is read, what cannot be measured on it, and what to change."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from pytest_induction.models.flow import HOLDS, UNSEEN
from pytest_induction.printable import as_line

if TYPE_CHECKING:
    from pytest_induction.models.protocol import ModelUnderTest

MOVES = re.compile(rf"{UNSEEN} in (.*) too, ")  # of modules that may attend where nothing sees it
PATH = re.compile(r"`([^`]+)` \(")
CLASS = re.compile(r"\((\w+)\)")
SHOWN_LAYERS = 4  # that are named one by one
Line = tuple[str, str]


def diagnose(subject: ModelUnderTest) -> tuple[Line, ...]:
    """Lines of a label and a text, in the order in which they are read."""
    return (
        ("model", _what(subject)),
        ("sequences", _sequences(subject)),
        *(_read(subject) if subject.way is not None else _unread(subject)),
        ("behaviour", _behaviour(subject)),
        *(("note", note) for note in subject.notes),
    )


def as_text(lines: tuple[Line, ...], indent: str = "  ") -> str:
    """The lines, one below the other."""
    width = max(len(label) for label, _ in lines)
    return "\n".join(as_line(f"{indent}{label:<{width}}  {text}") for label, text in lines)


def _what(subject: ModelUnderTest) -> str:
    module = subject.module
    count = sum(weight.numel() for weight in module.parameters())
    dtype = str(subject.dtype).removeprefix("torch.")
    return f"{subject.name}: {type(module).__name__}, {count:,} parameters, {dtype} on {subject.device}"


def _sequences(subject: ModelUnderTest) -> str:
    space = subject.space
    context = "any length that was tried" if space.n_ctx is None else f"up to {space.n_ctx} positions"
    first = "no first token of their own" if space.bos_id is None else f"first token {space.bos_id}"
    usable = space.d_vocab - len(space.excluded)
    mask = "padding by attention_mask" if subject.caller.takes_mask else "no padding: it takes no attention_mask"
    return f"{context}, {first}, {usable:,} usable of {space.d_vocab:,} token ids, {mask}"


def _read(subject: ModelUnderTest) -> tuple[Line, ...]:
    way = subject.reading
    cost = "whole patterns are made" if way.makes_patterns else "no pattern is ever made"
    end = "a pass without logits ends after the last attention" if way.can_stop else "every pass runs to its end"
    return (
        ("way in", f"{way.name}: {cost}, {end}"),
        *(("not taken", said) for said in subject.tried),
        ("layers", _layers(way.layers, way.heads)),
        ("heads", "prefix matching, previous token, duplicate token, first token; has_induction_head"),
    )


def _layers(layers: tuple[str, ...], heads: tuple[int, ...]) -> str:
    named = [f"L{index} {path}" for index, path in enumerate(layers)]
    if len(named) > SHOWN_LAYERS:
        named = [*named[: SHOWN_LAYERS - 1], "...", named[-1]]
    runs = " then ".join(f"{len(list(run))} x {count}" for count, run in itertools.groupby(heads))
    return f"{len(layers)} with attention ({runs} heads): {', '.join(named)}"


def _unread(subject: ModelUnderTest) -> tuple[Line, ...]:
    return (
        ("way in", "none: no head can be measured"),
        *(("tried", said) for said in subject.tried),
        *(("to do", advice) for advice in _advice(subject.module, subject.tried)),
    )


def _advice(module: nn.Module, tried: tuple[str, ...]) -> list[str]:
    """What would make this model readable, the likeliest first. Says nothing of what a model is that no way in saw."""
    if type(module).__module__.startswith("torch.jit") or hasattr(module, "_c"):
        return ["a TorchScript module runs no code that can be watched: measure the module that it was made from"]
    config: Any = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    advice = []
    get_base = getattr(module, "get_base_model", None)
    if callable(get_base):
        inner = type(get_base()).__name__
        advice.append(f"if it adds keys, as prefix tuning does: measure the model inside, `get_base_model()` ({inner})")
    if isinstance(implementation, str) and implementation not in ("sdpa", "eager"):
        advice.append(f"it was loaded with attn_implementation={implementation!r}: load it with 'sdpa' or 'eager'")
    named = [name for name, part in module.named_modules() if _is_called_attention(name, part)]
    unseen = next((said for said in tried if MOVES.search(said)), None)
    if unseen is not None:
        named = PATH.findall(unseen)
        advice.append(_declaring(unseen))
    elif any(said.startswith("softmax: no ") for said in tried):
        advice.append(
            "no attention was seen, which does not mean that there is none: compiled programs, kernels and other functions that "
            "nothing watches may attend; a model that does not has behaviour only, and no heads to measure"
        )
    where = f" (in `{named[0]}`, say)" if named else ""
    advice.append(
        f"call `pytest_induction.show_attention` where it attends{where}, with the pattern, or with query and key where that is "
        "a softmax; or attach a hook that does, by `load_model(model, attach=...)`, conftest.py or `doctor --attach`: "
        "docs/models.md; attention by torch.nn.functional.scaled_dot_product_attention, or by a softmax that is used "
        "unchanged, needs neither"
    )
    return advice


def _declaring(said: str) -> str:
    """How to declare the modules of which this was said, as it is to be written."""
    if HOLDS in said:
        return (
            "if what moves it there has no attention pattern (a recurrence, linear attention), put it into a module of its own, "
            "which can be declared: --induction-without-pattern, `load_model(model, without_pattern=...)`"
        )
    names = _classes(said)
    return (
        "if what moves it there has no attention pattern (a recurrence, linear attention), declare it by path or class: "
        f"--induction-without-pattern={','.join(names)}, `without_pattern = {json.dumps(names)}` in a gate file, "
        f"`--without-pattern={','.join(names)}` of doctor and sweep, `load_model(model, without_pattern=...)` or "
        "`InductionRecorder(..., without_pattern=...)`; nothing can check that, and a note will say so"
    )


def _classes(said: str) -> list[str]:
    """The classes of the modules of which this was said."""
    found = MOVES.search(said)
    return CLASS.findall(found[1]) if found else []


def why_unread(subject: ModelUnderTest, option: str) -> str:
    """The end of a line that says that attention cannot be read, where declaring modules by this option may change that."""
    said = next((said.partition(": ")[2] for said in subject.tried if MOVES.search(said)), "")
    if not said or HOLDS in said:
        return ""
    return f": {said}; if that has no pattern, declare it: {option.format(','.join(_classes(said)))}"


def _is_called_attention(name: str, part: nn.Module) -> bool:
    words = f"{name.rpartition('.')[2]} {type(part).__name__}".lower()
    return "attn" in words or "attention" in words


def _behaviour(subject: ModelUnderTest) -> str:
    text = "text" if subject.tokenizer is not None else "token ids of a text, as it has no tokenizer"
    return f"copies_repeats; learns_in_context, from {text}"
