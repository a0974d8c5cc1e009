"""Text as trainers print it: lines with names and numbers among other words.

One rule reads nearly all of them: a name, `:`, `=` or a blank, and a number. What does not follow it is written below, each with
who prints it so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from pytest_induction.errors import RunError
from pytest_induction.runs.logs.columns import Choice, guess, is_epoch
from pytest_induction.runs.logs.faults import Faults, shown
from pytest_induction.runs.logs.format import Row, TextFormat, text_lines
from pytest_induction.runs.places import Place, Reading

MOST_KINDS = 10_000  # names of which it is remembered what they stand for
MOST_LOOKED_AT = 4_000  # characters of a line
IN_EPOCH, LEADING = "epoch/step", "leading/step"  # what messages call a step that has no name
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WORD = r"[A-Za-z_][\w/.()@]*(?:-\w+)*"
_NUMBER = (
    r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?|[-+]?(?i:nan|inf(?:inity)?)"
)
_PAIR = re.compile(
    rf"""(?<![\w.])(?P<name>{_WORD}(?:\ {_WORD}){{0,7}})  # words with one blank between
    ["']?\s*(?:[:=]\s*|\s)\s*["'\[(\#]?\s*
    (?P<number>{_NUMBER})(?P<unit>[kKMBT]?)(?![\w]|\.\d|:\d)
    (?:\s*/\s*(?P<of>\d{{1,15}})(?![\d.]))?""",
    re.VERBOSE,
)
_UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_LEVELS = re.compile(r"^(?:(?:DEBUG|INFO|WARNING|WARN|ERROR|root|at|after|the|finished|done)\s+)+")
_SIDE = re.compile(r"^(?:Train|Eval) (?=\w+/)")  # what Composer puts before names that say so themselves
_RANK = re.compile(r"^\W{0,2}(?:rank|device|gpu|worker)[\s:=_]?(\d{1,5})\W", re.IGNORECASE)
_TASK = re.compile(r"^\s*(\d{1,5}): ")  # as `srun --label` puts it before each line
# `490 | loss 5.7` (llama2.c), `[10 | 23.5] loss=3.2` (gpt-2-simple), `[50/160000] loss: 3`: a number that leads is the step
_LEADING = re.compile(r"^\s*\[?\s*(\d{1,15})\s*(?:[|\]]|/\s*\d+\s*[\]|])")
# `250 val 5.9`, `1 train 10.7` (build-nanogpt)
_BARE = re.compile(r"^\s*(\d{1,15})\s+(train|val|test)(?:[ _]loss)?\s+(\d[\d.eE+-]*)\s*$")
# `epoch 001:    100 / 487 loss=4.6` (fairseq of old), `Epoch 3:  39%|...| 4846/12331 [05:59<09:15, loss=0.01` (progress bars)
_IN_EPOCH = re.compile(r"epoch\W{0,3}(\d{1,6})(?![\d.])[^/]{0,200}?(?<![\d.])(\d{1,12})\s*/\s*(\d{1,12})(?![\d.])", re.IGNORECASE)
# ` 10%|#   | 100/1000 [00:10<01:30, 9.9it/s, loss=3.2]`: a progress bar
_BAR = re.compile(r"\|\s*(\d{1,12})/\d{1,12}\s*\[\d+:\d\d")
# ` validation loss at iteration 1000 | lm loss value: 2.3` (Megatron)
_VALIDATION = re.compile(r"^\W*(valid\w*|test|eval\w*) loss at (?:iteration|step) (\d{1,15})\b(.*)$", re.IGNORECASE)
_ALIASES = {"s": "step", "trl": "train/loss", "tel": "val/loss"}  # as llm.c has them in its main.log


class PlainText(TextFormat):
    """Whatever is text and nothing else: a row is a line with a step and a number, or such a line and the indented ones below."""

    name = "plain text"
    what = "plain text with lines such as `step 100: loss 3.2` (.log)"
    endings = (".log",)

    def fits(self, file: Place, head: bytes) -> bool:
        return b"\0" not in head.split(b"\n", 1)[0]

    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        found = _Rows(choice)
        first = ""
        for line, text in text_lines(reading, faults):
            first = first or text.strip()
            if not line.ended and found.rows:
                faults.note(f"its last line, {line.number}, has no end: it may be cut off and is left out")
                continue
            for part in text.split("\r"):
                yield from found.take(_plain(part))
        yield from found.end()
        if found.steps_of_an_epoch:
            faults.note(f"its steps begin anew in every epoch, of {found.steps_of_an_epoch}: they were counted on")
        if not found.rows:
            seen = f"the first line is {shown(first)}" if first else "all lines are empty"
            why = f"; {found.without_step} lines have a loss without a step: of Hugging Face name the trainer_state.json"
            why = why if found.without_step else ""
            raise RunError(
                f"it has no row that can be read: no line has a step and a loss, as `step 100: loss 3.2` ({seen}{why})"
            )


@dataclass
class _Line:
    """What a line says: names -> numbers, and of how many each is one, where it says so (`step 3/100`)."""

    row: dict[str, Any]
    of: dict[str, int] = field(default_factory=dict)
    is_in_epoch: bool = False  # whether its step is surely counted from the beginning of the epoch


class _Rows:
    """Lines -> rows. A line with a step and no measure waits for indented ones below it, as OLMo and Composer write."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._waiting: dict[str, Any] = {}
        self._first_of: dict[re.Pattern[str], str] = {}  # the first process that each way of writing it named
        self._last: tuple[int, float] | None = None  # epoch and step as they were written
        self._first_epoch: int | None = None
        self._kinds: dict[str, str] = {}
        self.rows = 0
        self.without_step = 0
        self.steps_of_an_epoch = 0  # where they begin anew in every one

    def take(self, text: str) -> Iterator[Row]:
        """The rows that a line ends: that of the lines above, or its own."""
        if self._is_of_another_process(text):
            return
        text = _TASK.sub("", text)
        line = _line_of(text)
        kinds = {self._kind(name) for name in line.row}
        if self._waiting and line.row and text[:1].isspace() and self._waiting.keys().isdisjoint(line.row):
            self._waiting |= line.row
            return
        yield from self.end()
        if "step" not in kinds:
            self.without_step += "measure" in kinds
            return
        self._count_on(line)
        if "measure" in kinds:
            self.rows += 1
            yield line.row
        else:
            self._waiting = line.row

    def end(self) -> Iterator[Row]:
        """What waits, if it has come to be a row."""
        waiting, self._waiting = self._waiting, {}
        if any(self._kind(name) == "measure" for name in waiting):
            self.rows += 1
            yield waiting

    def _kind(self, name: str) -> str:
        """What a name stands for: "step", "measure", or "" for neither."""
        if name not in self._kinds and len(self._kinds) < MOST_KINDS:
            self._kinds[name] = self._kind_of(name)
        return self._kinds[name] if name in self._kinds else self._kind_of(name)

    def _kind_of(self, name: str) -> str:
        given = next((ours for ours, theirs in self._choice.columns.items() if theirs == name), None)
        guessed = guess(name)
        ours = given or (guessed[0] if guessed is not None else None)
        return "step" if ours == "step" else "measure" if ours not in (None, "tokens", "learning_rate") else ""

    def _count_on(self, line: _Line) -> None:
        """Where steps begin anew in every epoch, and it is said of how many, count them on."""
        name = next(name for name in line.row if self._kind(name) == "step")
        length, step = line.of.get(name), line.row[name]
        epoch = next((number for name, number in line.row.items() if is_epoch(name)), None)
        if length is None or not (_is_whole(epoch) and _is_whole(step)):
            return
        written = (int(epoch), float(step))
        self._first_epoch = written[0] if self._first_epoch is None else self._first_epoch
        begins_anew = self._last is not None and written[0] > self._last[0] and written[1] <= self._last[1]
        self._last = written
        if begins_anew or line.is_in_epoch:
            self.steps_of_an_epoch = length
        if self.steps_of_an_epoch:
            line.row[name] = (written[0] - min(self._first_epoch, 1)) * length + written[1]

    def _is_of_another_process(self, text: str) -> bool:
        """Whether another process wrote the line than the first that is named: each writes the same, or its own part."""
        found = {way: named[1] for way in (_TASK, _RANK) if (named := way.match(text)) is not None}
        return any(process != self._first_of.setdefault(way, process) for way, process in found.items())


def _is_whole(number: object) -> TypeGuard[float]:
    return isinstance(number, (int, float)) and math.isfinite(number) and number == int(number)


def pairs_of(text: str) -> dict[str, Any]:
    """The names and numbers of a line.

    >>> pairs_of("iter 20: loss 5.19, time 23.4ms")
    {'iter': 20.0, 'loss': 5.19}
    """
    return _line_of(text).row


def says_something(text: str) -> bool:
    """Whether a line has a number of ours, or of a training, by its name."""
    return any(guess(name) is not None for name in pairs_of(_plain(text)))


def _plain(text: str) -> str:
    return _COLOURS.sub("", text[:MOST_LOOKED_AT])


def _line_of(text: str) -> _Line:
    bare = _BARE.match(text)
    if bare is not None:
        return _Line({"step": bare[1], f"{bare[2]}/loss": bare[3]})
    validation = _VALIDATION.match(text)
    if validation is not None:
        inner = pairs_of(validation[3])
        values = {f"val/{name.removesuffix(' value')}": number for name, number in inner.items()}
        return _Line({"iteration": validation[2], **values})
    before, found = _object_in(text)
    line = _Line({})
    for pair in _PAIR.finditer(before):
        name = _SIDE.sub("", _LEVELS.sub("", pair["name"])).strip()
        if name and name not in line.row:
            line.row[name] = float(pair["number"].replace(",", "")) * _UNITS[pair["unit"]]
            if pair["of"]:
                line.of[name] = int(pair["of"])
    line.row |= found
    if "s" in line.row and not _ALIASES.keys().isdisjoint(line.row.keys() - {"s"}):
        line.row = {_ALIASES.get(name, name): number for name, number in line.row.items()}
    if line.row and not any(_is_step(name) for name in line.row):
        _add_step(text, line)
    return line


def _object_in(text: str) -> tuple[str, Mapping[str, Any]]:
    """What stands before the JSON object that a line ends with, and the object; or all of the line and none."""
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            found = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            return text, {}
        if isinstance(found, dict):
            return text[:start], found
    return text, {}


def _add_step(text: str, line: _Line) -> None:
    """Put in a step that stands there without its name."""
    counted, leading = _IN_EPOCH.search(text), _LEADING.match(text) or _BAR.search(text)
    if counted is not None and 0 < int(counted[2]) <= int(counted[3]):
        line.row = {"epoch": int(counted[1]), IN_EPOCH: int(counted[2]), **line.row}
        line.of[IN_EPOCH], line.is_in_epoch = int(counted[3]), True
    elif leading is not None:
        line.row = {LEADING: int(leading[1]), **line.row}


def _is_step(name: str) -> bool:
    guessed = guess(name)
    return guessed is not None and guessed[0] == "step"
