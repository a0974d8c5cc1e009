"""What came from a file or a name is shown escaped: it moves no cursor, adds no line and commands no CI."""

import json
import os
import pickle
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_induction.errors import ExpectationFailed, InductionError, UnsupportedModel, meant
from pytest_induction.formatting import (
    WIDEST,
    Lines,
    as_line,
    as_lines,
    as_message,
    command_line,
    everywhere,
    fitted,
    for_terminal,
    in_json,
    in_markup,
    printable,
)
from pytest_induction.records import Verdict
from tests.report.samples import evidence, provenance

ANY = st.text(st.characters(), max_size=40)  # surrogates too: what a file is called need not be UTF-8
NASTY = {
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\b": r"\x08",
    "\f": r"\x0c",
    "\x1b[2J": r"\x1b[2J",
    "\x9b2J": r"\x9b2J",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\u200b": r"\u200b",
    "\u2028": r"\u2028",
    "\x7f": r"\x7f",
    "\ufffe": r"\ufffe",
    "\U000e0041": r"\U000e0041",
    os.fsdecode(b"\xff"): r"\udcff",
    "é 漢字 🎉 C:\\new": "é 漢字 🎉 C:\\new",
}


def is_one_line(text):
    return text.isprintable()


@pytest.mark.parametrize("text", NASTY)
def test_what_is_not_printable_is_shown_as_python_writes_it(text):
    assert printable(text) == NASTY[text]


@given(ANY)
def test_any_text_is_one_line_and_no_command_of_a_ci(text):
    """As it is and behind blanks, which runners take away; and what is shown already is shown the same again."""
    for each in (text, f"  ::{text}", f"{text}##[error]", f"##vso[{text}"):
        line = as_line(each)
        assert is_one_line(line) and not line.lstrip().startswith("::") and "##[" not in line and "##vso[" not in line
        assert as_line(line) == line
        line.encode("utf-8")


@given(ANY)
def test_any_text_may_stand_in_xml(text):
    found = ET.fromstring(f'<a b="{in_markup(text)}">{in_markup(text)}</a>')
    assert (found.text or "") == found.attrib["b"] == printable(text)


def in_words(data):
    if isinstance(data, dict):
        return {in_words(name): in_words(each) for name, each in data.items()}
    return list(map(in_words, data)) if isinstance(data, list) else data.encode("utf-8", "backslashreplace").decode()


@given(st.recursive(ANY, lambda inner: st.lists(inner) | st.dictionaries(ANY, inner), max_leaves=6))
def test_json_says_the_same_in_letters_that_can_be_written(data):
    """But for half of a surrogate pair, which is in no JSON: it is shown as words."""
    text = in_json(json.dumps(data, ensure_ascii=False, indent=1))
    text.encode("utf-8")
    assert json.loads(text) == in_words(data) and "\x7f" not in text and "\u202e" not in text


@pytest.mark.skipif(shutil.which("bash") is None, reason="it is bash that reads it")
@pytest.mark.parametrize("word", [*NASTY, "it's", "a\\b\n'c'", "-x", "", "$HOME `ls` \x1b", "##[error]x"])
def test_a_command_is_read_by_a_shell_as_it_was_meant(word):
    """And has no line break and no escape sequence in it."""
    line = command_line(["printf", "%s", word])
    assert is_one_line(line) and as_line(line) == line
    ran = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert ran.stdout == os.fsencode(word)


def test_line_breaks_that_are_meant_stay_in_a_command():
    """Where they separate names that are lines themselves."""
    assert command_line([Lines("-o=a\nb c")]) == "'-o=a\nb c'"
    assert command_line([Lines("-o=a\n::error::b")]) == r"$'-o=a\n::error::b'"
    assert command_line(["a\nb", "::error", "c"]) == r"$'a\nb' $'::error' c"


def test_what_an_error_quotes_adds_no_line_to_it():
    """Its own line breaks are those of details, which it has in a place of their own."""
    assert str(InductionError("no run at 'a\nb\x1b[31m'")) == r"no run at 'a\nb\x1b[31m'"
    assert str(InductionError("::error::x")) == r"\x3a:error::x"
    found = UnsupportedModel("a\nb cannot be read", ("x",), "  one\n  ::two\x1b")
    assert str(found) == "a\\nb cannot be read\n  one\n  \\x3a:two\\x1b"
    again = pickle.loads(pickle.dumps(found))
    assert (str(again), again.tried, type(again)) == (str(found), ("x",), UnsupportedModel)
    assert str(ExpectationFailed("no\n::error::x\r", evidence())) == "no\n\\x3a:error::x\\r"


def test_a_word_that_is_far_too_long_loses_its_middle():
    """A path that may be one stays whole."""
    path = "/a" * 190
    assert as_message(f"{path} is not there") == f"{path} is not there"
    said = as_message(f"no model at '{'x' * 5000}': expected a directory")
    assert len(said) < 400 and "...(4703 letters)..." in said and said.endswith(": expected a directory")


def test_a_message_has_the_lines_that_were_meant():
    """A fact with a line break in it is one line, long or short, and no line of it is a command."""
    said = fitted("a\nb", [f"  fact: {'long words ' * 40}\n::error::x"], "  next: \x1b[31m").split("\n")
    assert said[0] == r"a\nb" and said[-1] == r"  next: \x1b[31m"
    assert all(len(line) <= WIDEST for line in said) and r"\n::error::x" in "".join(said)


def test_records_keep_their_kinds_where_their_texts_are_escaped():
    about = provenance("a\nb", notes=("\x1b[31m", "plain"))
    shown = everywhere(evidence(about=about, summary="\u202e", estimates={"loss\r": evidence().estimates["advantage"]}))
    assert (shown.provenance.model, shown.provenance.notes) == (r"a\nb", (r"\x1b[31m", "plain"))
    assert shown.verdict is Verdict.SHOWN and shown.summary == r"\u202e" and [*shown.estimates] == [r"loss\r"]
    assert everywhere(evidence()) == evidence()


@given(ANY, st.integers(1, 79))
def test_lines_are_no_wider_than_a_narrow_terminal(text, width):
    lines = for_terminal(f"  {text} {text}", width)
    assert all(len(line) <= max(width, 12) for line in lines)
    assert all(is_one_line(line) and not line.lstrip().startswith("::") for line in lines)


def test_lines_stay_whole_in_a_wide_terminal():
    assert for_terminal("word " * 40, 80) == ["word " * 40]


@given(ANY)
def test_suggestions_quote_what_is_known(text):
    """An error with a name of its own in it is one line too."""
    assert is_one_line(str(InductionError(f"unknown{meant(text, [f'{text}x', 'other'])}")))


@given(ANY)
def test_lines_of_ours_stay_lines(text):
    assert as_lines(text).split("\n") == [as_line(line) for line in text.split("\n")]
