"""What one pytest session holds: its model, its settings, its terminal. Imports the standard library and pytest until used."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from pytest_induction.files import is_there
from pytest_induction.formatting import Command, Lines, as_message, as_node, command_line, for_terminal
from pytest_induction.progress import NAME as PROGRESS

if TYPE_CHECKING:
    from pytest_induction.fixture import Induction
    from pytest_induction.model.protocol import ModelUnderTest


CHECKED = {  # setting -> what checks it
    "memory": "memory_size",
    "seed": "check_seed",
    "device": "check_device",
    "dtype": "check_dtype",
    "max_overhead": "check_bound",
    "budget": "check_budget",
}


TRUST = "trust_remote_code"  # a flag that the ini file does not have
WITHOUT = "without_pattern"  # one or several names
REPEATED = (
    "model",
    "text",
    "device",
    "dtype",
    "memory",
    "budget",
    "baseline",
    TRUST,
    WITHOUT,
)  # settings of the command line that a test depends on
LEFT_TO_OPTIONS = ("seed", "device", "dtype", "memory", "budget", TRUST, WITHOUT)  # and those that a gate file may leave open
ON_RUNS = (
    "reference",
    "before_tokens",
    "before_step",
    "factory",
    "text",
    "device",
    "dtype",
    "memory",
    "seed",
    "column",
    "where",
    TRUST,
    WITHOUT,
)  # and those that a gate of a run depends on
SEVERAL = ("column", "where")  # each is an option of its own, as a column's name may have a comma


class SessionModel:
    """The model of this session: loaded at the first use, once, and its failure remembered like its success."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._loaded: ModelUnderTest | Exception | None = None
        self._last: tuple[Any, ModelUnderTest] | None = None

        self.attach = _hook(config)

    def check_settings(self) -> None:
        """Raise a usage error for a setting that no model could make sense of; loads nothing where none is given."""
        _check_consent(self._config)
        given = {name: value for name in CHECKED if (value := self.setting(name)) is not None}
        if not given:
            return
        from pytest_induction.errors import InductionError
        from pytest_induction.model import specs

        for name, value in given.items():
            try:
                getattr(specs, CHECKED[name])(value)
            except InductionError as error:
                raise usage_error(f"{self._source(name)}: {error}") from None

    def check(self) -> None:
        """Raise a usage error for a model or text that can be seen to be wrong without loading anything."""
        from pytest_induction.errors import InductionError
        from pytest_induction.model.specs import check_spec, check_text

        may_miss = self._config.option.induction_skip_if_missing
        try:
            check_spec(self.spec or "")
        except InductionError as error:
            if not (error.is_missing and may_miss):
                raise usage_error(f"{self._source('model')}: {error}") from None
        try:
            if self.text is not None:
                check_text(self.text)
        except InductionError as error:
            if not (error.is_missing and may_miss):
                raise usage_error(f"--induction-text: {error}") from None

    def check_benchmark(self) -> None:
        """Raise a usage error unless there is something to time, and something to time it with."""
        if not hasattr(self._config.option, "benchmark_only"):
            raise usage_error("--induction-benchmark needs pytest-benchmark: pip install 'pytest-induction[benchmark]'")
        if self.spec is None:
            raise usage_error("--induction-benchmark: no model, give --induction-model or the ini key induction_model")

    @property
    def collected(self) -> str | None:
        """The model that is gated or timed without a test file: the command line's, for timing the ini file's too."""
        return self.spec if self._config.option.induction_benchmark else self._config.option.induction_model

    @property
    def max_overhead(self) -> float | None:
        value = self.setting("max_overhead")
        return None if value is None else float(value)

    @property
    def spec(self) -> str | None:
        return self._path_setting("model")

    @property
    def text(self) -> Path | None:
        text = self._path_setting("text")
        return None if text is None else Path(text)

    @property
    def seed(self) -> int:
        return int(self.setting("seed") or "0")

    def load(self) -> ModelUnderTest:
        """The named model. Raises the same one-line error every time if it cannot be had."""
        if self._loaded is None:
            from pytest_induction.errors import InductionError, ModelError, missing
            from pytest_induction.model.load import load_model

            try:
                if self.spec is None:
                    raise missing(
                        ModelError(
                            "no model: give --induction-model or the ini key induction_model, or override the fixture "
                            "`induction_model` in conftest.py to return your model"
                        )
                    )
                self._loaded = load_model(
                    self.spec, device=self.setting("device"), dtype=self.setting("dtype"), **self._measuring
                )
            except InductionError as error:
                self._loaded = error
        if isinstance(self._loaded, Exception):
            raise self._loaded.with_traceback(None)
        return self._loaded

    def adopt(self, model: Any) -> ModelUnderTest:
        """The model under test for whatever an overriding fixture gave; the last one is kept."""
        from pytest_induction.model.load import load_model

        if self._last is None or self._last[0] is not model:
            self._last = (model, load_model(model, **self._measuring))
        return self._last[1]

    def of_model(self) -> dict[str, Any]:
        """All that a verdict on the session's model depends on, beside the model and what is asserted."""
        named = {name: self.setting(name) for name in ("device", "dtype", "memory", "budget")}
        ours = {"trust_remote_code": self.trusts_code, "without_pattern": list(self.without_pattern)}
        return {**named, **ours, "seed": self.seed, "text": self.text}

    def bind(self) -> Induction:
        """The object that gates and fixtures work with."""
        from pytest_induction.fixture import Induction

        return Induction(self.load(), text=self.text, defaults=self.defaults)

    @property
    def defaults(self) -> dict[str, Any]:
        """What the session gives every call that takes it."""
        budget = self.setting("budget")
        return {} if budget is None else {"budget": budget}

    def again(self, item: pytest.Item, seed: int | None) -> str:
        """The command that runs this item alone, and makes it measure the same again."""
        return command_line(self.words_again(item, seed))

    def words_again(self, item: pytest.Item, seed: int | None) -> list[str]:
        """That command word by word."""
        if item.path.suffix == ".toml":
            return self._again_in_file(item)
        of_suite = item.nodeid.rpartition("::")[0]
        run = next((name for name in self._config.option.induction_run or () if as_node(name) == of_suite), None)
        if run is not None:
            return self._again_on_run(item, run)
        given = {name: self._config.getoption(f"induction_{name}") for name in REPEATED}
        given["seed"] = None if seed is None else str(seed)
        if given["model"] is not None and of_suite == as_node(given["model"]):
            options, chosen = [], ["-k", item.name]
        else:  # the options would bring the gates with them
            options, chosen = (
                [f"-oinduction_model={model}"] if (model := given.pop("model")) is not None else [],
                [_as_path(item.nodeid)],
            )
            if "induction_run" in getattr(item, "fixturenames", ()) and self._config.option.induction_run:
                runs = self._config.option.induction_run
                given_runs = "-oinduction_run=" + "\n".join(runs)
                options.append(given_runs if any("\n" in run for run in runs) else Lines(given_runs))
                given |= {name: getattr(self._config.option, f"induction_{name}") for name in ("factory", *SEVERAL)}
        return _command(given, *chosen, first=options)

    def _again_on_run(self, item: pytest.Item, run: str) -> list[str]:
        """The command that runs a gate of a training run alone."""
        named = {"run": run, **{name: getattr(self._config.option, f"induction_{name}") for name in ON_RUNS}}
        return _command(named, "-k", item.name)

    def _again_in_file(self, item: pytest.Item) -> list[str]:
        """The command that runs a test of a gate file alone, with what its gate leaves to the command line."""
        given = {name: getattr(self._config.option, f"induction_{name}") for name in LEFT_TO_OPTIONS}
        path = os.path.relpath(item.path, self._config.invocation_params.dir)
        return _command(given, _as_path(path + item.nodeid[item.nodeid.index("::") :]))

    @property
    def _measuring(self) -> dict[str, Any]:
        """What applies to a model however it came."""
        ours = {"trust_remote_code": self.trusts_code, "without_pattern": self.without_pattern}
        return {"seed": self.seed, "memory": self.setting("memory"), **ours}

    @property
    def trusts_code(self) -> bool:
        """Whether the command line lets code run that came with weights."""
        return bool(self._config.option.induction_trust_remote_code)

    @property
    def without_pattern(self) -> tuple[str, ...]:
        """Modules that are declared to have no attention pattern: the command line's, else the ini file's."""
        from pytest_induction.model.specs import module_names

        return module_names(self.setting(WITHOUT) or ())

    def setting(self, name: str) -> str | None:
        """What the command line gives, or else the ini file; None for nothing."""
        given = self._config.getoption(f"induction_{name}")
        value = self._config.getini(f"induction_{name}") if given is None else given
        return value or None

    def _source(self, name: str) -> str:
        """Where a setting was made."""
        on_command_line = self._config.getoption(f"induction_{name}") is not None
        return f"--induction-{name.replace('_', '-')}" if on_command_line else f"ini key induction_{name}"

    def _path_setting(self, name: str) -> str | None:
        """A setting that may be a path: the ini file's are relative to where it lies."""
        value = self.setting(name)
        if value is None or self._config.getoption(f"induction_{name}") is not None:
            return value
        beside = str(place_of_settings(self._config) / value)
        return beside if is_there(beside.partition(".py:")[0] + ".py" * (".py:" in beside)) else value


