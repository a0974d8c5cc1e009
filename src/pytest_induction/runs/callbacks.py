"""The recorder inside other people's training loops: the Trainer of transformers, and Lightning's."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol
from weakref import WeakMethod, ref

import torch
from torch import nn

from pytest_induction.errors import ArgumentError, RunError
from pytest_induction.runs.record import Snapshot
from pytest_induction.runs.stopping import StopRule
from pytest_induction.runs.together import any_process

LanguageModel = Callable[[Any], nn.Module]
MODULE_ADVICE = "pass module=..., the language model inside, or a function that finds it"
AGREE_EVERY = 10  # steps after which the processes of a training agree whether to stop, where a rule may say so


class Recorder(Protocol):
    """What a callback asks of a recorder, which is `runs.recorder.InductionRecorder`: each is described there."""

    path: Path
    rules: tuple[StopRule, ...]

    @property
    def should_stop(self) -> bool: ...

    def __call__(self, model: nn.Module, step: int, *, loss: Any = None, tokens: int | None = None) -> Snapshot | None: ...

    def final(self, model: nn.Module, step: int, *, loss: Any = None, tokens: int | None = None) -> Snapshot | None: ...

    def check(self, model: nn.Module) -> None: ...

    def can_measure(self, model: nn.Module) -> bool: ...

    def is_spread(self, model: nn.Module) -> bool: ...

    def use_tokenizer(self, tokenizer: Any) -> None: ...

    def expect(self, total_steps: int | None) -> None: ...

    def add_scheduled_change(self, step: int, what: str) -> None: ...

    def advise(self, advice: str) -> None: ...

    def tell(self, function: Callable[..., object]) -> None: ...

    def warn(self, about: str, message: str) -> None: ...

    def close(self) -> None: ...


def hf_callback(recorder: Recorder) -> Any:
    """A `transformers.TrainerCallback` that records.

    The first snapshot is of the model before the first step, the last of the last step. A snapshot has the loss that is logged at
    its step, or else the last one that was logged since the snapshot before; tokens are counted where
    `include_num_input_tokens_seen` is set, or from the recorder's `tokens_per_step`. The end of the warm-up is noted as a
    scheduled change. A rule that asks to stop ends it.

    The numbers of each snapshot are put into the Trainer's log: all that it reports to has them beside the loss.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise RunError("recording a Trainer needs transformers: pip install 'pytest-induction[transformers]'") from None
    return type("InductionCallback", (_OfTrainer, TrainerCallback), {})(recorder)


