"""The checkpoints of a training: where they lie, which step each is of, and a short name of what is in them. Needs no torch."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pytest_induction.errors import RunError, user_facing, whole_number
from pytest_induction.runs.places import Place
from pytest_induction.specs import ADAPTER_CONFIG, CONFIG

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
HUB = "hf:"
SHARD = re.compile(r"\d+-of-\d+\.")
BESIDE_WEIGHTS = re.compile(
    r"((lr_)?scheduler|optimizer|optim|rng_state|random_states|(grad_)?scaler|training_args)([-_.=\d]|$)|.*optim_states",
    re.IGNORECASE,
)
DESCRIBES = re.compile(
    r"((generation_|adapter_)?config|tokenizer|vocab|merges|special_tokens|added_tokens|spiece).*\.(json|txt|model)|.*\.py"
)
WHOLE = 2**28  # bytes of a file on this machine whose every byte goes into its digest; of a larger one,
BLOCK = 2**16  # blocks of so many bytes,
BLOCKS, BLOCKS_ELSEWHERE = 1024, 16  # so many of them, evenly spread: each may be a request to a server
_LABELLED = re.compile(r"(?<![a-z])(?:global)?steps?[-_=.]?(\d+)(k?)(?![a-z\d])", re.IGNORECASE)
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)(\d+)(k?)(?![a-z\d])(?!\.\d)", re.IGNORECASE)
_VERSION = re.compile(r"-v\d+$")  # what Lightning adds where a name is taken
_SAID = re.compile(r"(checkpoint|ckpt|global_?step|step|iter|iteration)[-_=.]?\d+k?", re.IGNORECASE)

Kind = Literal["directory", "file", "hub"]


@dataclass(frozen=True)
class Checkpoint:
    """The weights at one step: a directory, a file of weights, or a revision on the hub (`place` is then `hf:NAME@REVISION`).

    `place` is an absolute path or a URL.
    """

    step: int
    place: str
    kind: Kind

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place if self.kind == "hub" else Place(self.place).name

    def digest(self) -> str:
        """A short name of the content, the same wherever it lies and whatever it is called. Raises `RunError`.

        Of a directory: the names and contents of the weights, the config, the tokenizer and the code. Every byte counts of a file
        of up to 256 MiB on this machine, 1024 blocks of a larger one, and 16 of one elsewhere. A revision on the hub is what it
        is called.
        """
        found = hashlib.blake2b(digest_size=8)
        if self.kind == "hub":
            found.update(self.place.encode())
        elif self.kind == "file":
            _digest(found, Place(self.place))
        else:
            place = Place(self.place)
            for name in place.names():
                if is_weights(name) or name.endswith(".index.json") or DESCRIBES.fullmatch(name):
                    found.update(f"{len(name)} {name}".encode())
                    _digest(found, place / name)
        return found.hexdigest()


@user_facing
def find_checkpoints(place: str | os.PathLike[str] | Place, steps: Iterable[int] | None = None) -> list[Checkpoint]:
    """The checkpoints that lie in a directory, sorted by their step.

    Args:
        place: a directory, here or wherever fsspec reaches, with directories as `checkpoint-500` or files as
            `step_000100.pt`, `model-100.safetensors`, `epoch=1-step=200.ckpt`; its last part may be a pattern (`runs/ema-*.pt`).
            Or `hf:NAME@step{}`, whose revisions `steps` names. The step is the number after `step`, or else the last number.
        steps: take these only.

    Raises:
        RunError: nothing is found, or not all the steps that are asked for, or two checkpoints are of the same step.
        ArgumentError: a step is no whole number from 0 up.
    """
    text = str(place)
    if text.startswith(HUB):
        return list(_on_hub(text, steps))
    found = list(_lying_in(place if isinstance(place, Place) else Place(place)))
    return chosen(found, steps, text)


def chosen(found: Iterable[Checkpoint], steps: Iterable[int] | None, about: str) -> list[Checkpoint]:
    """Those of the steps that are asked for, or all; sorted. Raises `RunError` where a step has none, or two."""
    in_order = sorted(found, key=lambda each: each.step)
    for one, other in itertools.pairwise(in_order):
        if one.step == other.step:
            raise RunError(
                f"{one.name} and {other.name} in {about} are both of step {one.step}: "
                f"name those that are meant by a pattern, as {about.rstrip('/')}/model-*"
            )
    if steps is None:
        return in_order
    wanted = set(_steps(steps))
    missing = wanted - {each.step for each in in_order}
    if missing:
        seen = f"{len(in_order)}, of steps {in_order[0].step} to {in_order[-1].step}"
        raise RunError(f"{about} has no checkpoint of step {min(missing)}: it has {seen}")
    return [each for each in in_order if each.step in wanted]


def _steps(steps: Iterable[int]) -> list[int]:
    return sorted({whole_number("steps", step, least=0) for step in steps})


def step_in(name: str) -> int | None:
    """The step that the name of a checkpoint tells: what follows `step`, or else the last whole number; `10k` is 10,000."""
    for ending in WEIGHTS:
        name = name.removesuffix(ending)
    name = _VERSION.sub("", name)
    numbers = _LABELLED.findall(name) or _NUMBER.findall(name)
    if not numbers or len(numbers[-1][0]) > 15:  # a step of more digits is a date or a hash
        return None
    digits, thousands = numbers[-1]
    return int(digits) * (1000 if thousands else 1)


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights of a model, and not what an optimiser or a trainer keeps beside them."""
    return name.endswith(WEIGHTS) and not BESIDE_WEIGHTS.match(name)


