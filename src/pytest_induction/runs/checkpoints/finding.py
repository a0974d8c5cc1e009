"""The checkpoints of a training: where they lie, which step each is of, and a short name of what is in them. Needs no torch."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pytest_induction.errors import InductionError, RunError, user_facing, whole_number
from pytest_induction.model.specs import ADAPTER_CONFIG, CONFIG
from pytest_induction.runs.checkpoints.layout import SAYS_CHECKPOINT, SHARD, entries, is_weights, named
from pytest_induction.runs.checkpoints.layouts import expected, layout_at
from pytest_induction.runs.checkpoints.layouts.directory import Directory
from pytest_induction.runs.options_named import option
from pytest_induction.runs.places import Place

HUB = "hf:"
WHOLE = 2**28  # bytes of a file on this machine whose every byte goes into its digest; of a larger one,
BLOCK = 2**16  # blocks of so many bytes,
BLOCKS, BLOCKS_ELSEWHERE = 1024, 16  # so many of them, evenly spread: each may be a request to a server
MOST_NAMED = 5  # of what lies in a place, in messages

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
            for name in (layout_at(place) or Directory()).parts(place, place.names()):
                found.update(f"{len(name)} {name}".encode())
                _digest(found, place / name)
        return found.hexdigest()


@dataclass(frozen=True)
class Found:
    """The checkpoints in a place, sorted by their step, and what must be known of the others there."""

    checkpoints: list[Checkpoint]
    notes: tuple[str, ...] = ()


@user_facing
def find_checkpoints(place: str | os.PathLike[str] | Place, steps: Iterable[int] | None = None) -> list[Checkpoint]:
    """The checkpoints that lie in a directory, sorted by their step.

    Args:
        place: a directory, here or wherever fsspec reaches, with directories as `checkpoint-500` or files as
            `step_000100.pt`, `model-100.safetensors`, `epoch=1-step=200.ckpt`; its last part may be a pattern (`runs/ema-*.pt`).
            Or `hf:NAME@step{}`, whose revisions `steps` names. The step is the number after `step`, `iter` or the like, or else
            the last number that is no date, epoch, rank or count of tokens. Where a name tells none (`last.ckpt`,
            `epoch=3.ckpt`), it is what the checkpoint states itself, if it lies on this machine.
        steps: take these only.

    Raises:
        RunError: nothing is found, or not all the steps that are asked for, or two checkpoints are of the same step.
        ArgumentError: a step is no whole number from 0 up.
    """
    return look_for(place, steps).checkpoints


def look_for(place: str | os.PathLike[str] | Place, steps: Iterable[int] | None = None) -> Found:
    """As `find_checkpoints`, with notes on what else lies there: weights whose step nothing tells, or that come twice."""
    text = str(place)
    if text.startswith(HUB):
        return Found(list(_on_hub(text, steps)))
    found = _lying_in(place if isinstance(place, Place) else Place(place))
    return Found(chosen(found.checkpoints, steps, text), found.notes)


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


def is_checkpoint(place: Place, name: str) -> bool:
    """Whether an entry of a directory is a checkpoint whose name tells how far the training was."""
    return named(name) is not None and not SHARD.search(name) and _kind(place / name, name) is not None


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


def parted(place: Place) -> tuple[Place, str]:
    """The directory, and the pattern that its checkpoints' names must fit."""
    above, _, last = str(place).rstrip("/").rpartition("/")
    if "*" not in last or place.exists():
        return place, "*"
    return Place(above or "."), last


def _steps(steps: Iterable[int]) -> list[int]:
    return sorted({whole_number("steps", step, least=0) for step in steps})


