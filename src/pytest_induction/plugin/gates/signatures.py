"""What the assertions take, read from their source: importing them would load torch to check a name. Standard library only."""

from __future__ import annotations

import ast
import functools
import pkgutil
from dataclasses import dataclass

from pytest_induction._lazy import homes

PACKAGE = "pytest_induction"
PREFIX = "assert_"
MODEL, RUN = "model", "run"
SUBJECTS = {"model": MODEL, "after": MODEL, "run": RUN, "treated": RUN}  # parameter -> what a gate is about
IMPLIED = "gate"  # whether a report raises: in a gate file it does, unless it is told not to


@dataclass(frozen=True)
class Parameter:
    """What an argument may be: the parts of its annotation as they are written, such as ("float", "None")."""

    kinds: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Signature:
    """One assertion: where it lives, what it is about and as which parameter it takes that, and what else it takes."""

    assertion: str
    module: str
    about: str
    subject: str
    parameters: dict[str, Parameter]
    implied: dict[str, object]


def names() -> list[str]:
    """All public assertions, without `assert_`."""
    return sorted(name.removeprefix(PREFIX) for name in homes(PACKAGE) if name.startswith(PREFIX))


@functools.cache
def signature(name: str) -> Signature | None:
    """What the public assertion of that name takes, or None if it is not about one model or one run."""
    assertion = PREFIX + name
    module = homes(PACKAGE)[assertion]
    given = _functions(module)[assertion].args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    parameters = {argument.arg: Parameter(_kinds(argument.annotation), default is None) for argument, default in pairs}
    subject = next((each for each in SUBJECTS if each in parameters), None)
    if subject is None:
        return None
    del parameters[subject]
    implied: dict[str, object] = {IMPLIED: True} if IMPLIED in parameters else {}
    return Signature(assertion, module, SUBJECTS[subject], subject, parameters, implied)


@functools.cache
def _functions(module: str) -> dict[str, ast.FunctionDef]:
    """The functions of a module of ours, also where it is imported from an archive."""
    source = pkgutil.get_data(PACKAGE, f"{module.removeprefix(PACKAGE).replace('.', '/')}.py") or b""
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def _kinds(annotation: ast.expr | None) -> tuple[str, ...]:
    if isinstance(annotation, ast.BinOp):
        return _kinds(annotation.left) + _kinds(annotation.right)
    return () if annotation is None else (ast.unparse(annotation),)
