"""The options of the command line and the keys of the ini file. Imports the standard library and pytest."""

from __future__ import annotations

from typing import Any

import pytest

PREFIXES = ("--induction-", "induction_")  # of options, and of ini keys
SETTINGS = {
    "model": "the model to test: a local directory, hf:NAME[@REVISION], module.path:factory or path/file.py:factory",
    "text": "held-out text file, for the claims about in-context learning",
    "seed": "seed of the random test sequences (default 0)",
    "device": "device to load the model on, such as cuda (default cpu); auto spreads it over all devices and the disk",
    "dtype": "floating-point type to load the model in, such as bfloat16 (default: as stored)",
    "memory": "most memory that one forward pass may use, such as 4GB (default: half of what is free)",
    "budget": "most that one call may spend, in bare forward passes ('60 passes') or seconds ('30 s')",
    "max_overhead": "longest time the head scores may take, in bare forward passes; needs --induction-benchmark",
}
RUN_SETTINGS = {
    "run": "training run to test: a recorded run, a log, or checkpoints, as a path or a URL; may be repeated",
    "reference": "training run to compare with: induction must not form later than it did there",
    "before_tokens": "induction must have formed, fast or slowly, by this many training tokens, such as 2e9",
    "before_step": "induction must have formed, fast or slowly, by this optimiser step",
    "factory": "function that builds the model for the checkpoints of a run: module.path:factory or path/file.py:factory",
}
LOG_SETTINGS = {
    "column": "which column of a log holds a measure, such as loss=train/ce; tokens_unit=1e9 if tokens are counted in "
    "billions; may be repeated",
    "where": "read only the rows of a log that have this value in this column, such as run=r0; may be repeated",
}
MODULE_SETTINGS = {
    "without_pattern": "modules that mix positions but have no attention pattern, such as a recurrence; their paths or classes, "
    "separated by commas; may be repeated",
}
REPORT_SETTINGS = {
    "report": "write a report at the end of the session: PATH.html, PATH.json or PATH.md; may be repeated",
    "charts": "charts to measure for the report, beside the verdicts: all (default), none, or names separated by commas",
}
BASELINE_SETTINGS = {
    "baseline": "JSON file of stored measurements; this session's measurements are compared with them",
}
FLAGS = {
    "trust_remote_code": "allow code that comes with the model's weights to run; cannot be set in the ini file",
    "benchmark": "time the measurements with pytest-benchmark instead of testing the model",
    "skip_if_missing": "skip gates and tests whose model, run or text is missing, instead of failing them",
    "update_baseline": "write new and changed measurements into the baseline file, and fail, so that somebody reviews them",
    "accept_baseline": "write new and changed measurements into the baseline file, and pass",
}
CACHE = (
    "keep the verdicts of gates on models; a gate is measured again only if something it depends on changed "
    "(default place: pytest's cache)"
)
CALIBRATE = (
    "measure N times with different seeds, and store tolerances in the baseline: 2.8 standard deviations of the difference "
    "of two measurements"
)


def add_options(parser: pytest.Parser) -> None:
    """Add all of them. An ini key feeds the fixtures; it adds no tests by itself."""
    group = parser.getgroup("induction", "mechanistic tests of language models")
    for name, help_text in SETTINGS.items():
        group.addoption(_option(name), dest=f"induction_{name}", metavar=name.upper(), help=help_text)
        parser.addini(f"induction_{name}", help=f"{help_text}; used by fixtures, adds no tests by itself", default=None)
    without = MODULE_SETTINGS["without_pattern"]
    group.addoption(_option("without_pattern"), dest="induction_without_pattern", action="append", metavar="NAME", help=without)
    parser.addini("induction_without_pattern", without, type="args", default=[])
    run, reference, factory = RUN_SETTINGS["run"], RUN_SETTINGS["reference"], RUN_SETTINGS["factory"]
    group.addoption("--induction-run", dest="induction_run", action="append", metavar="RUN", help=run)
    group.addoption("--induction-reference", dest="induction_reference", metavar="RUN", help=reference)
    group.addoption("--induction-factory", dest="induction_factory", metavar="FACTORY", help=factory)
    parser.addini("induction_run", f"{run}; used by fixtures, adds no tests by itself", type="linelist", default=[])
    parser.addini("induction_reference", reference, default=None)
    for name in ("before_tokens", "before_step"):
        group.addoption(_option(name), dest=f"induction_{name}", metavar="N", help=RUN_SETTINGS[name])
        parser.addini(f"induction_{name}", RUN_SETTINGS[name], default=None)
    parser.addini("induction_factory", factory, default=None)
    for name, help_text in LOG_SETTINGS.items():
        form = "NAME=COLUMN" if name == "column" else "COLUMN=VALUE"
        group.addoption(_option(name), dest=f"induction_{name}", action="append", metavar=form, help=help_text)
        parser.addini(f"induction_{name}", help_text, type="linelist", default=[])
    report, charts = REPORT_SETTINGS["report"], REPORT_SETTINGS["charts"]
    group.addoption("--induction-report", dest="induction_report", action="append", metavar="PATH", help=report)
    group.addoption("--induction-charts", dest="induction_charts", metavar="NAMES", help=charts)
    parser.addini("induction_report", report, type="linelist", default=[])
    parser.addini("induction_charts", charts, default=None)
    baseline = BASELINE_SETTINGS["baseline"]
    group.addoption("--induction-baseline", dest="induction_baseline", metavar="FILE", help=baseline)
    parser.addini("induction_baseline", baseline, default=None)
    for name, help_text in FLAGS.items():
        group.addoption(_option(name), dest=f"induction_{name}", action="store_true", help=help_text)
    group.addoption(_option("cache"), dest="induction_cache", nargs="?", const="", metavar="DIR", help=CACHE)
    group.addoption("--induction-calibrate", dest="induction_calibrate", metavar="N", help=CALIBRATE)


def check_options(parser: pytest.Parser, arguments: list[str]) -> None:
    """Raise a usage error for an unknown option that begins as ours do, and name the one that may be meant."""
    _, unknown = parser.parse_known_and_unknown_args([*arguments])
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.startswith(PREFIXES[0][:-1]):
            _refuse("option", name, [*map(_option, (*_names(), *FLAGS, "cache", "calibrate"))])


def check_keys(config: pytest.Config) -> None:
    """Raise a usage error for an unknown ini key that begins as ours do, and name the one that may be meant."""
    held = vars(config)  # the public name of it is deprecated, and nothing takes its place
    written: Any = held.get("_inicfg", held.get("inicfg", {}))
    overridden = (each.partition("=")[0] for each in config.getoption("override_ini") or ())
    for name in (*written, *overridden):
        if name.startswith(PREFIXES[1]):
            try:
                config.getini(name)
            except ValueError:
                _refuse("ini key", name, [f"{PREFIXES[1]}{each}" for each in _names()])


def _names() -> tuple[str, ...]:
    """Every setting that is an option and an ini key."""
    return (
        *SETTINGS,
        *RUN_SETTINGS,
        *LOG_SETTINGS,
        *MODULE_SETTINGS,
        *REPORT_SETTINGS,
        *BASELINE_SETTINGS,
    )


def _refuse(what: str, name: str, known: list[str]) -> None:
    from pytest_induction.errors import meant

    longer = [each for each in known if each.startswith(f"{name}-")]
    raise pytest.UsageError(f"there is no {what} {name}{meant(name, longer or known)}")


def _option(name: str) -> str:
    return f"--induction-{name.replace('_', '-')}"
