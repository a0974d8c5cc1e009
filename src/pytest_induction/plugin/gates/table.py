"""Gate files: from TOML to gates that are checked as far as they can be without loading anything. Standard library only.

What is wrong with a file as a whole is raised. What is wrong with one gate, or with one thing that it expects, is kept as
the `problem` of all that cannot be tested for it, so that nothing else is lost.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_induction.claims import MODEL, PREFIX, RUN
from pytest_induction.errors import ArgumentError, InductionError, meant
from pytest_induction.files import SETTINGS, read_text
from pytest_induction.model.specs import check_device, check_dtype, memory_size, module_names
from pytest_induction.plugin.failures import SKIP
from pytest_induction.plugin.gates import signatures, values
from pytest_induction.plugin.gates.signatures import Signature
from pytest_induction.plugin.gates.values import ModelNamed, RunNamed
from pytest_induction.spending import FORM, Budget

PYPROJECT = "pyproject.toml"
SECTION = ("tool", "pytest_induction", "gates")
MISSPELT = "pytest-induction"
FOR_LOGS = ("column", "where")
FOR_RUNS = ("reference", "factory", *FOR_LOGS)
LOADING = ("device", "dtype", "memory", "trust_remote_code", "without_pattern")
KEYS = (MODEL, RUN, "text", "seed", "budget", *LOADING, *FOR_RUNS, SKIP, "marks", "expect")
NAME = re.compile(r"\w[\w.+-]*")  # what pytest can select by node id
NEEDED = {"text": 'text = "PATH"', "reference": 'reference = "RUN"'}  # what a gate can give all that it expects


@dataclass(frozen=True)
class Mark:
    """A marker by its name, with its arguments if it has any: `timeout(600)`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectation:
    """One test: an assertion, what it is called with beside the subject, and what keeps it from that, if anything does."""

    name: str
    signature: Signature | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    is_missing: bool = False  # the problem is that something is not there, which a gate may allow


@dataclass(frozen=True)
class Gate:
    """One table of a gate file: a model or a run, how to load it, and what is expected of it."""

    name: str
    line: int
    subject: ModelNamed | RunNamed | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    expectations: tuple[Expectation, ...] = ()


def read_gates(path: Path) -> tuple[Gate, ...]:
    """The gates of a file, in its order. Raises `ArgumentError` for a file that cannot be read, or has none."""
    try:
        source = read_text(path, SETTINGS)
    except (OSError, UnicodeDecodeError) as error:
        seen = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ArgumentError(f"{shown(path)} cannot be read: {seen}") from None
    tables = _tables(path, _parsed(path, source))
    if not tables:
        raise ArgumentError(f"{shown(path)} has no gates: a gate is a table such as {_header(path, 'small')}")
    return tuple(_gate(path, name, table, _line(path, source, name)) for name, table in tables.items())


def holds_gates(source: bytes) -> bool:
    """Whether a pyproject.toml has gates, or what was meant to be gates."""
    try:
        tool = tomllib.loads(source.decode()).get(SECTION[0])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return b"tool.pytest_induction" in source  # what is wrong is said when it is collected
    return isinstance(tool, dict) and not {SECTION[1], MISSPELT}.isdisjoint(tool)


def shown(path: Path | str) -> str:
    """The path as one would write it here: relative where it lies below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def _parsed(path: Path, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = f": {source.split(chr(10))[int(found[1]) - 1].strip()}" if found else ""
        raise ArgumentError(f"{shown(path)} is not TOML: {error}{line}") from None


def _tables(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Names of gates -> what stands under them. Raises `ArgumentError` where a pyproject.toml has something else of ours."""
    if path.name != PYPROJECT:
        return dict(content)
    tool = content.get(SECTION[0], {})
    if MISSPELT in tool:
        raise ArgumentError(f"{shown(path)}: the table is written [{'.'.join(SECTION)}.NAME], with an underscore")
    ours = tool.get(SECTION[1], {})
    for key in ours:
        if key != SECTION[2]:
            raise ArgumentError(f"{shown(path)}: [tool.pytest_induction] has no key `{key}`{meant(key, SECTION[2:])}")
    gates = ours.get(SECTION[2], {})
    if not isinstance(gates, dict):
        raise ArgumentError(f"{shown(path)}: gates are tables such as {_header(path, 'small')}, got {gates!r}")
    return gates


def _header(path: Path, name: str) -> str:
    return f"[{'.'.join([*SECTION, name])}]" if path.name == PYPROJECT else f"[{name}]"


def _line(path: Path, source: str, name: str) -> int:
    """The line of a gate's header, counted from 0; that of its first key where it has none, or 0."""
    quoted = rf"[\"']?{re.escape(name)}[\"']?"
    before = r"\s*\.\s*".join(SECTION) + r"\s*\.\s*" if path.name == PYPROJECT else ""
    found = re.search(rf"^[ \t]*\[?[ \t]*{before}{quoted}[ \t]*[\].=]", source, re.MULTILINE)
    return source.count("\n", 0, found.start()) if found else 0


