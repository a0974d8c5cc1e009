"""Records a training while it runs: snapshots of the model, taken when they are due and the training can afford them.

The model, its gradients, the optimiser and all random numbers are left as they were: a training with the recorder is the one
without it, to the bit. A model that cannot be measured is refused before the first step. After that nothing that a snapshot
cannot do ends the training: there is one warning, and `problem` says what is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from torch import nn

from pytest_induction.attention.backend import Attach
from pytest_induction.behaviour.text import read_text
from pytest_induction.errors import ArgumentError, InductionError, ModelError, RunError, TextError, user_facing, whole_number
from pytest_induction.formatting import as_line
from pytest_induction.forward.calling import first_line
from pytest_induction.measuring.rounds import Round
from pytest_induction.model.protocol import ModelUnderTest, why_unread
from pytest_induction.model.specs import module_names
from pytest_induction.progress import complain, showing_on
from pytest_induction.ranges import is_finite
from pytest_induction.runs.asked_for import Asked
from pytest_induction.runs.closing import left_open
from pytest_induction.runs.given_numbers import checked_tokens_per_step, one_number
from pytest_induction.runs.keeping import CHOICE, Earlier, Keeping, check_is_free
from pytest_induction.runs.measuring import (
    SEQUENCES,
    TOKEN_LOSSES,
    Measuring,
    Subject,
    check_can_run,
    in_one_line,
    let_go_of,
    place_of,
    signs_of,
    wait_for,
)
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.schedule import QUICK_CHECK, Budget, Cost, Focus, Schedule, due_steps
from pytest_induction.runs.stopping import StopRule, lighter, rules_of
from pytest_induction.runs.store import RunWriter, read_run
from pytest_induction.runs.together import first_says, is_first_process, least_of, meet

if TYPE_CHECKING:
    from pytest_induction.probes.markov import MarkovChains
    from pytest_induction.runs.callbacks import LanguageModel
    from pytest_induction.runs.hunting import HuntsOfRecorder

OVERHEAD = 0.02  # of the training time, that recording may take
OnUnmeasurable = Literal["raise", "loss_only"]
WAY_OUT = 'on_unmeasurable="loss_only"'


class InductionRecorder(Keeping):
    """Measures a model while it trains: called in every step, it writes a snapshot to the run at `path` now and then.

    `text` is held-out text for the in-context learning score: a string, a `Path` or token ids; a string needs a `tokenizer`, or
    a model that has one. `stop_when` is one rule or several (see `runs.stopping`), asked after each snapshot. `token_losses` says
    of how many tokens of the text each loss is kept, 2.7 bytes each (0: none, True: one a row), `tokens_per_step` how many tokens
    a step trains on.

    `longer_matches` adds what a match of three tokens gains over one of one, in the model and in each head, and `token_counts`
    (ids,), how often each id stands in the training data, the advantage on common ids and on rare ones. `markov` says which
    Markov chains the rows of the training are from (`probes.markov.MarkovChains`), and adds how far the model is from their
    in-context unigram and bigram. `bigram_counts`, an array (ids, ids) or a mapping (a, b) -> how often b follows a in the
    training data, adds whether the row or the weights win where they disagree. Each costs passes of its own, so they are off by
    default; a budget that is short leaves them out of light snapshots.

    A training that goes on from a checkpoint goes on with its run at the same path. `resume` says what is done where one begins
    from the start, or with another model, though a run is there already. True goes on with it, and what is measured replaces
    what lies beyond. False begins a new run, and the one that was there is kept in `earlier/`. By default it is an error. With
    either, a recorder of this process that was not closed gives way.

    `on_snapshot` is called after each snapshot with its numbers by their names (`{"induction/prefix_matching": 0.31, ...}`), and
    with `step=` where it takes that, as `wandb.log` and `mlflow.log_metrics` do. See `runs.dashboards`.

    `schedule` says at which steps a snapshot is due: every n-th, a list, a function of the step. By default it is every one at
    first, and then 40 for every ten times as many steps. `max_overhead` is the share of the training time that recording may
    take, None for no limit. A snapshot waits until it is within the budget, so the schedule gets thinner rather than the training
    slower. The first and the last are always taken: where the training is too short for these two, no other is, and `cost` says
    so. Where the default schedule is thinned, snapshots are few and of fewer sequences while nothing changes, and many from the
    first sign of a rise on.

    `total_steps` is how many steps the training will have. What they will pay may be spent in advance; without it that is what a
    thousand steps will pay, and nothing beyond the first half second. A training that ends sooner may take more than its share.

    `hunt` names ready properties, as ("completes_repeats",), or maps them to their options: at its snapshots the recorder hunts
    for a generated sequence on which one fails, and the smallest stands in the snapshot. Hunts take a quarter of the budget at
    most; of the last snapshot, and of others that are forced, they are outside of it.

    `on_unmeasurable` says what happens if the model, or the text, cannot be measured at the first call. "raise" raises, before a
    training is spent. "loss_only" warns once and records what can be: the loss alone where the model is the reason. What fails
    later in a training never ends it. `attach` and `without_pattern` are as for `load_model`: how a model is read that nothing
    can read by itself.

    Raises `ArgumentError` for a bad argument, `TextError` for a file that cannot be read, and, on the first call, `RunError`
    where no run can be written, `ModelError` and `TextError` for what cannot be measured.

    >>> recorder = InductionRecorder("runs/first", tokens_per_step=4096)          # doctest: +SKIP
    >>> for step, batch in enumerate(batches):                                    # doctest: +SKIP
    ...     loss = train(model, batch)
    ...     recorder(model, step, loss=loss)
    """

    @user_facing
    def __init__(
        self,
        path: str | Path,
        *,
        text: Any = None,
        schedule: Schedule = None,
        max_overhead: float | None = OVERHEAD,
        total_steps: int | None = None,
        on_unmeasurable: OnUnmeasurable = "raise",
        stop_when: StopRule | Iterable[StopRule] | None = None,
        n_sequences: int = SEQUENCES,
        seed: int = 0,
        token_losses: int = TOKEN_LOSSES,
        longer_matches: bool = False,
        token_counts: Any = None,
        markov: MarkovChains | None = None,
        bigram_counts: Any = None,
        tokens_per_step: float | None = None,
        hunt: Any = (),
        name: str = "",
        attach: Attach | Sequence[Attach] = (),
        without_pattern: str | Iterable[str] = (),
        tokenizer: Any = None,
        resume: bool | None = None,
        on_snapshot: Callable[..., object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        whole_number("n_sequences", n_sequences, least=2)
        whole_number("seed", seed, least=0)
        if not isinstance(token_losses, bool):
            whole_number("token_losses", token_losses, least=0)
        if on_unmeasurable not in get_args(OnUnmeasurable):
            raise ArgumentError(f'`on_unmeasurable` must be "raise" or "loss_only", got {on_unmeasurable!r}')
        if resume is not None and not isinstance(resume, bool):
            raise ArgumentError(f"`resume` must be True, False or None, got {resume!r}")
        self._resume = resume
        self._is_checked = on_unmeasurable == "loss_only"
        self._advice = ""
        super().__init__(Path(path), rules_of(stop_when))
        if on_snapshot is not None:
            self.tell(on_snapshot)
        self._tokens_per_step = checked_tokens_per_step(tokens_per_step)
        self._name = str(name)
        held_out = read_text(text) if isinstance(text, Path) else text
        given = {"token_counts": token_counts, "markov": markov, "bigram_counts": bigram_counts}
        asked = Asked.of(longer_matches=longer_matches, **given)
        self._measuring = Measuring(n_sequences, seed, held_out, token_losses=token_losses, asked=asked)
        self._max_overhead = max_overhead
        self._budget = Budget(max_overhead, clock)
        self.expect(total_steps)
        self._hunts = _hunts(hunt, self._budget, seed)
        self._due = due_steps(schedule)
        self._focus: Focus | None = None
        if schedule is None and max_overhead is not None:
            self._focus = Focus(self._budget, [each.n_sequences / n_sequences for each in self._measuring.lighter()])
        self._subject = Subject(seed=seed, attach=attach, tokenizer=tokenizer, without_pattern=module_names(without_pattern))
        self._described: ModelUnderTest | None = None
        self._writer: RunWriter | None = None
        self._is_new = True  # nothing was written yet
        self._is_refused = False  # the model, or to write where a run lies
        self._has_met = False
        self._seen: int | None = None
        self._is_pending = self._has_waited = False
        self._checked: Round | None = None  # of the model at this very step
        self._lacking: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_writing(self) -> bool:
        """Whether it has its run open, and nobody else."""
        return self._writer is not None and self._writer.is_held

    @property
    def cost(self) -> Cost:
        """What recording took so far; its `str` is one line."""
        return self._budget.cost

    @user_facing
    def __call__(
        self, model: nn.Module | ModelUnderTest, step: int, *, loss: Any = None, tokens: int | None = None, force: bool = False
    ) -> Snapshot | None:
        """Take a snapshot of the model after so many steps, if one is due and within the budget, or `force` asks for it.

        `loss` is the training loss, a number or a tensor of one, in nats per token; it is looked at when a snapshot is taken and
        not otherwise, so that no device is waited for. `tokens` counts what was trained on so far. Returns what was written, or
        None where nothing was. In a training of several processes only the first records; where the model is spread over them, as
        by FSDP, all of them must call it at the same steps.
        """
        began = self._budget.now()
        step = whole_number("step", step, least=0)
        if not isinstance(model, (nn.Module, ModelUnderTest)):
            raise ArgumentError(f"`model` must be a torch module, got `{type(model).__name__}`")
        if not force and self._is_idle(step):
            self._budget.passed(began, step)
            return None
        if self._subject.is_spread(model):
            return self._together(model, step, loss=loss, tokens=tokens, force=force)
        if not self._is_checked or self._writer is None:
            with self._budget.spending():  # a block of its own: nothing of it is a wait for the training's steps
                self._check(model)
                if not is_first_process():
                    return None
                self._asked(model, step)
        with self._budget.spending():
            writer = self._asked(model, step)
            self._budget.stepped(step)
            size = self._size(model, step, force=force)
            if size is None:
                return None
            self._is_pending = False
            loss, tokens = one_number("loss", loss), self._tokens(step, tokens)
            self._wait_for(model)
            with self._budget.snapshot(forced=force), self._budget.kept(size, quiet=self._is_settled):
                snapshot = self._measured(model, step, tokens, loss, size)
                if self._hunts is not None and self._hunts.is_affordable(forced=force):
                    snapshot = self._hunts.added_to(snapshot, partial(self._adapted, model))
                self.keep(writer, snapshot)
            if self._focus is not None:
                self._focus.taken(step)
            return snapshot

    @user_facing
    def final(
        self, model: nn.Module | ModelUnderTest, step: int, *, loss: Any = None, tokens: int | None = None
    ) -> Snapshot | None:
        """Take the snapshot of the last step, unless this step has one.

        A model that cannot be measured is no reason to raise here, even if this is the first call: the training is done.
        """
        self._is_checked = True
        return None if step == self._last_step else self(model, step, loss=loss, tokens=tokens, force=True)

    @user_facing
    def add_scheduled_change(self, step: int, what: str) -> None:
        """Note that the training is made to change at a step, as by another learning rate, for those who wonder at the effect."""
        step = whole_number("step", step, least=0)
        if is_first_process():
            self._unsaid.append(partial(RunWriter.add_scheduled_change, step=step, what=str(what)))
            if self._writer is not None:
                self.say(self._writer)

    @user_facing
    def check(self, model: nn.Module | ModelUnderTest) -> None:
        """Raise now what the first call would: `ModelError` or `TextError` for what cannot be measured."""
        with self._budget.spending():
            self._check(model)

    def expect(self, total_steps: int | None) -> None:
        """Say up to which step the training goes, if it was not said before: what the recorder may spend follows from it."""
        if total_steps is not None and self._budget.total_steps is None:
            self._budget.total_steps = whole_number("total_steps", total_steps, least=1)

    def is_spread(self, model: nn.Module) -> bool:
        """Whether a pass of the model needs every process of this training: then each of them must call the recorder."""
        return self._subject.is_spread(model)

    def advise(self, advice: str) -> None:
        """Say this beside the reason, where a model cannot be measured."""
        self._advice = f"; {advice}"

    def can_measure(self, model: nn.Module) -> bool:
        """Whether this module is a language model that can be measured; it is then kept, and the first snapshot comes sooner."""
        with self._budget.spending():
            try:
                self._subject.of(model)
            except Exception:  # noqa: BLE001 - whatever the user's module raises
                return False
            return True

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Encode the text with this tokenizer, if no other was given."""
        self._subject.use_tokenizer(tokenizer)

    def close(self) -> None:
        """Write what still waits, say what recording cost, and let others write. A later call opens the run again."""
        if self._unsaid and self._writer is None and not self._is_refused:
            self._opened()
        writer, self._writer = self._writer, None
        left_open.discard(self)
        if writer is None:
            return
        self._budget.skipped += self._is_pending
        self._is_pending = False
        with self._budget.spending(after_training=True):
            if writer.is_held:
                self.say(writer, partial(RunWriter.describe, cost=asdict(self.cost), is_open=False))
            try:
                writer.close()
            except RunError as error:
                self.warn("close", f"{error}; the snapshots that waited for it are lost")
        complain(as_line(f"{self.path}: {self.cost}"))
        self._budget.pause()

    def hf_callback(self) -> Any:
        """This recorder as a `transformers.TrainerCallback`. See `runs.callbacks`. Raises `RunError` without transformers."""
        from pytest_induction.runs.callbacks import hf_callback

        return hf_callback(self)

    @user_facing
    def lightning_callback(self, *, module: nn.Module | LanguageModel | None = None) -> Any:
        """This recorder as a `Callback` of Lightning. See `runs.callbacks`. Raises `RunError` without Lightning.

        `module` is the language model inside the LightningModule, or a function from the LightningModule to it. By default that
        is the LightningModule itself, if it maps token ids to logits, or else its attribute `model`.
        """
        from pytest_induction.runs.callbacks import lightning_callback

        return lightning_callback(self, module)

    def _check(self, model: nn.Module | ModelUnderTest) -> None:
        """Raise, before anything is recorded, where the model or the text cannot be measured; asked once."""
        is_spread = self._subject.is_spread(model)
        if is_spread and not self._has_met:
            meet(f"`{type(model).__name__}`")
            self._has_met = True
        if self._is_checked:
            return
        what, failure = self._tried(model, in_all=is_spread)
        self._is_refused = failure is not None
        if is_spread and not least_of(failure is None, place_of(model)) and failure is None:
            what, failure = "the model", ModelError("another process of the training fails")
        if failure is None:
            self._is_checked = True
            return
        self._subject.forget()
        if what == "what was asked for":
            raise ModelError(
                f"{in_one_line(failure)}; record without {self._measuring.asked.named}, or pass {WAY_OUT}"
            ) from failure
        if what == "the text":
            raise TextError(
                f"{what} cannot be measured: {in_one_line(failure)}; to record without it pass {WAY_OUT}"
            ) from failure
        reason = f"{in_one_line(failure)}{self._advice}"
        raise ModelError(f"{what} cannot be measured: {reason}; to record its loss alone pass {WAY_OUT}") from failure

    def _tried(self, model: nn.Module | ModelUnderTest, *, in_all: bool) -> tuple[str, Exception | None]:
        """What fails where the model and the text are tried out, and how; by the first process, or by all."""
        what = "the model"
        try:
            check_can_run(model)
            if in_all or is_first_process():
                with self._budget.set_up(), showing_on(lambda: None):
                    subject = self._subject.of(model)
                    self._measuring.quick_check(subject)
                    what = "the text"
                    self._measuring.check_text(subject)
                    what = "what was asked for"
                    self._measuring.check_asked_for(subject)
        except Exception as error:  # noqa: BLE001 - whatever a model may raise
            return what, error
        finally:
            if in_all:
                let_go_of(model)
        return what, None

    def _together(
        self, model: nn.Module | ModelUnderTest, step: int, *, loss: Any, tokens: int | None, force: bool
    ) -> Snapshot | None:
        """The same as a call, where a pass needs every process: all measure; the first decides whether, and writes and judges.

        Nothing is asked of the others but at the steps of the schedule, so no snapshot is caught up with in between.
        """
        self._focus = None
        with self._budget.spending():
            self._check(model)
            self._budget.stepped(step)
            after = step - 1 if self._seen is None or self._seen > step else self._seen
            if not (force or self._due(after, step)):
                self._seen = step
                return None
            writer, failure = None, None
            if is_first_process():
                try:
                    writer = self._asked(model, step)
                except RunError as error:
                    failure = error
            self._seen, device = step, place_of(model)
            if first_says(failure is not None, device):
                raise failure or RunError(f"{self.path}: the first process of the training cannot write there, and says why")
            if not first_says(force or self._budget.affords(), device):
                self._budget.skipped += 1
                return None
            loss, tokens = one_number("loss", loss), self._tokens(step, tokens)
            self._has_waited, self._checked = False, None
            self._wait_for(model)
            with self._budget.snapshot(forced=force), self._budget.kept(0):
                snapshot = self._measured(model, step, tokens, loss, 0)
                let_go_of(model)
                self._last_step = step
                if writer is not None:
                    self.keep(writer, snapshot)
            if first_says(self.should_stop, device) and not self._stop_reason:
                self._stop_reason = "as the first process says"
            return snapshot if writer is not None else None

    def _is_idle(self, step: int) -> bool:
        """Whether nothing can be due at this step. Most calls of a training end here, so it must take next to no time."""
        if self._focus is None or self._writer is None or self._seen is None:
            return False
        if not self._seen < step < self._focus.next_step:
            return False
        if not self._due(self._seen, step):
            return True
        return self._is_pending and self._is_due(step)  # the one before it gives way, and this one waits in its place

    @property
    def _is_settled(self) -> bool:
        """Whether nothing rises, so that less of the budget may be spent."""
        return self._focus is not None and self._focus.is_settled

    def _size(self, model: nn.Module | ModelUnderTest, step: int, *, force: bool) -> int | None:
        """How light a snapshot is taken now (see `Measuring.lighter`), None for none."""
        due = self._is_due(step)
        self._has_waited, self._checked = False, None
        if force:
            return 0
        if self._focus is None or not self._budget.has_begun:
            return 0 if due and self._budget.affords() else None
        return self._focus.chosen(step, due=due, check=partial(self._quick_check, model))

    def _quick_check(self, model: nn.Module | ModelUnderTest) -> dict[str, float] | None:
        """What tells whether something has changed, None where it cannot be measured: the next snapshot says why."""
        self._wait_for(model)
        try:
            with self._budget.kept(QUICK_CHECK, quiet=self._is_settled), showing_on(lambda: None):
                self._checked = self._measuring.quick_check(self._adapted(model))
        except Exception:  # noqa: BLE001 - whatever a model may raise, the training goes on
            return None
        return signs_of(self._checked)

    def _wait_for(self, model: nn.Module | ModelUnderTest) -> None:
        """Let the device finish the training's steps, once a call, on the training's account."""
        if not self._has_waited:
            wait_for(model)
            self._budget.waited()
            self._has_waited = True

    def _opened(self) -> RunWriter:
        if self._writer is None:
            given = {"take_over": self._resume is not None, **self._begun}
            self._writer = RunWriter(self.path, source="recorder", name=self._name, **given)
            if self._is_new and self._resume is False:
                self._begin_anew(self._writer)
            self._is_new, self._described = False, None
            left_open.add(self)
            if self._writer.header.get("stopped") and not self._stop_reason:
                self.say(self._writer, partial(RunWriter.describe, stopped=""))  # it goes on after all
            if self.rules and not self._history:
                self._history = [lighter(each) for each in read_run(Place(self.path)).snapshots]
        return self._writer

    @property
    def _begun(self) -> dict[str, Any]:
        """What the header of a run says when a recorder opens it."""
        return {"is_open": True, **({} if self._tokens_per_step is None else {"tokens_per_step": self._tokens_per_step})}

    def _asked(self, model: nn.Module | ModelUnderTest, step: int) -> RunWriter:
        """The writer, once it is clear what to do with a run that lies there: see `resume`. Raises `RunError` if it is not."""
        goes_back = self._seen is not None and step < self._seen
        if self._writer is not None and not goes_back:
            return self._writer
        if self._writer is None and self._resume is None:
            check_is_free(self.path)
        earlier = Earlier.at(self.path)
        question = "" if earlier is None else earlier.question(step, self._subject.known(model))
        self._is_refused = bool(question) and self._resume is None
        if question and self._resume is None:
            raise RunError(f"{self.path} {question}: {CHOICE}")
        is_begun = self._is_new and self._resume is False
        writer = self._opened()
        if question and self._resume is False and not is_begun:
            self._begin_anew(writer)
        return writer

    def _begin_anew(self, writer: RunWriter) -> None:
        writer.begin_anew(**self._begun)
        self._described = self._last_step = None
        self._history.clear()

    def _is_due(self, step: int) -> bool:
        """Whether a step of the schedule, this one or one that went by, still waits for its snapshot."""
        after = step - 1 if self._seen is None or self._seen > step else self._seen  # beyond it in a training that went back
        self._seen = step
        if self._due(after, step):
            self._budget.skipped += self._is_pending
            self._is_pending = True
        return self._is_pending

    def _tokens(self, step: int, tokens: Any) -> int | None:
        if tokens is not None:
            found = one_number("tokens", tokens)
            if found is None or not math.isfinite(found) or found < 0:
                raise ArgumentError(f"`tokens` must be a number from 0 up, got {tokens!r}")
            return round(found)
        return None if self._tokens_per_step is None else round(step * self._tokens_per_step)

    def _measured(
        self, model: nn.Module | ModelUnderTest, step: int, tokens: int | None, loss: float | None, size: int
    ) -> Snapshot:
        began = time.perf_counter()
        try:
            subject = self._adapted(model)
            with showing_on(lambda: None):  # the terminal is the training's
                sizes = self._measuring.lighter()
                measuring = sizes[min(size, len(sizes) - 1)]
                if measuring is sizes[-1] and self._checked is not None:
                    measuring = measuring.with_round(self._checked)
                snapshot = measuring.snapshot(subject, step, tokens, loss)
        except Exception as error:  # noqa: BLE001 - whatever a model may raise, the training goes on
            reason = in_one_line(error)
            self.warn(
                "model", f"the model cannot be measured at step {step}, and its loss alone is recorded: {reason}{self._advice}"
            )
            finite = loss is None or is_finite(loss)
            problem = reason if finite else f"the loss is {loss}; {reason}"
            seconds = time.perf_counter() - began
            return Snapshot(step, tokens=tokens, loss=loss if finite else None, seconds=seconds, problem=problem)
        if not self._lacking:
            return snapshot
        return replace(snapshot, problem="; ".join(filter(None, (snapshot.problem, *self._lacking.values()))))

    def _adapted(self, model: nn.Module | ModelUnderTest) -> ModelUnderTest:
        """The model under test, described in the run when it is a new one."""
        with self._budget.set_up():
            subject = self._subject.of(model)
            if subject is not self._described and self._writer is not None:
                self._lacking.pop("heads", None)
                if subject.backend is None:
                    why = why_unread(subject, 'InductionRecorder(..., without_pattern="{}")')
                    self._lack("heads", f"heads are not measured, as the attention of {subject.name} cannot be read{why}")
                header = self._header(subject)
                self._compare(self._writer.header.get("about") or {}, header["about"])
                if not self._writer.header.get("cost"):
                    header["cost"] = {"max_overhead": self._max_overhead}  # the rest is known at the end
                self.say(self._writer, partial(RunWriter.describe, **header))
                self._described = subject
        return subject

    def _header(self, subject: ModelUnderTest) -> dict[str, Any]:
        try:
            return self._measuring.header(subject)
        except InductionError as error:
            if self._measuring.text is None:
                raise
            self._lack("text", f"the in-context learning score is not measured: {first_line(error)}")
            self._measuring = replace(self._measuring, text=None)
            return self._measuring.header(subject)

    def _lack(self, about: str, what: str) -> None:
        """Say once, and in each snapshot, what is never measured."""
        self._lacking[about] = what
        self.warn(about, what)

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Say that a run which is gone on with was begun with other probes: its curves then have a break."""
        changed = [name for name in ("seed", "n_sequences", "probe") if before and before.get(name) != now.get(name)]
        if changed:
            name = changed[0]
            self.warn("probes", f"the run was begun with `{name}` {before.get(name)!r} and goes on with {now.get(name)!r}")


def _hunts(hunt: Any, budget: Budget, seed: int) -> HuntsOfRecorder | None:
    """What hunts at the snapshots, if anything is to be hunted: hypothesis is loaded for that alone."""
    if not hunt:
        return None
    from pytest_induction.runs.hunting import HuntsOfRecorder

    return HuntsOfRecorder(hunt, budget, seed)
