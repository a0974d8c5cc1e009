"""What one pytest session holds: its model, its settings, its terminal. Imports the standard library and pytest until used."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

if TYPE_CHECKING:
    from pytest_induction.bound import Induction
    from pytest_induction.models.protocol import ModelUnderTest


class SessionModel:
    """The model of this session: loaded at the first use, once, and its failure remembered like its success."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._loaded: ModelUnderTest | Exception | None = None
        self._last: tuple[Any, ModelUnderTest] | None = None

    def check(self) -> None:
        """Raise a usage error for what can be seen to be wrong without loading anything."""
        from pytest_induction.errors import InductionError
        from pytest_induction.specs import check_spec, memory_size

        given: tuple[tuple[str, Callable[[str], object], str], ...] = (
            ("model", check_spec, self.spec or ""),
            ("memory", memory_size, self._setting("memory") or "1GB"),
        )
        for option, check, value in given:
            try:
                check(value)
            except InductionError as error:
                raise pytest.UsageError(f"--induction-{option}: {error}") from None
        _ = self.seed
        if self.text is not None and (not self.text.is_file() or not self.text.stat().st_size):
            raise pytest.UsageError(f"--induction-text: {str(self.text)!r} is {'empty' if self.text.is_file() else 'not a file'}")

    def check_benchmark(self) -> None:
        """Raise a usage error unless there is something to time, and something to time it with."""
        if not hasattr(self._config.option, "benchmark_only"):
            raise pytest.UsageError("--induction-benchmark needs pytest-benchmark: pip install 'pytest-induction[benchmark]'")
        if self.spec is None:
            raise pytest.UsageError("--induction-benchmark: no model, give --induction-model or the ini key induction_model")
        _ = self.max_overhead

    @property
    def collected(self) -> str | None:
        """The model that is gated or timed without a test file: the command line's, for timing the ini file's too."""
        return self.spec if self._config.option.induction_benchmark else self._config.option.induction_model

    @property
    def max_overhead(self) -> float | None:
        value = self._setting("max_overhead")
        try:
            bound = None if value is None else float(value)
        except ValueError:
            bound = 0.0
        if bound is not None and not 0 < bound < float("inf"):
            raise pytest.UsageError(f"--induction-max-overhead must be a number above 0, got {value!r}")
        return bound

    @property
    def spec(self) -> str | None:
        return self._path_setting("model")

    @property
    def text(self) -> Path | None:
        text = self._path_setting("text")
        return None if text is None else Path(text)

    @property
    def seed(self) -> int:
        value = self._setting("seed") or "0"
        if not value.isdecimal():
            raise pytest.UsageError(f"--induction-seed must be a whole number from 0 up, got {value!r}")
        return int(value)

    def load(self) -> ModelUnderTest:
        """The named model. Raises the same one-line error every time if it cannot be had."""
        if self._loaded is None:
            from pytest_induction.errors import InductionError, ModelError
            from pytest_induction.models.load import load_model

            try:
                if self.spec is None:
                    raise ModelError(
                        "no model: give --induction-model or the ini key induction_model, or override the fixture "
                        "`induction_model` in conftest.py to return your model"
                    )
                self._loaded = load_model(
                    self.spec, device=self._setting("device"), dtype=self._setting("dtype"), **self._measuring
                )
            except InductionError as error:
                self._loaded = error
        if isinstance(self._loaded, Exception):
            raise self._loaded.with_traceback(None)
        return self._loaded

    def adopt(self, model: Any) -> ModelUnderTest:
        """The model under test for whatever an overriding fixture gave; the last one is kept."""
        from pytest_induction.models.load import load_model

        if self._last is None or self._last[0] is not model:
            self._last = (model, load_model(model, **self._measuring))
        return self._last[1]

    def bind(self) -> Induction:
        """The object that gates and fixtures work with."""
        from pytest_induction.bound import Induction

        return Induction(self.load(), text=self.text)

    @property
    def _measuring(self) -> dict[str, Any]:
        """What applies to a model however it came."""
        return {
            "seed": self.seed,
            "memory": self._setting("memory"),
            "attach": lambda model: self._config.hook.pytest_induction_attach(model=model),
        }

    def _setting(self, name: str) -> str | None:
        given = self._config.getoption(f"induction_{name}")
        value = self._config.getini(f"induction_{name}") if given is None else given
        return value or None

    def _path_setting(self, name: str) -> str | None:
        """A setting that may be a path: the ini file's are relative to where it lies."""
        value = self._setting(name)
        root = self._config.inipath.parent if self._config.inipath else self._config.rootpath
        if value is None or self._config.getoption(f"induction_{name}") is not None:
            return value
        beside = str(root / value)
        return beside if Path(beside.partition(".py:")[0] + ".py" * (".py:" in beside)).exists() else value


def open_terminal(config: pytest.Config) -> TextIO | None:
    """The terminal that pytest reports on, past its capturing, or None where there is none; the caller closes it."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or not getattr(reporter, "isatty", False):
        return None
    capture = config.pluginmanager.getplugin("capturemanager")
    try:
        if capture is None:
            descriptor = os.dup(sys.stdout.fileno())
        else:
            with capture.global_and_fixture_disabled():
                descriptor = os.dup(sys.stdout.fileno())
    except (OSError, ValueError):  # no file behind it
        return None
    return os.fdopen(descriptor, "w", encoding="utf-8")
