"""The command line: `python -m pytest_induction`, then `doctor MODEL`, `sweep CHECKPOINTS -o RUN`, `draw RUN -o FILE` or
`report RECORDS.json -o PAGE.html`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_induction.errors import InductionError, ProbeError, RunError, reason
from pytest_induction.runs import command
from pytest_induction.specs import FORMS

if TYPE_CHECKING:
    from pytest_induction.models.protocol import ModelUnderTest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is well, 1 if something cannot be measured, 2 for an error, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m pytest_induction", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "say what a model is, how its attention is read, what can be measured on it, and what to change"
    doctor = commands.add_parser("doctor", help=about, description=about)
    doctor.add_argument("model", metavar="MODEL", help=FORMS)
    doctor.add_argument("--device", help="device it is loaded on (default cpu)")
    doctor.add_argument("--dtype", help="floating-point type it is loaded in (default: as stored)")
    doctor.add_argument("--memory", help="what a forward pass may take, such as 4GB (default: half of what is free)")
    command.add_trust(doctor)
    command.add_without_pattern(doctor)
    doctor.add_argument("--attach", help="function that shows the model's attention: conftest.py:pytest_induction_attach, say")
    doctor.set_defaults(command=_doctor)
    sweep = commands.add_parser("sweep", help=command.ABOUT, description=command.ABOUT)
    command.add_options(sweep)
    sweep.set_defaults(command=_sweep)
    about = "draw a training run as an SVG file: what changed where, the loss along the context, the path of the training"
    draw = commands.add_parser("draw", help=about, description=about)
    draw.add_argument("run", metavar="RUN", help="a recorded or swept run, or a log, as `load_run` takes it")
    draw.add_argument("-o", "--out", metavar="FILE", help="file that is written (default: the run's name and .svg, here)")
    named = "column of a log that holds one of our measures: loss=train/ce; may be given again"
    names = ("--column", "--induction-column")
    draw.add_argument(*names, dest="column", metavar="NAME=COLUMN", action="append", default=[], help=named)
    rows = "rows of a log that count, by what stands in a column: run=r0; may be given again"
    names = ("--where", "--induction-where")
    draw.add_argument(*names, dest="where", metavar="COLUMN=VALUE", action="append", default=[], help=rows)
    draw.set_defaults(command=_draw)
    about = "render the records of --induction-report RECORDS.json as a page or as Markdown; needs neither torch nor a model"
    report = commands.add_parser("report", help=about, description=about)
    report.add_argument("records", metavar="RECORDS.json", help="what --induction-report PATH.json wrote")
    report.add_argument(
        "-o", "--out", metavar="FILE", required=True, help="file that is written: PATH.html, PATH.md or PATH.json"
    )
    report.set_defaults(command=_report)
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except InductionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _doctor(given: argparse.Namespace) -> int:
    from pytest_induction.models.diagnosis import as_text
    from pytest_induction.models.load import function_named, load_model

    attach = () if given.attach is None else function_named(given.attach)
    settings = {name: getattr(given, name) for name in ("device", "dtype", "memory", "trust_remote_code", "without_pattern")}
    subject = load_model(given.model, attach=attach, **settings)
    lines, fits = subject.diagnosis(), True
    try:
        lines += (("probes", _probes(subject)),)
    except ProbeError as error:
        lines += (
            ("probes", f"none: {error}"),
            ("to do", "measure it on token ids of your own: measure_heads(model, tokens=...)"),
        )
        fits = False
    print(as_text(lines, indent=""))
    return int(subject.way is None or not fits)


def _sweep(given: argparse.Namespace) -> int:
    said, code = command.run(given)
    print(said, file=sys.stderr if code == 130 else sys.stdout)
    return code


def _draw(given: argparse.Namespace) -> int:
    from pytest_induction.report.run_picture import svg
    from pytest_induction.runs.logs.choice import pairs
    from pytest_induction.runs.logs.taken import taken
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.picture import picture_of

    columns, where = pairs("--column", given.column), pairs("--where", given.where)
    run = load_run(given.run, columns=columns or None, where=where or None)
    picture = picture_of(run)
    name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")
    out = Path(given.out or f"{name or 'run'}.svg")
    try:
        out.write_text(svg(picture), encoding="utf-8")
    except OSError as error:
        raise RunError(f"{out} cannot be written: {reason(error)}") from None
    lacks = f"; not recorded: {', '.join(picture['missing'])}" if picture["missing"] else ""
    print(f"{out}: {len(run)} snapshots, steps {run.steps[0]} to {run.steps[-1]}{lacks}", *taken(run), sep="\n")
    return 0


def _report(given: argparse.Namespace) -> int:
    from pytest_induction.report.writing import render

    render(given.records, given.out)
    print(given.out)
    return 0


def _probes(subject: ModelUnderTest) -> str:
    """What it is probed with, and how many sequences share a pass. Raises `ModelError` if one as long as the longest fails."""
    import torch

    from pytest_induction.batching import batch_size, bytes_per_sequence
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


if __name__ == "__main__":
    sys.exit(main())
