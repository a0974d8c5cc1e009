"""Draw docs/gallery/: what each section of a report looks like, from records that are shipped.

    make gallery

Needs a Chromium (`chromium`, `chromium-browser` or `google-chrome` on the path). Users make the pages with the same commands.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "gallery"
PRETRAINED = ROOT / "fixtures" / "pretrained"
RUNS = ROOT / "fixtures" / "runs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1120

# Picture: the page it is of, and the section of it. "" is the top of the page, without the list of contents.
PICTURES = {
    "report": ("model", ""),
    "verdicts": ("model", "#verdicts"),
    "heads": ("model", "#model-1-heads"),
    "attention": ("model", "#model-1-attention"),
    "repeats": ("model", "#model-1-repeats"),
    "text": ("model", "#model-1-text"),
    "ablations": ("model", "#model-1-ablations"),
    "composition": ("model", "#model-1-composition"),
    "run": ("run", "section.model"),
    "compare-models": ("models", ""),
    "compare-runs": ("runs", ""),
}


def pages(place: Path) -> dict[str, Path]:
    """The pages, by the name that `PICTURES` has for each."""
    ours = [sys.executable, "-m", "pytest_induction"]
    written = {name: place / f"{name}.html" for name in ("model", "run", "models", "runs")}
    kept = [PRETRAINED / "smollm2.session.json", PRETRAINED / "gemma3.session.json"]
    commands = {
        "model": [*ours, "report", str(kept[0]), "-o", str(written["model"])],
        "run": [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--induction-run={RUNS / 'two-layers'}",
            f"--induction-report={written['run']}",
        ],
        "models": [*ours, "compare", *map(str, kept), "-o", str(written["models"])],
        "runs": [*ours, "compare", str(RUNS / "two-layers"), str(RUNS / "one-layer"), "-o", str(written["runs"])],
    }
    for name, command in commands.items():
        if name == "models" and not kept[1].is_file():
            del written[name]
            continue
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return written


def draw(written: dict[str, Path], browser: str) -> None:
    from playwright.sync_api import sync_playwright

    TARGET.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for name, (page, section) in PICTURES.items():
            if page not in written:
                print(f"left as it was: {name}.png, there are no records for it")
                continue
            shown = started.new_page(viewport={"width": WIDTH, "height": 1400}, color_scheme="light", reduced_motion="reduce")
            shown.goto(written[page].as_uri())
            path = TARGET / f"{name}.png"
            if section:
                shown.locator(section).screenshot(path=path)
            else:
                shown.screenshot(path=path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
            shown.close()
        started.close()


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"there is no Chromium on the path: one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as name:
        draw(pages(Path(name)), browser)


if __name__ == "__main__":
    main()