def _command(given: Mapping[str, str | list[str] | bool | None], *chosen: str, first: Iterable[str] = ()) -> list[str]:
    """A run of pytest with those of our options that are given, after what comes `first`."""
    options = [
        each for name, value in given.items() if value is not None and value is not False for each in _options(name, value)
    ]
    return ["pytest", *first, *options, *chosen]


def _as_path(nodeid: str) -> str:
    """Where a test is, so that pytest takes it for no option."""
    return f"./{nodeid}" if nodeid.startswith("-") else nodeid


def _options(name: str, value: str | list[str] | bool) -> list[str]:
    return [_written(name, each) for each in value] if name in SEVERAL and isinstance(value, list) else [_written(name, value)]


def _written(name: str, value: str | list[str] | bool) -> str:
    option = f"--induction-{name.replace('_', '-')}"
    return option if value is True else f"{option}={','.join(value) if isinstance(value, list) else value}"


def _check_consent(config: pytest.Config) -> None:
    """Raise a usage error where the consent to run code comes from the ini file, which may have come with that code."""
    option = _written(TRUST, value=True)
    if not config.option.induction_trust_remote_code or hasattr(config, "workerinput"):
        return
    given = [*map(str, config.invocation_params.args), *shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))]
    if not any(each == option or each.startswith("@") for each in given):
        raise usage_error(f"{option} must be given on the command line: the ini file may not say it")