class _OfTrainer:
    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._logged = -1  # the step of the loss that the last snapshot has
        self._waits: bool | None = None  # for the loss of a step that is over; True where that is the last step
        self._trainer: Callable[[], Any] = lambda: None  # a weak reference: with the Trainer its model would stay in memory
        recorder.tell(_weakly(self))

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._logged, self._waits = -1, None
        if isinstance(given["model"], nn.Module):
            self.recorder.use_tokenizer(given.get("processing_class"))
            self.recorder.check(given["model"])  # in every process: all end, or none
        if not self._takes_part(state, given["model"]):
            return
        self._trainer = _trainer_above(state)
        if self._trainer() is None:
            self.recorder.warn("log", "the Trainer was not found, and its log lacks what is measured: pass on_snapshot=")
        self.recorder.expect(state.max_steps if state.max_steps > 0 else None)
        warmup = args.get_warmup_steps(state.max_steps)
        if warmup > 0 and str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != "constant":
            self.recorder.add_scheduled_change(warmup, "end of the warm-up of the learning rate")
        self._record(state, given["model"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._wait_no_more(state, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        self._waits = control.should_training_stop  # the Trainer's own callback, which comes first, sets it at the last step
        strategy = getattr(args.logging_strategy, "value", args.logging_strategy)
        if not control.should_log and strategy != "epoch":
            self._wait_no_more(state, given["model"])
        return self._stopped(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> Any:
        """The loss of a step is logged after its end, and a summary after the last: then the model is not yet the best one."""
        if "train_runtime" in (logs or {}):
            self._waits = True
        elif "loss" not in (logs or {}):
            return control  # as of what this very callback has put there
        self._wait_no_more(state, given["model"])
        return self._stopped(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not control.should_log:
            self._wait_no_more(state, given["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._wait_no_more(state, given["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._trainer = lambda: None  # what it reports to is closed
        if not args.load_best_model_at_end:
            self._waits = True
            self._wait_no_more(state, given["model"])
        self.recorder.close()

    def _wait_no_more(self, state: Any, model: Any) -> None:
        """Take the snapshot of a step that is over, if one is due, whether its loss was logged or not."""
        waits, self._waits = self._waits, None
        if waits is not None and self._takes_part(state, model):
            self._record(state, model, is_last=waits)

    def _takes_part(self, state: Any, model: Any) -> bool:
        return bool(state.is_world_process_zero) or (isinstance(model, nn.Module) and self.recorder.is_spread(model))

    def _record(self, state: Any, model: Any, *, is_last: bool = False) -> None:
        logged: Mapping[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        loss = logged.get("loss") if logged.get("step", -1) > self._logged else None
        take = self.recorder.final if is_last else self.recorder
        if take(model, state.global_step, loss=loss, tokens=state.num_input_tokens_seen or None) and loss is not None:
            self._logged = logged["step"]

    def _log(self, numbers: dict[str, float], step: int) -> None:
        """Put numbers into the Trainer's log, which must not take its own log of this step to be done with that."""
        trainer = self._trainer()
        if trainer is None:
            return
        from transformers import Trainer

        should_log = trainer.control.should_log
        Trainer.log(trainer, numbers)  # a `log` of somebody else's Trainer may add, and forget, what belongs to its own
        trainer.control.should_log = should_log

    def _stopped(self, args: Any, state: Any, control: Any) -> Any:
        if self._stops(args, state):
            control.should_training_stop = True
        return control

    def _stops(self, args: Any, state: Any) -> bool:
        if args.world_size == 1 or not self.recorder.rules:
            return self.recorder.should_stop
        return state.global_step % AGREE_EVERY == 0 and any_process(self.recorder.should_stop, args.device)


def _weakly(callback: _OfTrainer | _OfLightning) -> Callable[[dict[str, float], int], None]:
    """Logs through a callback as long as somebody has it: a recorder that held it would hold itself, and its run, with it."""
    known = WeakMethod(callback._log)  # noqa: SLF001 - of this module

    def log(numbers: dict[str, float], step: int) -> None:
        found = known()
        if found is not None:
            found(numbers, step)

    return log


def _trainer_above(state: Any) -> Callable[[], Any]:
    """A weak reference to the Trainer whose callbacks are being called: it hands itself to none of them."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - `inspect` reads source files on the way
    while frame is not None:
        found = frame.f_locals.get("self")
        if getattr(found, "state", None) is state and hasattr(found, "callback_handler"):
            return ref(found)
        frame = frame.f_back
    return lambda: None


def lightning_callback(recorder: Recorder, module: nn.Module | LanguageModel | None) -> Any:
    """A `Callback` of Lightning that records, for `lightning.pytorch` or `pytorch_lightning`, whichever is loaded already.

    The first snapshot is of the model before the first step, the last of the last step. The loss is that of `training_step`.
    Where a LightningModule steps several optimisers itself, a batch in which any of them stepped is one step.

    The numbers of each snapshot go to the loggers of the Lightning Trainer, and into its `callback_metrics`.
    """
    if module is not None and not callable(module):
        kind = type(module).__name__
        raise ArgumentError(
            f"`module` must be the language model in the LightningModule, or a function that finds it, got `{kind}`"
        )
    recorder.advise(MODULE_ADVICE)
    return type("InductionCallback", (_OfLightning, _lightning().Callback), {})(recorder, module)


def _lightning() -> Any:
    loaded = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    try:
        return importlib.import_module(loaded[0] if loaded else "lightning.pytorch")
    except ImportError:
        raise RunError("recording with Lightning needs it: pip install lightning") from None


class _OfLightning:
    def __init__(self, recorder: Recorder, module: nn.Module | LanguageModel | None) -> None:
        self.recorder = recorder
        self._module = module
        self._model: Any = None
        self._trainer: Any = None
        self._steps = self._optimiser_steps = 0  # batches in which an optimiser stepped, and how often all of them have
        recorder.tell(_weakly(self))

    @property
    def state_key(self) -> str:
        """A name of its own in checkpoints: a training may have several recorders."""
        return f"InductionCallback[{self.recorder.path}]"

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps; Lightning itself counts the steps of all optimisers together."""
        return {"steps": self._steps, "optimiser_steps": self._optimiser_steps}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """What a checkpoint has kept."""
        self._steps, self._optimiser_steps = state_dict["steps"], state_dict["optimiser_steps"]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._model, self._trainer = self._language_model(pl_module), trainer
        self.recorder.check(self._model)  # in every process: all end, or none
        if trainer.global_step != self._optimiser_steps:  # a checkpoint without this callback, or another training
            self._steps, self._optimiser_steps = trainer.global_step // _optimisers(trainer), trainer.global_step
        if self._takes_part(trainer):
            self.recorder.expect(_total_steps(trainer))
            self.recorder(self._model, self._steps)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        has_stepped = trainer.global_step > self._optimiser_steps  # where gradients are accumulated, several batches have no step
        self._optimiser_steps = trainer.global_step
        self._steps = self._steps + has_stepped if _optimisers(trainer) > 1 else trainer.global_step
        if self._takes_part(trainer):
            loss = _loss(outputs, trainer.accumulate_grad_batches)
            if loss is None and has_stepped:
                self._say_that_there_is_no_loss()
            self.recorder(self._model, self._steps, loss=loss)
        if self._stops(trainer, self._steps):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._takes_part(trainer):
            self.recorder.final(self._model, self._steps)
        self.recorder.close()
        self._trainer = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.recorder.close()
        self._trainer = None

    def _takes_part(self, trainer: Any) -> bool:
        return bool(trainer.is_global_zero) or self.recorder.is_spread(self._model)

    def _log(self, numbers: dict[str, float], step: int) -> None:
        """Hand numbers to the loggers, at this step whatever `log_every_n_steps` is, and to whatever watches metrics by name."""
        if self._trainer is None:
            return
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(numbers), step=step)
        self._trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})

    def _say_that_there_is_no_loss(self) -> None:
        way_out = 'return the loss of the batch, or a dict with it as "loss"'
        self.recorder.warn("loss", f"`training_step` returned no loss, and snapshots of such steps have none: {way_out}")

    def _language_model(self, pl_module: Any) -> Any:
        if isinstance(self._module, nn.Module):
            return _part_of(pl_module, self._module)
        if self._module is not None:
            found = self._module(pl_module)
            if not isinstance(found, nn.Module):
                raise ArgumentError(
                    f"`module` must find the language model in the LightningModule, it gave `{type(found).__name__}`"
                )
            return found
        inner = getattr(pl_module, "model", None)
        return pl_module if not isinstance(inner, nn.Module) or self.recorder.can_measure(pl_module) else inner

    def _stops(self, trainer: Any, step: int) -> bool:
        if trainer.world_size == 1 or not self.recorder.rules:
            return self.recorder.should_stop
        return step % AGREE_EVERY == 0 and bool(trainer.strategy.reduce_boolean_decision(self.recorder.should_stop, all=False))


def _part_of(pl_module: Any, module: nn.Module) -> nn.Module:
    """The module itself. Raises `ArgumentError` where it shares no weight with what is trained: it would never change."""
    trained = {id(weight) for weight in pl_module.parameters()}
    if not any(id(weight) in trained for weight in module.parameters()):
        kind = f"`{type(module).__name__}`"
        raise ArgumentError(f"`module` must be the language model in the LightningModule, but {kind} has none of its weights")
    return module


def _optimisers(trainer: Any) -> int:
    """How many optimisers the LightningModule steps itself; 1 where Lightning does."""
    return 1 if trainer.lightning_module.automatic_optimization else max(1, len(trainer.optimizers))


def _total_steps(trainer: Any) -> int | None:
    """How many steps the training will have, where Lightning knows. Its `max_steps` counts those of all optimisers."""
    try:
        total = float(trainer.estimated_stepping_batches)
    except Exception:  # noqa: BLE001 - it may ask the user's data loaders for their length
        return None
    if total == trainer.max_steps:
        total //= _optimisers(trainer)
    return int(total) if math.isfinite(total) and total >= 1 else None


def _loss(outputs: Any, accumulated: int) -> Any:
    """What `training_step` returned, which Lightning divides by the number of batches whose gradients are accumulated."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss * accumulated if isinstance(loss, torch.Tensor) else None
