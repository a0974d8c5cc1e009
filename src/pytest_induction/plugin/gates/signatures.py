"""What assertions take: of those that are loaded from their signatures, of others from their source, which loads no torch.

Standard library only.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from sys import modules
from typing import Any

from pytest_induction.claims import Claim, claim_named, claims, source_of
from pytest_induction.errors import ArgumentError

OPTIONAL, UNION = "Optional", "Union"
OF_SCORE = "claim"  # what the assertion of a score takes for itself


@dataclass(frozen=True)
class Parameter:
    """What an argument may be: the parts of its annotation, such as ("float", "None")."""

    kinds: tuple[str, ...]
    required: bool


@dataclass(frozen=True)
class Signature:
    """What the assertion of a claim takes, beside the parameter that a gate gives it."""

    claim: Claim
    subject: str
    parameters: dict[str, Parameter]


def names() -> list[str]:
    """All claims that have an assertion, in alphabetical order."""
    return sorted(claim.name for claim in claims())


def signature(name: str) -> Signature | None:
    """What the assertion of that claim takes, or None if it is not about one model or one run. Raises `ArgumentError`."""
    claim = claim_named(name)
    if claim is None or not claim.about:
        return None
    parameters = dict(_parameters(claim))
    is_of_two = claim.subject.startswith("pair")
    subject = claim.parameter if is_of_two or claim.parameter in parameters else next(iter(parameters), claim.parameter)
    if subject not in parameters:
        raise ArgumentError(f"claim `{name}`: {claim.path} takes no `{subject}`: name what it takes as `argument=` of the claim")
    del parameters[subject]
    parameters.pop(OF_SCORE if not claim.assertion else "", None)
    return Signature(claim, subject, parameters)


def _parameters(claim: Claim) -> Iterator[tuple[str, Parameter]]:
    module, _, name = claim.path.partition(":")
    if not isinstance(claim.assertion, str):
        return _of_function(claim.assertion)
    if module not in modules and (source := source_of(module)) is not None:
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return _of_source(node)
    return _of_function(claim.function())  # as it is loaded; or one that is made elsewhere than where it is named


def _of_source(node: ast.FunctionDef) -> Iterator[tuple[str, Parameter]]:
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    for argument, default in [*zip(plain, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]:
        kinds = () if argument.annotation is None else tuple(_kinds(argument.annotation))
        yield argument.arg, Parameter(kinds, default is None)


def _of_function(function: Callable[..., Any]) -> Iterator[tuple[str, Parameter]]:
    for name, each in inspect.signature(function).parameters.items():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        written = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        kinds = () if each.annotation is each.empty else tuple(_kinds(ast.parse(written, mode="eval").body))
        yield name, Parameter(kinds, each.default is each.empty)


def _kinds(annotation: ast.expr) -> Iterator[str]:
    """The parts of a union, however it is written; each without the modules of its names."""
    if isinstance(annotation, ast.BinOp):
        yield from _kinds(annotation.left)
        yield from _kinds(annotation.right)
        return
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        if outer in (OPTIONAL, UNION):
            parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            for part in parts:
                yield from _kinds(part)
            if outer == OPTIONAL:
                yield "None"
            return
    yield ast.unparse(_Short().visit(annotation)).replace("NoneType", "None")


class _Short(ast.NodeTransformer):
    """Leaves of `collections.abc.Mapping` the last name."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr)
