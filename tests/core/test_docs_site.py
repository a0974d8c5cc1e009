"""The documentation site: every page has its place, every public name its entry, and nothing on it comes from elsewhere."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pytest_induction

ROOT = Path(__file__).parents[2]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
GENERATED = {"changelog.md"}
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
EXTERNAL = re.compile(
    r"""<(?:script|img|link|iframe|source|video)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>|@import|url\(["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def settings():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it: a broken link or a reference to nothing fails."""
    for needed in ("material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "Documentation built" in built.stderr  # quieter, and strictness would not hear the warnings
    return out


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
@pytest.mark.parametrize("page", ["index.html", "how-to/index.html"])
def test_search_works_where_the_site_is_read_from_disk(page, site):
    """Nothing serves it, and no request leaves the machine."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        shown, faults = browser.new_page(), []
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
        shown.goto((site / page).as_uri())
        shown.locator(".md-search__input").first.click()
        shown.keyboard.type("previous-token")
        playwright.expect(shown.locator(".md-search-result__meta")).to_contain_text("matching document", timeout=20_000)
        assert shown.locator(".md-search-result__item").count() > 3
        assert not faults
        browser.close()


def pages_of(nav):
    """The pages that the navigation names, however deep."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def out_of_step(nav, there):
    """Pages that are in one of the two only, or twice in the navigation."""
    named = pages_of(nav)
    return {page for page in {*named, *there} if named.count(page) != 1 or page not in there}


def test_navigation_names_every_page_once(settings):
    """And none that is not there."""
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} | GENERATED
    assert not out_of_step(settings["nav"], there)


def test_a_page_out_of_the_navigation_is_noticed():
    """Missing here, missing there, twice."""
    nav = ["a.md", {"More": ["b.md", {"B again": "b.md"}, "c.md"]}]
    assert out_of_step(nav, {"a.md", "b.md", "d.md"}) == {"b.md", "c.md", "d.md"}


def test_every_public_name_has_one_entry_in_the_generated_reference():
    """Names of the package, of its strategies and of its planted models, and the fixtures."""
    from pytest_induction import planted
    from pytest_induction.probes import strategies

    entries = [
        entry for page in (ROOT / "docs" / "api").glob("*.md") for entry in ENTRY.findall(page.read_text(encoding="utf-8"))
    ]
    heads = [name for name in dir(planted) if name.endswith(("_head", "_heads")) and not name.startswith("_")]
    wanted = {f"pytest_induction.{name}" for name in pytest_induction.__all__}
    wanted |= {f"pytest_induction.probes.strategies.{name}" for name in strategies.__all__}
    wanted |= {f"pytest_induction.planted.{name}" for name in heads}
    plugin = (ROOT / "src" / "pytest_induction" / "plugin" / "hooks.py").read_text(encoding="utf-8")
    wanted |= {
        f"pytest_induction.plugin.hooks.{name}" for name in re.findall(r"^@pytest\.fixture.*\ndef (\w+)", plugin, re.MULTILINE)
    }
    assert "pytest_induction.plugin.hooks.induction_run" in wanted
    assert not wanted - set(entries)
    assert len(entries) == len(set(entries))


def test_nothing_on_the_site_comes_from_elsewhere(settings, site):
    """No font, script, picture or style sheet from a network, on any page."""
    assert settings["theme"]["font"] is False
    assert settings["strict"] is True
    assert "analytics" not in settings["extra"]
    built = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(built) > 40
    found = [(path.name, hit) for path in built for hit in EXTERNAL.findall(path.read_text(encoding="utf-8"))]
    assert not found


def test_something_from_elsewhere_would_be_noticed():
    """A script, a style sheet, a picture, a font; but no link that a reader may follow."""
    elsewhere = (
        '<script async src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "<img alt='' src='http://example.org/a.png'>",
        "@font-face { src: url(https://example.org/a.woff2) }",
    )
    assert all(EXTERNAL.search(text) for text in elsewhere)
    assert not EXTERNAL.search('<a href="https://example.org">there</a><img src="paper-table.svg">')


def test_docstrings_are_readable_in_the_reference(site):
    """Defaults are numbers, examples are code, names are links, and so are names in the list of all."""
    page = (site / "api" / "assertions.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]+>", "", page)
    assert re.search(r"min_prefix_matching: float = 0\.3,", plain)
    assert "MIN_PREFIX_MATCHING" not in plain
    assert "blockquote" not in page
    assert "doctest: +SKIP" not in plain
    assert 'href="errors.html#pytest_induction.ExpectationFailed"' in page
    listed = (site / "reference.html").read_text(encoding="utf-8")
    assert 'href="api/assertions.html#pytest_induction.assert_has_induction_head"' in listed


def test_what_is_generated_is_there(site):
    """Options and commands as they are, the changelog, and formulas with their indices."""
    page = (site / "api" / "plugin.html").read_text(encoding="utf-8")
    assert "--induction-model MODEL" in page
    assert "python -m pytest_induction sweep" in re.sub(r"<[^>]+>", "", page)
    assert "<h1" in (site / "changelog.html").read_text(encoding="utf-8")
    assert (site / "files" / "docs" / "notebooks" / "tutorial.py.txt").is_file()
    assert "W<sub>V</sub>" in (site / "metrics.html").read_text(encoding="utf-8")
    assert not list(site.rglob("*.py"))


def test_links_out_of_docs_lead_to_the_site():
    """To the pages that it makes of them, or to the file itself; links between pages stay."""
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs" / "theme" / "hooks.py"))
    assert hooks["moved"]("../CHANGELOG.md", "runs.md") == "changelog.md"
    assert hooks["moved"]("../../README.md", "how-to/gate-in-ci.md") == "../index.md"
    assert hooks["moved"]("../examples/gates.toml", "gates.md") == "files/examples/gates.toml.txt"
    assert hooks["moved"]("../runs.md", "how-to/gate-in-ci.md") == "../runs.md"
    assert hooks["moved"]("../notebooks/tutorial.py", "how-to/notebooks.md") == "../files/docs/notebooks/tutorial.py.txt"
    assert hooks["typeset"]("W_V of `W_V` and Σ_{k in S} x") == "W<sub>V</sub> of `W_V` and Σ<sub>k in S</sub> x"


def test_the_header_says_which_version_it_is(site):
    """And asks for no list of others, which is not there where the site is read from disk."""
    page = (site / "index.html").read_text(encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    header = page[page.index("<header") : page.index("</header>")]
    assert f"pytest-induction {version}" in header
    assert '"provider"' not in page


@pytest.mark.exhaustive  # it builds two versions in a repository of its own
def test_versions_stand_side_by_side_with_a_selector(tmp_path):
    """Each in its folder, as it was; the last one is the one that opens, and there is nowhere to push to."""
    for needed in ("material", "mike"):
        pytest.importorskip(needed)

    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    def deploy(version, *more):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        (tmp_path / "docs" / "index.md").write_text(f"# This is {version}\n")
        script = [sys.executable, str(ROOT / "docs" / "theme" / "versions.py"), *more]
        built = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr

    (tmp_path / "docs").mkdir()
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n")
    hooks = (ROOT / "docs" / "theme" / "hooks.py").as_posix()
    (tmp_path / "mkdocs.yml").write_text(f"site_name: name\nuse_directory_urls: false\ntheme: material\nhooks: [{hooks}]\n")
    git("init", "--quiet")
    git("config", "user.name", "A")
    git("config", "user.email", "a@example.org")
    git("commit", "--quiet", "--allow-empty", "--message", "Begin")
    deploy("0.1.0")
    deploy("0.2.0")
    deploy("0.3.0", "--alias", "dev")
    there = json.loads(git("show", "docs-versions:versions.json"))
    assert {each["version"]: each["aliases"] for each in there} == {"0.3.0": ["dev"], "0.2.0": ["latest"], "0.1.0": []}
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        page = git("show", f"docs-versions:{version}/index.html")
        assert f"This is {version}" in page and '"provider": "mike"' in page.replace('":"', '": "')
    assert "../0.2.0/" in git("show", "docs-versions:latest/index.html")
    assert "latest" in git("show", "docs-versions:index.html")
    assert git("remote") == "" and git("status", "--porcelain", "--untracked-files=no") == ""
