"""`make docs-version`: build the site of this version into a local branch, beside those of other versions. Nothing is pushed."""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

BRANCH = "docs-versions"


def version(root: Path) -> str:
    """The version of the package, from pyproject.toml."""
    found: str = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return found


def mike(*words: str, root: Path) -> None:
    """Run mike, which runs `mkdocs`: both of this environment. Where it fails, this ends as well."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path, "NO_MKDOCS_2_WARNING": "1"}
    command = shutil.which("mike", path=path)
    if command is None:
        sys.exit("mike is not installed: `pip install mike`, or run `make docs-version`")
    code = subprocess.run([command, *words], cwd=root, env=environment, check=False).returncode
    if code:
        sys.exit(code)  # mike has said why


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branch", default=BRANCH, help=f"the branch that all versions are in (default: {BRANCH})")
    parser.add_argument("--alias", default="latest", help="another name of this version (default: latest, which opens first)")
    given = parser.parse_args(arguments)
    root = Path.cwd()
    mike(
        *("deploy", "--branch", given.branch, "--update-aliases", "--alias-type", "redirect", version(root), given.alias),
        root=root,
    )
    if given.alias == "latest":
        mike("set-default", "--branch", given.branch, "latest", root=root)
    print(f"Version {version(root)} is in the branch {given.branch}. To look at it: mike serve --branch {given.branch}")


if __name__ == "__main__":
    main()
