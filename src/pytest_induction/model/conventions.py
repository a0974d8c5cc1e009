"""How a module is called and where its logits are, found by calling it; and what one pass of an unknown model shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pytest_induction.attention.tracking import following_calls
from pytest_induction.errors import InductionError, ModelError, because_of
from pytest_induction.forward.calling import (
    CallConvention,
    Caller,
    device_of,
    difference,
    first_line,
    is_out_of_memory,
    uncompiled,
)
from pytest_induction.forward.changing import enter_mode
from pytest_induction.forward.inputs import IDS, Inputs, asking_for_all, parameters_of, switches_of, ways_to_give, with_options
from pytest_induction.forward.outputs import NoLogits, Vocabulary, described, of_last_only, of_more_positions, parts_of, readings
from pytest_induction.model.declared import BATCH_NAMES, CONTEXT_NAMES, VOCABULARY_NAMES, declared, special_ids
from pytest_induction.undoing import Changes

LOOK_UPS = frozenset({"embedding", "__getitem__", "index_select"})
LONGER = frozenset({"pad", "constant_pad_nd", "cat", "concat", "concatenate"})
NORMS = frozenset({"layer_norm", "rms_norm"})
ROWS_AT_ONCE = 16_384  # of a table, that are held in another precision
FEWEST_OWN = 8  # ids with a row of their own, without which rows say nothing


class Inner(NamedTuple):
    """A module within another one that was given the token ids: how deep it lies, what it returned, and whether by them alone.

    It was if what it was given beside them is nothing, a switch, a mask of whole numbers or positions: no name of a kernel, no
    function, no numbers that scores or states may be changed by.
    """

    name: str
    module: nn.Module
    depth: int
    alone: bool
    output: Any


class FirstPass(TorchFunctionMode):
    """Watches one pass over `tokens` (rows, positions)."""

    def __init__(self, module: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self.table: tuple[int, int] | None = None  # the shape of what the ids look up
        self.padding: frozenset[int] = frozenset()  # ids that have no row there of their own
        self.given: list[Inner] = []  # in the order in which they began
        self.lengths: set[int] = set()  # of what was made longer along an axis that had as many entries as there are positions
        self._module, self._tokens = module, tokens
        self._names = {id(part): name for name, part in module.named_modules()}
        self._made: dict[int, tuple[ref[Tensor], nn.Module]] = {}  # what a module returned, by the innermost one that did
        self._by_norm: dict[int, ref[Tensor]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the pass inside the block."""
        stack: list[int | None] = []

        def entering(part: nn.Module, inputs: Any, options: Any) -> None:
            number = None
            if self._has_ids((inputs, options)):
                number = len(self.given)
                alone = _is_simple((inputs, options))
                self.given.append(Inner(self._names.get(id(part), ""), part, len(stack), alone, None))
            stack.append(number)

        def leaving(part: nn.Module, inputs: Any, output: Any) -> None:
            number = stack.pop()
            if number is not None:
                self.given[number] = self.given[number]._replace(output=output)
            for _, tensor in parts_of(output):
                if self._maker(tensor) is None:
                    self._made[id(tensor)] = ref(tensor), part

        with following_calls(self._module, entering, leaving), Changes() as changes:
            enter_mode(changes, self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in LOOK_UPS:
            self._look_up(args, kwargs or {})
        elif name in LONGER:
            self._made_longer(args, output)
        elif name in NORMS and isinstance(output, Tensor):
            self._by_norm[id(output)] = ref(output)
        return output

    def _maker(self, tensor: Tensor) -> nn.Module | None:
        """The innermost module that returned this tensor."""
        found = self._made.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def _look_up(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        tensors += [each for arg in args if isinstance(arg, tuple) for each in arg if isinstance(each, Tensor)]
        tables = [each for each in tensors if each.is_floating_point() and each.ndim == 2]
        if tables and any(self._are_ids(each) for each in tensors) and (self.table is None or len(tables[0]) > self.table[0]):
            rows, width = tables[0].shape
            self.table = rows, width
            self.padding = _without_own_row(tables[0].detach())  # now, as a sharded model lets go of its weights after use

    def _made_longer(self, args: Any, output: Any) -> None:
        first = args[0] if args else None
        given = [each for each in (first if isinstance(first, (list, tuple)) else [first]) if isinstance(each, Tensor)]
        if not isinstance(output, Tensor):
            return
        for each in given:
            if each.ndim == output.ndim:
                pairs = zip(each.shape, output.shape, strict=True)
                self.lengths |= {now for was, now in pairs if was == self._tokens.shape[1] < now}

    def _has_ids(self, values: Any) -> bool:
        if isinstance(values, Tensor):
            return self._are_ids(values)
        if isinstance(values, Mapping):
            return any(map(self._has_ids, values.values()))
        return isinstance(values, (list, tuple)) and any(map(self._has_ids, values))

    def _are_ids(self, values: Tensor) -> bool:
        """Whether these are the token ids: as they are, turned, in one row, with something before or behind."""
        tokens = self._tokens
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool or values.numel() < tokens.numel():
            return False
        if values.numel() == tokens.numel():
            flat = values.flatten().to(tokens)
            return bool(torch.equal(flat, tokens.flatten()) or torch.equal(flat, tokens.T.flatten()))
        turned = values.T if values.ndim == 2 and values.shape[1] == len(tokens) and values.shape[0] != len(tokens) else values
        if turned.ndim != 2 or len(turned) != len(tokens) or turned.shape[1] <= tokens.shape[1]:
            return False
        width = tokens.shape[1]
        return bool(torch.equal(turned[:, :width].to(tokens), tokens) or torch.equal(turned[:, -width:].to(tokens), tokens))

    def is_hidden(self, logits: Tensor) -> bool:
        """Whether what was taken for logits is what a norm, or one of several modules of a kind, returned: a hidden state."""
        normed, part = self._by_norm.get(id(logits)), self._maker(logits)
        if normed is not None and normed() is logits:
            return True
        if part is None or part is self._module:
            return False
        weights = list(part.parameters())
        twins = sum(type(other) is type(part) for other in self._module.modules())
        is_norm = bool(weights) and all(weight.ndim < 2 for weight in weights)
        return is_norm or (twins > 1 and not isinstance(part, nn.Linear) and any(True for _ in part.children()))

    def forget_outputs(self) -> None:
        """Let go of what modules returned, once it is known which of it are logits, but for those that were given the ids."""
        self._made.clear()
        self._by_norm.clear()

    @property
    def special(self) -> set[int]:
        """Ids that a table of embeddings, or a module that is given the ids, keeps for padding."""
        named = (getattr(each.module, "padding_idx", None) for each in self.given)
        return {int(token) for token in named if isinstance(token, int)}

    @property
    def sources(self) -> tuple[nn.Module, ...]:
        """The module, and those within it that were given the ids: whose declarations are about them."""
        found = dict.fromkeys([self._module, *(each.module for each in self.given)])
        return tuple(part for part in found if not isinstance(part, nn.Embedding))


def _is_simple(value: Any) -> bool:
    """Whether an argument is token ids, or what any model may be given beside them without a change of what it does."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    if isinstance(value, Mapping):
        return all(map(_is_simple, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int))


def _without_own_row(table: Tensor) -> frozenset[int]:
    """Ids whose row of a table (ids, width) is another id's too, where enough ids have one of their own."""
    if table.is_meta or table.is_quantized:
        return frozenset()
    weights = torch.arange(1, table.shape[1] + 1, device=table.device, dtype=torch.float32).cos()
    sums = torch.cat([part.float() @ weights for part in table.split(ROWS_AT_ONCE)])
    _, group, counts = torch.unique(sums, return_inverse=True, return_counts=True)
    shared = counts[group] > 1
    if int((~shared).sum()) < FEWEST_OWN:
        return frozenset()
    found: list[Tensor] = []
    for number in group[shared].unique():
        tokens = (group == number).nonzero().flatten()
        same = tokens[(table[tokens] == table[tokens[0]]).all(1)]
        found += [same] if len(same) > 1 else []
    return frozenset(torch.cat(found).tolist()) if found else frozenset()


LENGTHS_TRIED = ((11, 37), (37, 53), (5, 7), (16, 48), (32, 64), (64, 128))
"""Positions of two passes: what is as long as the sequence in both is made of it. Some models take round numbers only."""
ROWS_TRIED = 3
STEPS = (2, 4, 8, 16, 32, 64)  # of which lengths may have to be multiples
ROUND = (16, 64, 128)  # to which models may fill up rows by themselves; half of each too
MOST_LENGTHS = 12  # single lengths that are tried where no other was taken
LONGEST = 8192
SAME = 1e-5  # of the size of the logits: what a wrapper that fills rows up may change by other rounding
GUIDE = "docs/how-to/wrap-a-model.md"
WRAP = f"wrap it so that it returns them, see {GUIDE}"


@dataclass(frozen=True)
class Found:
    """One way to call a module that gives logits, and what its first pass showed."""

    caller: Caller
    lengths: tuple[int, int]
    rows: int
    width: int  # of the logits
    vocabulary: Vocabulary
    seen: FirstPass
    tokens: Tensor
    logits: Tensor


def find_conventions(module: nn.Module, name: str) -> Iterator[Found]:
    """The ways to call a module that give logits for every position, the likeliest first.

    Raises `ModelError` where there is none, with what was seen and what to do.
    """
    try:
        yield from _Search(uncompiled(module), name).found()
    except NoLogits as error:
        raise ModelError(str(error)) from None


def model_inside(found: Found) -> tuple[Inner, Found] | None:
    """The innermost module that is given the ids and returns these very logits, with all the weights; None for none.

    The tensor itself or a view of it: what is computed from it in a wrapper may be another thing on other tokens.
    """
    outer = found.caller.module
    weights = {id(weight) for weight in outer.parameters()}
    place = found.logits.untyped_storage().data_ptr()
    others = [each for each in found.seen.given if not each.alone and each.module is not outer]
    for inner in sorted(found.seen.given, key=lambda each: -each.depth):
        part = uncompiled(inner.module)
        if part is outer or not weights <= {id(weight) for weight in part.parameters()}:
            continue
        if not _holds(inner.output, place) or any(_is_around(each, part) for each in others):
            continue
        same = _giving_the_same(part, inner.name, found)
        if same is not None:
            return inner, same
    return None


def holding_all(found: Found, module: nn.Module) -> nn.Module:
    """The innermost model that is given the ids, gives what is as wide as logits, and has all weights under their own names."""
    tensors = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for inner in sorted(found.seen.given, key=lambda each: -each.depth):
        part = uncompiled(inner.module)
        if not any(found.width in tensor.shape for _, tensor in parts_of(inner.output)):
            continue
        if tensors <= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}:
            return part
    return module


def _is_around(one: Inner, part: nn.Module) -> bool:
    """Whether a part runs inside this one, or is it."""
    return any(each is part for each in one.module.modules())


def _giving_the_same(part: nn.Module, name: str, found: Found) -> Found | None:
    """How a part is called so that it gives the logits that were found of the whole; None where it does not."""
    try:
        for one in find_conventions(part, name):
            logits = every_row(one.caller, found.tokens)
            if logits.shape == found.logits.shape and difference(logits.float(), found.logits.float()) <= SAME:
                return one
    except Exception as error:
        if is_out_of_memory(error):
            raise
    return None


def _holds(output: Any, place: int) -> bool:
    """Whether a tensor of the output lies there in memory."""
    return any(part.untyped_storage().data_ptr() == place for _, part in parts_of(output))


def every_row(caller: Caller, tokens: Tensor) -> Tensor:
    """The logits of all rows (rows, positions), given as many at a time and as long as the module takes them."""
    most = caller.convention.most_rows or len(tokens)
    filled = caller.convention.filled(tokens)
    found = [caller.logits(part) for part in filled.split(most)]
    return torch.cat(found)[:, : tokens.shape[1]]


class _Search:
    """The search of one module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module = module
        self._name = name
        self._n_ctx = declared(module, CONTEXT_NAMES)
        self._ids = torch.tensor(_ordinary(module))
        self._failure: tuple[Exception, Tensor] | None = None
        self._found: list[Found] = []

    def found(self) -> Iterator[Found]:
        for attempts in (self._simple, self._with_options, self._of_one_length):
            yield from self._first_of(attempts())
            if self._found:
                break
        if not self._found:
            raise self._no_way()
        last = self._found[0]
        for inputs in self._others(last.caller.convention.inputs):
            yield from self._quietly(inputs, last.rows, last.lengths)

    def _first_of(self, attempts: Iterator[tuple[Inputs, int, tuple[int, int]]]) -> Iterator[Found]:
        """What the first attempt gives that runs."""
        for inputs, rows, lengths in attempts:
            found = self._attempt(inputs, rows, lengths)
            if found:
                yield from found
                return

    def _simple(self) -> Iterator[tuple[Inputs, int, tuple[int, int]]]:
        for rows in (ROWS_TRIED, 1):
            for lengths in LENGTHS_TRIED:
                for inputs in self._given(rows):
                    yield inputs, rows, lengths

    def _with_options(self) -> Iterator[tuple[Inputs, int, tuple[int, int]]]:
        """As above, with what has a default that does not serve."""
        for inputs, rows, lengths in self._simple():
            if not inputs.in_batch:
                for more in with_options(self._module, inputs):
                    yield more, rows, lengths

    def _of_one_length(self) -> Iterator[tuple[Inputs, int, tuple[int, int]]]:
        """Lengths that are the only one: a declared one, or one that an axis of a weight has."""
        tensors = [*self._module.parameters(), *self._module.buffers()]
        sizes = {size for tensor in tensors for size in tensor.shape if LENGTHS_TRIED[0][0] < size <= LONGEST}
        lengths = list(dict.fromkeys([*([self._n_ctx] if self._n_ctx else []), *sorted(sizes)]))[:MOST_LENGTHS]
        for rows in (ROWS_TRIED, 1):
            for length in lengths:
                for inputs in self._given(rows):
                    yield inputs, rows, (length, length)

    def _given(self, rows: int) -> Iterator[Inputs]:
        try:
            yield from ways_to_give(self._module, rows)
        except LookupError as error:
            if self._failure is None:
                self._failure = ModelError(f"{self._name}: {error.args[0]}"), self._tokens(rows, LENGTHS_TRIED[0][0])

    def _others(self, inputs: Inputs) -> Iterator[Inputs]:
        """Other ways to call it, where the first one was no good."""
        if not (inputs.in_batch or inputs.flat):
            turned = replace(inputs, time_first=True)
            yield turned
            yield from with_options(self._module, inputs)
            yield from with_options(self._module, turned)

    def _quietly(self, inputs: Inputs, rows: int, lengths: tuple[int, int], *, asks: bool = True) -> list[Found]:
        try:
            return self._attempt(inputs, rows, lengths, asks=asks)
        except ModelError:
            return []

    def _tokens(self, rows: int, positions: int) -> Tensor:
        """Two ids that every vocabulary has, in a pattern that nothing else has; no special ones, where there are others."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(0, 2, (rows, positions), generator=generator)
        chosen[:, :2] = torch.tensor([0, 1])[:positions]
        return self._ids[chosen].to(device_of(self._module))

    def _attempt(self, inputs: Inputs, rows: int, lengths: tuple[int, int], *, asks: bool = True) -> list[Found]:
        """What one way to call it gives: nothing where it raises. Raises `NoLogits` where it returns none, also when asked to."""
        same = lengths[0] == lengths[1]
        positions = lengths[0] if same else min(lengths[0], max(1, (self._n_ctx or lengths[1]) - 1))
        tokens = self._tokens(rows, positions)
        convention = CallConvention(inputs, most_rows=1 if rows == 1 else declared(self._module, BATCH_NAMES))
        caller = Caller(self._module, convention)
        called = self._called(caller, tokens)
        if called is None:
            return []
        output, seen = called
        try:
            found = self._read(caller, tokens, lengths, output, seen)
        except NoLogits as error:
            more = asking_for_all(self._module, inputs) if error.may_be_asked_for and asks else ()
            others = [(each, rows) for each in more] + ([(inputs, 1)] if rows > 1 and asks else [])
            given = next(filter(None, (self._quietly(each, count, lengths, asks=False) for each, count in others)), None)
            if given is None:
                raise
            return given
        self._found += found
        return found

    def _called(self, caller: Caller, tokens: Tensor) -> tuple[Any, FirstPass] | None:
        seen = FirstPass(self._module, tokens)
        try:
            with seen.watching():
                return caller(tokens), seen
        except Exception as error:
            if is_out_of_memory(error):
                raise
            first = self._failure is None
            if first:
                self._failure = error, tokens
        if not first:
            return None
        try:  # it may mind being watched
            return caller(tokens), FirstPass(self._module, tokens)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None

    def _read(self, caller: Caller, tokens: Tensor, lengths: tuple[int, int], output: Any, seen: FirstPass) -> list[Found]:
        rows, width = seen.table or (None, None)
        sources = seen.sources
        vocabulary = Vocabulary(rows, width, declared(sources, VOCABULARY_NAMES))
        found = []
        for outputs in readings(output, tokens, vocabulary, self._name, seen.is_hidden):
            logits = outputs.logits(output, tokens)
            convention = replace(caller.convention, outputs=outputs)
            convention = replace(convention, multiple=self._multiple(Caller(self._module, convention), lengths))
            size = logits.shape[2]
            found.append(Found(Caller(self._module, convention), lengths, len(tokens), size, vocabulary, seen, tokens, logits))
        seen.forget_outputs()
        if not found:
            raise self._none(output, tokens, vocabulary, seen)
        return found

    def _multiple(self, caller: Caller, lengths: tuple[int, int]) -> int:
        """What a row's length must be a multiple of; 1 where any will do."""
        if lengths[0] == lengths[1]:
            return lengths[0]
        if lengths in LENGTHS_TRIED[:3]:
            return 1  # prime numbers
        for step in (1, *STEPS):
            try:
                caller.logits(self._tokens(1, lengths[0] + step))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
            else:
                return step
        return lengths[0]

    def _none(self, output: Any, tokens: Tensor, vocabulary: Vocabulary, seen: FirstPass) -> NoLogits:
        """What to say where nothing that was returned is logits of every position."""
        size = "ids" if vocabulary.size is None else f"{vocabulary.size}"
        known = f" as {vocabulary}" if str(vocabulary) else ""
        expected = f"expected next-token logits of every position, ({', '.join(map(str, tokens.shape))}, {size}){known}"
        returned = f"{self._name} returned {described(output)} for token ids {tuple(tokens.shape)}"
        more = of_more_positions(output, tokens, vocabulary)
        if more:
            return NoLogits(f"{returned}, {more} positions more than ids; {expected}{self._inside(seen)}")
        if of_last_only(output, tokens, vocabulary):
            return NoLogits(f"{returned}, logits of the last position only; {expected}: {WRAP}", may_be_asked_for=True)
        wider = [part.shape[-1] for _, part in parts_of(output) if part.ndim == 3 and vocabulary.is_wider(part.shape[-1])]
        padded = "; if these are logits that are padded, give the module the attribute `vocab_size`" if wider else ""
        return NoLogits(f"{returned}; {expected}{padded}{self._advice()}", may_be_asked_for=True)

    def _inside(self, seen: FirstPass) -> str:
        """Which model inside to measure, where the one around adds positions."""
        get = getattr(self._module, "get_base_model", None)
        inner = get() if callable(get) else None
        if isinstance(inner, nn.Module):
            return f". Prompt tuning adds positions: measure the model inside, `get_base_model()` ({type(inner).__name__})"
        name = next((each.name for each in seen.given if each.name and any(True for _ in each.module.children())), "")
        return f": measure the model inside, `{name}`" if name else f": {WRAP}"

    def _advice(self) -> str:
        head = getattr(self._module, "get_output_embeddings", None)
        if callable(head) and head() is None:
            return "; it has no language-model head: load it with AutoModelForCausalLM"
        switches = switches_of(self._module)
        return f"; its forward has {switches}: another value may give them, see {GUIDE}" if switches else f": {WRAP}"

    def _no_way(self) -> ModelError:
        """What to raise where no way to call it ran."""
        if self._failure is None:
            return ModelError(f"{self._name} was not tried out")
        error, tokens = self._failure
        if isinstance(error, InductionError):
            return ModelError(f"{error}{self._why(error) or f'; wrap it so that it takes token ids alone, see {GUIDE}'}")
        cure = self._why(error) or f"; if it takes something else, wrap it, see {GUIDE}"
        failed = ModelError(
            f"{self._name} must map token ids (batch, positions) to logits; given {tuple(tokens.shape)} it raised "
            f"{type(error).__name__}: {first_line(error)}{cure}"
        )
        return because_of(failed, error, by_factory=False)

    def _why(self, error: Exception) -> str:
        """What may be the matter, where that can be told."""
        if getattr(getattr(self._module, "config", None), "is_encoder_decoder", False):
            return "; it is an encoder and a decoder, and no causal language model"
        inner = [name for name, part in self._module.named_children() if _takes_ids(part)]
        if isinstance(error, NotImplementedError) and inner:
            return f"; measure the model inside, `{inner[0]}`"
        return ""


def _ordinary(module: nn.Module) -> list[int]:
    """Two of the first ids, which any vocabulary has, that the module does not say are special."""
    n_ids, special = min(declared(module, VOCABULARY_NAMES) or 2, 8), special_ids([module])
    found = [token for token in range(n_ids) if token not in special]
    return found[:2] if len(found) > 1 else [0, 1]


def _takes_ids(part: nn.Module) -> bool:
    return any(name in IDS for name in parameters_of(part))


def of_round_lengths(found: Found) -> Iterator[Found]:
    """The same way to call a module that fills up rows by itself, with rows that need not be filled up."""
    convention, positions = found.caller.convention, found.tokens.shape[1]
    for step in ROUND:
        length = -(-positions // step) * step
        if convention.multiple == 1 and length in found.seen.lengths:
            caller = Caller(found.caller.module, replace(convention, multiple=step))
            yield from (replace(found, caller=caller, lengths=(step, times * step)) for times in (3, 2))
