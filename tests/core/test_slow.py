"""The lists of slow tests, and of their cases that repeat another, name tests that there are."""

import ast
from functools import cache
from pathlib import Path

import pytest
from benchmarks.slow_tests import left_out, repeats

from tests.conftest import REPEATED, SLOW

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
    listed = SLOW | {case.partition("[")[0] for case in REPEATED}
    assert missing(listed) == set(), "gone or renamed: `make test-times` lists the slow tests anew"


@pytest.mark.parametrize("number", [*range(1, 20), 48])
def test_a_third_of_the_cases_stands_for_all(number):
    """The first and the last among it; of three none is left out."""
    cases = [f"case {at}" for at in range(number)]
    kept = [case for case in cases if case not in left_out(cases)]
    assert kept[0] == cases[0]
    assert kept[-1] == cases[-1]
    assert len(kept) == (number if number <= 3 else -(-number // 3))


def test_cases_are_left_out_where_a_test_takes_long_and_none_is_of_another_assertion(tmp_path):
    """Ids may hold brackets and points."""
    times = {"tests.core.test_slow": 3.0, "tests.core.test_words": 0.3, "tests.core.test_messages": 3.0}
    cases = [
        f'<testcase classname="{module}" name="test_it[{at}.5[x]]" time="{each}"/>'
        for module, each in times.items()
        for at in range(6)
    ]
    (tmp_path / "times.xml").write_text(f"<testsuite>{''.join(cases)}</testsuite>")
    assert repeats(tmp_path / "times.xml") == [f"tests/core/test_slow.py::test_it[{at}.5[x]]" for at in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "node", ["tests/no_such.py::test_it", "tests/core/test_slow.py::test_gone", "tests/core/test_slow.py::No::test"]
)
def test_one_that_is_gone_is_seen(node):
    assert missing([node]) == {node}
