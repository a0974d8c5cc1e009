"""Change what heads found where nothing else can be changed: as it is given to the output projection, heads side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pytest_induction.models.acting import Part, Step, Steps
from pytest_induction.models.calling import quoted
from pytest_induction.models.changing import add_hooks
from pytest_induction.models.head_weights import Circuits, LayerCircuits
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.models.refusals import Refused
from pytest_induction.undoing import Changes


@contextmanager
def acting_on_outputs(subject: ModelUnderTest, circuits: Circuits, tokens: Tensor, steps: Steps) -> Iterator[None]:
    """In a pass over `tokens` (rows, positions) inside the block, layers take steps on what their heads found.

    `circuits` are those of the model, see `circuits_of`. May be entered before a measurement or in it; what is measured is what
    the changed model does. Raises `Refused` for steps that act on anything else than what heads found, and for a layer whose
    output projection is no module; while the pass runs, for one that is given something else than in the trial.
    """
    layers = {layer: circuits.layers[layer] for layer, taken in steps.items() if taken}
    for layer, found in layers.items():
        _check(steps[layer], found, subject)
    with Changes() as changes:
        for layer, found in layers.items():
            if found.writes is not None:
                add_hooks(changes, [found.writes], _taking(steps[layer], found, tokens), before=True, with_kwargs=True)
        yield


def _check(steps: Sequence[Step], layer: LayerCircuits, subject: ModelUnderTest) -> None:
    wrong = next((step for step in steps if not step.needs_output_only), None)
    if wrong is not None:
        raise Refused(
            f"`{type(wrong).__name__}` acts on more than what heads found, and nothing else of {quoted(layer.path)} can be "
            f"changed in a model that is read by {subject.reading.name}"
        )
    if layer.writes is None:
        raise Refused(f"no module is given what the heads of {quoted(layer.path)} found")


def _taking(steps: Sequence[Step], layer: LayerCircuits, tokens: Tensor) -> Callable[..., tuple[Any, Any]]:
    """A hook that has the first tensor that a module is given changed by steps."""

    def before(part: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
        places = [*enumerate(inputs), *options.items()]
        place, given = next(((place, each) for place, each in places if isinstance(each, Tensor)), (None, None))
        if given is None or given.ndim != 3 or given.shape[:2] != tokens.shape or given.shape[-1] % layer.n_heads:
            seen = None if given is None else tuple(given.shape)
            raise Refused(
                f"the output projection of {quoted(layer.path)} is given {seen} where "
                f"{(*tokens.shape, layer.n_heads)} x d_head was expected"
            )
        found = given.unflatten(-1, (layer.n_heads, -1)).transpose(1, 2)
        for step in steps:
            found = step.on_output(found, None, Part())
        changed = found.transpose(1, 2).flatten(-2)
        if isinstance(place, int):
            return (*inputs[:place], changed, *inputs[place + 1 :]), options
        return inputs, {**options, place: changed}

    return before
