"""Every code block of the README and of the pages in docs/ runs, or is checked as far as it can be."""

import configparser
import contextlib
import io
import json
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_induction import __main__ as command_line
from tests.conftest import SHIPPED

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^(?:<!-- not run: (.+?) -->\n\n?)?```(\w*)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHELL = ("", "sh", "bash", "shell", "console", "text", "yaml")
VERDICT = re.compile(r"\b(REFUTED|SHOWN|UNDETERMINED)(?:, \w+)?\s+([a-z]\w+)")
OURS = ("fixtures/", "examples/", "benchmarks/", "docs/", "src/")
TUTORIAL = "docs/tutorial.md"

# Why a command on what we ship is parsed and not run.
NOT_RUN = {
    "--induction-benchmark": "takes as long as a benchmark must; tests/plugin/test_benchmark.py runs it",
    "hf:": "needs a network",
    "-m pytest_induction sweep": "tests/runs runs it, on fewer checkpoints",
    "-n ": "starts processes",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `shown` is what stands in the block right after it, what a command prints."""

    page: str
    index: int
    shown: str
    reason: str
    language: str
    title: str
    text: str

    @property
    def id(self):
        return f"{self.page}-{self.index}"

    @property
    def lines(self):
        """Its lines without comments and prompts, each with those that continue it."""
        joined = self.text.replace("\\\n", " ")
        stripped = (re.sub(r"^(- )?(run: )?(\$ )?", "", line.strip()) for line in joined.splitlines())
        return [line for line in stripped if line and not line.startswith("#")]

    @property
    def commands(self):
        """The command lines of ours in it, as lists of words."""
        if self.language not in SHELL or self.reason:
            return []
        ours = [line for line in self.lines if re.match(r"(python -m )?pytest( |$)|python -m pytest_induction ", line)]
        return [shlex.split(line, comments=True) for line in ours]


def blocks_of(page):
    name, text = page.relative_to(ROOT).as_posix(), page.read_text()
    found = list(FENCE.finditer(text))
    for index, (fence, after) in enumerate(zip(found, [*found[1:], None], strict=False)):
        is_shown = after and after[2] in ("", "text") and not text[fence.end() : after.start()].strip()
        yield Block(name, index, after[4] if is_shown else "", *fence.groups(""))


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and not block.reason and not block.title]
TITLES = {block.title for block in BLOCKS}
COMMANDS = sorted({shlex.join(words) for block in BLOCKS for words in block.commands})


def is_run(words):
    """Whether a command is about what we ship, and nothing speaks against running it."""
    line = shlex.join(words)
    return "fixtures/" in line and not re.search(r" tests\b", line) and not any(sign in line for sign in NOT_RUN)


SCRIPTS = list({str(block.commands): block for block in BLOCKS if any(map(is_run, block.commands))}.values())


@pytest.fixture
def beside_fixtures(pytester):
    (pytester.path / "fixtures").symlink_to(ROOT / "fixtures")
    return pytester


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_every_block_of_a_page_runs(page, beside_fixtures):
    """As a test file of a user's each, on the shipped Llama."""
    blocks = [block for block in PYTHON if block.page == page]
    beside_fixtures.makepyfile(**{f"test_block_{block.index}": block.text for block in blocks})
    named = f"induction_model = {SHIPPED['llama']}\ninduction_run = fixtures/runs/two-layers"
    beside_fixtures.makeini(f"[pytest]\n{named}\nfilterwarnings = error\naddopts = --strict-markers\nnorecursedirs = fixtures\n")
    outcomes = beside_fixtures.runpytest_inprocess("-p", "no:cacheprovider").parseoutcomes()
    n_tests = [len(re.findall(r"^def test_", block.text, re.MULTILINE)) for block in blocks]
    assert all(n_tests) or page == "docs/models.md", "a block without a test shows nothing"
    assert outcomes == {"passed": sum(n_tests)}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_documentation_is_one(line, pytester, monkeypatch):
    """The parsers know its options, and what it names of ours is there."""
    words = shlex.split(line)
    if "pytest_induction" in words:
        for name in ("_doctor", "_compare", "_sweep", "_draw", "_watch", "_report"):
            monkeypatch.setattr(command_line, name, lambda given: 0)
        assert command_line.main(words[3:]) == 0
    else:
        pytester.parseconfig(*words[words.index("pytest") + 1 :])
    for word in words:
        for name in re.split(r"[=,]", word):
            if name.startswith(OURS):
                assert_is_there(name)


def assert_is_there(name):
    path, _, factory = name.partition(":")
    assert (ROOT / path).exists(), f"there is no {path}"
    assert not factory or f"def {factory}(" in (ROOT / path).read_text(), f"{path} has no {factory}"


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: block.id)
def test_commands_on_what_is_shipped_run(block, beside_fixtures, capfd):
    """In their order, and print what the pages say that they print, if with other numbers."""
    said = ""
    for words in filter(is_run, block.commands):
        if "pytest_induction" in words:
            assert command_line.main(words[3:]) == 0, words
            said += capfd.readouterr().out
        else:
            result = beside_fixtures.runpytest_inprocess("-p", "no:cacheprovider", *words[words.index("pytest") + 1 :])
            assert result.ret == 0, words
            said += result.stdout.str()
    shown = [line for each in BLOCKS if each.commands == block.commands for line in each.shown.splitlines()]
    printed = {begins(line) for line in said.splitlines()}
    assert {begins(line) for line in shown if line.strip() not in ("", "...")} <= printed


def begins(line):
    """The first two words of a line, or of a verdict what was asked."""
    return VERDICT.search(line).groups() if VERDICT.search(line) else tuple(line.split()[:2])


def test_every_block_is_of_a_kind_that_is_checked():
    """Code runs, settings and data are parsed and their keys known, commands are ours or marked; the rest is what was printed."""
    assert not [page for page in PAGES if re.search("^ +```", page.read_text(), re.MULTILINE)], "no test sees a block in a list"
    for block in BLOCKS:
        if block.reason or block.title or block.language in ("python", "text", "html", "xml"):
            continue
        if block.language in CHECKS:
            CHECKS[block.language](block.text)
        else:
            assert block.language in SHELL, f"{block.id}: no test knows {block.language!r}"
            if block.lines and re.match(STARTS, block.lines[0]):
                assert not [line for line in block.lines if not is_known(line)], block.id


