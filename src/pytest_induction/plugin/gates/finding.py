"""Which files have gates, and where they stand among tests: asked of every session, so that nothing else is loaded for it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from pytest_induction.files import SETTINGS, read_bytes

ENDING = ".gates.toml"
PYPROJECT = "pyproject.toml"


def is_gate_file(path: Path, session: pytest.Session) -> bool:
    """Whether it is collected: any `*.gates.toml`; a pyproject.toml with gates if it is the session's own, or named."""
    if path.name.endswith(ENDING):
        return True
    if path.name != PYPROJECT or not (path.parent == session.config.rootpath or session.isinitpath(path)):
        return False
    return _has_gates(path)


def arguments_with_gates(config: pytest.Config) -> list[str]:
    """The session's arguments; where testpaths stand for all there is, with the pyproject.toml beside them if it has gates."""
    own = config.rootpath / PYPROJECT
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not _has_gates(own):
        return config.args
    is_below = any(own.is_relative_to((config.invocation_params.dir / path).resolve()) for path in config.args)
    return config.args if is_below else [*config.args, str(own)]


def nearest_gates(arguments: list[str]) -> list[str]:
    """A line for each argument that names a gate, or one of its tests, which its file does not have."""
    from pytest_induction.errors import InductionError, meant
    from pytest_induction.plugin.gates.table import read_gates

    lines = []
    for argument in arguments:
        file, *names = argument.split("::")
        if not names or not file.endswith((ENDING, PYPROJECT)):
            continue
        with suppress(InductionError, OSError):
            gates = {each.name: [one.name for one in each.expectations] for each in read_gates(Path(file))}
            known = [gates, gates.get(names[0], [])]
            wrong = next(((name, those) for name, those in zip(names, known, strict=False) if name not in those), None)
            if wrong is not None:
                what = "gate" if wrong[0] == names[0] else f"test of gate `{names[0]}`"
                lines.append(f"{file} has no {what} `{wrong[0]}`{meant(*wrong)}")
    return lines


def keep_together(items: list[pytest.Item]) -> None:
    """Put tests of one gate one after another, whatever has shuffled them, so that its model is loaded once."""
    gates: dict[object, list[pytest.Item]] = {}
    for item in items:
        gates.setdefault(item.parent if item.path.name.endswith((ENDING, PYPROJECT)) else item, []).append(item)
    items[:] = [item for together in gates.values() for item in together]


def _has_gates(path: Path) -> bool:
    """Whether a pyproject.toml has something for us; most have not, which costs the reading of a file."""
    try:
        source = read_bytes(path, SETTINGS)
    except OSError:
        return False
    if b"pytest_induction" not in source and b"pytest-induction" not in source:
        return False
    from pytest_induction.plugin.gates.table import holds_gates

    return holds_gates(source)
