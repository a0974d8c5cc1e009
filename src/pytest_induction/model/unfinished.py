"""Models that make a part of themselves in their first forward pass: whether it is the same part whenever they do.

What is made of random numbers, of the tokens of that pass or of its length is another part each time, and what is measured would
not be the model that its user goes on with: it is refused, and undone. What is the same each time is of the model. Weights and
modules that are made so stay, as after a pass of the user's own; tensors besides are put back after each pass, as caches are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pytest_induction.errors import ModelError
from pytest_induction.forward.calling import close_to, difference, digests, first_line, is_out_of_memory, why_endless
from pytest_induction.forward.standing import MADE, Memory, all_parts, is_replaceable
from pytest_induction.model.conventions import Found, every_row
from pytest_induction.model.declared import CONTEXT_NAMES, declared

MOST_KEPT = 65_536  # numbers of a weight of which a copy is kept: scales and offsets have fewer, and are what data may set
ONCE = "run the model once before it is measured, on rows as long as any that are"


class Beginning:
    """A module before its first pass."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._known = {id(part) for part in all_parts(module)}
        self._made: list[nn.Module] = []  # parts that stay
        self._memory = Memory(module)
        self._held = _held(module)
        self._weights: dict[str, nn.Parameter] = {}
        self._digests: dict[str, bytes] = {}
        self._copies: dict[str, Tensor] = {}

    def weigh(self) -> None:
        """Note what the weights are, which must have values by now."""
        self._weights = dict(self._module.named_parameters())
        self._digests = digests(self._module)
        self._copies = {name: weight.detach().clone() for name, weight in self._weights.items() if _is_small(weight)}

    def written(self) -> frozenset[str]:
        """The names of tensors and parts that passes wrote to or made, and that are to be put back after each."""
        return self._memory.written(private=False)

    def restore(self) -> None:
        """Put back what passes made and changed, but for what stays."""
        rewritten = self._small_changed()
        self._memory.restore(also=bool(rewritten))
        for name in rewritten:
            weight, kept = self._weights[name], self._copies[name]
            if weight.dtype == kept.dtype and weight.shape == kept.shape:
                weight.data.copy_(kept)
            else:
                weight.data = kept.clone()
        for part in self._made:
            part.training = True  # as it was made

    def check(self, found: Found, name: str, positions: int | None = None, *, is_last: bool = True) -> bool:
        """Whether passes so far made or changed anything that stays. Raises `ModelError` where it is another thing each time.

        The passes that try this out have up to so many `positions`. Large weights, which no model is to change, are looked at
        by the last check only, unless others have changed.
        """
        written = self._memory.written()
        changed = self._changed() if is_last or self._small_changed() else []
        if not written and not changed:
            return False
        paths, made = self._paths(written, changed), self._parts_made()
        lost = [each for each in changed if each not in self._copies]
        if lost:
            self._begin()  # what else that pass did belongs to it
            raise ModelError(f"the first forward pass of {name} changes the weight `{lost[0]}`: {ONCE}")
        short, long = self._logits_after(found, name, positions)
        change = difference(short, long)
        if not change <= close_to(short):
            others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise ModelError(
                f"the first forward pass of {name} makes or changes `{paths[0]}`{others}, which comes out another each time, and "
                f"changes the logits by {change:.2g}: {ONCE}"
            )
        if not (made or changed):
            return False
        if why := why_endless(self._module):
            raise ModelError(f"{name} {why}")
        self._begin()
        return True

    def _begin(self) -> None:
        """Take the module as it is now for what it was."""
        self._evaluate()
        made, known = [part for part in all_parts(self._module) if id(part) not in self._known], self._known
        earlier = self._made
        self.__init__(self._module)  # type: ignore[misc]
        self.weigh()
        self._known, self._made = known, [*earlier, *made]

    def _small_changed(self) -> list[str]:
        """Names of small weights that hold other numbers than they did."""
        return [name for name, kept in self._copies.items() if not _is_equal(self._weights[name], kept)]

    def _changed(self) -> list[str]:
        """Names of weights that hold other numbers than they did, where they are the same weights."""
        if not self._digests:
            return []
        now, digested = dict(self._module.named_parameters()), digests(self._module)
        return [
            name for name, digest in self._digests.items() if now.get(name) is self._weights[name] and digested[name] != digest
        ]

    def _parts_made(self) -> list[str]:
        """Paths of modules and weights that are new, or others than there were."""
        now = _held(self._module)
        return [path for path in self._new() if isinstance(now[path], (nn.Module, nn.Parameter))]

    def _new(self) -> list[str]:
        now, before = _held(self._module), self._held
        return [path for path, value in now.items() if before.get(path) is not value and is_replaceable(before.get(path))]

    def _paths(self, written: frozenset[str], changed: list[str]) -> list[str]:
        """What to call what was made or changed: the path of each, but not of what is in another."""
        parts = [(f"{path}." if path else "", part) for path, part in self._module.named_modules()]
        within = [f"{path}{name}" for path, part in parts for name in sorted(written) if name in vars(part)]
        found = list(dict.fromkeys([*changed, *(self._new() or within)])) or sorted(written)
        return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]

    def _evaluate(self) -> None:
        for part in all_parts(self._module):
            part.training = False

    def _logits_after(self, found: Found, name: str, positions: int | None) -> tuple[Tensor, Tensor]:
        """The logits of the same ids where the first pass was one over others, and over more of them.

        Random numbers go on in between, so that those of the two passes are not the same ones.
        """
        ids = found.tokens
        n_ctx = declared(found.seen.sources, CONTEXT_NAMES)
        longest = max(ids.shape[1], min(positions or found.lengths[1], n_ctx or found.lengths[1]))
        longer = ids.repeat(1, -(-longest // ids.shape[1]))[:, :longest]
        swapped = ids.min() + ids.max() - ids

        def after(first: Tensor) -> Tensor:
            self.restore()
            for tokens in (first, ids):
                self._evaluate()  # also what that pass made
                logits = every_row(found.caller, tokens)
            return logits

        try:
            return after(swapped), after(longer)
        except ModelError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            message = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"what {name} makes in its first forward pass does not serve for a row of another length: {message}"
            ) from error


def _is_small(weight: nn.Parameter) -> bool:
    return type(weight) is nn.Parameter and not weight.is_meta and 0 < weight.numel() <= MOST_KEPT


def _is_equal(weight: nn.Parameter, kept: Tensor) -> bool:
    return weight.dtype == kept.dtype and torch.equal(weight, kept)


def _held(module: nn.Module) -> dict[str, Any]:
    """The weights, buffers, modules and other tensors of a module's parts, by their paths."""
    found = {}
    for path, part in module.named_modules():
        stores = (part._modules, part._parameters, part._buffers, vars(part))  # noqa: SLF001 - nothing else tells
        for name, value in ((name, value) for store in stores if isinstance(store, dict) for name, value in store.items()):
            if isinstance(value, MADE):
                found[f"{path}.{name}" if path else name] = value
    return found
