"""What a session is given in place of a file: one line in seconds, wherever it was named."""

import os

import pytest

from pytest_induction.plugin.ci import overlooked
from pytest_induction.plugin.gates.sweeping import kept_at
from tests.conftest import SHIPPED
from tests.unfit import in_time, put

KINDS = ("FIFO", "socket", "character device")


def said(result):
    return "\n".join([*result.outlines, *result.errlines])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["text", "baseline", "run", "report"])
def test_an_option_that_names_no_file_is_one_line(pytester, option, kind):
    name = {"report": "it.md", "baseline": "it.json"}.get(option, "it")
    put(pytester.path / name, kind)
    with in_time():
        result = pytester.runpytest_inprocess(f"--induction-model={SHIPPED['llama']}", f"--induction-{option}={name}")
    assert result.ret != 0 and f"is a {kind}" in said(result)
    assert "Traceback" not in said(result) and "INTERNALERROR" not in said(result)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_or_a_baseline_of_the_settings_that_is_no_file_fails_its_test(pytester, kind):
    put(pytester.path / "it", kind)
    pytester.makeini(f"[pytest]\ninduction_model = {SHIPPED['llama']}\ninduction_text = it\ninduction_baseline = it\n")
    pytester.makepyfile(
        """
        def test_text(induction):
            induction.assert_learns_in_context()

        def test_baseline(induction_baseline):
            induction_baseline.check({"a": 1.0})
        """
    )
    with in_time():
        result = pytester.runpytest_inprocess()
    assert result.ret == 1 and said(result).count(f"it is a {kind}") >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_that_is_no_file_is_said_and_nothing_is_lost(pytester, monkeypatch, kind):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(put(pytester.path / "summary", kind)))
    pytester.makepyfile("def test_it(induction):\n    assert induction.model\n")
    with in_time():
        result = pytester.runpytest_inprocess(f"-oinduction_model={SHIPPED['llama']}", "--induction-report=it.md")
    assert result.ret == 0 and f"step summary: {pytester.path}/summary cannot be written: it is a {kind}" in said(result)
    assert "1 passed" in (pytester.path / "it.md").read_text()


def test_a_gate_file_that_names_no_files_is_one_line_for_each(pytester):
    for name in ("text", "run", "make.py"):
        os.mkfifo(pytester.path / name)
    (pytester.path / "it.gates.toml").write_text(
        f"""
[text]
model = "{SHIPPED["llama"]}"
text = "text"
expect = ["learns_in_context"]

[model]
model = "make.py:make"
expect = ["has_induction_head"]

[run]
run = "run"
expect = ["phase_change"]
"""
    )
    with in_time():
        result = pytester.runpytest_inprocess()
    assert result.ret != 0 and said(result).count("is a FIFO") >= 3 and "Traceback" not in said(result)


def test_a_gate_file_or_settings_of_gigabytes_are_not_read(pytester):
    with (pytester.path / "it.gates.toml").open("wb") as stream:
        stream.truncate(2**33)
    with in_time():
        result = pytester.runpytest_inprocess("it.gates.toml")
    assert result.ret != 0 and "it.gates.toml cannot be read: it has 8589934592 bytes" in said(result)
    (pytester.path / "setup.cfg").write_text("# [tool:pytest]\n" * 2**19)
    put(pytester.path / "tox.ini", "FIFO")
    (pytester.path / "deep").mkdir()
    config = pytester.parseconfig("--induction-model", str(pytester.path / "deep"))
    with in_time():
        assert overlooked(config) == []


def test_sweeps_are_kept_among_temporary_files_in_a_directory_of_this_user(tmp_path, monkeypatch):
    """What another has put under that name is not used."""

    class Config:
        cache = None

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = kept_at(Config)
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700 and kept_at(Config) == own
    own.rmdir()
    (tmp_path / "victim").mkdir()
    own.symlink_to("victim")
    other = kept_at(Config)
    assert other.parent == tmp_path and other not in (own, tmp_path / "victim") and other.resolve() == other