def parse_steps(text: str) -> list[int]:
    """Steps as the command line has them: `0,1,2,4` and `FIRST:LAST:EVERY`, both ends included. Raises `RunError`."""
    found: list[int] = []
    for part in text.replace(" ", "").split(","):
        known = re.fullmatch(r"(\d{1,15})(?::(\d{1,15}):([1-9]\d{0,14}))?", part)
        if known is None:
            raise RunError(f"steps must be like 0,1,2,4 or 1000:143000:1000, got {part!r}")
        first, last, every = known.groups()
        found += [int(first)] if last is None else range(int(first), int(last) + 1, int(every))
    return found


def _on_hub(text: str, steps: Iterable[int] | None) -> Iterator[Checkpoint]:
    name, _, revision = text.removeprefix(HUB).partition("@")
    if not name or revision.count("{}") != 1:
        form = f"hf:{name or 'NAME'}@step{{}}"
        raise RunError(f"checkpoints on the hub are revisions, with {{}} for the step, as {form}, got {text!r}")
    wanted = [] if steps is None else _steps(steps)
    if not wanted:
        raise RunError(f"the hub does not tell which steps {text!r} has: name them, as --steps 0,1,2,4,8 or steps=[...]")
    for step in wanted:
        yield Checkpoint(step, text.replace("{}", str(step)), "hub")


def _lying_in(place: Place) -> Iterator[Checkpoint]:
    directory, pattern = _parted(place)
    if not directory.is_dir():
        what = "is a file" if directory.is_file() else "is not there"
        raise RunError(f"{directory} {what}: name the directory that the checkpoints lie in")
    base = directory if directory.local is None else Place(directory.local.absolute())
    names = directory.names()
    found = 0
    for name in names:
        step = step_in(name)
        if step is None or SHARD.search(name) or not fnmatchcase(name, pattern):
            continue
        kind = _kind(base / name, name)
        if kind is not None:
            found += 1
            yield Checkpoint(step, str(base / name), kind)
    if not found:
        seen = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
        raise RunError(
            f"{place} holds no checkpoints ({seen}): expected directories as checkpoint-500, "
            f"or {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]} files with their step in the name"
        )


def _parted(place: Place) -> tuple[Place, str]:
    """The directory, and the pattern that its checkpoints' names must fit."""
    above, _, last = str(place).rstrip("/").rpartition("/")
    if "*" not in last or place.exists():
        return place, "*"
    return Place(above or "."), last


def _kind(place: Place, name: str) -> Kind | None:
    if is_weights(name) and place.is_file():
        return "file"
    if name.endswith(WEIGHTS) or not place.is_dir():
        return None
    if _SAID.fullmatch(name):
        return "directory"
    return "directory" if any(each in (CONFIG, ADAPTER_CONFIG) or is_weights(each) for each in place.names()) else None


def _digest(found: hashlib.blake2b, place: Place) -> None:
    size = place.size()
    found.update(f" {size} ".encode())
    is_here = place.local is not None
    with place.open() as stream:
        if size <= (WHOLE if is_here else BLOCKS_ELSEWHERE * BLOCK):
            while block := stream.read(2**22):
                found.update(block)
            return
        blocks = BLOCKS if is_here else BLOCKS_ELSEWHERE
        for index in range(blocks):
            stream.seek((size - BLOCK) * index // (blocks - 1))
            found.update(stream.read(BLOCK))
