"""Many inputs, one after the other, in a process that is begun anew where one of them ends it; and what was found."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .child import MOST_MEMORY, MOST_SECONDS

ROOT = Path(__file__).parents[2]
WAIT = 6 * MOST_SECONDS  # by the clock, for an input that takes no time of the processor and does not end
FIRST = 300.0  # seconds for the first input of a reader: libraries are imported, and files made


@dataclass
class Found:
    """What came of inputs: how many of each reader and outcome, the longest, the largest, and each that failed, once."""

    outcomes: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)
    failures: dict = field(default_factory=dict)
    slowest: dict = field(default_factory=dict)
    largest: dict = field(default_factory=dict)

    def take(self, answer):
        reader, outcome = answer["reader"], fate(answer)
        self.outcomes[reader, outcome] += 1
        self.kinds[reader, answer.get("kind")] += 1
        for name, key in (("slowest", "seconds"), ("largest", "grown")):
            if answer.get(key, 0) > getattr(self, name).get(key, -1):
                setattr(self, name, answer)
        if outcome not in ("read", "refused"):
            self.failures.setdefault(what(answer), []).append(answer)

    @property
    def total(self):
        return sum(self.outcomes.values())


def fate(answer):
    """What came of an input, in a word."""
    if answer["outcome"] in ("read", "refused"):
        if answer["seconds"] > MOST_SECONDS:
            return "hung"
        if answer["grown"] > MOST_MEMORY:
            return "large"
    return answer["outcome"]


def what(answer):
    """What tells one failure from another: where it was raised, and what."""
    lines = [line.strip() for line in answer["said"].strip().splitlines()]
    places = [line for line in lines if line.startswith("File ") and "pytest_induction" in line]
    return " | ".join([answer["reader"], fate(answer), places[-1] if places else "", lines[-1][:100] if lines else ""])


class Child:
    """The process that reads; begun when it is needed."""

    def __init__(self, seeds, *, limit=True):
        self._seeds, self._limit, self._process, self._warm = seeds, limit, None, set()

    def ask(self, **asked):
        """What came of an input, or of every file as it should be where no seed is named. A process that says nothing in time, or ends, is what came of it."""
        if self._process is None:
            self._begin()
        try:
            self._process.stdin.write(json.dumps({**asked, "limit": self._limit}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=WAIT if asked["reader"] in self._warm else FIRST)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            line = None
        if line:
            self._warm.add(asked["reader"])
            return json.loads(line)
        outcome = "hung" if line is None else f"died with {self._process.wait()}"
        self.end()
        return {**asked, "outcome": outcome, "said": "", "seconds": MOST_SECONDS, "grown": 0, "kind": "?", "file": "?"}

    def _begin(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, "-m", "tests.fuzz.child", str(self._seeds)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self._answers, self._warm = queue.Queue(), set()
        self._reading = threading.Thread(target=_pass_on, args=(self._process.stdout, self._answers), daemon=True)
        self._reading.start()

    def end(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._reading.join()
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.stdout.close()
            self._process = None


def _pass_on(stream, answers):
    for line in stream:
        answers.put(line)
    answers.put("")


def plan(readers, count):
    """How many inputs each reader gets of so many, by its weight, one at least."""
    whole = sum(reader.weight for reader in readers.values())
    return {name: max(1, count * reader.weight // whole) for name, reader in readers.items()}
