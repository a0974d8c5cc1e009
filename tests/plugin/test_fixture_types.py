"""What a type checker knows of the fixture `induction`: each method takes what its assertion takes, and nothing else."""

import re
from pathlib import Path

import pytest

mypy = pytest.importorskip("mypy.api")

ROOT = Path(__file__).parents[2]
RIGHT = """
from pytest_induction import Evidence, Induction
from pytest_induction.heads import CopyingScores
from pytest_induction.heads import HeadScores


def test_it(induction: Induction) -> None:
    found: Evidence = induction.assert_copies_repeats(min_accuracy=0.9)
    found = induction.assert_has_induction_head(match_length=1, allow_virtual=True)
    found = induction.assert_learns_in_context(max_score=-0.2)
    found = induction.assert_learns_in_context("text.txt", max_score=-0.2)
    found = induction.assert_ablation_removes_icl(heads="L1H0")
    found = induction.assert_heads_preserved("before", max_lost=1)
    found = induction.assert_heads_generalize("L1H0", min_excess=0.1)
    scores: HeadScores = induction.measure_heads(n_sequences=4)
    copying: CopyingScores = induction.measure_copying()
"""
WRONG = {
    "induction.assert_copies_repeats(min_acuracy=0.9)": 'Unexpected keyword argument "min_acuracy"',
    'induction.assert_copies_repeats(min_accuracy="high")': 'has incompatible type "str"; expected "float"',
    "induction.assert_learns_in_context(max_scores=1)": 'Unexpected keyword argument "max_scores"',
    "induction.assert_heads_preserved(max_lost=1)": "Too few arguments|Missing positional argument",
    "induction.measure_heads(24)": "Too many (positional )?arguments",
    "induction.assert_copies_repeat()": 'has no attribute "assert_copies_repeat"',
    "x: int = induction.measure_heads()": 'has type "HeadScores", variable has type "int"',
}


def checked(tmp_path, text):
    """What mypy says of a file, line by line."""
    (tmp_path / "test_it.py").write_text(text)
    configured = tmp_path / "mypy.ini"
    foreign = "[mypy-torch.*,transformers.*,numpy.*,hypothesis.*,safetensors.*]\nfollow_imports = skip\n"  # a minute of mypy's
    configured.write_text(f"[mypy]\nstrict = True\nfollow_imports = silent\nignore_missing_imports = True\n{foreign}")
    cache = ROOT / ".mypy_cache" / "fixture"
    said, errors, _ = mypy.run([f"--config-file={configured}", f"--cache-dir={cache}", str(tmp_path / "test_it.py")])
    assert not errors
    return said.splitlines()


def test_right_calls_pass_and_wrong_ones_do_not(tmp_path, monkeypatch):
    """Each for its own reason, in its line."""
    monkeypatch.setenv("MYPYPATH", str(ROOT / "src"))
    first = len(RIGHT.splitlines())
    said = checked(tmp_path, RIGHT + "".join(f"    {line}\n" for line in WRONG))
    found = {
        int(number): text
        for number, text in (re.match(r".*?:(\d+): error: (.*)", line).groups() for line in said if "error:" in line)
    }
    assert sorted(found) == list(range(first + 1, first + 1 + len(WRONG)))
    for line, wanted in zip(sorted(found), WRONG.values(), strict=True):
        assert re.search(wanted, found[line]), found[line]
