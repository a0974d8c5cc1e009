"""What the site adds to the pages of docs/: the changelog, files that pages link to, options and commands as they are."""  # noqa: INP001

import io
import os
import re
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
INDEXED = re.compile(r"\b([A-Za-zΣ])_(?:([A-Za-z])\b|\{(.+?)\})")
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
NAME = re.compile(r"`([A-Za-z_]\w*)`")
PRINTED = re.compile(r"<pre\b.*?</pre>", re.DOTALL)
VERDICT = re.compile(r"(?<![\w.])(REFUTED|SHOWN|UNDETERMINED)\b")
GENERATED = re.compile(r"^<!-- generated: (\w+)(?: (\w+))? -->$", re.MULTILINE)
VERSIONED = "MIKE_DOCS_VERSION"  # set by mike while it builds
FOUND_LAST = "---\nsearch:\n  boost: 0.2\n---\n\n"  # the changelog names everything
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "README.md": "index.md"}


def on_config(config: MkDocsConfig) -> None:
    """Show the version in the header: by a selector where several are built side by side, else after the name.

    A selector asks for a list of versions, which a site that is read from disk has not.
    """
    if VERSIONED in os.environ:
        config.extra["version"] = {"provider": "mike"}
        return
    root = Path(config.docs_dir).parent
    config.site_name += f" {tomllib.loads((root / 'pyproject.toml').read_text(encoding='utf-8'))['project']['version']}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog, and every file outside of docs/ that a page links to."""
    root = Path(config.docs_dir).parent
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changelog.md", content=FOUND_LAST + changes))
    for page in list(files.documentation_pages()):
        for target in outside(page.content_string, page.src_uri):
            if target not in ROOT_PAGES and (root / target).is_file() and f"files/{target}.txt" not in files.src_uris:
                files.append(File.generated(config, f"files/{target}.txt", content=(root / target).read_text(encoding="utf-8")))
    return files


def outside(text: str, page: str) -> list[str]:
    """Paths from the root of the repository that a page links to and that the site has not by itself."""
    found = [from_root(link[2], page) for link in LINK.finditer(text)]
    return [path for path in found if not is_of_site(path)]


def is_of_site(path: str) -> bool:
    """Whether the site has a file by itself: all of docs/, but for the code there."""
    return path.startswith("docs/") and not path.endswith(".py")


def from_root(target: str, page: str) -> str:
    """A link's path from the root of the repository."""
    return normpath(PurePosixPath("docs", page).parent / target)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to where the site has things, write what is generated, and set indices in the formulas."""
    here = page.file.src_uri
    markdown = LINK.sub(lambda link: link[1] + moved(link[2], here) + link[3], markdown)
    markdown = GENERATED.sub(lambda mark: GENERATORS[mark[1]](mark[2]), markdown)
    return AT_HOME.get(here, str)(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Colour the verdicts in what is printed."""
    return PRINTED.sub(lambda block: VERDICT.sub(r'<b class="\1">\1</b>', block[0]), html)


def moved(target: str, page: str) -> str:
    """Where the site has what it has not by itself."""
    path = from_root(target, page)
    if is_of_site(path):
        return target
    return relpath(ROOT_PAGES.get(path, f"files/{path}.txt"), PurePosixPath(page).parent.as_posix())


def typeset(markdown: str) -> str:
    """W_V with its index below the line, but not in code."""
    parts = CODE.split(markdown)
    return "".join(part if odd % 2 else INDEXED.sub(r"\1<sub>\2\3</sub>", part) for odd, part in enumerate(parts))


def with_links(markdown: str) -> str:
    """Public names, led to what their docstrings say."""
    pages = (Path(__file__).parents[1] / "api").glob("*.md")
    entries = [path for page in pages for path in ENTRY.findall(page.read_text(encoding="utf-8"))]
    public = {path.rpartition(".")[2]: path for path in entries}
    return NAME.sub(lambda name: f"[`{name[1]}`][{public[name[1]]}]" if name[1] in public else name[0], markdown)


class Options:
    """Takes what the plugin tells pytest's parser, and keeps it."""

    def __init__(self) -> None:
        self.command_line: dict[str, str] = {}
        self.ini: dict[str, str] = {}

    def getgroup(self, *_: str) -> "Options":
        return self

    def addoption(self, name: str, *, help: str, metavar: str = "", **_: Any) -> None:  # noqa: A002
        self.command_line[f"{name} {metavar}".strip()] = help

    def addini(self, name: str, help: str, **_: Any) -> None:  # noqa: A002
        self.ini[name] = help


def options(_: str) -> str:
    """The table of all options, from the plugin itself."""
    from pytest_induction.plugin.options import add_options

    known = Options()
    add_options(known)  # type: ignore[arg-type]
    rows = [
        f"| `{name}` | {f'`{key}`' if (key := ini_key(name)) in known.ini else ''} | {about} |"
        for name, about in known.command_line.items()
    ]
    return "\n".join(["| option | ini key | |", "|---|---|---|", *rows])


def ini_key(option: str) -> str:
    return option.split(maxsplit=1)[0].removeprefix("--").replace("-", "_")


def command(name: str) -> str:
    """What `python -m pytest_induction NAME --help` prints."""
    from pytest_induction.__main__ import main

    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "100"
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        main([name, "--help"])
    os.environ.pop("COLUMNS")
    if before is not None:
        os.environ["COLUMNS"] = before
    return f"```text\n{said.getvalue().rstrip()}\n```"


AT_HOME: dict[str, Callable[[str], str]] = {"metrics.md": typeset, "reference.md": with_links}
GENERATORS: dict[str, Callable[[str], str]] = {"options": options, "command": command}
