"""The command line: `python -m pytest_induction`, then `doctor MODEL`, `compare A B -o PAGE.html`, `sweep CHECKPOINTS -o RUN`,
`watch RUN`, `draw RUN -o FILE`, `report RECORDS.json -o PAGE.html` or `schema`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_induction import command_line as command
from pytest_induction.command_line import Parser, ended, fail, say, tell, write
from pytest_induction.errors import ArgumentError, InductionError, ProbeError, ReportError, RunError, reason, whole_number
from pytest_induction.files import replace_text
from pytest_induction.model.specs import FORMS, check_text

if TYPE_CHECKING:
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.runs.record import TrainingRun

ABOUT = "Commands around the tests: look at a model, measure checkpoints, watch and draw a training run, compare two of them."
MORE = "`python -m pytest_induction COMMAND --help` lists the options of a command. The tests themselves run with pytest."
OF_BEHAVIOUR = ("assert_copies_repeats", "assert_learns_in_context")  # calls that read no attention
WIDEST = 120  # characters of a frame of `watch`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is well, 1 if something cannot be measured, 2 for an error, 130 if it was interrupted.

    141 where the reader of its output has closed it.
    """
    return ended(lambda: _done(arguments))


def _done(arguments: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m pytest_induction", description=ABOUT, epilog=MORE)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "describe a model: how its attention is read, what can be measured on it, what each call costs, what to change"
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("model", metavar="MODEL", help=FORMS)
    command.add_loading(doctor)
    doctor.add_argument("--attach", help="function that shows the model's attention, such as conftest.py:pytest_induction_attach")
    command.add_claims(doctor)
    doctor.set_defaults(command=_doctor)
    _add_compare(commands)
    sweep = commands.add_parser("sweep", help=command.ABOUT, description=command.ABOUT)
    command.add_options(sweep)
    sweep.set_defaults(command=_sweep)
    about = "draw a training run as an SVG file: each change, the loss along the context, and the path of the training"
    draw = commands.add_parser("draw", help=about, description=about)
    draw.add_argument("run", metavar="RUN", help="a recorded or swept run, or a log: anything that `load_run` accepts")
    draw.add_argument("-o", "--out", metavar="FILE", help="file to write (default: the run's name with .svg, in this directory)")
    _add_choice(draw)
    draw.set_defaults(command=_draw)
    about = "show the curves and changes of a run while it trains; refreshes as the run grows, ends when it is closed"
    watch = commands.add_parser("watch", help=about, description=about)
    watch.add_argument("run", metavar="RUN", help="a run that still grows, or a log: anything that `load_run` accepts")
    watch.add_argument("--html", metavar="PAGE", help="write a page that reloads itself, instead of drawing in the terminal")
    watch.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help="seconds between two updates (default 2)")
    watch.add_argument("--once", action="store_true", help="show the run as it is now, then exit")
    watch.add_argument("--wait", action="store_true", help="wait for a run that has not begun yet")
    _add_choice(watch)
    watch.set_defaults(command=_watch)
    about = "turn the records of --induction-report RECORDS.json into a page or Markdown; needs neither torch nor a model"
    report = commands.add_parser("report", help=about, description=about)
    report.add_argument("records", metavar="RECORDS.json", help="a file that --induction-report PATH.json wrote")
    report.add_argument("-o", "--out", metavar="FILE", required=True, help="file to write: PATH.html, PATH.md or PATH.json")
    report.set_defaults(command=_report)
    _add_schema(commands)
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except InductionError as error:
        fail(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


def _add_schema(commands: Any) -> None:
    about = "write the JSON schema of gate files, which editors use to complete and check them; needs neither torch nor a model"
    schema = commands.add_parser("schema", help=about, description=about)
    schema.add_argument("-o", "--out", metavar="FILE", help="file to write (default: standard output)")
    command.add_claims(schema)
    schema.set_defaults(command=_schema)


def _add_compare(commands: Any) -> None:
    about = "compare two models or two runs: heads, behaviour, curves; loads a model only if it has not been measured yet"
    compare = commands.add_parser("compare", help=about, description=about)
    each = f"{command.COMPARED}; PATH@PART is a step of a run, an entry of a baseline file, a model of a report"
    compare.add_argument("before", metavar="A", help=each)
    compare.add_argument("after", metavar="B", help="what to compare it with, in the same forms")
    compare.add_argument("-o", "--out", metavar="FILE", help="file to write as well: PATH.html, PATH.md or PATH.json")
    compare.add_argument("--text", metavar="FILE", help="held-out text file, to measure in-context learning of models")
    compare.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the random test sequences (default 0)")
    command.add_loading(compare)
    compare.set_defaults(command=_compare)


def _doctor(given: argparse.Namespace) -> int:
    from pytest_induction.claims import head_scores
    from pytest_induction.head_score import listed
    from pytest_induction.model.factories import function_named
    from pytest_induction.model.load import load_model
    from pytest_induction.model.protocol import as_text

    command.register(given.claims)
    attach = () if given.attach is None else function_named(given.attach)
    subject = load_model(given.model, attach=attach, **command.loading(given))
    lines, fits = subject.diagnosis(), True
    if added := head_scores():
        lines += (("your scores", listed(added)),)
    try:
        lines += (("probes", _probes(subject)), *_prices(subject))
    except ProbeError as error:
        lines += (
            ("probes", f"none: {error}"),
            ("to do", "measure it on token ids of your own: measure_heads(model, tokens=...)"),
        )
        fits = False
    say(*as_text(lines, indent="").split("\n"))
    return int(subject.backend is None or not fits)


def _compare(given: argparse.Namespace) -> int:
    from pytest_induction.comparing import Settings, compare
    from pytest_induction.report.compared import lines, write_comparison
    from pytest_induction.report.writing import check_path

    if given.out is not None:
        check_path(given.out)
    if given.text is not None:
        check_text(Path(given.text))
    text = None if given.text is None else Path(given.text)
    seed = whole_number("--seed", given.seed, least=0)
    found = compare(given.before, given.after, Settings(text, seed, command.loading(given)))
    if given.out is not None:
        write_comparison(found, given.out)
    say(*lines(found), *([given.out] if given.out is not None else []))
    return 0


def _sweep(given: argparse.Namespace) -> int:
    lines, code = command.run(given)
    if code == 130:
        tell(*lines)
    else:
        say(*lines)
    return code


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that say which columns and rows of a log count."""
    named = "which column of a log holds a measure, such as loss=train/ce; may be repeated"
    names = ("--column", "--induction-column")
    parser.add_argument(*names, dest="column", metavar="NAME=COLUMN", action="append", default=[], help=named)
    rows = "read only the rows of a log that have this value in this column, such as run=r0; may be repeated"
    names = ("--where", "--induction-where")
    parser.add_argument(*names, dest="where", metavar="COLUMN=VALUE", action="append", default=[], help=rows)


def _choice(given: argparse.Namespace) -> dict[str, Any]:
    """What of a log is read, as `load_run` takes it."""
    from pytest_induction.runs.logs.columns import pairs

    return {"columns": pairs("--column", given.column) or None, "where": pairs("--where", given.where) or None}


def _draw(given: argparse.Namespace) -> int:
    from pytest_induction.report.charts.run_picture import svg
    from pytest_induction.runs.logs.read import taken
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.picture import picture_of

    run = load_run(given.run, **_choice(given))
    picture = picture_of(run)
    name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")
    out = Path(given.out or f"{name or 'run'}.svg")
    try:
        replace_text(out, svg(picture))
    except OSError as error:
        raise RunError(f"{out} cannot be written: {reason(error)}") from None
    lacks = f"; not recorded: {', '.join(picture['missing'])}" if picture["missing"] else ""
    say(f"{out}: {len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}{lacks}", *taken(run))
    return 0


def _watch(given: argparse.Namespace) -> int:
    from pytest_induction.runs.opening import growing, has_begun
    from pytest_induction.runs.places import Place

    if not given.every > 0:
        raise ArgumentError(f"`--every` must be above 0 seconds, got {given.every}")
    place = Place(given.run)
    if not (given.wait or has_begun(place)):
        raise RunError(f"{place} has no run yet: name the directory that a recorder writes, or a log; --wait waits for it")
    try:
        for run in growing(place, every=given.every, **_choice(given)):
            _show(run, given)
            if given.once:
                break
    except KeyboardInterrupt:  # the way to end it
        write("\n")
    return 0


def _show(run: TrainingRun | None, given: argparse.Namespace) -> None:
    """A run as it is now, on the terminal or as a page; None is one that has not begun."""
    from pytest_induction.errors import ExpectationFailed
    from pytest_induction.report.live import CLEAR, frame, live_page, painted
    from pytest_induction.report.terminal import style_for
    from pytest_induction.runs.phase_change.claims import assert_phase_change
    from pytest_induction.runs.picture import picture_of

    evidence, picture = None, None
    if run is not None and len(run) > 1:
        picture = picture_of(run)
        try:
            evidence = assert_phase_change(run)
        except ExpectationFailed as failed:
            evidence = failed.evidence
    state = _state_of(run, given.run)
    if given.html is not None:
        goes_on = run is None or run.is_open or run.source != "recorder"
        page = live_page(given.run, evidence, picture, state, given.every if goes_on and not given.once else None)
        try:
            replace_text(Path(given.html), page)
        except OSError as error:
            raise RunError(f"{given.html} cannot be written: {reason(error)}") from None
        say(f"{given.html}: {state}")
        return
    width = min(shutil.get_terminal_size((100, 24)).columns, WIDEST)
    lines = frame(evidence, picture, state, style_for(0, width, getattr(sys.stdout, "encoding", None)))
    is_seen = sys.stdout is not None and sys.stdout.isatty()
    write(f"{CLEAR if is_seen else ''}{painted(lines, colour=is_seen)}")


def _state_of(run: TrainingRun | None, path: str) -> str:
    if run is None:
        return f"{path}: nothing is there yet"
    span = f"{len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}" if len(run) else "no snapshots"
    ends = {True: "it is being recorded, or was broken off", False: "its recorder has closed it"}
    return f"{path}: {span}{f'; {ends[run.is_open]}' if run.source == 'recorder' else ''}; {time.strftime('%H:%M:%S')}"


def _report(given: argparse.Namespace) -> int:
    from pytest_induction.report.writing import render

    render(given.records, given.out)
    say(given.out)
    return 0


def _schema(given: argparse.Namespace) -> int:
    from pytest_induction.claims import register_installed
    from pytest_induction.plugin.gates.json_schema import gates_schema

    if given.claims is None:
        register_installed()
    else:
        command.register(given.claims)
    text = f"{json.dumps(gates_schema(), indent=2)}\n"
    if given.out is None:
        write(text)
        return 0
    try:
        replace_text(Path(given.out), text)
    except OSError as error:
        raise ReportError(f"{given.out} cannot be written: {reason(error)}") from None
    say(given.out)
    return 0


def _probes(subject: ModelUnderTest) -> str:
    """What it is probed with, and how many sequences share a pass. Raises `ModelError` if one as long as the longest fails."""
    import torch

    from pytest_induction.model.batching import batch_size, bytes_per_sequence
    from pytest_induction.probes.sequences import COPIES, fitting_shape

    periods, repeats = fitting_shape(subject.space, COPIES)
    positions = (subject.space.bos_id is not None) + periods[-1] * repeats
    subject.logits(torch.zeros(1, positions, dtype=torch.long))
    at_once, each = batch_size(subject, positions, logits=True), bytes_per_sequence(subject, positions, logits=True)
    copies = f"{repeats} copies of {periods[0]} to {periods[-1]} tokens; "
    if subject.memory is not None and each > subject.memory:
        return f"{copies}{positions} positions at a time, which may take {each / 1e6:.3g} MB, more than the memory allowed"
    together = "1 sequence has a pass" if at_once == 1 else f"{at_once} sequences share a pass"
    return f"{copies}{together} of {positions} positions each"


def _prices(subject: ModelUnderTest) -> tuple[tuple[str, str], ...]:
    """What every call costs on this model, in bare passes and in seconds of this machine, by one pass that is timed."""
    from pytest_induction import fixture  # noqa: F401 - where calls on one model are loaded
    from pytest_induction.comparison import continuity  # noqa: F401 - and that on several
    from pytest_induction.model.batching import in_batches
    from pytest_induction.progress import duration
    from pytest_induction.spending import BARE_PASS, POSITIONS, ROWS, usual_prices

    rows = subject.random_ids(ROWS, POSITIONS)
    for _ in range(2):  # the first one is slow
        begun = time.perf_counter()
        in_batches(subject, rows, lambda part, _: float(subject.logits(part)[0, 0, 0]), logits=True)
    each = (time.perf_counter() - begun) / rows.numel()
    about = f"a bare pass, {ROWS} rows of {POSITIONS} tokens with logits, takes about {duration(each * BARE_PASS)} here"
    prices = usual_prices(subject)
    if subject.backend is None:
        prices = {name: prices[name] for name in OF_BEHAVIOUR}
    width = max(map(len, prices), default=0)
    table = []
    for name, price in prices.items():
        least, most = (duration(tokens * each) for tokens in (price.least, price.most))
        table.append(("", f"{name:<{width}}  {price}, {least} to {most}"))
    return (("prices", f"{about}; what a call takes at least, and at most:"), *table)


if __name__ == "__main__":
    sys.exit(main())
