"""The recorder inside other people's training loops: the Trainer of transformers, and Lightning's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_induction.errors import RunError

if TYPE_CHECKING:
    from pytest_induction.runs.recorder import InductionRecorder

LanguageModel = Callable[[Any], nn.Module]
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
        if not state.is_world_process_zero:
            return
        self._logged = -1
        self.recorder.use_tokenizer(given.get("processing_class"))
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


def lightning_callback(recorder: InductionRecorder, module: LanguageModel | None) -> Any:
    """A `Callback` of Lightning that records, for `lightning.pytorch` or `pytorch_lightning`, whichever is loaded already.

    The first snapshot is of the model before the first step, the last of the last step. The loss is that of `training_step`.
    """
    return type("InductionCallback", (_OfLightning, _lightning().Callback), {})(recorder, module)


def _lightning() -> Any:
    loaded = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    try:
        return importlib.import_module(loaded[0] if loaded else "lightning.pytorch")
    except ImportError:
        raise RunError("recording with Lightning needs it: pip install lightning") from None


class _OfLightning:
    def __init__(self, recorder: InductionRecorder, module: LanguageModel | None) -> None:
        self.recorder = recorder
        self._module = module
        self._model: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._model = self._language_model(pl_module)
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
        if self._module is not None:
            return self._module(pl_module)
        inner = getattr(pl_module, "model", None)
        return pl_module if not isinstance(inner, nn.Module) or self.recorder.can_measure(pl_module) else inner

    def _stops(self, trainer: Any, step: int) -> bool:
        if trainer.world_size == 1 or not self.recorder.rules:
            return self.recorder.should_stop
        return step % AGREE_EVERY == 0 and bool(trainer.strategy.reduce_boolean_decision(self.recorder.should_stop, all=False))


def _loss(outputs: Any, accumulated: int) -> Any:
    """What `training_step` returned, which Lightning divides by the number of batches whose gradients are accumulated."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss * accumulated if isinstance(loss, torch.Tensor) else None
