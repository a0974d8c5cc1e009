"""What is said of a measurement that lasts: when, where and in which words, by a clock that only the test moves."""

import io
import sys
import types
from contextlib import contextmanager

import pytest

from pytest_induction import progress as shown
from pytest_induction import spending
from pytest_induction.progress import advance, duration, progress, showing_on
from pytest_induction.spending import BARE_PASS, Price, calling, charge


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    def __init__(self, tty=False):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty

    def close(self):
        """What was written can be read afterwards."""


class Module:
    """Stands for the module of a model; rates are kept by it."""


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv(shown.SWITCH, raising=False)
    found = Clock()
    monkeypatch.setattr(shown, "clock", found)
    return found


def model(name="SmolLM2"):
    return types.SimpleNamespace(name=name, module=Module())


@contextmanager
def measuring(clock, *, stream, name="ablation_removes_icl", passes=60, least=1, seconds=1.0, subject=None):
    """A call of so many bare passes at most; what runs one pass in it, which takes so many seconds."""
    subject = subject or model()

    def run():
        charge(subject, BARE_PASS)
        clock.now += seconds

    with showing_on(lambda: stream), calling(name, lambda _: Price(least * BARE_PASS, passes * BARE_PASS)):
        yield run


def lines(stream):
    return [line for line in stream.getvalue().split("\n") if line]


def test_without_a_terminal_lines_come_after_10_and_30_seconds_and_then_each_minute(clock):
    stream = Stream()
    with measuring(clock, stream=stream, passes=400) as run, progress("ablations of 45 heads", 276):
        when = []
        for _ in range(200):
            run()
            before = len(lines(stream))
            advance(1)
            when += [clock.now] * (len(lines(stream)) - before)
    assert when == [10.0, 30.0, 90.0, 150.0]


def test_a_line_says_what_is_done_and_what_is_left(clock):
    stream = Stream()
    with measuring(clock, stream=stream) as run, progress("ablations of 45 heads", 276):
        for _ in range(13):
            run()
        advance(31)
        charge(model(), BARE_PASS)
    (first,) = lines(stream)
    assert first.startswith(
        "pytest-induction: ablations of 45 heads: 0 of 276 rows, about 10 of at most 60 bare passes, at most 50 s"
    )


@pytest.mark.parametrize(
    ("name", "least", "left"),
    [
        ("has_induction_head", 22, "12 s left if the first look is clear, at most 6 min"),
        ("has_induction_head", 8, "at most 6 min left"),  # the first look was not clear
        ("has_induction_head", 300, "at most 6 min left"),  # which is near
        ("measure_ablations", 22, "at most 6 min left"),  # it has no looks
    ],
)
def test_before_the_first_look_is_done_the_most_does_not_stand_alone(clock, name, least, left):
    stream = Stream()
    with measuring(clock, stream=stream, name=name, passes=400, least=least) as run, progress("repeats", 276):
        for _ in range(11):
            run()
    assert lines(stream)[-1].endswith(f"about 10 of at most 400 bare passes, {left}")


def test_a_part_that_is_no_call_says_its_own_time(clock):
    stream = Stream()
    with showing_on(lambda: stream, "pytest-induction [gw1]"), progress("sweep", 4, "checkpoint"):
        clock.now = 12.0
        advance(3, "checkpoint")
    assert lines(stream) == ["pytest-induction [gw1]: sweep: 3 of 4 checkpoints (4 s left)"]


def test_what_is_short_says_nothing(clock):
    for tty in (False, True):
        stream = Stream(tty)
        with measuring(clock, stream=stream, seconds=0.1) as run, progress("ablations", 19):
            for _ in range(19):
                run()
                advance(1)
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_after_two_seconds_and_no_lines(clock):
    stream = Stream(tty=True)
    with measuring(clock, stream=stream) as run, progress("ablations", 19):
        run()
        advance(1)
        assert stream.getvalue() == ""
        for _ in range(18):
            run()
            advance(1)
    said = stream.getvalue()
    assert "ablations" in said and "of at most 60 bare passes" in said
    assert "pytest-induction:" not in said


@pytest.mark.parametrize("tty", [False, True])
def test_a_call_that_is_known_to_last_is_announced_before_it_does(clock, tty):
    """After its first pass, once, with its least and its most and the time that these take."""
    stream = Stream(tty)
    with measuring(clock, stream=stream, least=12, seconds=1.0) as run:
        run()
        assert stream.getvalue() == ""
        run()
        call = "pytest-induction: ablation_removes_icl on SmolLM2"
        announced = [f"{call}: 12 bare passes (about 12 s) if the first look is clear, at most 60 (60 s)"]
        assert lines(stream) == announced
        run()
        assert lines(stream) == announced


def test_a_measure_has_no_looks_that_may_be_clear(clock):
    stream = Stream()
    with measuring(clock, name="measure_retrieval", stream=stream, least=12, seconds=1.0) as run:
        run()
        run()
    assert lines(stream) == [
        "pytest-induction: measure_retrieval on SmolLM2: 12 bare passes (about 12 s) or more, at most 60 (60 s)"
    ]