def _gate(path: Path, name: str, table: Any, line: int) -> Gate:
    """One gate; what is wrong with it as a whole is the problem of each of its expectations."""
    where = f"{shown(path)}, gate `{name}`"
    shown_name = name if NAME.fullmatch(name) else re.sub(r"[^\w.+-]", "_", name) or "_"
    try:
        if not NAME.fullmatch(name):
            raise ArgumentError("its name must be letters, digits, `_`, `-` and `.`, for it is part of the ids of tests")
        if not isinstance(table, dict):
            raise ArgumentError(f"it must be a table, got {table!r}: write {_header(path, 'NAME')} above its keys")
        gate = _checked(table, path.parent, Gate(name, line))
        expectations = tuple(_expectations(table, gate, path.parent, where))
        _check_used(gate, expectations)
    except InductionError as error:
        problem = f"{where}: {error}"
        broken = tuple(Expectation(each, problem=problem, is_missing=error.is_missing) for each in _names_only(table))
        skips = isinstance(table, dict) and table.get(SKIP) is True
        return Gate(shown_name, line, settings={SKIP: skips}, expectations=broken)
    return Gate(name, line, gate.subject, gate.settings, gate.marks, expectations)


def _check_used(gate: Gate, expectations: Iterable[Expectation]) -> None:
    """Raise `ArgumentError` for a text or reference that nothing takes: what it was meant for would not be tested."""
    for key in NEEDED:
        of_checkpoints = key == "text" and isinstance(gate.subject, RunNamed)
        used = any(each.problem or key in each.arguments for each in expectations)
        if key in gate.settings and not (used or of_checkpoints):
            raise ArgumentError(
                f"none of the claims it expects takes `{key}`: leave `{key}` out, or expect a claim that takes it"
            )


def _names_only(table: Any) -> list[str]:
    """The ids that the expectations of a gate have, as far as they can be told, so that a broken gate fails under each."""
    expect = table.get("expect") if isinstance(table, dict) else None
    try:
        return [name for _, name, _ in _calls(expect)]
    except ArgumentError:
        return ["expect"]


def _checked(table: Mapping[str, Any], place: Path, gate: Gate) -> Gate:
    """The gate without what it expects. Raises `ArgumentError` or `ModelError` for what is wrong with it."""
    for key in table:
        if key not in KEYS:
            raise ArgumentError(f"there is no key `{key}`{meant(key, KEYS)}")
    given = [about for about in (MODEL, RUN) if about in table]
    if len(given) != 1:
        seen = "both" if given else "neither"
        raise ArgumentError(f"a gate is about one `model` or one `run`, this has {seen}")
    about = given[0]
    if "budget" in table and about == RUN:
        raise ArgumentError("`budget` is for a `model`, this is about a `run`")
    for key in FOR_RUNS:
        if key in table and about == MODEL:
            raise ArgumentError(f"`{key}` is for a `run`, this is about a `model`")
    subject: ModelNamed | RunNamed = _key(table, about, values.model_at if about == MODEL else values.run_at, place)
    readers = {
        "text": values.text_at,
        "seed": _seed,
        "device": _checking(check_device),
        "dtype": _checking(check_dtype),
        "memory": _checking(memory_size),
        "budget": _budget,
        "trust_remote_code": values.truth,
        SKIP: values.truth,
        "without_pattern": _modules,
        "reference": values.run_at,
        "factory": values.factory_at,
        "column": _choice,
        "where": _choice,
    }
    settings = {key: _key(table, key, reader, place) for key, reader in readers.items() if key in table}
    _check_choice(settings)
    marks = _key(table, "marks", _marks, place) if "marks" in table else ()
    return Gate(gate.name, gate.line, subject, settings, marks)


def _key(table: Mapping[str, Any], key: str, reader: Callable[[Any, Path], Any], place: Path) -> Any:
    """What a key of a gate means; the reader's error, or its dislike of the value's type, with the key's name."""
    try:
        return reader(table[key], place)
    except values.OfAnotherKindError:
        raise ArgumentError(f"`{key}` must be {WORDS.get(key, 'a string')}, got {table[key]!r}") from None
    except InductionError as error:
        failed = ArgumentError(f"`{key}`: {error}")
        failed.is_missing = error.is_missing
        raise failed from None


def _choice(value: Any, place: Path) -> dict[str, str]:
    """Names and columns, or columns and values."""
    if not isinstance(value, dict) or not value or not all(isinstance(each, (str, int, float)) for each in value.values()):
        raise values.OfAnotherKindError
    return {name: str(each) for name, each in value.items()}


