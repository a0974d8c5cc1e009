"""The map of the package in docs/internals.md, from its own docstrings: `python docs/theme/map.py` writes it anew."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pytest_induction"
PAGE = ROOT / "docs" / "internals.md"
BEGIN, END = "<!-- the map: written by docs/theme/map.py -->\n", "<!-- end of the map -->\n"


def purpose(path: Path) -> str:
    """The first line of what a module says of itself."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return said.partition("\n")[0].replace("|", "\\|")


def rooms(package: Path = PACKAGE) -> dict[str, list[Path]]:
    """Every folder of the package with its modules, from the top; one without modules of its own is left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.parent.relative_to(package).as_posix()
        found.setdefault("" if room == "." else room, []).append(path)
    return dict(sorted(found.items()))


def map_of(package: Path = PACKAGE) -> str:
    """One table for each room: its modules and what each is for."""
    lines: list[str] = []
    for room, paths in rooms(package).items():
        heading = "At the top" if not room else f"`{room}/`"
        home = next((path for path in paths if path.name == "__init__.py"), None)
        lines += [
            f"### {heading}",
            "",
            *([purpose(home), ""] if home and room else []),
            "| module | what it is for |",
            "|---|---|",
        ]
        lines += [f"| `{path.name}` | {purpose(path)} |" for path in paths if path != home or not room]
        lines.append("")
    return "\n".join(lines)


def page_with(drawn: str, page: str) -> str:
    """The page with this map in the place of the one that it has."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{drawn}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write the page; with `--check` say instead whether it is as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = page_with(map_of(), page)
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if page == wanted:
        return 0
    sys.stderr.write("docs/internals.md does not show the package as it is: run `python docs/theme/map.py`\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
