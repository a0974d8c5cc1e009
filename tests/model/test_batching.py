"""How many sequences share a pass: the budget, what is done out of memory, and that the split changes nothing."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from pytest_induction import assert_has_induction_head, load_model, measure_heads
from pytest_induction.errors import ArgumentError, ModelError
from pytest_induction.model import batching
from pytest_induction.model.specs import memory_size
from pytest_induction.progress import progress, showing_on
from tests.conftest import SHIPPED
from tests.model.plain import Plain, by_hand


def sizes_of(subject, rows, measure=None):
    sizes = []

    def note(part, _):
        sizes.append(len(part))
        return measure(part) if measure else None

    batching.in_batches(subject, rows, note, logits=True)
    return sizes


def test_a_budget_of_memory_sets_the_batch():
    """More memory, more sequences at once; never fewer than one, never more than are any use."""
    rows = torch.zeros(64, 50, dtype=torch.long)
    counts = [len(sizes_of(load_model(Plain(), memory=memory), rows)) for memory in ("100KB", "1MB", "10MB", "10GB", None)]
    assert counts[0] == 64
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == counts[-2] == 1
    assert batching.batch_size(load_model(Plain()), 8192, logits=True) == 1


def test_few_logits_of_a_large_vocabulary_are_made_at_once():
    """However much memory there is: a gigabyte of them takes longer to get than to compute. None are made without."""
    subject = load_model(Plain(), memory="10GB")
    subject.space = replace(subject.space, d_vocab=2**18)
    assert [batching.batch_size(subject, positions, logits=True) for positions in (1024, 512, 128)] == [1, 1, 4]
    assert batching.batch_size(subject, 128, logits=False) == 32


def test_a_backend_that_makes_patterns_gets_fewer_sequences():
    """They lie in memory while it looks."""
    sizes = [batching.batch_size(load_model(Plain(attend), memory="3MB"), 100, logits=False) for attend in (None, by_hand)]
    assert sizes[0] > sizes[1] > 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_the_batch_is_halved_and_tried_again(error):
    """All rows are measured, once, in order."""

    def fails_above_five(part):
        if len(part) > 5:
            raise error

    rows = torch.arange(23)[:, None].repeat(1, 50)
    sizes = sizes_of(load_model(Plain()), rows, fails_above_five)
    assert [size for size in sizes if size <= 5] == [5, 5, 5, 5, 3]
    seen = []

    def note(part, where):
        fails_above_five(part)
        seen.extend(part[:, 0].tolist())
        return where

    assert [part.start for part in batching.in_batches(load_model(Plain()), rows, note, logits=True)] == [0, 5, 10, 15, 20]
    assert seen == list(range(23))


def test_one_sequence_that_does_not_fit_is_one_line():
    """It says how long the sequence was, and where it did not fit."""

    def fails(part):
        raise MemoryError

    with pytest.raises(ModelError, match="Plain runs out of memory on one sequence of 50 positions on cpu"):
        sizes_of(load_model(Plain()), torch.zeros(3, 50, dtype=torch.long), fails)
    with pytest.raises(RuntimeError, match="something else"):
        sizes_of(
            load_model(Plain()), torch.zeros(3, 50, dtype=torch.long), lambda part: exec("raise RuntimeError('something else')")
        )


def test_a_model_that_runs_out_of_memory_is_measured_in_smaller_parts(monkeypatch):
    """The error comes out of the forward pass itself, under observation too."""

    class Hungry(Plain):
        def forward(self, tokens):
            if len(tokens) > 3:
                raise RuntimeError("not enough memory: you tried to allocate 1 bytes")
            return super().forward(tokens)

    torch.manual_seed(0)
    hungry = measure_heads(Hungry(), n_sequences=10, period=7)
    torch.manual_seed(0)
    np.testing.assert_allclose(
        hungry.prefix_matching, measure_heads(Plain(), n_sequences=10, period=7).prefix_matching, atol=1e-6
    )


@pytest.mark.parametrize("memory", ["50KB", "400KB", "2MB"])
def test_the_split_changes_no_result(memory):
    """Scores within rounding, and the same verdict on the same grounds."""
    whole, split = (load_model(SHIPPED["two-layers"], memory=given) for given in (None, memory))
    np.testing.assert_allclose(measure_heads(split).prefix_matching, measure_heads(whole).prefix_matching, atol=1e-6)
    one, other = (assert_has_induction_head(model) for model in (whole, split))
    assert [str(head) for head in one.heads] == [str(head) for head in other.heads]
    assert one.estimates["advantage"].value == pytest.approx(other.estimates["advantage"].value, abs=1e-4)


def test_what_is_free_is_known_here():
    """More than nothing, less than the machine could have."""
    assert 2**20 < batching.free_memory(torch.device("cpu")) < 2**50


def test_a_system_that_tells_nothing_is_assumed_to_have_little(monkeypatch, tmp_path):
    """No file of its own, no number from the system."""

    def nothing(name):
        raise ValueError(name)

    monkeypatch.setattr(batching, "Path", lambda place: tmp_path / "nowhere")
    assert batching.free_memory(torch.device("cpu")) > 0
    monkeypatch.setattr(batching.os, "sysconf", nothing)
    assert batching.free_memory(torch.device("cpu")) == batching.UNKNOWN_FREE


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("512 MB", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("800k", 800_000), ("12345", 12345)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    """Decimal and binary units, with and without the B."""
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 apples", "-1GB", "0MB", "GB", "1e9", f"{'9' * 400}GB"])
def test_what_is_no_size_is_one_line(text):
    """What it must look like."""
    with pytest.raises(ArgumentError, match="memory must be a size like 4GB or 512MB, got"):
        memory_size(text)


class Terminal(io.StringIO):
    def __init__(self, tty=True):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty

    def close(self):
        """What was written can be read afterwards."""


def test_progress_is_shown_on_a_terminal_where_it_lasts(monkeypatch):
    """How many sequences of how many, under one name, though parts of it count by themselves."""
    monkeypatch.setattr("pytest_induction.progress.DELAY", 0)
    terminal = Terminal()
    with showing_on(lambda: terminal), progress("scores of heads", 24), progress("an inner part", 3):
        batching.in_batches(load_model(Plain()), torch.zeros(12, 50, dtype=torch.long), lambda *_: time.sleep(0.2), logits=True)
    assert "scores of heads" in terminal.getvalue()
    assert "12/24" in terminal.getvalue()
    assert "an inner part" not in terminal.getvalue()


@pytest.mark.parametrize(("tty", "delay"), [(False, 0), (True, 60)])
def test_progress_is_not_shown_elsewhere(monkeypatch, tty, delay):
    """In no file, and not for what is over at once."""
    monkeypatch.setattr("pytest_induction.progress.DELAY", delay)
    terminal = Terminal(tty)
    with showing_on(lambda: terminal):
        measure_heads(load_model(Plain()))
    assert terminal.getvalue() == ""
