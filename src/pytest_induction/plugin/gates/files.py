"""Gate files: `*.gates.toml` and the gates of a pyproject.toml, collected as tests. Nothing is loaded before a test runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_induction.errors import ArgumentError, InductionError, missing
from pytest_induction.files import is_file
from pytest_induction.formatting import as_message, as_node
from pytest_induction.model.specs import IfThere, module_names
from pytest_induction.plugin.cache import CACHE, Entry, VerdictCache
from pytest_induction.plugin.failures import SKIP
from pytest_induction.plugin.gates.items import GateItem
from pytest_induction.plugin.gates.sweeping import kept_at, opened
from pytest_induction.plugin.gates.table import Expectation, Gate, read_gates, shown
from pytest_induction.plugin.gates.values import ModelNamed, RunNamed

CHOICE = {"column": "columns", "where": "where"}  # key of a gate that is about a log -> argument of `load_run`
BUDGET = "budget"
Setting = Callable[[str], str | None]
"""What the session's options and ini keys say: of what a gate does not say itself."""


class GateFile(pytest.File):
    """A file of gates. One that cannot be read is one error of collection."""

    def __init__(self, *, setting: Setting, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._setting = setting

    def collect(self) -> Iterator[pytest.Collector]:
        try:
            gates = read_gates(self.path)
        except InductionError as error:
            raise self.CollectError(str(error)) from None
        for gate in gates:
            yield FileGate.from_parent(self, name=as_node(gate.name), gate=gate, setting=self._setting)


class FileGate(pytest.Collector):
    """All that a file expects of one model or run, which is loaded by the first of its tests and let go after the last.

    What is wrong with the gate fails those of its tests that it concerns, in their setup. Where tests are only listed it is an
    error of collection.
    """

    def __init__(self, *, gate: Gate, setting: Setting, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gate = gate
        self._opening = Opening(gate, setting, self.config)
        self._loaded: Any = None
        self._failed: tuple[str, InductionError] | None = None  # the test that could not have it, and why

    def collect(self) -> Iterator[pytest.Item]:
        unmarked = self._mark()
        skips = bool(self._gate.settings.get(SKIP))
        allowed = skips or self.config.option.induction_skip_if_missing
        problems = dict.fromkeys(
            unmarked or each.problem for each in self._gate.expectations if not (each.is_missing and allowed)
        )
        problems.pop("", None)
        if problems and self.config.option.collectonly:
            raise self.CollectError("\n".join(map(as_message, problems)))
        for each in self._gate.expectations:
            problem = unmarked or each.problem
            yield GateItem.from_parent(
                self,
                name=each.name,
                bind=partial(_refuse, problem, is_missing=each.is_missing) if problem else partial(self._load, each.name),
                kept=partial(self._kept, each),
                skip_if_missing=skips,
                check=partial(self._assert, each),
                line=self._gate.line,
                title=f"{self.name}::{each.name}",
            )

    @property
    def text(self) -> Path | None:
        """The text that the gate names."""
        text: Path | None = self._gate.settings.get("text")
        return text

    def teardown(self) -> None:
        module = getattr(self._loaded, "module", None)
        left = None if module is None else weakref.ref(module)
        self._loaded = self._failed = module = None
        if left is not None and left() is not None:
            gc.collect()  # some refer to themselves in a circle; it takes half a second where transformers is loaded

    def _mark(self) -> str:
        """Put the gate's marks on all its tests. Returns what pytest has against one of them."""
        for mark in self._gate.marks:
            try:
                decorator: pytest.MarkDecorator = getattr(pytest.mark, mark.name)
                self.add_marker(decorator.with_args(*mark.args, **mark.kwargs))
            except pytest.fail.Exception as error:
                return f"{shown(self.path)}, gate `{self.name}`, `marks`: {error.msg}"
        return ""

    def _kept(self, expectation: Expectation) -> Entry | None:
        """Where the verdict on an expectation is kept, if it can be."""
        cache: VerdictCache = self.config.stash[CACHE]
        subject, signature = self._gate.subject, expectation.signature
        if signature is None or not isinstance(subject, ModelNamed) or not cache.is_on:
            return None
        return cache.entry(shown(subject.spec), signature.claim, expectation.arguments, self._opening.of_model)

    def _load(self, test: str) -> Any:
        """The model or run. Where it cannot be had, each test gets the same one-line error; one that is run again tries again."""
        if self._failed is not None and self._failed[0] != test:
            raise self._failed[1].with_traceback(None)
        if self._loaded is None:
            try:
                self._loaded = self._opening(self._gate.subject)
            except InductionError as error:
                error.__cause__ = error.__context__ = None
                self._failed = (test, error.with_traceback(None))
                raise
        return self._loaded

    def _assert(self, expectation: Expectation, subject: Any) -> None:
        signature = expectation.signature
        if signature is None:
            _refuse(expectation.problem)
        else:
            arguments = {name: self._opening(value) for name, value in expectation.arguments.items()}
            if BUDGET in signature.parameters and BUDGET not in arguments and (budget := self._opening.budget) is not None:
                arguments[BUDGET] = budget
            signature.claim.function()(**{signature.subject: subject}, **arguments)


class Opening:
    """From what a gate names to what is there: models, runs, lists of runs; everything else is what it is."""

    def __init__(self, gate: Gate, setting: Setting, config: pytest.Config) -> None:
        self._gate = gate
        self._setting = setting
        self._config = config

    def __call__(self, named: Any) -> Any:
        if isinstance(named, ModelNamed):
            return self._model(named)
        if isinstance(named, RunNamed):
            return self._run(named)
        if isinstance(named, list):
            return [self(each) for each in named]
        return named

    def _model(self, named: ModelNamed) -> Any:
        from pytest_induction.model.load import load_model

        if is_file(named.spec):
            return Path(shown(named.spec))  # measurements, which the assertion reads
        of_subject = {"dtype": self._of("dtype")} if named is self._gate.subject else {}  # types may be what is compared
        measured = {"seed": self._seed, "device": self._of("device"), "memory": self._of("memory")}
        ours: dict[str, Any] = {"trust_remote_code": self._trusts_code, "without_pattern": self._without_pattern(named)}
        return load_model(shown(named.spec), **measured, **of_subject, **ours)

    def _run(self, named: RunNamed) -> Any:
        ours = ("device", "dtype", "memory")
        settings = {"seed": self._seed, "trust_remote_code": self._trusts_code, **{name: self._of(name) for name in ours}}
        own = {name: self._gate.settings.get(name) for name in ("factory", "text")}
        own["without_pattern"] = self._without_pattern(named)
        choice = {argument: self._gate.settings.get(key) or self._chosen(key) for key, argument in CHOICE.items()}
        return opened(
            named.spec if "://" in named.spec else shown(named.spec), kept_at(self._config), **choice, **settings, **own
        )

    def _chosen(self, key: str) -> dict[str, str]:
        """What the session chooses in logs."""
        from pytest_induction.runs.logs.columns import pairs

        given = self._config.getoption(f"induction_{key}") or self._config.getini(f"induction_{key}")
        return pairs(f"--induction-{key}", given)

    @property
    def of_model(self) -> dict[str, Any]:
        """All that a verdict on the gate's model depends on, beside the model and what is asserted."""
        named = {name: self._of(name) for name in ("device", "dtype", "memory", BUDGET)}
        without = list(module_names(self._of("without_pattern") or ()))
        return {**named, "seed": self._seed, "trust_remote_code": self._trusts_code, "without_pattern": without}

    @property
    def budget(self) -> float | str | None:
        """What each call may spend: what the gate says, else the session."""
        budget: float | str | None = self._of(BUDGET)
        return budget

    @property
    def _seed(self) -> int:
        return int(self._of("seed") or 0)

    @property
    def _trusts_code(self) -> bool:
        """Whether code may run that came with weights: what the gate says, else the command line."""
        return bool(self._gate.settings.get("trust_remote_code", self._config.option.induction_trust_remote_code))

    def _without_pattern(self, named: ModelNamed | RunNamed) -> tuple[str, ...]:
        """Modules declared to have no attention pattern. What the gate's own model has, one that it is compared with may lack."""
        names = module_names(self._of("without_pattern") or ())
        return names if named is self._gate.subject else tuple(map(IfThere, names))

    def _of(self, name: str) -> Any:
        """What the gate says, else the session."""
        return self._gate.settings.get(name, self._setting(name))


def _refuse(problem: str, *, is_missing: bool = False) -> None:
    error = ArgumentError(problem)
    raise missing(error) if is_missing else error
