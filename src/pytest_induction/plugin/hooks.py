"""Every pytest hook, option, ini key, marker and fixture. Imports the standard library and pytest, and no more until used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from pytest_induction.alarms import Alarmed
from pytest_induction.errors import meant
from pytest_induction.formatting import as_node
from pytest_induction.plugin.baselines import SessionBaselines
from pytest_induction.plugin.cache import CACHE, Entry, VerdictCache
from pytest_induction.plugin.ci import SessionCI, properties
from pytest_induction.plugin.claims import NAME, SessionClaims, register_claims
from pytest_induction.plugin.failures import SKIP, NotSetUp, may_be_missing, or_refuse, tell_once
from pytest_induction.plugin.gates.finding import arguments_with_gates, is_gate_file, keep_together, nearest_gates
from pytest_induction.plugin.options import add_options, check_keys, check_options
from pytest_induction.plugin.outcomes import is_ours
from pytest_induction.plugin.reports import USAGE_ERROR, SessionReport
from pytest_induction.plugin.runs import SessionRuns, readable_ids
from pytest_induction.plugin.session import SessionModel, open_terminal, says, usage_error, write_lines
from pytest_induction.plugin.terminal import INTERRUPTED, STOPS, hide_frames, keep_interrupted, write_section
from pytest_induction.progress import showing_on

if TYPE_CHECKING:
    from pytest_induction.baselines.checking import InductionBaseline
    from pytest_induction.fixture import Induction
    from pytest_induction.model.protocol import ModelUnderTest
    from pytest_induction.probes.sequences import Probe
    from pytest_induction.records import Provenance
    from pytest_induction.runs.record import TrainingRun

T = TypeVar("T")
MARKER_KEYS = {
    "seed": "seed of the random sequences",
    "max_sequences": "most sequences that a verdict may need",
    "budget": "most that a measurement may spend, such as '60 passes' or '30 s'",
    "error_rate": "highest probability of a wrong verdict, between 0 and 1",
    "min_prefix_matching": "prefix matching from which a head counts as an induction head",
    "max_prefix_matching": "prefix matching, beyond chance, below which a head counts as none",
    "match_length": "number of tokens that must match: 1, 2, or 3 for three or more",
    "min_advantage": "nats that the model must favour the matched token by",
    "allow_virtual": "whether two heads in a row count as one",
    "min_accuracy": "least share of right predictions on repeats",
    "max_score": "in-context learning score, in nats, that the model must stay below; more negative is better",
    "period": "tokens in a block of `induction_probe`",
    "repeats": "copies of the block in `induction_probe`",
    "n_sequences": "rows of `induction_probe`",
    SKIP: "skip the test if its model, run or text is missing",
}
MARKER = (
    "induction(key=value, ...): change the defaults of the fixtures `induction` and `induction_probe` for a test, a class or a "
    "module, as in @pytest.mark.induction(seed=7, min_accuracy=0.9). The keys:"
)
SESSION: pytest.StashKey[SessionModel] = pytest.StashKey()
RUNS: pytest.StashKey[SessionRuns] = pytest.StashKey()
REPORT: pytest.StashKey[SessionReport] = pytest.StashKey()
BASELINES: pytest.StashKey[SessionBaselines] = pytest.StashKey()
NAMED: pytest.StashKey[list[tuple[Any, Provenance]]] = pytest.StashKey()
VERDICTS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    add_options(parser)
    pluginmanager.register(SessionClaims(), NAME)  # before any conftest.py, which may register some


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_induction.plugin import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: list[str]) -> Generator[None, None, None]:
    """Once conftest.py files have added their options, refuse those that are ours but for a letter."""
    yield
    check_options(parser, args)


def pytest_configure(config: pytest.Config) -> None:
    check_keys(config)
    keys = (f"    {key}: {about}" for key, about in MARKER_KEYS.items())
    config.addinivalue_line("markers", "\n".join((MARKER, *keys)))
    session_model = config.stash[SESSION] = SessionModel(config)
    report = config.stash[REPORT] = SessionReport(config, session_model)  # before what may be refused, of which it tells
    session_runs = config.stash[RUNS] = SessionRuns(config, session_model)
    session_runs.check()
    session_model.check_settings()
    report.check()
    config.pluginmanager.register(report.outcomes, "induction-outcomes")
    baselines = config.stash[BASELINES] = SessionBaselines(config, session_model, report.outcomes.problems)
    baselines.check()
    config.stash[CACHE] = VerdictCache(config)
    config.pluginmanager.register(baselines, "induction-baselines")
    config.pluginmanager.register(SessionCI(config), "induction-ci")
    if config.option.induction_benchmark:
        session_model.check_benchmark()
    elif config.option.induction_max_overhead is not None:
        raise usage_error("--induction-max-overhead needs --induction-benchmark")
    if session_model.collected is not None:
        session_model.check()
    elif not session_runs.collected:
        config.args = arguments_with_gates(config)
        return
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []  # the gates, or the benchmarks, are all that was asked for


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the gates, or in their place the benchmarks, to what the session itself collects, if a model is named for it."""
    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        session_model = collector.config.stash[SESSION]
        suites = [] if session_model.collected is None else [_suite(collector, session_model, session_model.collected)]
        suites += [_run_suite(collector, collector.config.stash[RUNS], name) for name in collector.config.stash[RUNS].collected]
        if suites:
            report.result = [*(report.result or []), *suites]
    return report


