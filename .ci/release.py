"""`make release`: build sdist and wheel, check them, install each in an empty environment, and run the tutorial there.

Nothing is uploaded. Needs a network, for what the package depends on.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
FENCE = re.compile(r'^```(\w*)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CONSTRAINTS = ROOT / "constraints.txt"


def versions() -> dict[str, str | None]:
    """The version wherever it stands; pyproject.toml is the source."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changed = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "pyproject.toml": read,
        "CITATION.cff": cited and cited[1],
        "CHANGELOG.md, the newest section": changed and changed[1].rstrip(","),
    }


def run(*words: str | Path, cwd: Path = ROOT, path: Path | None = None, ok: tuple[int, ...] = (0,)) -> str:
    """What a command printed; the script ends where it ends otherwise than it should."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        sys.exit(f"{shlex.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def build() -> list[Path]:
    """Both files, made from what git knows and checked as the index checks them."""
    for old in DIST.glob("pytest_induction-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
    built = sorted(DIST.glob("pytest_induction-*"))
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    return built


def steps(page: str) -> Iterator[tuple[str, str]]:
    """What a reader of the tutorial does after the installation: (file name, its text), or ("", command).

    A command that is shown to fail begins with "fails ".
    """
    blocks = list(FENCE.finditer(page))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        language, title, text = block.groups("")
        if title:
            yield title, text
        elif not language:
            shown = after[3] if after else ""
            for line in text.splitlines():
                if re.match(r"(pytest|python)( |$)", line) and "venv" not in line:
                    yield "", f"fails {line}" if re.search("^E ", shown, re.MULTILINE) else line


def try_out(built: Path, page: str) -> None:
    """Install it where nothing is, and follow the tutorial."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        environment = place / "environment"
        venv.create(environment, with_pip=True)
        binaries = environment / ("Scripts" if os.name == "nt" else "bin")
        began = time.perf_counter()
        install = (binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
        run(*install, "--constraint", CONSTRAINTS, "torch", cwd=place)
        run(*install, "--constraint", CONSTRAINTS, f"pytest-induction[report] @ {built.as_uri()}", cwd=place)
        installed = time.perf_counter()
        work = place / "heads"
        work.mkdir()
        for title, text in steps(page):
            if title:
                (work / title).write_text(text, encoding="utf-8")
                continue
            fails, command = text.startswith("fails "), text.removeprefix("fails ")
            program, *arguments = shlex.split(command)
            run(binaries / program, *arguments, cwd=work, path=binaries, ok=(1,) if fails else (0,))
            print(f"  {command}{' (fails, as it should)' if fails else ''}", flush=True)
        print(
            f"{built.name}: installed in {installed - began:.0f} s, tutorial in {time.perf_counter() - installed:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-only", action="store_true", help="build and check the files, install nothing")
    given = parser.parse_args()
    found = versions()
    if len(set(found.values())) > 1:
        sys.exit("the version is not everywhere the same: " + ", ".join(f"{place} {version}" for place, version in found.items()))
    built = build()
    for each in built:
        print(f"{each.relative_to(ROOT)}: {each.stat().st_size / 1e3:.0f} kB", flush=True)
    if not given.build_only:
        page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
        for each in built:
            try_out(each, page)
    print("ready: `twine upload dist/pytest_induction-*`")


if __name__ == "__main__":
    main()
