"""The recorder inside other people's training loops: the Trainer of transformers, and Lightning's."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_induction.errors import ArgumentError, RunError

if TYPE_CHECKING:
    from pytest_induction.runs.recorder import InductionRecorder

LanguageModel = Callable[[Any], nn.Module]
MODULE_ADVICE = "pass module=..., the language model inside, or a function that finds it"
AGREE_EVERY = 10  # steps after which the processes of a training agree whether to stop, where a rule may say so


def hf_callback(recorder: InductionRecorder) -> Any:
    """A `transformers.TrainerCallback` that records.

    The first snapshot is of the model before the first step, the last of the last step. A snapshot has the loss that was logged
    last, if it was logged since the snapshot before; tokens are counted where `include_num_input_tokens_seen` is set, or from
    the recorder's `tokens_per_step`. The end of the warm-up is noted as a scheduled change. A rule that asks to stop ends it.
    """
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise RunError("recording a Trainer needs transformers: pip install 'pytest-induction[transformers]'") from None
    return type("InductionCallback", (_OfTrainer, TrainerCallback), {})(recorder)


class _OfTrainer:
    def __init__(self, recorder: InductionRecorder) -> None:
        self.recorder = recorder
        self._logged = -1  # the step of the loss that the last snapshot has

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if isinstance(given["model"], nn.Module):
            self.recorder.use_tokenizer(given.get("processing_class"))
            self.recorder.check(given["model"])  # in every process: all end, or none
        if not state.is_world_process_zero:
            return
        self._logged = -1
        self.recorder.expect(state.max_steps if state.max_steps > 0 else None)
        warmup = args.get_warmup_steps(state.max_steps)
        if warmup > 0 and str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != "constant":
            self.recorder.add_scheduled_change(warmup, "end of the warm-up of the learning rate")
        self._record(state, given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        if state.is_world_process_zero:
            is_last = control.should_training_stop  # the Trainer's own callback, which comes first, sets it at the last step;
            self._record(state, given["model"], is_last=is_last)  # on_train_end may see another model, the best one
        if self._stops(args, state):
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if not state.is_world_process_zero:
            return
        if not args.load_best_model_at_end:
            self._record(state, given["model"], is_last=True)
        self.recorder.close()

    def _record(self, state: Any, model: Any, *, is_last: bool = False) -> None:
        logged: Mapping[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
        loss = logged.get("loss") if logged.get("step", -1) > self._logged else None
        take = self.recorder.final if is_last else self.recorder
        if take(model, state.global_step, loss=loss, tokens=state.num_input_tokens_seen or None) and loss is not None:
            self._logged = logged["step"]

    def _stops(self, args: Any, state: Any) -> bool:
        if args.world_size == 1 or not self.recorder.rules:
            return self.recorder.should_stop
        return state.global_step % AGREE_EVERY == 0 and _any_process(self.recorder.should_stop, args.device)


def _any_process(value: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes, all of which must ask."""
    flag = torch.tensor(int(value), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def lightning_callback(recorder: InductionRecorder, module: nn.Module | LanguageModel | None) -> Any:
    """A `Callback` of Lightning that records, for `lightning.pytorch` or `pytorch_lightning`, whichever is loaded already.

    The first snapshot is of the model before the first step, the last of the last step. The loss is that of `training_step`.
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
    def __init__(self, recorder: InductionRecorder, module: nn.Module | LanguageModel | None) -> None:
        self.recorder = recorder
        self._module = module
        self._model: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._model = self._language_model(pl_module)
        self.recorder.check(self._model)  # in every process: all end, or none
        if trainer.is_global_zero:
            self.recorder.expect(_total_steps(trainer))
            self.recorder(self._model, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step  # where gradients are accumulated it lasts for several batches
        if trainer.is_global_zero:
            self.recorder(self._model, step, loss=_loss(outputs, trainer.accumulate_grad_batches))
        if self._stops(trainer, step):
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.recorder.final(self._model, trainer.global_step)
            self.recorder.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.recorder.close()

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


def _total_steps(trainer: Any) -> int | None:
    """How many steps the optimiser will take, where Lightning knows."""
    try:
        total = float(trainer.estimated_stepping_batches)
    except Exception:  # noqa: BLE001 - it may ask the user's data loaders for their length
        return None
    return int(total) if math.isfinite(total) and total >= 1 else None


def _loss(outputs: Any, accumulated: int) -> Any:
    """What `training_step` returned, which Lightning divides by the number of batches whose gradients are accumulated."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss * accumulated if isinstance(loss, torch.Tensor) else None
