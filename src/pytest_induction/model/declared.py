"""What models say of themselves, and what users say of them: ids, context, special tokens, modules without a pattern."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from pytest_induction.errors import ArgumentError
from pytest_induction.forward.outputs import Vocabulary
from pytest_induction.model.specs import IfThere
from pytest_induction.records import TokenSpace

CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "block_size",
    "context_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
)
LAYER_NAMES = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layers", "n_layer")
VOCABULARY_NAMES = ("vocab_size", "d_vocab", "n_vocab")
SPECIAL_NAMES = ("bos_token_id", "bos_id", "eos_token_id", "eos_id", "pad_token_id", "pad_id")
BATCH_NAMES = ("max_batch_size",)
SETTINGS = ("config", "cfg", "params", "args", "hparams", "model_args")

Sources = Sequence[nn.Module]
"""The modules whose declarations count, the outermost first."""


def first_of(sources: nn.Module | Sources, names: tuple[str, ...]) -> Any:
    """The first of these names that a module, its config or its `cfg` has a value for."""
    for source in _all_of(sources):
        for name in names:
            value = _entry(source, name)
            if value is not None:
                return value
    return None


def declared(sources: nn.Module | Sources, names: tuple[str, ...]) -> int | None:
    """The first whole number above zero that is declared under one of these names."""
    value = first_of(sources, names)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def declared_layers(sources: Sources) -> int | None:
    """How many layers are declared; a module's own number of decoder layers may be that of a half, and does not count."""
    for module in sources:
        own = [name for name in LAYER_NAMES if "decoder" not in name]
        for source, names in ((module, own), *((each, LAYER_NAMES) for each in _settings(module))):
            found = [value for name in names if isinstance(value := _entry(source, name), int) and value > 0]
            if found:
                return int(found[0])
    return None


def tokenizer_of(sources: Sources) -> Any:
    """The tokenizer that a module carries, if one does."""
    return first_of(sources, ("tokenizer",))


def _all_of(sources: nn.Module | Sources) -> Iterator[Any]:
    for module in [sources] if isinstance(sources, nn.Module) else sources:
        yield module
        yield from _settings(module)


def _settings(module: nn.Module) -> list[Any]:
    """Where a module keeps its numbers: its text config if it has several, its config, what others call theirs."""
    config, *others = (getattr(module, name, None) for name in SETTINGS)
    find_text = getattr(config, "get_text_config", None)
    text = find_text() if callable(find_text) else None
    return [text, config, *(each for each in others if not isinstance(each, (list, tuple, nn.Module)) and not callable(each))]


def _entry(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def token_space(
    sources: Sources,
    tokenizer: Any,
    vocabulary: Vocabulary,
    width: int,
    n_ctx: int | None,
    padding: Collection[int],
    special: Collection[int],
) -> tuple[TokenSpace, tuple[str, ...]]:
    """The ids that probes may use, and notes on those that they may not.

    `width` is that of the logits; `padding` are ids that have no row of the token embedding of their own, `special` ones that
    its modules set apart.
    """
    d_vocab = min(width, vocabulary.size or width)
    special = set(special) | special_ids(sources) | set(getattr(tokenizer, "all_special_ids", None) or ())
    notes = []
    if vocabulary.rows is not None and d_vocab < min(vocabulary.rows, vocabulary.declared or vocabulary.rows):
        notes.append(f"predicts ids 0 to {d_vocab - 1} of the {vocabulary.rows} that its token embedding has: probes use these")
    known = n_known(tokenizer)
    if known is not None and known < d_vocab:
        special |= set(range(known, d_vocab))
        if known <= d_vocab // 2:
            notes.append(f"ids {known} to {d_vocab - 1} are not tokens of its tokenizer: probes leave them out")
    if known is not None and known > d_vocab:
        notes.append(f"its tokenizer has {known} ids, and the model {d_vocab}: texts with others cannot be used")
    empty = {token for token in padding if token < d_vocab} - special
    if empty:
        special |= empty
        notes.append(f"{len(empty)} ids have no embedding of their own, like padding: probes leave them out")
    bos = first_of(sources, ("bos_token_id", "bos_id"))
    bos = bos if isinstance(bos, int) and 0 <= bos < d_vocab else None
    excluded = frozenset(token for token in special if 0 <= token < d_vocab)
    return TokenSpace(d_vocab, n_ctx, bos, excluded), tuple(notes)


def special_ids(sources: Sources) -> set[int]:
    """The ids that are declared to mean something of their own."""
    found: set[int] = set()
    for name in SPECIAL_NAMES:
        for source in (*_all_of(sources), *(getattr(module, "generation_config", None) for module in sources)):
            value = _entry(source, name)
            found |= {token for token in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(token, int)}
    return found


def boundary_ids(sources: Sources, tokenizer: Any) -> list[int]:
    """The ids that are declared to begin, end or fill up sequences, in this order; by the modules, then by the tokenizer."""
    found: list[int] = []
    for source in (*_all_of(sources), tokenizer):
        for name in SPECIAL_NAMES:
            value = None if source is None else _entry(source, name)
            values = value if isinstance(value, (list, tuple)) else [value]
            found += [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each not in found]
    return found


def n_known(tokenizer: Any) -> int | None:
    """How many ids the tokenizer knows; rows of the embedding beyond them were never trained."""
    if hasattr(tokenizer, "get_vocab_size"):
        return int(tokenizer.get_vocab_size())
    try:
        return len(tokenizer)
    except TypeError:
        return None


MOST_NAMED = 8


def paths_or_classes(given: nn.Module, measured: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The same names, paths as they are in the module that is `measured`, which lies in the one that was `given`.

    A path may be written as it is in either. Raises `ArgumentError` for a name that is neither a path nor a class there.
    """
    classes = {type(part).__name__ for part in given.modules()}
    first = {id(part): path for path, part in measured.named_modules()}  # of a part that has several paths
    found = []
    for name in names:
        part = _at(name, measured) or _at(name, given)
        if part is None and name not in classes:
            if isinstance(name, IfThere):
                continue
            seen = f"{name!r} is none in this model{_near(name, given)}"
            raise ArgumentError(f"`without_pattern` must name modules by path or class, and {seen}")
        found.append(name if part is None or name in classes else first.get(id(part), name))
    return tuple(found)


def _at(path: str, module: nn.Module) -> nn.Module | None:
    """The part of that path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _near(name: str, module: nn.Module) -> str:
    """What may have been meant: the nearest name, or the classes that are not of torch."""
    classes = dict.fromkeys(type(part).__name__ for part in module.modules() if not type(part).__module__.startswith("torch."))
    near = difflib.get_close_matches(name, [*classes, *(path for path, _ in module.named_modules())], n=1)
    if near:
        return f"; did you mean `{near[0]}`?"
    some = [*classes][1 : MOST_NAMED + 1]  # the first one is the model's
    return f"; its classes are {', '.join(some)}{' and more' if len(classes) > len(some) + 1 else ''}" if some else ""
