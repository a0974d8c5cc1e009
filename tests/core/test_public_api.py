"""The public names, listed once: the stubs of the packages, the type checker's view and the documentation agree."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import pytest_induction
from pytest_induction._lazy import homes

SOURCE = Path(pytest_induction.__file__).parent


PACKAGES = ["", ".behaviour", ".causal", ".comparison", ".heads", ".interventions", ".probes", ".properties", ".runs"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_had_and_is_documented(package):
    """Each has a docstring, and a place in the reference."""
    name = f"pytest_induction{package}"
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    module = import_module(name)
    assert module.__all__ == dir(module) == sorted(homes(name))
    for each in module.__all__:
        assert each == "ModelLike" or inspect.getdoc(getattr(module, each)), each
        assert f"`{each}`" in page, each


def test_every_stub_is_tried_here():
    """A package with a stub that the test above leaves out would be neither complete nor documented."""
    stubs = {path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("__init__.pyi")}
    assert stubs == {package.removeprefix(".") or "." for package in PACKAGES}


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'pytest_induction\.heads' has no attribute 'no_such'"):
        import_module("pytest_induction.heads").no_such  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert pytest_induction.__version__ == version("pytest-induction")


def test_the_face_can_be_remembered():
    """Some 70 names at the top: an assertion for each claim, what it measures, what loads, none of which loads anything before it is used; all may be had at once."""
    assert len(pytest_induction.__all__) <= 72
    code = "import sys, pytest_induction, pytest_induction.heads; dir(pytest_induction); print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    names = {}
    exec("from pytest_induction import *", names)
    assert set(pytest_induction.__all__) <= set(names)


def test_options_are_keyword_only():
    """Subject first, the text after it where there is one, everything else by name."""
    for name in pytest_induction.__all__:
        if name.startswith(("assert_", "measure_", "load_")):
            parameters = list(inspect.signature(getattr(pytest_induction, name)).parameters.values())
            positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
            assert positional in (
                ["model"],
                ["model", "text"],
                ["run"],
                ["run", "reference"],
                ["path"],
                ["model", "heads"],
                ["model", "part"],
                ["model", "heads", "probes"],
                ["family"],
                ["control", "treated"],
                ["before", "after"],
            ), name


def test_the_package_asserts_nothing():
    """Optimised Python drops assertions, and pytest rewrites them or not: neither is a check."""
    for path in SOURCE.rglob("*.py"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path


def test_files_and_functions_stay_readable():
    """Below 600 lines a file and 45 a function."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.end_lineno - node.body[0 if ast.get_docstring(node) is None else min(1, len(node.body) - 1)].lineno
                assert body <= 45, f"{path}: {node.name}"