def usage_error(message: str) -> pytest.UsageError:
    """The error for an option that cannot be used; what the message quotes adds no line to it."""
    return pytest.UsageError(as_message(message))


def write_lines(reporter: pytest.TerminalReporter, lines: Iterable[tuple[str, Mapping[str, bool]]]) -> None:
    """Lines of ours in pytest's terminal, each with how it is marked; what they quote forges none, and narrow ones are broken."""
    for line, marks in lines:
        if isinstance(line, Command):
            reporter.write_line(line)
            continue
        for each in for_terminal(line, reporter.config.get_terminal_writer().fullwidth):
            reporter.write_line(each, **marks)


def place_of_settings(config: pytest.Config) -> Path:
    """The directory that paths in the ini file are relative to: its own, or pytest's root where there is none."""
    return config.inipath.parent if config.inipath else config.rootpath


def seen_from_here(config: pytest.Config, path: Path) -> Path:
    """The path as it is told: relative to where pytest was started, if it lies below."""
    here = config.invocation_params.dir
    return path.relative_to(here) if path.is_relative_to(here) else path


def _hook(config: pytest.Config) -> Callable[[Any], Any]:
    """The hook by which conftest.py files attach to models, as a function of a model."""

    def pytest_induction_attach(model: Any) -> Any:
        return config.hook.pytest_induction_attach(model=model)

    pytest_induction_attach.__qualname__ = "pytest_induction_attach"  # what messages call it
    return pytest_induction_attach


def open_terminal(config: pytest.Config) -> TextIO | None:
    """Where progress is shown, past pytest's capturing; the caller closes it.

    The terminal that pytest reports on, or standard error where that is none, as in CI. A worker of xdist, which has no terminal,
    writes to the standard error that it has from the session which started it. None where pytest itself reports nothing.
    """
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None and worker_of(config) is None:
        return None
    is_terminal = bool(getattr(reporter, "isatty", False))
    capture = config.pluginmanager.getplugin("capturemanager")
    try:
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            descriptor = os.dup((sys.stdout if is_terminal else sys.stderr).fileno())
    except (OSError, ValueError, AttributeError):  # no file behind it
        return None
    return os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")


def worker_of(config: pytest.Config) -> str | None:
    """Which worker of xdist this is, such as "gw0"; None for a session that runs its tests itself."""
    return getattr(config, "workerinput", {}).get("workerid")


def says(config: pytest.Config) -> str:
    """What lines of progress begin with."""
    worker = worker_of(config)
    return PROGRESS if worker is None else f"{PROGRESS} [{worker}]"
