"""The public names, listed once: the face, the type checker's view and the documentation agree."""

import ast
import inspect
from pathlib import Path

import pytest_induction

SOURCE = Path(pytest_induction.__file__).parent


def test_every_public_name_can_be_had_and_is_documented():
    """Each has a docstring, and a place in the reference."""
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    for name in pytest_induction.__all__:
        assert inspect.getdoc(getattr(pytest_induction, name)), name
        assert f"`{name}`" in page, name


def test_the_lists_of_names_agree():
    """Lazy table, imports for the type checker, and __all__."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"annotations", "Any", "TYPE_CHECKING", "import_module"} == set(pytest_induction.__all__)
    assert set(pytest_induction._MODULE_OF) == set(pytest_induction.__all__)
    assert pytest_induction.__all__ == sorted(pytest_induction.__all__)
    assert set(pytest_induction.__all__) <= set(dir(pytest_induction))


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
