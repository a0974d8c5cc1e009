"""The command line: what it says, and the options of `python -m pytest_induction sweep`."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

from pytest_induction.claims import register_installed
from pytest_induction.errors import InductionError, reason
from pytest_induction.formatting import as_message, for_terminal
from pytest_induction.progress import complain, let_go
from pytest_induction.runs.checkpoints.finding import parse_steps
from pytest_induction.runs.checkpoints.layouts import LAYOUTS
from pytest_induction.runs.options_named import spelt
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import TrainingRun
from pytest_induction.runs.store import read_run

CLOSED = 141  # how shells tell that a program wrote into a pipe that nobody reads: 128 and the number of SIGPIPE
UNKNOWN = 1000  # columns, where neither COLUMNS nor a terminal says how many there are


class OutputFailed(Exception):
    """Standard output takes no more; `why` is what the system said."""

    def __init__(self, why: OSError) -> None:
        super().__init__(str(why))
        self.why = why


class Help(argparse.HelpFormatter):
    """Help whose texts keep their line ends; lines of a list are indented where they go on."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.strip().splitlines()
        more = {line: indent + ("  " if line.startswith("- ") else "") for line in lines}
        return "\n".join(fill(line, width, initial_indent=indent, subsequent_indent=more[line]) for line in lines)


class Parser(argparse.ArgumentParser):
    """One that quotes what it was given printable, and whose help may be cut off by its reader."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Help, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        lines = message.removesuffix("\n").split("\n")
        if file is sys.stdout:
            say(*lines)
        else:
            tell(*lines)

    def error(self, message: str) -> NoReturn:
        super().error(as_message(message))


def say(*lines: str) -> None:
    """Write lines to standard output, none wider than a narrow terminal. Raises `OutputFailed`."""
    write("".join(f"{each}\n" for line in lines for each in for_terminal(line, columns())))


def tell(*lines: str) -> None:
    """Write lines to standard error; where nobody takes them, they are lost."""
    for line in lines:
        for each in for_terminal(line, columns()):
            complain(each)


def fail(message: str) -> None:
    """Write an error to standard error."""
    tell(*f"error: {message}".split("\n"))


def columns() -> int:
    """How wide what is shown may be: what COLUMNS says, or the terminal."""
    return shutil.get_terminal_size((UNKNOWN, 24)).columns


def write(text: str) -> None:
    """Write to standard output at once. Raises `OutputFailed`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputFailed(error) from None


