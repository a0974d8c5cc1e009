"""What the reference does to docstrings, as a griffe extension: examples as code, names as links, defaults as numbers."""  # noqa: INP001

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import griffe

PACKAGE = "pytest_induction"
EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.MULTILINE)
PAGE = re.compile(r"docs/([\w-]+)\.md(#[\w-]+)?")
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
NAME = re.compile(r"`([A-Za-z_]\w*)`(?!\])")


class Docstrings(griffe.Extension):
    """Works on the whole package at once, when every name in it is known."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring and every default below the package."""
        if pkg.path == PACKAGE:
            public = entries()
            for each in everything(pkg):
                if each.docstring:
                    each.docstring.value = readable(
                        each.docstring.value, {name: path for name, path in public.items() if name != each.name}
                    )
                if isinstance(each, griffe.Function):
                    show_defaults(each)
                if isinstance(each, griffe.Class):
                    drop_bare_fields(each)


def entries() -> dict[str, str]:
    """What the pages of the reference are about, each by its name alone."""
    pages = (Path(__file__).parents[1] / "api").glob("*.md")
    paths = [path for page in pages for path in ENTRY.findall(page.read_text(encoding="utf-8"))]
    return {path.rpartition(".")[2]: path for path in paths}


def everything(top: griffe.Object) -> list[griffe.Object]:
    """An object and all that is defined in it, however deep."""
    found = [top]
    for member in top.members.values():
        if not member.is_alias:
            found += everything(member)  # type: ignore[arg-type]
    return found


def readable(text: str, public: Mapping[str, str]) -> str:
    """A docstring in Markdown: its `>>>` lines as code, its mentions of pages and of public names as links."""
    parts, rest = [], text
    while found := EXAMPLE.search(rest):
        parts += [linked(rest[: found.start()], public), code(found.group())]
        rest = rest[found.end() :]
    return "".join([*parts, linked(rest, public)])


def linked(text: str, public: Mapping[str, str]) -> str:
    """Prose with links; the pages of the reference lie one directory below the others."""
    text = PAGE.sub(lambda page: f"[{page[1]}](../{page[1]}.md{page[2] or ''})", text)
    return NAME.sub(lambda name: f"[`{name[1]}`][{public[name[1]]}]" if name[1] in public else name[0], text)


def code(example: str) -> str:
    """Lines of a console, without what they say to doctest."""
    lines = [re.sub(r"\s+# doctest:.*", "", line) for line in example.rstrip().splitlines()]
    return "\n".join(["```pycon", *lines, "```", ""])


def show_defaults(function: griffe.Function) -> None:
    """A constant of ours as a default is shown by its value: a reader wants the number."""
    for parameter in function.parameters:
        value: Any = parameter.default
        for _ in range(4):  # a constant may be named after another
            if not isinstance(value, griffe.ExprName):
                break
            value = constant(function, value.canonical_path)
        if isinstance(value, str):
            parameter.default = value


def constant(function: griffe.Function, path: str) -> Any:
    """What a module-level name stands for, or None where it is not one of ours."""
    with suppress(KeyError, AttributeError, griffe.GriffeError):
        found = function.modules_collection[path]
        return found.final_target.value if found.is_alias else found.value
    return None


def drop_bare_fields(cls: griffe.Class) -> None:
    """Fields without a docstring of their own are in the signature, and explained in that of the class."""
    for name, member in list(cls.members.items()):
        if member.is_alias or not member.is_attribute or member.docstring:
            continue
        if "dataclass-field" in member.labels or member.labels == {"instance-attribute"}:
            cls.del_member(name)
