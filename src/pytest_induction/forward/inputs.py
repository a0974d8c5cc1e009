"""What a forward is given: token ids in the way that it takes them, and an obvious value for whatever else it needs.

Nothing here runs a model. Each way to call one is an `Inputs`; which of them is right `model.conventions` finds out.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INPUT_IDS = "input_ids"
IDS = frozenset(
    {INPUT_IDS, "tokens", "token_ids", "ids", "idx", "x", "src", "inp", "input", "inputs", "inputs_ids", "input_tokens", "text"}
)
TARGETS = ("targets", "target", "labels", "label", "tgt", "trg", "y", "target_ids", "target_tokens", "next_tokens")
ZERO = frozenset({"start_pos", "start_index", "start_position", "pos_offset", "offset", "position_offset", "past_length"})
PLACES = frozenset(
    {"position_ids", "positions", "pos", "pos_ids", "input_pos", "input_positions", "segment_pos", "cache_position", "position"}
)
MASKS = frozenset({"mask", "src_mask", "tgt_mask", "trg_mask", "attn_mask", "causal_mask", "x_mask", "self_attn_mask"})
PADDING = frozenset({"attention_mask", "input_mask"})  # 1 where there is a token
IGNORED = frozenset(  # what is nothing, for a sequence by itself
    {"cache", "caches", "kv_cache", "kv_caches", "past", "past_key_values", "layer_past", "state", "states", "memory", "mems"}
    | {"inference_params", "context", "token_type_ids", "segment_ids", "key_padding_mask", "padding_mask"}
    | {"src_key_padding_mask", "tgt_key_padding_mask", "hidden", "hidden_states_in", "past_kv", "encoder_out"}
)
OFF = frozenset({"train", "training", "is_training", "use_cache", "return_loss", "return_hidden", "return_cache"})
ALL_LOGITS = frozenset({"get_logits", "return_logits", "output_logits", "return_all_logits", "all_logits", "compute_logits"})
LENGTH = frozenset({"seq_len", "seqlen", "seq_length", "length"})
LENGTHS = frozenset({"lengths", "seq_lens", "seqlens", "input_lengths"})
ALIKE = frozenset({*TARGETS, *PLACES, *IGNORED, "decoder_input_ids"})  # what may have the shape of token ids
OPTIONAL = MASKS | PADDING | PLACES  # what a forward may need although it has a default
Make = Callable[[Tensor], Any]


class Argument(NamedTuple):
    """One more argument of a forward: its name, its value in words, and what makes it of token ids (rows, positions)."""

    name: str
    description: str
    make: Make


def _places(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device)


def _future(tokens: Tensor) -> Tensor:
    """True where a position would look ahead."""
    positions = tokens.shape[1]
    return torch.ones(positions, positions, dtype=torch.bool, device=tokens.device).triu(1)


def _added(tokens: Tensor) -> Tensor:
    return torch.zeros(_future(tokens).shape, device=tokens.device).masked_fill_(_future(tokens), -torch.inf)


def _blocks(tokens: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    length, device = tokens.shape[1], str(tokens.device)
    return create_block_mask(lambda row, head, query, key: query >= key, None, None, length, length, device=device)


def _masks(name: str) -> list[Argument]:
    """The causal masks that a forward may mean: what adds to the scores, what says where to look, what says where not to."""
    return [
        Argument(name, "a causal mask that is added", _added),
        Argument(name, "a causal mask, True where it attends", lambda tokens: ~_future(tokens)),
        Argument(name, "a causal mask, True where it attends", lambda tokens: ~_future(tokens)[None, None]),
        Argument(name, "a causal mask, True where it does not attend", _future),
        Argument(name, "ones for every token", torch.ones_like),
        Argument(name, "a causal mask of blocks", _blocks),
    ]


def _always(description: str, make: Make) -> Callable[[str], list[Argument]]:
    return lambda name: [Argument(name, description, make)]


def _any_layout(name: str) -> list[Argument]:
    return [Argument(name, "the positions", lambda ids: _places(ids).expand(ids.shape)), Argument(name, "the positions", _places)]


def _padding(name: str) -> list[Argument]:
    return [Argument(name, "ones for every token", torch.ones_like), *_masks(name)[:4]]


OBVIOUS: tuple[tuple[Collection[str], Callable[[str], list[Argument]]], ...] = (
    (ZERO, _always("0", lambda ids: 0)),
    (PLACES, _any_layout),
    (PADDING, _padding),
    (MASKS, _masks),
    (IGNORED, _always("None", lambda ids: None)),
    (OFF, _always("False", lambda ids: False)),
    (LENGTH, _always("the number of positions", lambda ids: ids.shape[1])),
    (LENGTHS, _always("the number of positions", lambda ids: ids.new_full((len(ids),), ids.shape[1]))),
    (TARGETS, lambda name: [targets(name)]),
)


def obvious(name: str) -> list[Argument]:
    """What an argument of this name may be for whole sequences of one length; nothing where it could be anything."""
    return next((make(name) for names, make in OBVIOUS if name in names), [])


def targets(name: str) -> Argument:
    """Targets that any vocabulary has: the ids themselves. What loss comes of them is not looked at."""
    return Argument(name, "the ids themselves, for which it gives logits of every position", Tensor.clone)


@dataclass(frozen=True)
class Inputs:
    """How a forward is given token ids (rows, positions).

    `keyword` is the name of their argument, empty where they come first; `arguments` are the others. `time_first` gives them as
    (positions, rows), `in_batch` in a mapping, `flat` as one row without its axis.
    """

    keyword: str = ""
    arguments: tuple[Argument, ...] = ()
    time_first: bool = False
    in_batch: bool = False
    flat: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the ids are given as they are, and nothing else."""
        return not (self.arguments or self.time_first or self.in_batch or self.flat)

    @property
    def takes_padding(self) -> bool:
        """Whether rows keep their layout, so that an `attention_mask` belongs to them."""
        return not (self.time_first or self.in_batch or self.flat)

    def given(self, tokens: Tensor) -> Tensor:
        """The ids in the layout of the forward."""
        tokens = tokens[0] if self.flat else tokens
        return (tokens.T if self.time_first else tokens).contiguous()

    def restored(self, given: Tensor) -> Tensor:
        """Ids (rows, positions) of those that a forward was given."""
        if self.flat:
            return given[None] if given.ndim == 1 else given
        return given.T if self.time_first else given

    def arguments_of(self, tokens: Tensor, options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the forward is called with for these ids; `options` are more arguments, which come before obvious ones."""
        ids = self.given(tokens)
        named = {each.name: each.make(tokens) for each in self.arguments} | dict(options)
        if self.in_batch:
            return (Batch(ids, tokens),), named
        return ((), {self.keyword: ids, **named}) if self.keyword else ((ids,), named)

    def found(self, args: Sequence[Any], options: Mapping[str, Any]) -> Tensor | None:
        """The token ids (rows, positions) among what a forward was called with; None where there are none.

        By their usual name, or the first that look like them and are called nothing else.
        """
        others = {name: each for name, each in options.items() if name != INPUT_IDS and "mask" not in name and name not in ALIKE}
        given = [*args, options.get(self.keyword or INPUT_IDS), *others.values()]
        given += [each for batch in given if isinstance(batch, Mapping) for name, each in batch.items() if name in IDS]
        axes = 1 if self.flat else 2
        ids = (each for each in given if isinstance(each, Tensor) and each.ndim == axes and not each.is_floating_point())
        found = next(ids, None)
        return None if found is None else self.restored(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of the way in which the ids are given."""
        found = [f"given `{each.name}`: {each.description}" for each in self.arguments]
        found += ["time-first: given token ids as (positions, rows)"] if self.time_first else []
        found += ["given token ids in a mapping, as `input_ids`"] if self.in_batch else []
        found += ["given one row at a time, as (positions,)"] if self.flat else []
        return tuple(found)


class Batch(dict[str, Any]):
    """Token ids under every name that a forward may look for them under, and obvious values under other names."""

    def __init__(self, ids: Tensor, tokens: Tensor) -> None:
        super().__init__({INPUT_IDS: ids, "attention_mask": torch.ones_like(ids)})
        self._tokens = tokens

    def __missing__(self, name: str) -> Any:
        if name in IDS:
            return self[INPUT_IDS]
        found = obvious(name)
        if not found:
            raise KeyError(name)
        return found[0].make(self._tokens)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def parameters_of(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a forward by name; none of a script."""
    try:
        found = dict(inspect.signature(module.forward).parameters)
    except ValueError:
        return {}
    if next(iter(found), "") == "self":  # of a function that stands in for the forward and is called like it
        del found["self"]
    return found


def ways_to_give(module: nn.Module, rows: int) -> Iterator[Inputs]:
    """The ways to call a module, the simplest first. Raises `LookupError` where it needs what has no obvious value."""
    parameters = parameters_of(module)
    named = {name: each for name, each in parameters.items() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    keyword = _keyword(named)
    first = keyword or next(iter(named), "")
    needed = [name for name, each in named.items() if name != first and each.default is each.empty]
    choices = [obvious(name) for name in needed]
    strange = [name for name, found in zip(needed, choices, strict=True) if not found]
    if strange:
        raise LookupError(f"its forward needs `{strange[0]}`, for which no value is obvious")
    for chosen in itertools.product(*choices):
        plain = Inputs(keyword, chosen)
        yield plain
        if rows == 1:
            yield replace(plain, flat=True)
    if not needed:
        yield Inputs(in_batch=True)


def with_options(module: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """The same call with an obvious value for one of the arguments that it had left out."""
    here = {each.name for each in inputs.arguments} | {inputs.keyword}
    for name, each in parameters_of(module).items():
        if name in OPTIONAL and name not in here and each.default is None:
            for argument in obvious(name):
                yield replace(inputs, arguments=(*inputs.arguments, argument))


def asking_for_all(module: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """The same call, asking for the logits of every position: with targets, by a switch that says so, or both."""
    parameters = parameters_of(module)
    given = [targets(name) for name in parameters if name in TARGETS and name != inputs.keyword]
    switched = [
        Argument(name, "True", lambda ids: True)
        for name, each in parameters.items()
        if name in ALL_LOGITS and each.default is False
    ]
    for chosen in (*((each,) for each in given), *((each,) for each in switched), *itertools.product(given, switched)):
        yield replace(inputs, arguments=(*inputs.arguments, *chosen))


def switches_of(module: nn.Module) -> str:
    """The options of a forward that may change what it returns, as they would be written; empty where it has none."""
    words = ("return", "output", "logit", "embed", "hidden", "last", "only", "loss")
    found = [
        f"{name}={each.default!r}"
        for name, each in parameters_of(module).items()
        if isinstance(each.default, (bool, int)) and any(word in name for word in words)
    ]
    return ", ".join(found)


def _keyword(named: Mapping[str, inspect.Parameter]) -> str:
    """The name under which token ids are given; empty where they simply come first."""
    if INPUT_IDS in named:
        return INPUT_IDS
    first = next(iter(named), "")
    others = [name for name in named if name in IDS]
    return others[0] if others and first not in IDS and obvious(first) else ""