STARTS = r"(pytest|python|pip|make|mkdir|cd|git|export|source|\.|docker|sbatch|srun|uv|tox) "


def is_known(line):
    """Whether a line of a shell block is one that is checked: ours here, those of make and pip by what they name."""
    line = line.partition("  #")[0].strip()
    if line.startswith("make "):
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return line.split()[1] in targets
    if found := re.fullmatch(r"pip install '?pytest-induction(?:\[([\w,-]+)\])?'?", line):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return set((found[1] or "all").split(",")) <= extras.keys()
    if line.startswith("python ") and ((ROOT / line.split()[1]).is_file() or line.split()[1] in TITLES):
        return True
    return bool(re.match(r"(python -m )?pytest( |$)|python -m pytest_induction ", line))


def check_toml(text):
    read = tomllib.loads(text)
    settings = read.get("tool", {}).get("pytest", {})
    check_keys(settings.get("ini_options", settings))


def check_ini(text):
    parser = configparser.ConfigParser()
    parser.read_string(text)
    check_keys(dict(parser["pytest"]))


def check_keys(settings):
    from pytest_induction.plugin.options import BASELINE_SETTINGS, MODULE_SETTINGS, REPORT_SETTINGS, RUN_SETTINGS, SETTINGS

    known = {f"induction_{name}" for name in (*SETTINGS, *MODULE_SETTINGS, *RUN_SETTINGS, *REPORT_SETTINGS, *BASELINE_SETTINGS)}
    assert {key for key in settings if key.startswith("induction_")} <= known


def check_yaml(text):
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(text)


CHECKS = {"toml": check_toml, "ini": check_ini, "yaml": check_yaml, "json": json.loads}


def test_what_is_not_run_is_listed_here():
    """Each with its reason; a new one wants a second look."""
    assert {(block.page, block.reason) for block in BLOCKS if block.reason} == {
        ("docs/baselines.md", "the file must be written first; tests/plugin/test_baselines.py writes it, and runs this again"),
        ("docs/how-to/notebooks.md", "cells; tests/display/test_notebook.py runs a notebook of them"),
        ("docs/how-to/quantised-model.md", "the models are yours"),
        ("docs/properties.md", "needs --induction-run=CHECKPOINTS"),
        ("docs/runs.md", "needs an account or a server"),
        ("docs/runs.md", "they stand in somebody else's file"),
        ("docs/tutorial.md", "it goes on until it is closed"),
        ("docs/tutorial.md", "it needs a network"),
        ("docs/why.md", "`make compare-libraries` runs it"),
    }


