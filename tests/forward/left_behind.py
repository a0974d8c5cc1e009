"""All that a measurement may leave behind where it is interrupted, and what interrupts it: at any line, and again meanwhile."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import pytest_induction
from pytest_induction import undoing
from pytest_induction.attention.capture import is_measuring
from pytest_induction.forward import changing
from pytest_induction.model.protocol import active_edits

HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
PACKAGE = str(Path(pytest_induction.__file__).parent)
ASIDE = ThreadPoolExecutor(1)
MODELS = tuple(str(Path(__file__).parent / name) for name in ("recorded.py", "plain.py", "test_hand_written.py"))


def of_process():
    """What all models share, and this thread."""
    transformers = sys.modules.get("transformers.modeling_utils")
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "sdpa": F.scaled_dot_product_attention,
        "multi-head": F.multi_head_attention_forward,
        "fast path": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()),
        "look-up": transformers and transformers.AttentionInterface.get_interface,
        "registry": transformers and dict(transformers.AttentionInterface._global_mapping),
        "flex": flex and flex._validate_device,
        "stance": compiler and compiler._stance.stance,
        "gradient mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), changing._nested()),
        "defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "random": (random.getstate(), *np.random.get_state()[1:3], torch.get_rng_state()),
        "ours": (is_measuring(), len(active_edits), undoing._here.changes, dict(changing._shared._threads)),
        "turns": [turn for turn in changing._measuring.values() if turn._threads],
    }


def of_model(model):
    """What a module and its parts have."""
    parts = list(model.modules())
    configs = [found for part in parts if hasattr(found := vars(part).get("config"), "_attn_implementation")]
    return {
        "hooks": [{name: list(held) for name, held in vars(part).items() if name.endswith(HOOKS) and held} for part in parts],
        "attributes": [sorted(vars(part)) for part in parts],
        "training": [part.training for part in parts],
        "weights": {name: weight.clone() for name, weight in model.state_dict().items()},
        "gradients": [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        "forwards": [vars(part).get("forward") for part in parts],
        "settings": [(each._attn_implementation, getattr(each, "output_attentions", None)) for each in configs],
    }


def everything(model):
    return of_process() | of_model(model)


def changed(before, now):
    """The names of what is not as it was."""
    return [name for name in before if not _same(before[name], now[name])]


def _same(one, other):
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is other or one == other


class Lines:
    """Notes the lines of ours that run inside the block, and raises `KeyboardInterrupt` at the one with number `at`.

    Where `again` is given, also at the line with that number after it. Ours are the package's, those of the tests' models, and
    those in the file `also`. A function that traces is switched off where it raises, and on again by one that profiles.
    """

    def __init__(self, at=None, again=None, also=""):
        self.seen, self.times = [], 0
        self._files = (PACKAGE, *MODELS, also) if also else (PACKAGE, *MODELS)
        self._ahead = [each for each in (at, again) if each is not None]
        self._count = 0

    def __enter__(self):
        self._before = sys.gettrace(), sys.getprofile()
        sys.settrace(self._called)
        return self

    def __exit__(self, *error):
        sys.setprofile(self._before[1])
        sys.settrace(self._before[0])

    def _called(self, frame, event, argument):
        return self._line if frame.f_code.co_filename.startswith(self._files) else None

    def _line(self, frame, event, argument):
        if event == "line":
            self._count += 1
            if not self.times:
                self.seen.append((frame.f_code.co_filename, frame.f_lineno))
            if self._ahead and self._count > self._ahead[0]:
                self._ahead.pop(0)
                self.times, self._count = self.times + 1, 0
                if self._ahead:
                    sys.setprofile(self._again)
                raise KeyboardInterrupt
        return self._line

    def _again(self, frame, event, argument):
        if sys.gettrace() is None:
            sys.settrace(self._called)
            while frame is not None:
                frame.f_trace = self._called(frame, event, argument)
                frame = frame.f_back


def moments(seen, most):
    """Numbers of lines that were seen: the first and the last time that each line ran, `most` of them, evenly chosen."""
    first = {line: number for number, line in reversed([*enumerate(seen)])}
    last = {line: number for number, line in enumerate(seen)}
    chosen = sorted({*first.values(), *last.values()})
    return chosen if len(chosen) <= most else [chosen[number * len(chosen) // most] for number in range(most)]


def interrupted(run, model, *, at, again=None, also=""):
    """What is left behind where `run` is interrupted; None where it came to its end before.

    In a thread of its own: where a tracing function raises, Python may go on as if that were still being handled, and would
    show it beside every later error of the thread.
    """
    return ASIDE.submit(_interrupted, run, model, at=at, again=again, also=also).result()


def _interrupted(run, model, *, at, again, also):
    before = everything(model)
    lines = Lines(at, again, also)
    try:
        with lines:
            run()
    except KeyboardInterrupt:
        pass
    found = changed(before, everything(model))
    torch.set_grad_enabled(True)
    return found if lines.times else None


def noted(run, also=""):
    """The lines of ours that a run has."""
    with Lines(also=also) as lines:
        run()
    return lines.seen