def _on_hub(text: str, steps: Iterable[int] | None) -> Iterator[Checkpoint]:
    name, _, revision = text.removeprefix(HUB).partition("@")
    if not name or revision.count("{}") != 1:
        form = f"hf:{name or 'NAME'}@step{{}}"
        raise RunError(f"checkpoints on the hub are revisions, with {{}} for the step, as {form}, got {text!r}")
    wanted = [] if steps is None else _steps(steps)
    if not wanted:
        some = option("steps", "0,1,2,4,8", in_python="[0, 1, 2, 4, 8]")
        raise RunError(f"the hub does not tell which steps {text!r} has: name them, as {some}")
    for step in wanted:
        yield Checkpoint(step, text.replace("{}", str(step)), "hub")


def _lying_in(place: Place) -> Found:
    directory, pattern = parted(place)
    if not directory.is_dir():
        what = "is a file" if directory.is_file() else directory.seen()
        raise RunError(f"{directory} {what}: name the directory that the checkpoints lie in")
    base = directory if directory.local is None else Place(directory.local.absolute())
    names = directory.names()
    meant = (name for name in names if fnmatchcase(name, pattern) and not SHARD.search(name))
    kinds = {name: kind for name in meant if (kind := _kind(base / name, name)) is not None}
    for name in kinds:
        (base / name).check_inside()
    surely, others = [], []
    for name, kind in kinds.items():
        known = named(name)
        if known is not None and known.unit == "step":
            surely.append(Checkpoint(known.number, str(base / name), kind))
        else:
            others.append(name)
    more, notes = _by_what_they_say(base, others, kinds, surely)
    if not surely and not more:
        seen = f"it has {_listed(names)}" if names else "it is empty"
        silent = f"; nothing tells which step {others[0]} is of" if others else ""
        raise RunError(f"{place} holds no checkpoints ({seen}): expected {expected()}{silent}")
    return Found([*surely, *more], notes)


def _by_what_they_say(
    base: Place, names: list[str], kinds: Mapping[str, Kind], surely: list[Checkpoint]
) -> tuple[list[Checkpoint], tuple[str, ...]]:
    """Those whose names tell no step, by the step that they state themselves; and notes on all that are left out."""
    taken = {each.step: each.name for each in surely}
    found, notes = [], []
    stated = {name: _hinted_step(base / name) for name in sorted(names, key=lambda name: named(name) is None)}
    by_unit = not surely and all(step is None for step in stated.values())
    for name, own in stated.items():
        known = named(name)  # of epochs or tokens, which may be all there is to go by
        step = known.number if own is None and by_unit and known is not None else own
        if step is None:
            notes.append(f"{name} is left out: neither its name nor its content tells a step")
        elif step in taken:
            notes.append(f"{name} is left out: it is of step {step}, as {taken[step]} is")
        else:
            taken[step] = name
            found.append(Checkpoint(step, str(base / name), kinds[name]))
            if known is None and surely:
                notes.append(f"{name} is of step {step}, by what it says itself")
    if found and by_unit:
        units = sorted({known.unit.rstrip("s") + "s" for name in stated if (known := named(name)) is not None})
        notes.insert(0, f"no checkpoint tells its step: {' and '.join(units)} are taken for steps")
    return found, tuple(notes)


def _hinted_step(place: Place) -> int | None:
    """The step that it states, if it lies here and can be read."""
    layout = layout_at(place)
    if place.local is None or layout is None:
        return None
    try:
        return layout.hinted_step(place.local)
    except InductionError:
        return None


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:MOST_NAMED])}{', ...' if len(names) > MOST_NAMED else ''}"


def _kind(place: Place, name: str) -> Kind | None:
    if is_weights(name) and (place.is_file() or not place.is_dir()):
        return "file"  # or what is to be refused by name where it is opened: a FIFO, a link to nothing
    if place.leads_out():  # to be refused too, if its name says that it is a checkpoint; else it may be anything
        return "directory" if place.is_dir() and named(name) is not None else None
    if not place.is_dir():
        return None
    if SAYS_CHECKPOINT.fullmatch(name):
        return "directory"
    held = any(config in entries(place) for config in (CONFIG, ADAPTER_CONFIG))
    return "directory" if held or layout_at(place) is not None else None


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
