"""The options of the command line and the keys of the ini file. Imports the standard library and pytest."""

from __future__ import annotations

from typing import Any

import pytest

PREFIXES = ("--induction-", "induction_")  # of options, and of ini keys
SETTINGS = {
    "model": "model under test: a local directory, hf:NAME[@REVISION], module.path:factory or path/file.py:factory",
    "text": "text file on which in-context learning is measured",
    "seed": "seed of the probes (default 0)",
    "device": "device a named model is loaded on (default cpu); auto: all there are, and the disk, as accelerate places it",
    "dtype": "floating-point type a named model is loaded in (default: as stored)",
    "memory": "what a forward pass may take, such as 4GB (default: half of what is free)",
    "budget": "what each call that draws until it is clear may spend: bare passes such as '60 passes', or seconds such as '30 s'",
    "max_overhead": "most that the scores may take, in bare forward passes; judged by --induction-benchmark",
}
RUN_SETTINGS = {
    "run": "training run to gate: a recorded one, a log or checkpoints, here or where fsspec reaches; may be repeated",
    "reference": "training run than which induction must not form later",
    "before_tokens": "tokens trained on by which induction must be there, however it came about, such as 2e9",
    "before_step": "optimiser step by which it must be there",
    "factory": "what makes the model of the checkpoints that --induction-run names: module.path:factory or path/file.py:factory",
}
LOG_SETTINGS = {
    "column": "column of a log that holds one of our measures: loss=train/ce; tokens_unit=1e9 for a count in billions; may be "
    "repeated",
    "where": "rows of a log that count, by what stands in a column, such as run=r0; may be repeated",
}
MODULE_SETTINGS = {
    "without_pattern": "modules of the model that mix positions and have no attention pattern, such as a recurrence: paths or "
    "classes, by commas; may be repeated",
}
REPORT_SETTINGS = {
    "report": "write a report when the session ends: PATH.html, PATH.json or PATH.md; may be repeated",
    "charts": "what is measured of each model for the report beside verdicts: all (default), none, or some, by commas",
}
BASELINE_SETTINGS = {
    "baseline": "JSON file of measurements with which those of this session are compared",
}
FLAGS = {
    "trust_remote_code": "let code run that came with the weights of a named model; the ini file cannot say so",
    "benchmark": "time the analyses of the model with pytest-benchmark, not gate it",
    "skip_if_missing": "skip gates and tests whose model, run or text is not there, rather than fail them",
    "update_baseline": "write what differs from the baseline, or is new, into its file, and fail, so that it is reviewed",
    "accept_baseline": "write what differs from the baseline, or is new, into its file, and pass",
}
CACHE = "keep verdicts of gates on models, and do not measure again what nothing has changed of (default: in pytest's cache)"
CALIBRATE = "measure so many times, with a seed each, and store tolerances of 2.8 standard deviations of the difference of two"


def add_options(parser: pytest.Parser) -> None:
    """All of them; an ini key feeds the fixtures and collects nothing by itself."""
    group = parser.getgroup("induction", "mechanistic tests of language models")
    for name, help_text in SETTINGS.items():
        group.addoption(_option(name), dest=f"induction_{name}", metavar=name.upper(), help=help_text)
        parser.addini(f"induction_{name}", help=f"{help_text}; collects nothing by itself", default=None)
    without = MODULE_SETTINGS["without_pattern"]
    group.addoption(_option("without_pattern"), dest="induction_without_pattern", action="append", metavar="NAME", help=without)
    parser.addini("induction_without_pattern", without, type="args", default=[])
    run, reference, factory = RUN_SETTINGS["run"], RUN_SETTINGS["reference"], RUN_SETTINGS["factory"]
    group.addoption("--induction-run", dest="induction_run", action="append", metavar="RUN", help=run)
    group.addoption("--induction-reference", dest="induction_reference", metavar="RUN", help=reference)
    group.addoption("--induction-factory", dest="induction_factory", metavar="FACTORY", help=factory)
    parser.addini("induction_run", f"{run}; collects nothing by itself", type="linelist", default=[])
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
    """Raise a usage error for an option that nobody knows and that begins as ours do, with the one that may be meant."""
    _, unknown = parser.parse_known_and_unknown_args([*arguments])
    for argument in unknown:
        name = argument.partition("=")[0]
        if name.startswith(PREFIXES[0][:-1]):
            _refuse("option", name, [*map(_option, (*_names(), *FLAGS, "cache", "calibrate"))])


def check_keys(config: pytest.Config) -> None:
    """Raise a usage error for an ini key that nobody knows and that begins as ours do, with the one that may be meant."""
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
