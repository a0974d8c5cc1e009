"""A JSON document that holds a whole log: the state of a trainer, a list of rows, or lists of numbers."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_induction.errors import RunError
from pytest_induction.files import DOCUMENT, parse_json
from pytest_induction.runs.logs.columns import MOST_SHOWN, Choice, guess, is_epoch, listed
from pytest_induction.runs.logs.faults import Faults, shown
from pytest_induction.runs.logs.format import LONGEST_LINE, Row, TextFormat, as_text
from pytest_induction.runs.logs.formats.json_lines import BRACE, is_rows
from pytest_induction.runs.places import Place, Reading

STATE = "trainer_state.json"
LARGEST_DOCUMENT = DOCUMENT  # bytes of one that must be read whole
DEEPEST = 3  # of objects that lists of numbers lie in
_HISTORY = re.compile(r'"log_history"\s{0,99}:\s{0,99}\[')
_LIST = re.compile(r"\[\s*([\[{\]]|$)")  # a bracket may also begin a line of text: [rank0] step 1
_BETWEEN = re.compile(r"[\s,]*")
_WINDOW = 300  # characters that the beginning of the history may have
_POINT = ("wall_time", "step", "value")  # of one curve, as TensorBoard saves it


class JsonDocument(TextFormat):
    """One JSON value. A history is read as a stream, so that a state that is cut off gives what it has; lists are read whole."""

    name = "JSON document"
    what = f"{STATE} and other JSON with a history (.json)"

    def fits(self, file: Place, head: bytes) -> bool:
        text = as_text(head)
        return _LIST.match(text) is not None or (
            BRACE.match(text) is not None and (file.name.endswith(".json") or not is_rows(text))
        )

    def read(self, reading: Reading, choice: Choice, faults: Faults) -> Iterator[Row]:
        decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        texts = (decode(block) for block in reading.blocks())
        begun = _Begun()
        held = begun.history(texts)
        if held is None:
            yield from _rows_of(begun.document(), faults)
        else:
            yield from _entries(held, texts, faults)


class _Begun:
    """The beginning of a document: up to the bracket that opens its history, or all of it where it has none."""

    def __init__(self) -> None:
        self._whole: list[str] = []  # as long as it may have to be read whole
        self._size = 0
        self._keys: dict[str, None] = {}

    def history(self, texts: Iterator[str]) -> str | None:
        """The text from behind the opening bracket on, as far as it is read; None where there is no history."""
        held = ""
        for text in texts:
            begins = not self._size
            self._size += len(text)
            if self._size <= LARGEST_DOCUMENT:
                self._whole.append(text)
            held += text
            if begins and held.lstrip().startswith("["):
                return held.lstrip()[1:]
            found = _HISTORY.search(held)
            if found is not None:
                return held[found.end() :]
            if len(self._keys) < MOST_SHOWN:
                self._keys |= dict.fromkeys(re.findall(r'"([^"\\]{1,40})"\s*:', held)[: 2 * MOST_SHOWN])
            held = held[-_WINDOW:]
        return None

    def document(self) -> Mapping[str, Any]:
        """The whole object. Raises `RunError` for what is none."""
        if self._size > LARGEST_DOCUMENT:
            raise RunError(f"it is JSON of more than {LARGEST_DOCUMENT} bytes without a `log_history`")
        try:
            found = parse_json("".join(self._whole))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunError(f"it is JSON without a `log_history`; it has {listed(self._keys)}")
        return found


def _entries(held: str, texts: Iterator[str], faults: Faults) -> Iterator[Row]:
    """The objects of a history, one at a time: what is cut off gives what it has."""
    place = 0
    parse = json.JSONDecoder().raw_decode
    while True:
        place = _after(_BETWEEN, held, place)
        if held.startswith("]", place):
            return
        try:
            row, place = parse(held, place)
        except (ValueError, RecursionError) as error:
            more = next(texts, None)
            if more is None or isinstance(error, RecursionError) or len(held) - place > LONGEST_LINE:
                what = "is cut off" if more is None else f"cannot be read from {shown(held[place : place + 40])} on"
                faults.note(f"its log history {what}: what came before counts")
                return
            held, place = held[place:] + more, 0
            continue
        if isinstance(row, dict):
            yield row
        elif isinstance(row, list) and len(row) == len(_POINT):
            yield dict(zip(_POINT, row, strict=True))
        else:
            faults.add("entries of the history that are no JSON object", shown(row))


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return place if found is None else found.end()


def _rows_of(document: Mapping[str, Any], faults: Faults) -> Iterator[Row]:
    """The rows of an object without a history. Raises `RunError` where it has none."""
    found = False
    for path, part in _parts(document, ()):
        for row in _rows_in(part, faults):
            found = True
            yield {name if _places(name) else "/".join((*path, name)): value for name, value in row.items()}
    if not found:
        expected = "a `log_history`, a list of rows, or lists of numbers, one of them of steps"
        raise RunError(
            f"it is JSON without a `log_history` or another list of rows; it has {listed(document)}: expected {expected}"
        )


def _parts(part: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What may hold rows: the object, and the objects and lists of objects within it, with the names that lead there."""
    yield path, part
    if isinstance(part, dict) and len(path) < DEEPEST and not _is_by_number(part):
        for name, value in part.items():
            is_rows_of_its_own = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
            if is_rows_of_its_own or (isinstance(value, dict) and not _is_by_number(value)):
                yield from _parts(value, (*path, str(name)))


def _rows_in(part: Any, faults: Faults) -> Iterator[Row]:
    """The rows that one object or list holds itself."""
    if isinstance(part, list):
        yield from (row for row in part if isinstance(row, dict))
        return
    if isinstance(part.get("columns"), list) and isinstance(part.get("data"), list):
        names = [str(name) for name in part["columns"]]
        yield from (dict(zip(names, row, strict=False)) for row in part["data"] if isinstance(row, list))
        return
    if _is_by_number(part) and all(isinstance(value, dict) for value in part.values()):
        yield from ({"step": step, **row} for step, row in part.items())
        return
    columns = {name: _column(value) for name, value in part.items() if isinstance(value, list) or _is_by_number(value)}
    steps = next((name for name in columns if _is_steps(name)), None)
    if steps is None:
        yield from (
            {"step": step, name: number} for name in columns if _is_by_number(part[name]) for step, number in part[name].items()
        )
        return
    count = len(columns[steps])
    for name in [name for name, values in columns.items() if len(values) != count]:
        faults.add(f"lists that do not have {count} numbers as {shown(steps)} has", f"{shown(name)} has {len(columns.pop(name))}")
    yield from (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _is_by_number(value: Any) -> bool:
    """Whether an object has numbers for names, as a table has that was saved column by column."""
    return isinstance(value, dict) and bool(value) and all(isinstance(name, str) and name.isdigit() for name in value)


def _column(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _is_steps(name: str) -> bool:
    guessed = guess(name)
    return guessed is not None and guessed[0] == "step"


def _places(name: str) -> bool:
    """Whether a column says where a row belongs, not what it measures."""
    guessed = guess(name)
    return is_epoch(name) or (guessed is not None and guessed[0] in ("step", "tokens"))