def test_unknown_options_keys_and_files_are_noticed(pytester):
    """The checks above can fail."""
    with pytest.raises(pytest.UsageError, match="--induction-modell"):
        pytester.parseconfig("--induction-modell=fixtures/models/llama-2l")
    with pytest.raises(AssertionError, match="no fixtures/models/llama-3l"):
        assert_is_there("fixtures/models/llama-3l")
    with pytest.raises(AssertionError, match="has no four_layers"):
        assert_is_there("fixtures/attention_only.py:four_layers")
    with pytest.raises(AssertionError):
        check_ini("[pytest]\ninduction_modell = here\n")
    assert not is_known("make nothing")
    assert not is_known("pip install 'pytest-induction[none]'")
    assert not is_known("mkdir heads")


def test_the_tutorial_goes_as_it_says(pytester, monkeypatch):
    """Its files are written and its commands run in their order, with fewer steps of training; verdicts are those that it shows."""
    pytest.importorskip("jinja2")
    blocks = [block for block in BLOCKS if block.page == TUTORIAL and not block.reason]
    steps = {"python train.py 2": 180, "python train.py 1": 60}
    for block in blocks:
        if block.title:
            (pytester.path / block.title).write_text(block.text)
        for line in block.lines if not block.language else ():
            if line.startswith("python -m pytest_induction "):
                with contextlib.redirect_stdout(io.StringIO()) as said:
                    assert command_line.main(shlex.split(line)[3:]) == 0, line
                assert set(VERDICT.findall(block.shown)) <= set(VERDICT.findall(said.getvalue())), line
            elif line.startswith("python "):
                text = (pytester.path / "train.py").read_text()
                (pytester.path / "train.py").write_text(re.sub("(STEPS, ROWS = )[0-9]+", rf"\g<1>{steps.pop(line)}", text))
                run_as_script(shlex.split(line)[1:], monkeypatch)
            elif re.match(r"pytest( |$)", line):
                result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-Werror", *shlex.split(line)[1:])
                assert int(result.ret) == bool(re.search("^E ", block.shown, re.MULTILINE)), line
                assert set(VERDICT.findall(block.shown)) <= set(VERDICT.findall(result.stdout.str())), line
    for page in ("report.html", "compare.html"):
        assert (pytester.path / page).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert not steps


def run_as_script(words, monkeypatch):
    """`python FILE ARGUMENTS`, here."""
    before = set(sys.modules)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        patch.syspath_prepend(str(Path.cwd()))
        runpy.run_path(words[0], run_name="__main__")
    for name in set(sys.modules) - before:
        with contextlib.suppress(AttributeError, TypeError):
            if Path(sys.modules[name].__file__).parent == Path.cwd():
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_only_pages_and_headings_that_exist(page):
    """No dead links between pages, nor into one."""
    assert not dead_links(page)


def test_dead_links_are_noticed(tmp_path):
    """To a page, to a heading of another, to one of its own; not those in code."""
    (tmp_path / "a.md").write_text(
        "# One `a_b` two\n\n[x](b.md) [x](#one-a_b-two) [x](#one) [x](a.md#three)\n```\n[x](c.md)\n```\n"
    )
    assert dead_links(tmp_path / "a.md") == ["b.md", "#one", "a.md#three"]


def dead_links(page):
    links = re.findall(r"\]\((?!http)([^)#]*)(#[^)]+)?\)", FENCE.sub("", page.read_text()))
    places = [((page.parent / target if target else page), target, heading) for target, heading in links]
    return [
        f"{target}{heading}"
        for place, target, heading in places
        if not place.exists() or (heading and place.suffix == ".md" and heading[1:] not in headings_of(place))
    ]


def headings_of(page):
    """What its headings are called in links, on a code host and on the site."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_options_and_ini_keys_are_documented():
    """What the plugin knows, the quickstart lists."""
    from pytest_induction.plugin.hooks import MARKER_KEYS
    from pytest_induction.plugin.options import BASELINE_SETTINGS, MODULE_SETTINGS, REPORT_SETTINGS, RUN_SETTINGS, SETTINGS

    page = (ROOT / "docs" / "quickstart.md").read_text()
    for name in (*SETTINGS, *MODULE_SETTINGS, *RUN_SETTINGS, *REPORT_SETTINGS, *BASELINE_SETTINGS):
        assert f"`--induction-{name.replace('_', '-')}`" in page
        assert f"`induction_{name}`" in page
    assert "`--induction-benchmark`" in page
    assert MARKER_KEYS
