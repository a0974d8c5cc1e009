"""The JSON schema of gate files, for editors and other checkers: from the claims that are known. Standard library only.

It says what can be said of a file alone. That paths are there, and that somebody takes a gate's `text` and `reference`, is
checked when tests are collected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_induction.claims import MODEL, PREFIX, RUN
from pytest_induction.model.specs import DTYPES
from pytest_induction.plugin.failures import SKIP
from pytest_induction.plugin.gates import signatures, values
from pytest_induction.plugin.gates.signatures import Parameter, Signature
from pytest_induction.plugin.gates.table import FOR_RUNS, KEYS, NAME, NEEDED

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors know best
STRING: Schema = {"type": "string"}
STRINGS: Schema = {"type": "array", "items": STRING}
NUMBERS: Schema = {"type": "object", "additionalProperties": {"type": "number"}}
HEAD: Schema = {"type": "string", "pattern": f"^({values.HEADS.pattern})$"}
CHOICE: Schema = {"type": "object", "minProperties": 1, "additionalProperties": {"type": ["string", "number"]}}
KINDS: dict[str, Schema] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": STRING,
    **dict.fromkeys(("Iterable[str]", "Sequence[str]", "list[str]"), STRINGS),
    "Sequence[int]": {"type": "array", "items": {"type": "integer"}},
    **dict.fromkeys(("Mapping[str, float]", "dict[str, float]"), NUMBERS),
    "Mapping[str, float | None]": {
        "type": "object",
        "additionalProperties": {"anyOf": [{"type": "number"}, {"const": False}]},
    },
    "Mapping[str, Any]": {"type": "object"},
    "PropertyName": STRING,
    "HeadsLike": {"anyOf": [HEAD, {"type": "array", "minItems": 1, "items": HEAD}]},
    "ModelLike": STRING,
    "RunLike": STRING,
    "Sequence[RunLike]": STRINGS,
    "Text": STRING,
    "Any": {},
}
"""The kinds of argument that gate files can express, as `values.READERS` reads them."""

OF_KEYS: dict[str, Schema] = {
    MODEL: {**STRING, "minLength": 1, "description": "a directory, hf:NAME[@REVISION], a .gguf file or path/file.py:factory"},
    RUN: {**STRING, "minLength": 1, "description": "a recorded run, a log, or a directory of checkpoints"},
    "text": {**STRING, "description": "a text file, for every assertion that takes a text"},
    "seed": {"type": "integer", "minimum": 0, "description": "seed of the probes"},
    "budget": {"type": ["string", "number"], "description": "what each assertion may spend: '60 passes' or '30 s'"},
    "device": {**STRING, "description": "where the model is loaded: cpu, cuda, cuda:1, mps, auto"},
    "dtype": {"enum": list(DTYPES), "description": "the type that the model is loaded in"},
    "memory": {**STRING, "description": "what a forward pass may take: '4GB'"},
    "trust_remote_code": {"type": "boolean", "description": "let code run that came with the weights"},
    "without_pattern": {"anyOf": [STRING, STRINGS], "description": "modules that mix positions and have no attention pattern"},
    "reference": {**STRING, "description": "the run that `onset_not_later` compares with"},
    "factory": {**STRING, "description": "what makes the model of checkpoints: path/file.py:factory"},
    "column": {**CHOICE, "description": "our names -> columns of a log"},
    "where": {**CHOICE, "description": "columns of a log -> what stands in the rows that count"},
    SKIP: {"type": "boolean", "description": "skip the tests, rather than fail them, where the model, run or text is not there"},
    "marks": {
        "type": "array",
        "items": {"type": "string", "pattern": r"^\s*[^\W\d]\w*\s*(\(.*\))?\s*$"},
        "description": "markers of pytest: 'slow', 'timeout(600)', 'flaky(reruns=2)'",
    },
}


def gates_schema() -> Schema:
    """The schema of a file of gates, in the order of the tables of docs/gates.md. Raises `ArgumentError` for a broken claim."""
    return {
        "$schema": DRAFT,
        "title": "Gates of pytest-induction",
        "description": "What must hold of a model or of a training run: one table for each gate",
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": {"anyOf": [{"$ref": f"#/definitions/gate of a {about}"} for about in (MODEL, RUN)]},
        "definitions": {f"gate of a {about}": _gate(about) for about in (MODEL, RUN)},
    }


def _gate(about: str) -> Schema:
    left_out = {RUN, *FOR_RUNS} if about == MODEL else {MODEL, "budget"}
    keys = {key: OF_KEYS[key] for key in KEYS if key in OF_KEYS and key not in left_out}
    return {
        "type": "object",
        "properties": {**keys, "expect": _expect(about)},
        "required": [about, "expect"],
        "additionalProperties": False,
    }


def _expect(about: str) -> Schema:
    found = filter(None, map(signatures.signature, signatures.names()))
    known = {each.claim.name: each for each in found if each.claim.about == about}
    written = {f"{prefix}{name}": each for prefix in ("", PREFIX) for name, each in known.items()}
    bare = [name for name, each in written.items() if not _required(each)]
    table: Schema = {
        "type": "object",
        "minProperties": 1,
        "properties": {name: _assertion(each) for name, each in written.items()},
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": bare}}, table]}


def _assertion(signature: Signature) -> Schema:
    arguments: Schema = {
        "type": "object",
        "properties": {name: argument(name, each) for name, each in signature.parameters.items()},
        "required": _required(signature),
        "additionalProperties": False,
    }
    once = arguments if arguments["required"] else {"anyOf": [{"const": True}, arguments]}
    several = {"type": "array", "minItems": 1, "items": once}
    return {"description": signature.claim.asserts, "anyOf": [*once.get("anyOf", [once]), several]}


def _required(signature: Signature) -> list[str]:
    """Arguments without which an assertion cannot be called; a gate itself may give some."""
    return [name for name, each in signature.parameters.items() if each.required and name not in NEEDED]


def argument(name: str, parameter: Parameter) -> Schema:
    """What may be written for an argument; `false` for nothing that could be is none."""
    kinds: list[Mapping[str, Any]] = [KINDS[kind] for kind in values.kinds_of(name, parameter) if kind in KINDS]
    if name in NEEDED and not parameter.required:
        kinds.append({"const": False})
    if not kinds:
        return {"not": {}, "description": "it cannot be written in a gate file: assert it in a test"}
    return dict(kinds[0]) if len(kinds) == 1 else {"anyOf": kinds}