def _check_choice(settings: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for a choice that no log could make sense of."""
    if not settings.keys().isdisjoint(FOR_LOGS):
        from pytest_induction.runs.logs.columns import checked

        checked(settings.get("column"), settings.get("where"))


WORDS = {
    "column": 'a table of our names and the log\'s, such as { loss = "train/ce" }',
    "where": 'a table of columns and what stands in the rows that count, such as { run = "r0" }',
    "seed": "a whole number from 0 up",
    "budget": FORM,
    "marks": 'a list of markers, such as "slow" or "timeout(600)", whose arguments are plain values',
    "trust_remote_code": "true or false, without quotes",
    SKIP: "true or false, without quotes",
    "without_pattern": 'paths or classes of modules, such as "Scan", in a list if several',
}


def _budget(value: Any, place: Path) -> float | str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise values.OfAnotherKindError
    Budget.of(value)
    return value


def _seed(value: Any, place: Path) -> int:
    seed = values.whole(value, place)
    if seed < 0:
        raise values.OfAnotherKindError
    return seed


def _marks(value: Any, place: Path) -> tuple[Mark, ...]:
    return tuple(map(_mark, values.strings(value, place)))


def _mark(written: str) -> Mark:
    """A marker as Python writes it; its arguments are literals, and nothing is run."""
    try:
        call = ast.parse(written.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return Mark(call.id)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
            if len(named) == len(call.keywords):
                return Mark(call.func.id, tuple(map(ast.literal_eval, call.args)), named)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise values.OfAnotherKindError


def _modules(value: Any, place: Path) -> tuple[str, ...]:
    return module_names(value if isinstance(value, str) else values.strings(value, place))


def _checking(check: Callable[[str], object]) -> Callable[[Any, Path], str]:
    def read(value: Any, place: Path) -> str:
        check(text := values.string(value, place))
        return text

    return read


def _expectations(table: Mapping[str, Any], gate: Gate, place: Path, where: str) -> Iterator[Expectation]:
    for written, name, arguments in _calls(table.get("expect")):
        try:
            signature = _signature(written.removeprefix(PREFIX), MODEL if MODEL in table else RUN)
            yield Expectation(name, signature, _arguments(signature, arguments, gate, place))
        except InductionError as error:
            yield Expectation(name, problem=f"{where}, {name}: {error}", is_missing=error.is_missing)


def _calls(expect: Any) -> list[tuple[str, str, Any]]:
    """Each assertion as it is written, the id of its test, and its arguments. Raises `ArgumentError` if there is none."""
    if not isinstance(expect, (list, dict)) or not expect or not all(isinstance(each, str) for each in expect):
        example = 'expect = ["has_induction_head"], or a table of assertions and their arguments'
        raise ArgumentError(f"it must say what it expects: {example}, got {'nothing' if expect is None else repr(expect)}")
    written = dict.fromkeys(expect, True) if isinstance(expect, list) else expect
    plain = [name.removeprefix(PREFIX) for name in expect]
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if twice is not None:
        raise ArgumentError(f"`expect` names `{twice}` twice: several arguments are written {twice} = [{{...}}, {{...}}]")
    calls = []
    for each, given in written.items():
        several = given if isinstance(given, list) and given else None
        for index, arguments in enumerate(several or [given]):
            name = re.sub(r"[^\w.+-]", "_", each.removeprefix(PREFIX)) or "_"
            calls.append((each, name if several is None else f"{name}-{index}", arguments))
    return calls


def _signature(name: str, about: str) -> Signature:
    """The assertion of that name. Raises `ArgumentError` if there is none, or none about a model (a run)."""
    if name not in signatures.names():
        raise ArgumentError(f"there is no assertion `{name}`{meant(name, signatures.names())}")
    found = signatures.signature(name)
    if found is None:
        raise ArgumentError(f"`{name}` is about several models or runs: assert it in a test")
    if found.claim.about != about:
        raise ArgumentError(f"it is about a `{found.claim.about}`, the gate has a `{about}`")
    return found


def _arguments(signature: Signature, given: Any, gate: Gate, place: Path) -> dict[str, Any]:
    """What the assertion is called with: what stands beside its name, then what the gate gives all that it expects."""
    if given is not True and not isinstance(given, dict):
        hint = ": leave it out" if given is False else ""
        raise ArgumentError(f"it must be true, a table of arguments or a list of these, got {given!r}{hint}")
    written: dict[str, Any] = {} if given is True else given
    known = signature.parameters
    for name in written:
        if name not in known:
            raise ArgumentError(f"it has no argument `{name}`{meant(name, known)}")
    shared = {key: gate.settings[key] for key in NEEDED if key in gate.settings and key in known}
    left_out = {name for name in NEEDED if written.get(name) is False and not known[name].required}
    own = {name: values.read_argument(name, value, known[name], place) for name, value in written.items() if name not in left_out}
    arguments = {**{name: value for name, value in shared.items() if name not in left_out}, **own}
    for name, parameter in known.items():
        if parameter.required and name not in arguments:
            raise ArgumentError(f"it needs `{name}`: {_how(signature, name)}")
    return {**signature.claim.arguments, **arguments}


def _how(signature: Signature, name: str) -> str:
    """How to give a missing argument."""
    if name in NEEDED:
        return f"give the gate {NEEDED[name]}"
    return f"write {signature.claim.name} = {{ {name} = ... }} under `expect`"
