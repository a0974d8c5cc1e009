"""The baseline of one pytest session: asked where tests run, written once where they are reported.

Imports the standard library and pytest until used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.files import expanded, is_directory, is_there
from pytest_induction.formatting import command_line
from pytest_induction.plugin.session import SessionModel, place_of_settings, seen_from_here, usage_error, write_lines

if TYPE_CHECKING:
    from pytest_induction.baselines.checking import Book, InductionBaseline, Line, Mode, OfHeads
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.records import Evidence

FIXTURE = PAYLOAD = "induction_baseline"
FILE = "induction-baseline.json"
GATE = "heads_preserved"  # the claim that needs a baseline
ENTRY_OF_GATE = "heads"
ASKING: pytest.StashKey[InductionBaseline] = pytest.StashKey()
COMPLETED: pytest.StashKey[bool] = pytest.StashKey()


class SessionBaselines:
    """A plugin of its own: gives tests their `InductionBaseline`, repeats them for calibration, gathers what came of them."""

    def __init__(self, config: pytest.Config, session_model: SessionModel, problems: list[str]) -> None:
        self._config = config
        self._model = session_model
        self._problems = problems  # of the session, for its reports
        self._opened: Book | None = None
        self._item: pytest.Item | None = None  # whose call is under way
        self._payloads: dict[str, Mapping[str, Any]] = {}  # by node id
        self._users: set[str] = set()  # tests that have the fixture
        self._narrowed = False  # whether tests are known to have been left out
        self._lines: list[Line] = []

    @property
    def mode(self) -> Mode:
        """What is done with what differs."""
        if self._config.option.induction_update_baseline:
            return "update"
        return "accept" if self._config.option.induction_accept_baseline else "compare"

    @property
    def path(self) -> Path:
        """The command line's, else the ini file's or one with the usual name, beside that."""
        given = self._config.option.induction_baseline
        if given:
            return self._config.invocation_params.dir / expanded(given)
        return place_of_settings(self._config) / (self._config.getini("induction_baseline") or FILE)

    @property
    def book(self) -> Book:
        """The session's baseline; its file is not read before it is asked for entries."""
        if self._opened is None:
            from pytest_induction.baselines.checking import Book

            self._opened = Book(self.path, self._shown, self.mode)
        return self._opened

    @property
    def _shown(self) -> str:
        """What the file is called: as it was given, else from where pytest was started."""
        return self._config.option.induction_baseline or str(seen_from_here(self._config, self.path))

    @property
    def repeats(self) -> int:
        """How often a test is run before it counts, to see how noisy it is."""
        given = self._config.option.induction_calibrate
        if given is None:
            return 0
        from pytest_induction.baselines.compare import repeats_wanted

        return repeats_wanted(given)

    def check(self) -> None:
        """Raise a usage error for options that contradict each other, and for a file that is missing or damaged."""
        option = self._config.option
        if option.induction_update_baseline and option.induction_accept_baseline:
            raise usage_error("--induction-update-baseline fails and --induction-accept-baseline passes: give one of them")
        if option.induction_calibrate is not None:
            self._check_calibrate()
        if not option.induction_baseline:
            return
        if is_directory(self.path) or not is_directory(self.path.parent):
            what = "is a directory: name a file" if is_directory(self.path) else "would lie in a directory that does not exist"
            raise usage_error(f"--induction-baseline: {self._shown} {what}")
        if not is_there(self.path) and self.mode == "compare":
            raise usage_error(
                f"--induction-baseline: there is no {self._shown!r}: write it with --induction-update-baseline, and review it"
            )
        from pytest_induction.errors import BaselineError

        try:
            self.book.entries()
        except BaselineError as error:
            raise usage_error(f"--induction-baseline: {error}") from None

    def _check_calibrate(self) -> None:
        from pytest_induction.errors import ArgumentError

        try:
            _ = self.repeats
        except ArgumentError as error:
            raise usage_error(f"--induction-calibrate: {error}") from None
        if self.mode == "compare":
            raise usage_error(
                "--induction-calibrate writes tolerances: give --induction-update-baseline or --induction-accept-baseline too"
            )

    def fixture(self, request: pytest.FixtureRequest) -> InductionBaseline:
        """What `induction_baseline` is for a test. Raises `BaselineError` where the test asks for it too late to be repeated."""
        if self.repeats and self._item is request.node:
            from pytest_induction.errors import BaselineError

            raise BaselineError(f"--induction-calibrate repeats tests that take {FIXTURE!r} as an argument; this one asks later")
        return self._asking(request.node, lambda: self._model.adopt(request.getfixturevalue("induction_model")))

    def gates(self) -> dict[str, Callable[[Any], Evidence]]:
        """The gate of a named model that holds it against the file: where that has its heads, or is to be given them.

        It is there too where a file is named and gates are all that is run: a file that lacks the heads fails it.
        """
        from pytest_induction.errors import BaselineError

        named = self._config.option.induction_baseline and self._config.args_source is not pytest.Config.ArgsSource.ARGS
        try:
            wanted = named or self.mode != "compare" or ENTRY_OF_GATE in self.book.entries()
        except BaselineError:
            wanted = True  # which says what is wrong
        return {GATE: self._gate} if wanted else {}

    def _gate(self, induction: Any) -> Evidence:
        from pytest_induction.errors import BaselineFailed

        item: Any = self._item  # a gate is checked while it runs
        try:
            return self._asking(item, lambda: induction.model).assert_heads_preserved(name=ENTRY_OF_GATE)
        except BaselineFailed as error:
            message = str(error)
        pytest.fail(message, pytrace=False)

    def _asking(self, item: pytest.Item, model: Callable[[], Any]) -> InductionBaseline:
        from pytest_induction.baselines.checking import InductionBaseline

        asking = item.stash[ASKING] = InductionBaseline(
            self.book,
            name=self._entry_of(item),
            again=self._again(item),
            model=model,
            where=lambda: _where(item),
            of_heads=self._of_heads,
            first_seed=self._model.seed,
        )
        return asking

    def _of_heads(self) -> OfHeads:
        from pytest_induction.plugin.gates.heads import of_heads

        return of_heads(self._model.text)

    def _entry_of(self, item: pytest.Item) -> str:
        """The node id, which is relative to the ini file; where there is none, relative to the directory of the baseline."""
        path, colons, rest = ("" if item.parent is None else item.parent.nodeid).partition(
            "::"
        )  # the item's may have xdist's group
        if self._config.inipath is None and item.path.is_relative_to(self.path.parent):
            path = item.path.relative_to(self.path.parent).as_posix()
        return f"{path}{colons}{rest}::{item.name}"

    def _again(self, item: pytest.Item) -> str:
        """The command that writes what this test measures."""
        command, *rest = self._model.words_again(item, self._config.getoption("induction_seed"))
        given = self._config.option.induction_baseline
        named = any(each.startswith("--induction-baseline=") for each in rest)
        options = [f"--induction-baseline={given}"] if given and not named else []
        return command_line([command, "--induction-update-baseline", *options, *rest])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        item.stash[COMPLETED] = False
        if ASKING in item.stash:  # it is run again
            del item.stash[ASKING]

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside of what listens for verdicts, and of what limits the time
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        self._item = item
        try:
            if ASKING in item.stash and self.repeats:
                self._calibrate(item, item.stash[ASKING])
            result = yield
        finally:
            self._item = None
        item.stash[COMPLETED] = True
        self._refuse(item)
        return result

    def _calibrate(self, item: pytest.Item, asking: InductionBaseline) -> None:
        """Run the test so often with another seed each time; what it finds is for the tolerances alone."""
        from pytest_induction.observers import collecting, tracking_subjects
        from pytest_induction.progress import progress

        first, n_properties = {id(model): (model, model.seed) for model in _models(item)}.values(), len(item.user_properties)
        with progress(f"repeats of {item.name}", self.repeats, unit="repeat"):
            for number in range(self.repeats):
                for model, seed in first:
                    model.seed = seed + number
                try:
                    with collecting(), tracking_subjects(), asking.repeating():
                        item.runtest()
                except Exception as error:
                    error.add_note(
                        f"in repeat {number + 1} of {self.repeats} of --induction-calibrate, seed {asking.seed + number}"
                    )
                    raise
                finally:
                    for model, seed in first:
                        model.seed = seed
                    del item.user_properties[n_properties:]

    def _refuse(self, item: pytest.Item) -> None:
        """Fail a test that changes the baseline, where that is to be reviewed; it asks for no more."""
        if ASKING not in item.stash:
            return
        item.stash[ASKING].ended = True
        wanted = [f"{each.entry!r} ({each.status})" for each in item.stash[ASKING].asked if each.write is not None]
        if wanted and self.mode == "update":
            message = f"baseline {self._shown} is written when the session ends: {', '.join(wanted)}; review and commit it"
            pytest.fail(message, pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when != "setup" and (_uses(item) or ASKING in item.stash):
            asked = item.stash[ASKING].asked if ASKING in item.stash else []
            payload = {"completed": item.stash.get(COMPLETED, False), "asked": [each.to_dict() for each in asked]}
            report.__dict__[PAYLOAD] = payload  # plain data, so that it travels from a worker to the controller
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, PAYLOAD):
            self._payloads[report.nodeid] = getattr(report, PAYLOAD)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._users = {item.nodeid for item in session.items if _uses(item)}

    def pytest_deselected(self) -> None:
        self._narrowed = True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._narrowed |= not report.passed

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of pytest-xdist has ended: what it collected is what the controller never did."""
        payload = getattr(node, "workeroutput", {}).get(PAYLOAD)
        self._narrowed |= payload is None or payload["narrowed"]
        self._users |= set(payload["users"] if payload else ())

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[PAYLOAD] = {"users": sorted(self._users), "narrowed": self._narrowed}
        elif not self._config.option.collectonly:
            self._finish(session)

    def _finish(self, session: pytest.Session) -> None:
        """Write what is to be written, once, and say so."""
        if not (self._payloads or self._config.option.induction_baseline):
            return
        from pytest_induction.baselines.checking import ChecksOfTest, Gathered, lines
        from pytest_induction.baselines.store import merge_into
        from pytest_induction.errors import BaselineError

        gathered = Gathered({nodeid: ChecksOfTest(**payload) for nodeid, payload in self._payloads.items()})
        failure = ""
        try:
            merge_into(self.path, gathered.writes)
        except BaselineError as error:
            failure = str(error)
        if failure or gathered.conflicts:
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
            why = failure or f"tests differ over {', '.join(map(repr, gathered.conflicts))}"
            self._problems.append(f"baseline {self._shown} was not written: {why}")
        self._lines += lines(
            gathered,
            self._shown,
            unused=self._unused(gathered.entries, gathered.tests),
            failure=failure,
            review=self.mode == "update",
            verbose=self._config.get_verbosity() > 0,
        )

    def _unused(self, asked: list[str], tests: Mapping[str, Any]) -> list[str]:
        """The entries that no test asked for, where all tests ran to their end; none where that is not sure."""
        from pytest_induction.baselines.store import Heads
        from pytest_induction.errors import BaselineError

        done = {nodeid for nodeid, test in tests.items() if test.completed}
        if self._narrowed or self._asks_for_less() or not self._users <= done:
            return []
        try:
            kept = self.book.entries()
        except BaselineError:
            return []
        of_gate = {ENTRY_OF_GATE} if isinstance(kept.get(ENTRY_OF_GATE), Heads) else set()
        return sorted(set(kept) - set(asked) - of_gate)

    def _asks_for_less(self) -> bool:
        """Whether the command line may have left tests out."""
        option, source, sources = self._config.option, self._config.args_source, pytest.Config.ArgsSource
        elsewhere = source is sources.INVOCATION_DIR and self._config.invocation_params.dir != self._config.rootpath
        left_out = any(getattr(option, name, None) for name in ("lf", "ignore", "ignore_glob", "deselect", "stepwise"))
        return source is sources.ARGS or elsewhere or left_out or not self._config.args

    @pytest.hookimpl(trylast=True)  # after the verdicts
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.write_sep("=", "induction baseline")
        write_lines(terminalreporter, self._lines)


def _uses(item: pytest.Item) -> bool:
    return FIXTURE in getattr(item, "fixturenames", ())


def _models(item: pytest.Item) -> Iterator[ModelUnderTest]:
    """The models under test among what a test's fixtures are."""
    module = sys.modules.get("pytest_induction.model.protocol")
    for value in getattr(item, "funcargs", {}).values() if module else ():
        for each in (value, getattr(value, "model", None) if type(value).__name__ == "Induction" else None):
            if isinstance(each, module.ModelUnderTest):  # type: ignore[union-attr]
                yield each


def _where(item: pytest.Item) -> tuple[str, str]:
    """On what device and in which dtype a test measures, as far as its fixtures tell."""
    model = next(_models(item), None)
    return ("", "") if model is None else (str(model.device), str(model.dtype).removeprefix("torch."))
