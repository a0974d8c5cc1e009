"""No module needs another one that needs it: each can be read, and changed, knowing only what lies below it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pytest_induction

PACKAGE = Path(pytest_induction.__file__).parent


def named(path, package):
    """The name of a module, as others import it."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, package, modules):
    """The modules that one imports, wherever it does so: also in functions, and for types alone."""
    own = named(path, package).split(".")
    here = own if path.name == "__init__.py" else own[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for each in node.names:
                if (name := f"{base}.{each.name}") in modules or (name := base) in modules:
                    yield name


def needs(package=PACKAGE):
    """Module -> what it imports. That a module loads the packages that it lies in is left out."""
    modules = {named(path, package): path for path in package.rglob("*.py")}
    return {name: set(imported(path, package, modules)) - {name} for name, path in modules.items()}


def circle(graph):
    """The modules of a circle, in order; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other():
    found = needs()
    assert len(found) > 100 and "pytest_induction.errors" in found["pytest_induction.runs.store"]
    assert circle(found) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from house.other import x", "from house.one import y"),
        ("from house import other", "import house.one"),
        ("from .other import x", "from . import one"),
        (
            "def f():\n    from house.other import x",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.one import Y",
        ),
    ],
)
def test_a_circle_is_found(tmp_path, one, other):
    house = tmp_path / "house"
    (house / "room").mkdir(parents=True)
    for name, text in {"__init__": "", "room/__init__": "from ..one import x", "one": one, "other": ""}.items():
        (house / f"{name}.py").write_text(text)
    assert circle(needs(house)) == []
    (house / "other.py").write_text(other)
    assert set(circle(needs(house))) == {"house.one", "house.other"}
