"""`make check-gpu`: what it says where there is no GPU, and that a line can miss."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def check(monkeypatch):
    """benchmarks/check_gpu.py, which is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("check_gpu")
    for name in ("check_gpu", "gpu_models"):
        sys.modules.pop(name, None)


def test_without_a_gpu_one_line_says_that_nothing_was_checked(check, monkeypatch, capsys, tmp_path):
    """And that is no failure."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--out", str(tmp_path / "page.md")]) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing was checked\n"
    assert not (tmp_path / "page.md").exists()


def test_lines_are_measured_and_written(check, capsys, tmp_path):
    """On a CPU, of a kernel that tells its log-sum-exp, and of what a CPU lacks."""
    wanted = ("as torch chooses, bfloat16", "FLASH_ATTENTION, causal, float32", "CUDNN_ATTENTION, causal, float32", "TF32")
    only = [part for name in wanted for part in ("--only", name)]
    assert check.main(["--device", "cpu", "--out", str(tmp_path / "page.md"), *only]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| scores, sdpa, as torch chooses, bfloat16 |" in page
    assert "log-sum-exp told | 0.0001 | ok |" in page
    assert "| kernel CUDNN_ATTENTION, causal, float32 |  |  | left out: " in page
    assert "| TF32 in matrix products |  |  | left out: a CPU has no TF32 |" in page


@pytest.mark.parametrize("broken", ["score", "error", "time"])
def test_a_line_that_misses_is_named(check, broken, monkeypatch, capsys, tmp_path):
    """Scores that are off by more than the tolerance, anything that is raised, and a check that there was no time for."""
    if broken == "score":
        monkeypatch.setitem(check.DTYPES, "float32", 1e-12)
    elif broken == "error":
        monkeypatch.setattr(check, "measure_heads", lambda *given, **options: 1 / 0)
    else:
        monkeypatch.setattr(check, "SECONDS", -1.0)
    assert check.main(["--device", "cpu", "--out", str(tmp_path / "page.md"), "--only", "as torch chooses, float32"]) == 1
    assert "missed: scores, sdpa, as torch chooses, float32" in capsys.readouterr().out
    assert "| MISSED |" in (tmp_path / "page.md").read_text()
