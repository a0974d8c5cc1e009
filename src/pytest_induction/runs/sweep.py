"""From the checkpoints of a training to a run: each is loaded, measured and written before the next, and none twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pytest_induction.attention.backend import Attach
from pytest_induction.behaviour.text import read_text
from pytest_induction.claims import score_files
from pytest_induction.errors import ArgumentError, RunError, user_facing, whole_number
from pytest_induction.files import expanded
from pytest_induction.formatting import as_line
from pytest_induction.model.factories import function_named
from pytest_induction.model.specs import AUTO, check_device, check_dtype, memory_size, module_names
from pytest_induction.probes.markov import MarkovChains
from pytest_induction.progress import advance, progress
from pytest_induction.runs.asked_for import Asked
from pytest_induction.runs.checkpoints.finding import Checkpoint, Found, chosen, look_for
from pytest_induction.runs.checkpoints.loading import Factory, Loading, config_beside, lacks_factory
from pytest_induction.runs.checkpoints.reading import check_step, layout_of, on_this_machine, stated_step
from pytest_induction.runs.logs.beside import logged_at
from pytest_induction.runs.measuring import SEQUENCES
from pytest_induction.runs.options_named import spelling
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot, SweptFrom, TrainingRun
from pytest_induction.runs.store import RunWriter, read_run
from pytest_induction.runs.tasks import CheckpointMeasurer, Outcome, Plan

UNIT = "checkpoint"
Tasks = Iterable[Checkpoint]
Done = Iterator[tuple[Checkpoint, Outcome]]
Doing = Callable[[Tasks], Done]


@user_facing
def sweep(
    checkpoints: str | os.PathLike[str] | Place | Sequence[Checkpoint],
    out: str | Path,
    *,
    factory: Factory | None = None,
    text: Any = None,
    steps: Iterable[int] | None = None,
    workers: int | None = None,
    ray: str | None = None,
    num_gpus: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    memory: str | None = None,
    trust_remote_code: bool = False,
    without_pattern: str | Iterable[str] = (),
    n_sequences: int = SEQUENCES,
    seed: int = 0,
    longer_matches: bool = False,
    token_counts: Any = None,
    markov: MarkovChains | None = None,
    bigram_counts: Any = None,
    tokens_per_step: float | None = None,
    attach: Attach | Sequence[Attach] = (),
) -> TrainingRun:
    """Measure every checkpoint of a training, write the results to a run at `out`, and return that run.

    A sweep that was broken off goes on where it was: a checkpoint is measured once, as long as its content stays the same,
    wherever it lies and whatever it is called. One that cannot be measured is a snapshot with a `problem`, and is tried again the
    next time. One model is in memory at a time, and is made once where that gives what a new one would. Checkpoints of the
    Trainer bring the loss and the tokens of their step, from the `trainer_state.json` in each.

    Args:
        checkpoints: what `find_checkpoints` takes, or what it gave.
        out: a local directory: a new one, or that of an earlier sweep.
        factory: what makes the module whose weights are loaded: `path/file.py:factory`, `module:factory` or a function. Not
            needed for what says itself what it is: directories with a config of transformers in them or beside them, adapters,
            GGUF files.
        text: held-out text for the in-context learning score: a string, a `Path` or token ids.
        steps: measure these only; needed for `hf:NAME@step{}`.
        workers: processes that measure, each with a model of its own; this one measures if None is given. The results are the
            same, to the bit where torch uses as many threads; the threads are divided among them. What takes a process down
            with it costs no more than itself.
        ray: the address of a Ray cluster, "auto" for the one of this machine, or "" for that or else one started for the sweep.
            `workers` is then how many measure at once; None or 1 for as many as the cluster has room for.
        num_gpus: GPUs of each of them on the cluster; the model then runs on "cuda" unless `device` says otherwise.
        device: as for `load_model`.
        dtype: as for `load_model`.
        memory: as for `load_model`.
        trust_remote_code: as for `load_model`.
        without_pattern: as for `load_model`.
        attach: as for `load_model`.
        n_sequences: rows of repeated tokens of each checkpoint.
        seed: what they are drawn with.
        longer_matches: measure what matches of three tokens gain over those of one, too, as `InductionRecorder` does.
        token_counts: how often each id stands in the training data, (ids,): adds the advantage on common and on rare ids.
        markov: the chains that the model was trained on: adds how far it is from their in-context unigram and bigram.
        bigram_counts: how often each id follows another in the training data: adds whether the row or the weights win.
        tokens_per_step: tokens that a step of the training had.

    Raises:
        RunError: nothing is found, `out` holds something else or was measured with other settings, or workers do not start.
        ArgumentError: a bad argument. TextError: the text cannot be used. ModelError: the factory makes no model.

    Example:
        >>> run = sweep("checkpoints", "run", factory="model.py:make", workers=4)              # doctest: +SKIP
    """
    whole_number("n_sequences", n_sequences, least=2)
    whole_number("seed", seed, least=0)
    if workers is not None:
        whole_number("workers", workers, least=1)
    if num_gpus is not None and not (num_gpus > 0 and ray is not None):
        raise ArgumentError(f"`num_gpus` must be above 0 and belongs to `ray`, got {num_gpus!r}")
    if tokens_per_step is not None and not 0 < tokens_per_step < float("inf"):
        raise ArgumentError(f"`tokens_per_step` must be a number above 0, got {tokens_per_step!r}")
    if device == AUTO:
        raise ArgumentError(f"device {AUTO!r} is of one model: checkpoints are measured on one device, such as cuda:0")
    for check, value in ((check_device, device), (check_dtype, dtype), (memory_size, memory)):
        if value is not None:
            check(value)
    text = read_text(text) if isinstance(text, Path) else text
    hooks = (attach,) if callable(attach) else tuple(attach)
    device = "cuda" if num_gpus is not None and device is None else device
    without = module_names(without_pattern)
    loading = Loading(_named(factory), device, dtype, memory, seed, hooks, trust_remote_code, without, spelling())
    given = {"token_counts": token_counts, "markov": markov, "bigram_counts": bigram_counts}
    plan = Plan(loading, n_sequences, seed, text, Asked.of(longer_matches=longer_matches, **given), score_files())
    looked = _found(checkpoints, steps)
    found = looked.checkpoints
    _check_can_be_made(plan.loading.factory, found)
    header = {} if tokens_per_step is None else {"tokens_per_step": tokens_per_step}
    with RunWriter(out, source="sweep") as writer:
        _check_settings(writer, plan)
        writer.describe(**header)
        if looked.notes or "notes" in writer.header:
            writer.describe(notes=list(looked.notes))
        name = str(checkpoints) if isinstance(checkpoints, (str, os.PathLike, Place)) else writer.header["name"]
        with _doing(plan, workers, ray, num_gpus, len(found)) as doing, progress("sweep", len(found), UNIT):
            try:
                _Sweep(writer, str(name)).run(found, doing)
            except KeyboardInterrupt as stop:
                stop.add_note(as_line(f"the sweep of {name} is kept in {out}: the same again goes on where it was broken off"))
                raise
    return replace(read_run(Place(out)), checkpoints=SweptFrom(tuple(found), loading))


class _Sweep:
    """Which checkpoints are to be measured, and what is written when they are."""

    def __init__(self, writer: RunWriter, about: str) -> None:
        self._writer = writer
        self._about = about
        self._known = {snapshot.step: snapshot for snapshot in read_run(Place(writer.directory)).snapshots}
        self._twins = {each.fingerprint: each for each in self._known.values() if each.fingerprint and not each.problem}
        self._digests: dict[int, str] = {}  # of what is being measured, by its step
        self._waiting: dict[str, list[Checkpoint]] = {}  # for one of the same content that is being measured
        self._again: list[Checkpoint] = []
        self._at: dict[int, Checkpoint] = {}  # by their steps
        self._is_described = False

    def run(self, checkpoints: Sequence[Checkpoint], doing: Doing) -> None:
        self._at = {each.step: each for each in checkpoints}
        left: Sequence[Checkpoint] = checkpoints
        while left:
            self._again = []
            for checkpoint, outcome in doing(self._to_do(left)):
                self._take(checkpoint, outcome)
            left = self._again

    def _to_do(self, checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
        """Those that must be measured. Asked for one at a time, when somebody is free to measure it."""
        for checkpoint in checkpoints:
            try:
                digest = checkpoint.digest()
            except RunError as error:
                self._write(Snapshot(checkpoint.step, problem=str(error)))
                continue
            known = self._known.get(checkpoint.step)
            if known is not None and known.fingerprint == digest and not known.problem:
                advance(1, UNIT)
            elif digest in self._twins:
                self._copy(checkpoint, self._twins[digest])
            elif digest in self._waiting:
                self._waiting[digest].append(checkpoint)
            else:
                self._waiting[digest] = []
                self._digests[checkpoint.step] = digest
                yield checkpoint

    def _take(self, checkpoint: Checkpoint, outcome: Outcome) -> None:
        if outcome.refusal is not None and not self._twins:
            raise outcome.refusal
        digest = self._digests.pop(checkpoint.step)
        snapshot = replace(outcome.snapshot, fingerprint=digest)
        if outcome.header is not None and not self._is_described:
            self._describe(outcome.header)
        self._write(snapshot)
        waiting = self._waiting.pop(digest)
        if snapshot.problem:
            self._again += waiting  # what is wrong may be its name
            return
        self._twins[digest] = snapshot
        for twin in waiting:
            self._copy(twin, snapshot)

    def _describe(self, header: Mapping[str, Any]) -> None:
        """Say what was measured and how, but for what differs between the checkpoints."""
        about = {**header["about"], "model": self._about, "fingerprint": ""}
        self._writer.describe(**{**header, "about": about})
        self._is_described = True

    def _copy(self, checkpoint: Checkpoint, twin: Snapshot) -> None:
        """Write what was measured of the same content for this step too, unless it says that it is of another."""
        try:
            if checkpoint.kind != "hub":
                with on_this_machine(checkpoint) as path:
                    check_step(checkpoint, stated_step(path))
        except RunError as error:
            self._write(Snapshot(checkpoint.step, fingerprint=twin.fingerprint, problem=str(error)))
        else:
            self._write(replace(twin, step=checkpoint.step, tokens=None, loss=None, seconds=0.0))

    def _write(self, snapshot: Snapshot) -> None:
        known = self._known.get(snapshot.step)
        is_news = known is None or (known.fingerprint, known.problem) != (snapshot.fingerprint, snapshot.problem)
        if is_news or not snapshot.problem:
            snapshot = replace(snapshot, **logged_at(self._at[snapshot.step]))
            self._writer.append(snapshot)
        self._known[snapshot.step] = snapshot
        advance(1, UNIT)


def _found(checkpoints: Any, steps: Iterable[int] | None) -> Found:
    if isinstance(checkpoints, (str, os.PathLike, Place)):
        return look_for(checkpoints, steps)
    found = list(checkpoints)
    strange = next((each for each in found if not isinstance(each, Checkpoint)), None)
    if strange is not None or not found:
        raise ArgumentError(f"`checkpoints` must be a place or what `find_checkpoints` gives, got {strange or 'none'!r}")
    return Found(chosen(found, steps, "the list"))


def _named(factory: Factory | None) -> Factory | None:
    """The factory with an absolute path, so that it is found from any working directory."""
    if not isinstance(factory, str):
        return factory
    place, colon, name = factory.rpartition(":")
    return f"{expanded(place).absolute()}:{name}" if colon and place.endswith(".py") else factory


def _check_can_be_made(factory: Factory | None, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise early for what no checkpoint could be measured with."""
    if isinstance(factory, str):
        function_named(factory)
    elif factory is not None and not callable(factory):
        raise ArgumentError(f"`factory` must be path/file.py:factory, module:factory or a function, got {factory!r}")
    first_problem = ""
    for checkpoint in checkpoints:
        problem = _why_never(checkpoint, factory)
        if not problem:
            return
        first_problem = first_problem or problem
    raise RunError(first_problem)


