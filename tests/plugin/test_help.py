"""What `pytest --fixtures` and `pytest --markers` teach: each fixture's example is shown, and passes as it is pasted."""

import re
import textwrap

from pytest_induction.plugin import hooks
from tests.conftest import FIXTURES, SHIPPED

NAMES = ("induction_model", "induction", "induction_run", "induction_probe", "induction_baseline")


def example(fixture):
    """The lines between the fences of a fixture's docstring."""
    text = textwrap.dedent(getattr(hooks, fixture).__doc__.split("\n", 1)[1])
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_each_example_is_shown_and_is_short(pytester):
    """Also without `-v`, which shows the first paragraph of a docstring only."""
    shown = textwrap.dedent("\n".join(pytester.runpytest_inprocess("--fixtures", "-p", "no:cacheprovider").outlines))
    for name in NAMES:
        assert textwrap.indent(example(name).rstrip(), "    ") in shown, name
        assert 2 <= len(example(name).splitlines()) <= 6, name


def test_each_example_passes_as_it_is_pasted(pytester):
    """The first replaces the fixture; the others use it, and a baseline fails until it has been written."""
    own = example("induction_model").replace("path/to/model", SHIPPED["llama"])
    pytester.makeconftest(f"import pytest\nfrom transformers import AutoModelForCausalLM\n\n{own}")
    pytester.makepyfile("import pytest\n\n" + "\n".join(map(example, NAMES[1:])))
    options = (
        "-p",
        "no:cacheprovider",
        "--induction-run",
        str(FIXTURES / "runs" / "two-layers"),
        "--induction-baseline=kept.json",
    )
    tests = ("test_each_example_passes_as_it_is_pasted.py", "-k", "test_heads or test_own or test_forms", "--tb=short")
    assert not pytester.path.joinpath("kept.json").exists()
    pytester.runpytest_inprocess(*options, "--induction-accept-baseline", *tests).assert_outcomes(passed=4, deselected=5)
    assert pytester.path.joinpath("kept.json").is_file()
    pytester.runpytest_inprocess(*options, *tests).assert_outcomes(passed=4, deselected=5)


def test_each_key_of_the_marker_is_explained(pytestconfig):
    """A line each, beneath the marker."""
    (shown,) = (each for each in pytestconfig.getini("markers") if each.startswith("induction("))
    for key in hooks.MARKER_KEYS:
        assert re.search(rf"^    {key}: \w.+", shown, re.MULTILINE), key