def test_the_second_call_on_a_model_is_announced_at_once(clock):
    subject = model()
    with measuring(clock, stream=Stream(), least=2, subject=subject) as run:
        run()
    stream = Stream()
    with measuring(clock, stream=stream, least=12, subject=subject):
        charge(subject, BARE_PASS)
        assert "12 bare passes (about 12 s) if the first look is clear, at most 60 (60 s)" in stream.getvalue()


def test_a_call_that_may_be_over_soon_is_not_announced(clock):
    stream = Stream()
    with measuring(clock, stream=stream, least=9, passes=600) as run:
        for _ in range(9):
            run()
    assert stream.getvalue() == ""


def test_it_can_be_switched_off(clock, monkeypatch):
    monkeypatch.setenv(shown.SWITCH, "0")
    stream = Stream()
    with measuring(clock, stream=stream, least=50) as run, progress("ablations", 300):
        for _ in range(100):
            run()
            advance(1)
    assert stream.getvalue() == ""


def test_nothing_is_said_where_nobody_takes_it(clock):
    opened = []
    with showing_on(lambda: opened.append(1)), progress("ablations", 3):
        for _ in range(3):
            clock.now += 100
            advance(1)
    assert opened == [1]


def test_standard_error_gets_the_lines_outside_pytest(clock, monkeypatch):
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    token = shown._output.set(None)  # not what the plugin shows on while this test runs
    try:
        with progress("losses of a text", 8):
            clock.now = 11.0
            advance(2)
    finally:
        shown._output.reset(token)
    assert stream.getvalue() == "pytest-induction: losses of a text: 2 of 8 rows (33 s left)\n"


def test_more_than_was_foreseen_is_not_more_than_all(clock):
    stream = Stream()
    with showing_on(lambda: stream), progress("ablations", 144):
        clock.now = 12.0
        advance(151)
    assert lines(stream)[0].endswith("ablations: 151 of 151 rows (0 s left)")


class ZMQInteractiveShell:
    """The shell of a notebook, by its name."""


class Shell(ZMQInteractiveShell):
    """That of Colab."""


class Terminal:
    """Another shell of IPython."""


@pytest.mark.parametrize(("shell", "expected"), [(ZMQInteractiveShell, True), (Shell, True), (Terminal, False), (None, False)])
def test_a_notebook_is_known_by_its_shell(shell, expected, monkeypatch):
    get = types.SimpleNamespace() if shell is None else types.SimpleNamespace(get_ipython=shell)
    monkeypatch.setitem(sys.modules, "IPython", get)
    assert shown.in_notebook() is expected


@pytest.fixture
def cell(monkeypatch):
    """What is displayed below the cell of a notebook, as it changes."""
    seen = []

    class Handle:
        def display(self, bundle, *, raw):
            seen.append(("display", bundle["text/html"], bundle["text/plain"]))

        def update(self, bundle, *, raw):
            seen.append(("update", bundle["text/html"], bundle["text/plain"]))

    module = types.SimpleNamespace(get_ipython=ZMQInteractiveShell, display=types.SimpleNamespace(DisplayHandle=Handle))
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    return seen


def test_a_notebook_has_one_bar_that_changes_in_place_and_is_gone(clock, cell):
    """Also where a call has several parts; and nothing is written beside it."""
    stream = Stream()
    with showing_on(lambda: stream), shown.watching():
        for about in ("losses <of> a text", "probing"):
            with progress(about, 8):
                clock.now += 3.0
                advance(2)
                advance(1)  # at once: it is not drawn again
                clock.now += 1.0
                advance(1)
    assert [kind for kind, *_ in cell] == ["display", *["update"] * (len(cell) - 1)]
    assert [text for *_, text in cell] == [
        "losses <of> a text: 2 of 8 rows (9 s left)",
        "losses <of> a text: 4 of 8 rows (4 s left)",
        "probing: 2 of 8 rows (9 s left)",
        "probing: 4 of 8 rows (4 s left)",
        "",
    ]
    assert '<progress value="2" max="8"' in cell[0][1] and "losses &lt;of&gt; a text: 2 of 8" in cell[0][1]
    assert cell[-1][1] == stream.getvalue() == ""


def test_a_short_call_in_a_notebook_shows_nothing(clock, cell):
    with showing_on(Stream), progress("probing", 8):
        clock.now += 1.9
        advance(8)
    assert cell == []


def test_a_call_within_another_counts_for_both_and_is_shown_as_a_part(clock):
    stream = Stream()
    with measuring(clock, stream=stream) as run:
        run()
        with calling("measure_heads", lambda _: Price(BARE_PASS, BARE_PASS)) as inner:
            for _ in range(12):
                run()
        outer = spending.call_under_way()
        assert (outer.tokens, inner.tokens) == (13 * BARE_PASS, 12 * BARE_PASS)
    assert lines(stream) == ["pytest-induction: about 10 of at most 60 bare passes, at most 50 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.03, "0.03 s"), (40, "40 s"), (99, "99 s"), (120, "2 min"), (5400, "90 min"), (7200, "2.0 h")],
)
def test_times_are_said_in_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text