def _why_never(checkpoint: Checkpoint, factory: Factory | None) -> str:
    """What keeps a checkpoint from being loaded, as far as its layout tells."""
    if checkpoint.kind == "hub":
        return ""
    place = Place(checkpoint.place)
    layout = layout_of(place)
    if layout.refusal:
        return f"{checkpoint.name} {layout.refusal}"
    if factory is not None or layout.maker == "transformers":
        return ""
    return "" if place.local is not None and config_beside(place.local) else lacks_factory(layout, checkpoint)


def _check_settings(writer: RunWriter, plan: Plan) -> None:
    """Raise `RunError` where what is there was measured in another way: its curves would have a break."""
    loading = plan.loading
    settings: dict[str, Any] = {
        "seed": plan.seed,
        "n_sequences": plan.n_sequences,
        "text": _digest(plan.text),
        "dtype": loading.dtype,
    }
    settings |= plan.asked.settings
    settings["trust_remote_code"] = loading.trust_remote_code or None  # what runs may be another model
    settings["without_pattern"] = sorted(loading.without_pattern) or None
    before = writer.header.get("sweep")
    if before is None or all(each.problem for each in read_run(Place(writer.directory)).snapshots):
        writer.describe(sweep=settings)
        return
    changed = next((name for name, value in settings.items() if not isinstance(before, dict) or before.get(name) != value), None)
    if changed is not None:
        seen = before.get(changed) if isinstance(before, dict) else before
        now = f"`{changed}` {seen!r} and now {settings[changed]!r}"
        raise RunError(f"{writer.directory} was measured with other settings, {now}: choose another place")


def _digest(text: Any) -> str | None:
    """A short name of the text."""
    if text is None:
        return None
    ids = None if isinstance(text, str) else np.asarray(text)
    content = text.encode("utf-8", "surrogatepass") if ids is None else f"{ids.shape}".encode() + ids.astype("<i8").tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _doing(plan: Plan, workers: int | None, ray: str | None, num_gpus: float | None, count: int) -> AbstractContextManager[Doing]:
    """Who measures: this process, some others, or a cluster."""
    if ray is not None:
        from pytest_induction.runs.cluster import on_cluster

        return on_cluster(plan, ray, workers=workers or 1, num_gpus=num_gpus, most=count)
    if workers is not None:
        from pytest_induction.runs.workers import in_processes

        return in_processes(plan, min(workers, count))
    measurer = CheckpointMeasurer(plan)
    return nullcontext(lambda tasks: ((task, measurer.outcome(task)) for task in tasks))