def _suite(session: pytest.Session, session_model: SessionModel, spec: str) -> pytest.Collector:
    common: dict[str, Any] = {"name": as_node(spec), "nodeid": as_node(spec), "bind": session_model.bind}
    with_text = session_model.text is not None
    if session.config.option.induction_benchmark:
        from pytest_induction.plugin.benchmarks.suite import BenchmarkSuite

        return BenchmarkSuite.from_parent(session, max_overhead=session_model.max_overhead, with_text=with_text, **common)
    from pytest_induction.plugin.gates.items import GateSuite, model_gates

    more = session.config.stash[BASELINES].gates()

    def kept(name: str) -> Entry | None:
        from pytest_induction.claims import claim_named

        claim, cache = claim_named(name), session.config.stash[CACHE]
        if claim is None or name in more or not cache.is_on:
            return None
        return cache.entry(spec, claim, {**claim.arguments, **claim.collected_with}, session_model.of_model())

    return GateSuite.from_parent(session, gates=model_gates(with_text=with_text, more=more), kept=kept, **common)


def _run_suite(session: pytest.Session, runs: SessionRuns, name: str) -> pytest.Collector:
    from pytest_induction.plugin.gates.items import RunSuite

    other = runs.reference
    reference = None if other is None else lambda: runs.open(other)
    bind = partial(runs.open, name)
    about = {"name": as_node(name), "nodeid": as_node(name), "run": name}
    return RunSuite.from_parent(session, **about, bind=bind, reference=reference, before=runs.before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "induction_run" in metafunc.fixturenames:
        names = metafunc.config.stash[RUNS].named
        if names:
            metafunc.parametrize("induction_run", names, ids=readable_ids(names), indirect=True)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not is_gate_file(file_path, parent.session):
        return None
    from pytest_induction.plugin.gates.files import GateFile

    register_claims(parent.config)
    return GateFile.from_parent(parent, path=file_path, setting=parent.config.stash[SESSION].setting)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every test of ours has the marker, and every one that uses a fixture of ours, so that `-m` selects them."""
    if is_ours(item) and item.get_closest_marker("induction") is None:
        item.add_marker("induction")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Where pytest finds no such test, say which gate may be meant."""
    try:
        return (yield)
    except pytest.UsageError as error:
        raise pytest.UsageError(*error.args, *nearest_gates(session.config.args)) from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    keep_together(items)
    for item in items:
        for marker in item.iter_markers("induction"):
            _check_marker(item, marker)
        if _is_given(item):
            from pytest_induction.probes.strategies.searching import allow_fixtures

            test: Any = getattr(item, "obj")  # noqa: B009 - not every item has one
            allow_fixtures(getattr(test, "__func__", test))


def _is_given(item: pytest.Item) -> bool:
    """Whether `given_probes` made the item's test."""
    return hasattr(getattr(item, "obj", None), "induction_carrier")


def _check_marker(item: pytest.Item, marker: pytest.Mark) -> None:
    if marker.args:
        raise usage_error(f"{item.nodeid}: the marker `induction` takes keyword arguments only, got {marker.args!r}")
    for key in marker.kwargs:
        if key not in MARKER_KEYS:
            raise usage_error(f"{item.nodeid}: the marker `induction` has no argument `{key}`{meant(key, tuple(MARKER_KEYS))}")


@pytest.fixture(scope="session")
def induction_model(request: pytest.FixtureRequest) -> ModelUnderTest:
    """The model under test: the one that --induction-model, or the ini key induction_model, names.
    A fixture of the same name in conftest.py replaces it:
    ```python
    @pytest.fixture(scope="session")
    def induction_model():
        return AutoModelForCausalLM.from_pretrained("path/to/model")
    ```
    It may return any model that the options could name.
    """
    return or_refuse(request.config.stash[SESSION].load)


@pytest.fixture
def induction(request: pytest.FixtureRequest, induction_model: Any) -> Induction:
    """Every measure and assertion about the model under test, as a method. The model and the seed are filled in.
    ```python
    @pytest.mark.induction(seed=7, min_prefix_matching=0.5)
    def test_heads(induction):
        found = induction.assert_has_induction_head()
        print(found.summary)
        assert induction.measure_heads().prefix_matching.max() > 0.5
    ```
    The marker changes defaults for the test; `pytest --markers` lists its keys.
    """
    from pytest_induction.fixture import Induction

    register_claims(request.config)
    session_model = request.config.stash[SESSION]
    defaults = session_model.defaults
    for marker in reversed([*request.node.iter_markers("induction")]):  # the closest one comes last and wins
        defaults |= {name: each for name, each in marker.kwargs.items() if name != SKIP}
    return or_refuse(lambda: Induction(session_model.adopt(induction_model), text=session_model.text, defaults=defaults))


@pytest.fixture(scope="session")
def induction_run(request: pytest.FixtureRequest) -> TrainingRun:
    """The training run that --induction-run, or the ini key induction_run, names.
    ```python
    def test_forms_in_time(induction_run):
        from pytest_induction import assert_formed
        assert_formed(induction_run, before_tokens=2e9)
    ```
    If several runs are named, the test runs once for each.
    """
    name = getattr(request, "param", None)
    if name is None:
        or_refuse(_no_run)
    return or_refuse(lambda: request.config.stash[RUNS].open(name))


def _no_run() -> NoReturn:
    from pytest_induction.errors import RunError, missing

    raise missing(RunError("no run: give --induction-run or the ini key induction_run, or override the fixture"))


@pytest.fixture
def induction_probe(induction: Induction) -> Probe:
    """Rows of repeated random tokens that fit the model, as a `Probe`.
    ```python
    @pytest.mark.induction(period=12, repeats=3, n_sequences=4)
    def test_own_pass(induction, induction_probe):
        import torch
        logits = induction.model.logits(torch.from_numpy(induction_probe.tokens))
        assert len(logits) == 4
    ```
    The marker sets the shape and the seed.
    """
    return or_refuse(induction.default_probe)


@pytest.fixture
def induction_baseline(request: pytest.FixtureRequest) -> InductionBaseline:
    """Compares what a test measures with what is stored in the file that --induction-baseline names.
    ```python
    def test_heads_stay(induction, induction_baseline):
        induction_baseline.check(induction.measure_heads())
    ```
    Run it once with --induction-update-baseline to store the values. Later runs fail if a value has moved.
    """
    return or_refuse(lambda: request.config.stash[BASELINES].fixture(request))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    __tracebackhide__ = True
    item.stash[VERDICTS] = []  # when it is run again, too
    try:
        yield from _listening(item)
    except NotSetUp as failed:
        if not (failed.error.is_missing and may_be_missing(item)):
            raise
        reason = str(failed.error).splitlines()[0]
    else:
        return
    raise pytest.skip.Exception(reason, _use_item_location=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    __tracebackhide__ = True
    yield from _listening(item)


def _listening(item: pytest.Item) -> Iterator[None]:
    """Keep every verdict that is reached while the item runs."""
    __tracebackhide__ = True
    from pytest_induction.observers import attaching, collecting, tracking_subjects

    attach = item.config.stash[SESSION].attach
    naming: AbstractContextManager[list[tuple[Any, Provenance]]] = nullcontext([])
    if item.config.stash[REPORT].kinds:  # else no model is to be kept
        naming = tracking_subjects()
    with (
        collecting() as verdicts,
        naming as named,
        attaching(attach),
        showing_on(lambda: open_terminal(item.config), says(item.config)),
    ):
        stop: BaseException | None = None
        try:
            return (yield)
        except STOPS as error:
            stop = error
            raise
        except Alarmed as error:  # has come through hypothesis, which runs the test
            raise (error.__cause__ or error) from None
        except Exception as error:
            from pytest_induction.errors import InductionError

            if not (isinstance(error, InductionError) and _is_given(item)):
                raise
            message = str(error)  # there is no line of the user's to show
        finally:
            item.stash.setdefault(NAMED, []).extend(named)
            for evidence in verdicts:
                item.stash.setdefault(VERDICTS, []).append(evidence.to_dict())
                item.user_properties.extend(properties(evidence))
            if stop is not None:
                keep_interrupted(item, item.stash.get(VERDICTS, []), stop)
    pytest.fail(message, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Before a model is gone, measure what the report draws of it, if there was a verdict."""
    named, verdicts = item.stash.get(NAMED, []), item.stash.get(VERDICTS, [])
    try:
        if named and verdicts:
            from pytest_induction.observers import attaching

            with attaching(item.config.stash[SESSION].attach), showing_on(lambda: open_terminal(item.config), says(item.config)):
                item.config.stash[REPORT].measure_charts(item, named)
        item.config.stash[REPORT].note_undrawn(item, verdicts)
    finally:
        named.clear()  # or the item would keep the models
        done = yield
    return done


@pytest.hookimpl(tryfirst=True)  # what others raise there is then in the reports
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.stash[REPORT].begin()


@pytest.hookimpl(trylast=True)  # others change the exit status there
def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash[REPORT]
    if hasattr(session.config, "workerinput"):
        report.hand_over()
    else:
        report.finish(session, session.config.stash.get(INTERRUPTED, []))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Around all of pytest: what it returns is the exit status, whatever was changed after the session had ended."""
    try:
        status = yield
    except KeyboardInterrupt:  # at the end of a session, or another one
        _amend(config, int(pytest.ExitCode.INTERRUPTED))
        raise
    except BaseException as error:
        code = USAGE_ERROR if isinstance(error, pytest.UsageError) else 1
        _amend(config, code, f"{type(error).__name__}: {error}")
        raise
    _amend(config, int(status or 0))
    return status


def _amend(config: pytest.Config, exit_status: int, problem: str = "") -> None:
    report = config.stash.get(REPORT, None)
    if report is not None and not hasattr(config, "workerinput"):
        report.amend(exit_status, " ".join(problem.split()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    hide_frames(item, call)
    report = yield
    tell_once(item, report, call)
    item.config.stash[REPORT].annotate(item, report, call, item.stash.get(VERDICTS, []))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    write_section(terminalreporter, reports)
    if terminalreporter.config.option.induction_benchmark:
        from pytest_induction.plugin.benchmarks.suite import timings

        recorded = ((report.nodeid, report.user_properties) for report in reports if getattr(report, "when", "") == "call")
        lines = list(timings(recorded, width=terminalreporter.config.get_terminal_writer().fullwidth))
        if lines:
            terminalreporter.write_sep("=", "induction benchmark")
            write_lines(terminalreporter, ((text, {}) for text in lines))
    write_lines(terminalreporter, terminalreporter.config.stash[REPORT].take_lines())
