"""What a layout of checkpoints is, and what names of files and directories say. Imports no torch until something is read."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_induction.runs.places import Place
from pytest_induction.variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

Unit = Literal["step", "epoch", "tokens"]

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".gguf")
SHARD = re.compile(r"\d+-of-\d+\.")
BESIDE_WEIGHTS = re.compile(
    r"((lr_)?scheduler|optimizer|optim|rng_state|random_states|(grad_)?scaler|training_args|sampler|dl_state_dict|dataloader)"
    r"([-_.=\d]|$)|.*optim_states",
    re.IGNORECASE,
)
DESCRIBES = re.compile(
    r"((generation_|adapter_)?config|tokenizer|vocab|merges|special_tokens|added_tokens|spiece).*\.(json|txt|model)|.*\.py"
)
SAYS_CHECKPOINT = re.compile(r"(checkpoint|ckpt|global_?step|step|iter|iteration)[-_=.]?\d+k?", re.IGNORECASE)

_MOST_DIGITS = 15  # a step of more is a date or a hash
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_STEPS = tuple(  # the first that fits counts
    re.compile(rf"(?<![a-z])(?:global[-_]?)?(?:{label})[-_=. ]?(\d+)([km]?)(?![a-z\d])", re.IGNORECASE)
    for label in ("steps?", "iter(?:ation)?s?|it|updates?|ba")  # `ba` is Composer's for batches
)
_EPOCH = re.compile(r"(?<![a-z])(?:epochs?|ep)[-_=.]?(\d+)(?![\d]|\.\d)", re.IGNORECASE)
_TOKENS = re.compile(
    r"(?<![a-z])tok(?:en)?s?[-_=.]?(\d+)([kmbt]?)(?![a-z\d]|\.\d)|(?<![\d.])(\d+)([kmbt]?)[-_]?tok(?:en)?s?(?![a-z]|[-_=.]?\d)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)(\d+)(k?)(?![a-z\d])(?!\.\d)", re.IGNORECASE)
_DATE = (  # and the time of day
    r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_T ](?:[01]\d|2[0-3])(?:[-_:.h][0-5]\d(?:[-_:.m][0-5]\d)?|[0-5]\d[0-5]\d))?(?!\d)"
)
_NO_STEP = tuple(  # numbers in a name that count something else
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        _DATE,
        _EPOCH.pattern,
        _TOKENS.pattern,
        r"(?<![a-z])(?:rank|seed|fold|loss|acc(?:uracy)?|ppl|perplexity|lr|bs|world_size|[tpd]p)[-_=.]?\d+(?:\.\d+)?(?:e-?\d+)?",
        r"(?<![a-z\d])(?:bf16|fp?(?:8|16|32|64)|int[48]|i?q\d(?:_[a-z\d]+)*)(?![a-z\d])",  # a type of numbers
        r"(?<![a-z\d])v\d+(?:\.\d+)*$",  # as Lightning adds where a name is taken
    )
)


@dataclass(frozen=True)
class Named:
    """How far a training was, by the name of a checkpoint."""

    number: int
    unit: Unit


def named(name: str) -> Named | None:
    """What a name tells: the number after `step`, `iter` or the like, else the last that counts nothing else; or epoch or tokens.

    `10k` is 10,000.
    """
    for ending in WEIGHTS:
        name = name.removesuffix(ending)
    name = _NO_STEP[-1].sub("", name)
    for label in _STEPS:
        if found := _numbers(label, name):
            return Named(found[-1], "step")
    rest = name
    for other in _NO_STEP:
        rest = other.sub(" ", rest)
    if found := _numbers(_NUMBER, rest):
        return Named(found[-1], "step")
    if found := _numbers(_EPOCH, name):
        return Named(found[-1], "epoch")
    found = _numbers(_TOKENS, name)
    return Named(found[-1], "tokens") if found else None


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights of a model, and not what an optimiser or a trainer keeps beside them."""
    return name.endswith(WEIGHTS) and not BESIDE_WEIGHTS.match(name)


def _numbers(pattern: re.Pattern[str], name: str) -> list[int]:
    found = ([group for group in match.groups() if group is not None] for match in pattern.finditer(name))
    return [int(digits[0]) * _THOUSANDS["".join(digits[1:]).lower()] for digits in found if len(digits[0]) <= _MOST_DIGITS]


Maker = Literal["transformers", "factory"]


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, in memory of our own; and the step that the checkpoint states, in so many words."""

    tensors: Mapping[str, Tensor]
    step: int | None = None


def entries(place: Place) -> list[str]:
    """The names of what lies in a directory; none where it is no directory."""
    return place.names() if place.is_dir() else []


class Layout(Variant, abstract=True):
    """One way in which a training leaves its weights.

    A new one is a class in a module of its own, and a line in `layouts.LAYOUTS`. A place is asked about with the names of its
    entries, none for a file, so that looking costs one listing. What reads is given a path on this machine, and raises `RunError`
    of one line.
    """

    name: ClassVar[str]
    """What messages call it."""
    looks_like: ClassVar[str]
    """By what it is known, for messages and the documentation."""
    is_of_a_library: ClassVar[bool] = True
    """Whether a library writes it, so that messages name it; what stands alone, as a file of weights does, anyone writes."""
    maker: ClassVar[Maker] = "factory"
    """What makes the model that the weights are for."""
    refusal: ClassVar[str] = ""
    """Why it is not read, and how it is turned into what is; after the name of a checkpoint."""

    @abstractmethod
    def fits(self, place: Place, names: Sequence[str]) -> bool:
        """Whether a checkpoint at `place`, with entries of these names, is of this layout."""

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        """The files that make the model what it is, as paths below `place`: they are hashed, and copied from elsewhere."""
        del place
        return (name for name in names if is_weights(name) or name.endswith(".index.json") or DESCRIBES.fullmatch(name))

    @abstractmethod
    def read(self, path: Path) -> Weights:
        """The weights."""

    def step(self, path: Path) -> int | None:
        """The step that it states, at the cost of its header; raises `RunError` where that cannot be read."""
        return self.read(path).step

    def hinted_step(self, path: Path) -> int | None:
        """The step of one whose name tells none: also by a count that only some trainers take for that."""
        return self.step(path)


class NestedLayout(Layout, abstract=True):
    """One that other trainers put into a directory inside their own checkpoints."""

    @abstractmethod
    def inner(self, place: Place, names: Sequence[str]) -> str | None:
        """The directory in it that is of this layout, "" for itself; None where there is none."""

    @abstractmethod
    def held(self, names: Sequence[str]) -> list[str]:
        """Of what lies in that directory, the files that make the model what it is."""

    def fits(self, place: Place, names: Sequence[str]) -> bool:
        return self.inner(place, names) is not None

    def parts(self, place: Place, names: Sequence[str]) -> Iterator[str]:
        inner = self.inner(place, names)
        directory, prefix = (place / inner, f"{inner}/") if inner else (place, "")
        return (f"{prefix}{name}" for name in self.held(directory.names()))
