"""Names that no file can have are not there, whatever reads them."""

import pytest

from pytest_induction import InductionError, load_model, load_run, sweep
from pytest_induction.errors import ArgumentError
from pytest_induction.files import expanded, is_directory, is_file, is_there
from pytest_induction.model.specs import check_text

NEVER = ["x" * 5000, "a\0b", "~nobody-of-that-name/x", "a/" * 3000, "\udcff" * 300, "~\0", "~\ud800/x"]


@pytest.mark.parametrize("name", NEVER)
def test_a_name_that_no_file_can_have_is_not_there(name):
    assert not (is_there(name) or is_file(name) or is_directory(name))
    assert not is_there(expanded(name))


def test_a_home_of_ones_own_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x" and is_directory(expanded("~"))
    assert str(expanded("~nobody-of-that-name")) == "~nobody-of-that-name"


@pytest.mark.parametrize("name", [*NEVER, "a\nb", "-x", "\x1b[31m", "::error::x"])
@pytest.mark.parametrize("read", [load_model, load_run, lambda name: sweep(name, "out", factory="a:b")])
def test_it_is_refused_in_one_short_line(name, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InductionError) as caught:
        read(name)
    said = str(caught.value)
    assert len(said) < 1000 and len(said.splitlines()) == 1 and said.isprintable() and not said.startswith("::")
    assert {each.name for each in tmp_path.iterdir()} <= {"out"}


@pytest.mark.parametrize("name", NEVER)
def test_a_text_of_that_name_is_not_a_file(name):
    with pytest.raises(ArgumentError, match="is not a file"):
        check_text(expanded(name))
