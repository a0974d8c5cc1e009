"""Every Python block of the README and of the pages for users runs."""

import re
from pathlib import Path

import pytest

from tests.conftest import SHIPPED

ROOT = Path(__file__).parents[2]
BLOCKS = [
    pytest.param(block, id=f"{page}-{index}")
    for page in (
        "README.md",
        "docs/quickstart.md",
        "docs/properties.md",
        "docs/planted.md",
        "docs/runs.md",
        "docs/interventions.md",
        "docs/causes.md",
    )
    for index, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_documentation_runs(block, pytester):
    """As a test file of a user's, on the shipped Llama."""
    pytester.makepyfile(test_block=block)
    (pytester.path / "fixtures").symlink_to(ROOT / "fixtures")
    named = f"induction_model = {SHIPPED['llama']}\ninduction_run = fixtures/runs/two-layers"
    pytester.makeini(f"[pytest]\n{named}\nfilterwarnings = error\naddopts = --strict-markers\n")
    outcomes = pytester.runpytest_inprocess("-p", "no:cacheprovider").parseoutcomes()
    assert outcomes.keys() <= {"passed"}
    assert outcomes["passed"] == block.count("\ndef test_") + block.startswith("def test_")


def test_pages_name_only_pages_that_exist():
    """No dead links between pages."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_options_and_ini_keys_are_documented():
    """What the plugin knows, the quickstart lists."""
    from pytest_induction.options import BASELINE_SETTINGS, REPORT_SETTINGS, RUN_SETTINGS, SETTINGS
    from pytest_induction.plugin import MARKER_KEYS

    page = (ROOT / "docs" / "quickstart.md").read_text()
    for name in (*SETTINGS, *RUN_SETTINGS, *REPORT_SETTINGS, *BASELINE_SETTINGS):
        assert f"`--induction-{name.replace('_', '-')}`" in page
        assert f"`induction_{name}`" in page
    assert "`--induction-benchmark`" in page
    assert MARKER_KEYS
