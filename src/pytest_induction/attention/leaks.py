"""Whether anything but the layers that are seen moves information between positions."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from pytest_induction.attention.errors import BackendUnavailable
from pytest_induction.attention.tracking import following_calls, is_of_transformers, sealed_in
from pytest_induction.forward.calling import Caller, quoted

# Words in the names of transformers' own classes that mix positions and have no pattern, where no word says attention.
WITHOUT_PATTERN = frozenset(
    [
        "mamba",
        "ssm",
        "ssd",
        "rwkv",
        "rglru",
        "lru",
        "hyena",
        "retention",
        "retnet",
        "deltanet",
        "kda",
        "gla",
        "hgrn",
        "qrnn",
        "sru",
        "lstm",
        "gru",
        "rnn",
        "xlstm",
        "hebbian",
        "ttt",
        "conv",
        "convolution",
        "recurrent",
        "recurrence",
        "shift",
        "canon",
        "ema",
        "lightning",
        "delta",
    ]
)
LINEAR = frozenset({"linear", "lightning", "delta"})  # kinds of attention without a softmax
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
CLOSE = {torch.float64: 1e-8, torch.float32: 1e-4}  # what other rows of a batch may change by rounding
CLOSE_HALF = 3e-2
UNSEEN = "information moves between positions"
HOLDS = "it is or holds a layer that is seen, and cannot be declared"
Given = tuple[tuple[Any, ...], dict[str, Any]]  # to a call of a module
Experiment = Callable[[nn.Module, Given, tuple[int, int], int], bool]
Key = tuple[str, int, str]  # of a module, which time it ran, and whether it was given something or gave it


def mixing_modules(
    caller: Caller,
    tokens: Tensor,
    usable: list[int],
    seen: Sequence[str],
    self_attention_only: Callable[[], AbstractContextManager[object]],
    *,
    fixed: Experiment,
    declared: Collection[str] = (),
) -> Mixing:
    """The modules that mix positions beside the layers that are seen, as far as they are known to have no pattern.

    `tokens` are two rows, or one where a pass takes no more, of which a first token and a first half are exchanged; `usable` are
    token ids to exchange them with, `seen` the paths of the layers. `fixed` tells by experiment whether a module
    mixes by fixed shares, `declared` are paths and classes of modules that are said to have no pattern. Raises
    `BackendUnavailable` for a module that may hide attention.
    """
    check = LeakCheck(caller.module, tokens, seen)
    places = (0, tokens.shape[1] // 2)

    def recorded() -> None:
        with self_attention_only(), check.recording():
            caller(tokens)

    recorded()
    ordinary = usable[len(usable) // 2 :] + usable[: len(usable) // 2]  # the first ids may mean something to a model
    present = set(tokens.flatten().tolist())
    strange = [token for token in ordinary if token not in present] or ordinary
    passes: list[tuple[int, ...]] = [places] if len(tokens) == len(places) else [(place,) for place in places]
    for of_rows in passes:
        other = tokens.clone()
        for row, place in zip(other, of_rows, strict=True):
            exchanged = torch.tensor([strange[number % len(strange)] for number in range(place + 1)], device=tokens.device)
            row[: place + 1] = torch.where(row[: place + 1] == exchanged, strange[-1], exchanged)
        with self_attention_only(), check.comparing(of_rows):
            caller(other)
        if check.lacks_values:
            check.keeps_values = True
            recorded()
            with self_attention_only(), check.comparing(of_rows):
                caller(other)
        check.decide(fixed, declared)  # not before the pass is over: what runs in it is counted
    return Mixing([path for path in check.found if path not in check.declared], check.declared)


class Mixing(NamedTuple):
    """Modules that mix positions without a pattern: those that are known to, and those that are only said to."""

    known: list[str]
    declared: list[str]


def is_declared(module: nn.Module, path: str, names: Collection[str], seen: Sequence[str] = ()) -> bool:
    """Whether a module, or one that it lies in and that holds no layer which is seen, has one of these names as path or class."""
    steps = path.split(".")
    around = [".".join(steps[: count + 1]) for count in range(len(steps))] if path else []
    around_no_layer = [each for each in around if not _holds(each, seen)]
    return any(each in names or type(module.get_submodule(each)).__name__ in names for each in around_no_layer)


def _holds(path: str, seen: Sequence[str]) -> bool:
    return not path or any(each == path or each.startswith(f"{path}.") for each in seen)


def _has_no_pattern(path: str, part: nn.Module, reach: int, seen: Sequence[str]) -> bool:
    """Whether what moved so many positions far in a module's own code moved without a pattern.

    ByPosition by how far it went, where a shift or a convolution goes no further, else by what it is: a module of torch's or of
    transformers' own. But not one that holds layers that are seen, for it is called after more than what moved there.
    """
    convolutions = [each for each in (part, *_near(part)) if isinstance(each, nn.Conv1d)]
    if reach <= max(1, sum((each.kernel_size[0] - 1) * each.dilation[0] for each in convolutions)):
        return True
    own = type(part).__module__
    if isinstance(part, (nn.RNNBase, nn.Embedding)) and own.startswith("torch.nn."):  # an embedding's rows cannot attend
        return True
    if _holds(path, seen) or not is_of_transformers(part):
        return False
    names = [[word.lower() for word in WORD.findall(name)] for name in (path.rpartition(".")[2], type(part).__name__)]
    words = {word for name in names for word in name} - ({"conv", "convolution"} if convolutions else set())
    linear = any(one in LINEAR and other.startswith("att") for name in names for one, other in pairwise(name))
    attends = any(word.startswith("att") for word in words)
    return linear or (not attends and bool(words & WITHOUT_PATTERN))


def _near(part: nn.Module) -> Iterator[nn.Module]:
    """The children of a module, and those in its lists, each once."""
    ahead, met = [part], {id(part)}
    for each in ahead:
        for child in each.children():
            if id(child) not in met:
                met.add(id(child))
                yield child
                if isinstance(child, CONTAINERS):
                    ahead.append(child)


class ByPosition(NamedTuple):
    """A tensor that a module was given or gave, by position, and as it was then."""

    sums: Tensor  # (rows, positions)
    sizes: Tensor  # what these may change by rounding
    shape: torch.Size
    values: Tensor | None  # None where only changes are looked for


class LeakCheck:
    """Compares what every module is given and gives, in a pass and in others that differ in some tokens.

    Of each tensor a sum for every position is kept. Its values are too where a pass showed that something mixes positions, as
    they then stand in for the others after it: `keeps_values`. A pass that would have needed them is made again. What a module
    was given is kept from then on too, as experiments are made on that.
    """

    def __init__(self, module: nn.Module, tokens: Tensor, seen: Sequence[str]) -> None:
        self.module, self._seen = module, seen
        self.found: list[str] = []  # modules that mix positions without a pattern
        self.declared: list[str] = []  # and those that are said to
        self.asked: dict[str, tuple[Given, int]] = {}  # those that it is not known of, what they were given, and which place told
        self._given: dict[str, Given] = {}  # what each module that runs was given
        self.keeps_values = False
        self.lacks_values = False  # whether the last pass needed values that are not kept
        self._sums: dict[int, tuple[ref[Tensor], int, Tensor, Tensor]] = {}  # of tensors of this pass, many are met several times
        self._weights: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}  # that numbers are summed with, and their norm
        self._rows, self._positions = tokens.shape
        self.known: dict[Key, list[ByPosition | None]] = {}
        self._names = {id(part): name for name, part in module.named_modules()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The pass that is compared with."""

        def note(key: Key, path: str, values: Any) -> Any:
            self.known[key] = [self._by_position(each) for each in tensors_of(values)]
            return values

        self.known.clear()
        with self.following(note):
            yield

    @contextmanager
    def comparing(self, places: Sequence[int]) -> Iterator[None]:
        """A pass whose rows have other tokens up to these places, one of each row; notes where that shows beyond."""
        self.lacks_values = False
        beyond = torch.arange(self._positions) > torch.tensor(places)[:, None]

        def compare(key: Key, path: str, values: Any) -> Any:
            known = self.known.get(key, [])
            changed = [self._changed(each, was, beyond) for each, was in zip(tensors_of(values), known, strict=False)]
            reached = [
                (int(row.nonzero().max()) - place, place)
                for each in changed
                for row, place in zip(each, places, strict=False)
                if row.any()
            ]
            reach, place = max(reached, default=(0, 0))
            if not reach:
                return values
            if not self.keeps_values:
                self.lacks_values = True
                return values
            self._judge(path, reach, place)
            return self.without(values, iter(known), places)

        with self.following(compare):
            yield

    @contextmanager
    def following(self, look: Callable[[Key, str, Any], Any]) -> Iterator[None]:
        """Hand what every module is given and gives to `look`, with the module in whose code it came about; take its answer."""
        times: Counter[str] = Counter()
        stack: list[tuple[str, int]] = []

        def entering(part: nn.Module, inputs: Any, options: Any) -> Any:
            name = self._names[id(part)]
            inputs, options = look((name, times[name], "given"), stack[-1][0] if stack else "", (inputs, options))
            if self.keeps_values:
                self._given[name] = inputs, options
            stack.append((name, times[name]))
            times[name] += 1
            return inputs, options

        def leaving(part: nn.Module, inputs: Any, output: Any) -> Any:
            name, time = stack.pop()
            for each in tensors_of(output):
                self._sums.pop(
                    id(each), None
                )  # summed anew, also where it was written to in a way that its version does not tell
            return look((name, time, "gave"), name, output)

        self._sums.clear()
        try:
            with following_calls(self.module, entering, leaving):
                yield
        finally:
            self._sums.clear()

    def _judge(self, path: str, reach: int, place: int) -> None:
        if not _has_no_pattern(path, self.module.get_submodule(path), reach, self._seen):
            self.asked.setdefault(path, (self._given.get(path, ((), {})), place))
        elif path not in self.found:
            self.found.append(path)

    def decide(self, fixed: Experiment, declared: Collection[str]) -> None:
        """Find out by experiment what modules do that are not declared. Raises `BackendUnavailable` for one that may attend."""
        unknown = []
        for path, (given, place) in self.asked.items():
            holds = _holds(path, self._seen)  # an experiment on a module by itself tells nothing of one that holds layers
            if not holds and is_declared(self.module, path, declared, self._seen):
                self.declared += [] if path in self.declared else [path]
            elif not holds and fixed(self.module.get_submodule(path), given, (self._rows, self._positions), place):
                self.found += [] if path in self.found else [path]
            else:
                unknown.append(path)
        self.asked.clear()
        if unknown:
            self._refuse(unknown)

    def _refuse(self, paths: Sequence[str]) -> None:
        """Raise `BackendUnavailable` for these modules: those that hold a layer, where there are such, else one of each class."""
        holding = [path for path in paths if _holds(path, self._seen)]
        parts = {path: self.module.get_submodule(path) for path in holding or paths}
        firsts: dict[str, str] = {}
        for path, part in parts.items():
            firsts.setdefault(type(part).__name__, path)
        named = [f"{quoted(path)} ({kind})" for kind, path in firsts.items()]
        sealed = next(filter(None, (sealed_in(part, path) for path, part in parts.items())), "")
        why = f"{sealed}; {HOLDS}" if holding else sealed
        raise BackendUnavailable(f"{UNSEEN} in {', '.join(named)} too, where no attention is seen{why}")

    def _by_position(self, tensor: Tensor) -> ByPosition | None:
        """The tensor by position, or None for what is not laid out like that."""
        axis = self.axis_of(tensor)
        if axis is None:
            return None
        sums, sizes = self._summed(tensor, axis)
        return ByPosition(sums, sizes, tensor.shape, tensor.detach().clone() if self.keeps_values else None)

    def _summed(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """A weighted sum of the numbers at each position of each row, and what it may change by rounding."""
        version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - nothing else tells of writes
        known = self._sums.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == version and not tensor.is_inference():
            return known[2:]
        numbers = _rows_first(tensor.detach(), axis).flatten(2).float()  # rows, positions, numbers
        weights, norm = self._weights_of(numbers.shape[2], numbers.device)
        close = CLOSE.get(tensor.dtype, CLOSE_HALF)
        found = numbers @ weights, close * numbers.norm(dim=2) * norm + close * 1e-3
        self._sums[id(tensor)] = ref(tensor), version, *found
        return found

    def _weights_of(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if (count, device) not in self._weights:
            weights = torch.arange(1, count + 1, device=device).to(torch.float32).cos()
            self._weights[count, device] = weights, weights.norm()
        return self._weights[count, device]

    def axis_of(self, tensor: Tensor) -> int | None:
        """Which axis of a tensor is that of positions; None for scores and patterns, too."""
        sides, shape = (self._rows, self._positions), tuple(tensor.shape)
        if not tensor.is_floating_point() or len(shape) < 3 or shape[-2:] == (self._positions,) * 2:
            return None
        if shape[:2] == sides:
            return 1
        if shape[:2] == sides[::-1]:
            return 0
        return 2 if len(shape) == 4 and shape[::2] == sides else None

    def _changed(self, tensor: Tensor, was: ByPosition | None, beyond: Tensor) -> Tensor:
        """At which positions (rows, positions) `beyond` the exchanged ones the tensor changed; no rows where it did not."""
        axis = self.axis_of(tensor) if was is not None and was.shape == tensor.shape else None
        if axis is None or was is None:
            return beyond[:0]
        changed = ((self._summed(tensor, axis)[0] - was.sums).abs() > was.sizes) & beyond.to(tensor.device)
        return changed if bool(changed.any()) else beyond[:0]

    def without(self, values: Any, known: Iterator[ByPosition | None], places: Sequence[int]) -> Any:
        """The values, with what they were before at all positions after the exchanged ones."""
        if isinstance(values, Tensor):
            was, axis = next(known, None), self.axis_of(values)
            if was is None or was.values is None or axis is None or was.shape != values.shape:
                return values
            merged = was.values.clone()
            rows = zip(_rows_first(merged, axis), _rows_first(values, axis), places, strict=True)
            for row, now, place in rows:
                row[: place + 1] = now[: place + 1]
            return merged
        if isinstance(values, Mapping):
            parts = copy.copy(values)
            for name, value in values.items():
                parts[name] = self.without(value, known, places)  # type: ignore[index]
            return parts
        if isinstance(values, (list, tuple)):
            made = [self.without(value, known, places) for value in values]
            return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)
        return values


def _rows_first(tensor: Tensor, axis: int) -> Tensor:
    """A view of a tensor whose positions lie on this axis: (rows, positions, ...)."""
    return tensor.movedim({0: (1, 0), 1: (0, 1), 2: (0, 2)}[axis], (0, 1))


def tensors_of(values: Any) -> Iterator[Tensor]:
    """The tensors in what a module was given or gave, in an order of their own."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple, Mapping)):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_of(value)


SHARE = 1e-3  # of a change, that two may differ by and be the same
ROUNDING = 1e-5  # of the numbers that changed
NOISE = 0.5


def mixes_by_fixed_shares(part: nn.Module, given: Given, size: tuple[int, int], place: int) -> bool:
    """Whether exchanging what `part` is given up to `place` does the same to later positions, whatever is given there.

    `given` are its arguments of one call, `size` the rows and positions. False where that cannot be found out.
    """
    try:
        weights = {name: _otherwise(weight, number) for number, (name, weight) in enumerate(_weights(part))}
        changes = [_changes(part, weights, given, size, place, other) for other in (False, True)]
    except Exception:  # noqa: BLE001 - whatever a module minds, it is not known to be harmless then
        return False
    return _are_alike(*changes)


def _weights(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from part.named_parameters()
    yield from part.named_buffers()


def _otherwise(weight: Tensor, number: int) -> Tensor:
    """Another weight of the same size; what is no parameter, or holds no fractions, stays as it is."""
    weight = weight.detach()
    if not weight.is_floating_point():
        return weight.clone()
    numbers = weight.float()
    noise = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(number)).to(numbers.device)
    return numbers + noise * NOISE * (numbers.shape[-1] if numbers.ndim > 1 else 1) ** -0.5


def _changes(
    part: nn.Module, weights: Mapping[str, Tensor], given: Given, size: tuple[int, int], place: int, other: bool
) -> dict[tuple[Key, int], tuple[Tensor, Tensor]]:
    """What every module within is given or gives at later positions: the change, where what is given earlier is exchanged.

    With `other`, later positions are given something else.
    """
    check = ChangeMeasure(part, size)

    def run(*, exchanged: bool) -> None:
        def instead(tensor: Tensor) -> Tensor:
            axis = check.axis_of(tensor)
            if axis is None:
                return tensor.detach().float() if tensor.is_floating_point() else tensor.detach().clone()
            numbers = tensor.detach().float()
            noise = torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0)).to(numbers.device) * numbers.std()
            own, more = (part.split([place + 1, part.shape[axis] - place - 1], axis) for part in (numbers, noise))
            return torch.cat([own[0] + exchanged * more[0], own[1] + other * more[1]], axis)

        args, options = _mapped(given, instead)
        torch.func.functional_call(part, dict(weights), args, options)

    with torch.no_grad():
        with check.recording():
            run(exchanged=False)
        with check.comparing([place] * size[0]):
            run(exchanged=True)
    return check.changes


def _are_alike(
    one: Mapping[tuple[Key, int], tuple[Tensor, Tensor]], other: Mapping[tuple[Key, int], tuple[Tensor, Tensor]]
) -> bool:
    """Whether the same changed by the same, and anything did."""
    if one.keys() != other.keys():
        return False
    any_moved = False
    for key, (change, size) in one.items():
        also, its = other[key]
        most, numbers = torch.maximum(change.abs().max(), also.abs().max()), torch.maximum(size, its)
        any_moved = any_moved or bool(most > 100 * ROUNDING * numbers)
        if not bool((change - also).abs().max() <= SHARE * most + ROUNDING * numbers):
            return False
    return any_moved


class ChangeMeasure(LeakCheck):
    """Keeps by how much everything changes after the exchanged positions, and takes that away again."""

    def __init__(self, part: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(part, torch.empty(size, device="meta"), ())
        self.keeps_values = True
        self.changes: dict[tuple[Key, int], tuple[Tensor, Tensor]] = {}

    @contextmanager
    def comparing(self, places: Sequence[int]) -> Iterator[None]:
        """A pass whose changes are kept; all rows are exchanged up to the same place."""
        place = places[0]

        def compare(key: Key, path: str, values: Any) -> Any:
            if key == ("", 0, "given"):
                return values  # what is exchanged
            known = self.known.get(key, [])
            for index, (each, was) in enumerate(zip(tensors_of(values), known, strict=False)):
                if was is not None and was.values is not None and was.shape == each.shape:
                    axis = self.axis_of(each) or 0
                    after = (each - was.values).narrow(axis, place + 1, each.shape[axis] - place - 1)
                    self.changes[key, index] = after, was.values.abs().max()
            return self.without(values, iter(known), places)

        with self.following(compare):
            yield


def _mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: _mapped(value, change) for name, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(_mapped(value, change) for value in values)
    return values