def ended(command: Callable[[], int]) -> int:
    """The exit status of a command, also where standard output is closed, or its disk is full."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # a name may have letters that the encoding lacks
    try:
        return command()
    except OutputFailed as failed:
        let_go(sys.stdout)
        if isinstance(failed.why, BrokenPipeError):
            return CLOSED
        fail(f"standard output cannot be written: {reason(failed.why)}")
        return 2


REFUSED = " (must be converted first; the message says how)"
ABOUT = "measure every checkpoint of a training and write a run for tests; an interrupted sweep continues where it stopped"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command, and at the end of its help the layouts that are known."""
    known = (f"- {each.name}{REFUSED if each.refusal else ''}: {each.looks_like}" for each in LAYOUTS)
    parser.epilog = "\n".join(["Checkpoints may be of these kinds:", *known])
    parser.add_argument(
        "checkpoints",
        metavar="CHECKPOINTS",
        help="a directory or URL with checkpoint-N directories or step-numbered files, a pattern of them, or hf:NAME@step{}",
    )
    parser.add_argument(
        "-o", "--out", metavar="RUN", required=True, help="directory for the run: a new one, or that of an earlier sweep"
    )
    parser.add_argument("--factory", metavar="F", help="function that builds the model: path/file.py:factory or module:factory")
    parser.add_argument("--text", metavar="FILE", help="held-out text file, to measure the in-context learning score")
    parser.add_argument("--steps", metavar="STEPS", help="measure only these steps: 0,1,2,4 or FIRST:LAST:EVERY")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=1, help="number of processes that measure in parallel (default 1)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="",
        help="measure on a Ray cluster: auto, an address, or no value for this machine's cluster, started if needed",
    )
    parser.add_argument("--num-gpus", metavar="X", type=float, help="GPUs for each worker on the cluster")
    add_loading(parser)
    add_claims(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the random test sequences (default 0)")
    parser.add_argument("--tokens-per-step", metavar="T", type=float, help="number of tokens in one training step")


LOADING = ("device", "dtype", "memory", "trust_remote_code", "without_pattern")  # what `load_model` takes
COMPARED = "a model, a run or log, a report or evidence as JSON, or a baseline file"


def add_loading(parser: argparse.ArgumentParser) -> None:
    """The options that say how a model is loaded and run."""
    parser.add_argument("--device", help="device to run the model on (default cpu)")
    parser.add_argument("--dtype", help="floating-point type to run it in (default: as stored)")
    parser.add_argument("--memory", help="most memory of one forward pass, such as 4GB (default: half of what is free)")
    add_trust(parser)
    add_without_pattern(parser)


def loading(given: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as `load_model` takes it."""
    return {name: getattr(given, name) for name in LOADING}


def add_claims(parser: argparse.ArgumentParser) -> None:
    """The option for claims of one's own, which a test session has from its conftest.py."""
    parser.add_argument("--claims", metavar="FILE", help="file or module that registers claims of your own, such as conftest.py")


def register(place: str | None) -> None:
    """Register what other distributions bring, and what that file or module does."""
    from pytest_induction.model.factories import import_place

    register_installed()
    if place is not None:
        import_place(place)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The option by which code may run that came with weights; spelt as the messages do, too."""
    about = "allow code that comes with the weights to run; without this option a model that needs it is refused"
    parser.add_argument("--trust-remote-code", "--induction-trust-remote-code", action="store_true", help=about)


def add_without_pattern(parser: argparse.ArgumentParser) -> None:
    """The option that declares modules which have no attention pattern; spelt as pytest has it, too."""
    about = "modules that mix positions but have no attention pattern; paths or classes, separated by commas; may be repeated"
    names = ("--without-pattern", "--induction-without-pattern")
    parser.add_argument(*names, metavar="NAME", action="append", default=[], help=about)


def run(given: argparse.Namespace) -> tuple[list[str], int]:
    """Do it: the lines that there are to say, and 0 if all was measured, 1 if some was not, 130 if it was interrupted."""
    from pytest_induction.runs.sweep import sweep

    settings = {
        "factory": given.factory,
        "text": None if given.text is None else Path(given.text),
        "steps": None if given.steps is None else parse_steps(given.steps),
        "workers": given.workers,
        "ray": given.ray,
        "num_gpus": given.num_gpus,
        **loading(given),
        "seed": given.seed,
        "tokens_per_step": given.tokens_per_step,
    }
    register(given.claims)
    try:
        with spelt("command"):
            found = sweep(given.checkpoints, given.out, **settings)
    except KeyboardInterrupt:
        return [f"interrupted: {_kept(given.out)}; the same command goes on with it"], 130
    problems = [f"step {each.step}: {each.problem}" for each in found.snapshots if each.problem]
    return [*problems, summary(found, given.out)], int(bool(problems))


def summary(run: TrainingRun, out: str) -> str:
    """How many snapshots there are, of which steps, and where."""
    failed = sum(bool(each.problem) for each in run.snapshots)
    without = f", {failed} with a problem" if failed else ""
    steps = f"steps {run.snapshots[0].step} to {run.snapshots[-1].step}" if len(run) else "no steps"
    return f"{out}: {len(run)} snapshots{without}, {steps}"


def _kept(out: str) -> str:
    try:
        return summary(read_run(Place(out)), out)
    except InductionError:  # it had not begun
        return "nothing was measured"
