"""The list of slow tests names tests that there are."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import SLOW

ROOT = Path(__file__).parents[2]


@cache
def body_of(path):
    """The statements of a file; none of one that is not there."""
    return ast.parse(path.read_text()).body if path.is_file() else []


def missing(listed, root=ROOT):
    """What a list names and no file has."""
    found = set()
    for node in listed:
        path, *classes, name = node.split("::")
        body = body_of(root / path)
        for each in classes:
            body = next((node.body for node in body if isinstance(node, ast.ClassDef) and node.name == each), [])
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in body):
            found.add(node)
    return found


def test_every_slow_test_exists():
    assert missing(SLOW) == set(), "gone or renamed: `make test-times` lists the slow tests anew"


@pytest.mark.parametrize(
    "node", ["tests/no_such.py::test_it", "tests/core/test_slow.py::test_gone", "tests/core/test_slow.py::No::test"]
)
def test_one_that_is_gone_is_seen(node):
    assert missing([node]) == {node}
