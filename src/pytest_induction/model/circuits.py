"""Where a model's heads keep their weights: what each reads of the residual stream and what it writes back, each checked.

On a few tokens, for every layer: values that these weights make, mixed by the pattern that was read, are what the output
projection was given; what it gives, or what a norm behind it makes of that, is added to the residual stream as it is; the stream
goes through the final norm and the unembedding to the model's own logits. A model of which any of this does not hold is refused
by name.

A fixed factor on what a layer writes, on the embedding or on the logits is found and kept; a soft cap on the logits is noted,
and left out. Norms are folded (`Norm.folded`, `Norm.written`): gains and centring go into the weights, each position's scale is
left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from pytest_induction.attention.pattern import Reader
from pytest_induction.errors import UnsupportedModel
from pytest_induction.forward.calling import quoted
from pytest_induction.model.capture import (
    Call,
    Values,
    affine_of,
    agrees,
    brought,
    find_values,
    latest,
    mix,
    norm_of,
    norms_among,
    recording,
    replayed,
    same,
    table_of,
)
from pytest_induction.model.declared import first_of
from pytest_induction.model.head_weights import Affine, Circuits, LayerCircuits, Norm, upcast
from pytest_induction.model.protocol import ModelUnderTest
from pytest_induction.model.quantised import quantisation_of

ROWS, POSITIONS = 2, 9  # of the tokens on which everything is checked
TRIED = 3 * ROWS * POSITIONS  # tokens at most, with those on which queries and keys are checked
NO_FACTOR = 1e-3  # below it nothing arrives
NEAR_ONE = 1e-3
CAPS = ("final_logit_softcapping", "output_logits_soft_cap", "logits_soft_cap")


def circuits_of(subject: ModelUnderTest) -> Circuits:
    """The weights of a model's heads, read once and checked.

    Raises `UnsupportedModel` where they are not known, or compute something else than the model does; the message says where.
    """
    with subject.as_it_is():
        return subject.remember(("circuits",), lambda: _Reading(subject).circuits())


class _Layer(NamedTuple):
    """What was found of one layer: `stream` is the call that was given the residual stream before it."""

    path: str
    values: Values
    out: Affine
    projects: Call  # of the output projection
    adds: Call  # gives what is added to the stream: that call, or that of the norm behind it
    behind: Norm
    norm: Norm
    stream: Call
    writes: nn.Module | None


class _End(NamedTuple):
    """What was found between the residual stream and the logits; `stream` is the call that was given its last."""

    unembedding: Affine
    norm: Norm
    factor: float
    notes: tuple[str, ...]
    stream: Call | None


class _Reading:
    """One reading of one model."""

    def __init__(self, subject: ModelUnderTest) -> None:
        self._subject = subject
        self._root = subject.module
        self._tokens = _trial_tokens(subject)
        self._parts = [self._part(path) for path in subject.reading.layers]
        patterns: list[Tensor] = []

        def kept(layer: int, attention: Reader) -> None:
            patterns.append(attention.pattern_of(range(self._tokens.shape[1])))

        with recording(self._root, self._parts) as self._calls:
            logits = subject.observe(self._tokens, kept, logits=True, early_stop=False)
        if logits is None:
            raise TypeError("a pass that was asked for logits gave none")
        self._norms = norms_among(self._calls)
        self._patterns = patterns
        self._logits = logits[..., : subject.space.d_vocab]

    def circuits(self) -> Circuits:
        layers = [self._layer(*each) for each in zip(self._subject.reading.layers, self._parts, self._patterns, strict=True)]
        end = self._end(layers[-1])
        table, looked_up, factor = self._embedding(layers[0])
        factors = self._factors(layers, end, looked_up)
        found = tuple(
            LayerCircuits(
                path=each.path,
                norm=each.norm,
                enters=each.stream.part,
                reads=each.values.call.part,
                writes=each.writes,
                factor=by,
                _values=each.values.affine,
                _columns=each.values.columns,
                _out=each.out,
                behind=each.behind,
                normed=None if each.adds is each.projects else each.adds.part,
            )
            for each, by in zip(layers, factors[1:], strict=True)
        )
        d_vocab = self._subject.space.d_vocab
        return Circuits(
            layers=found,
            embedding=table[:d_vocab],
            unembedding=end.unembedding.weight[:, :d_vocab],
            unembedding_bias=None if end.unembedding.bias is None else end.unembedding.bias[:d_vocab],
            final_norm=end.norm,
            embedding_factor=factor * factors[0],
            logit_factor=end.factor,
            notes=end.notes,
            ends=None if end.stream is None else end.stream.part,
        )

    def _layer(self, path: str, part: nn.Module, pattern: Tensor) -> _Layer:
        for scope in (part, self._part(path.rpartition(".")[0])):
            inside = set(scope.modules())
            found = find_values([call for call in self._calls if call.part in inside], pattern)
            if found is not None:
                values, projects = found
                out = affine_of(projects.part)
                break
        else:
            values, projects, out = self._own_weights(path, part, pattern)
        if out is None or not agrees(out(_given(projects, values, pattern)), projects.gave):
            self._refuse(f"{quoted(path)} does not give what its output projection makes of its heads' outputs")
        self._once(path, [values.call.part, projects.part])
        norm, stream = self._norm_before(values.call, quoted(path))
        behind, adds = self._norm_behind(projects, quoted(path))
        return _Layer(path, values, out, projects, adds, behind, norm, stream, None if projects.part is part else projects.part)

    def _own_weights(self, path: str, part: nn.Module, pattern: Tensor) -> tuple[Values, Call, Affine]:
        """Of a module that holds `W_V` (n_heads, d_model, d_head) and `W_O` (n_heads, d_head, d_model) itself."""
        call = latest(self._calls, lambda each: each.part is part)
        value, out = (_tensor(part, name, 3) for name in ("W_V", "W_O"))
        n_heads = pattern.shape[1]
        known = value is not None and out is not None and len(value) == len(out) == n_heads
        if call is None or value is None or out is None or not known or call.given.shape[-1] != value.shape[1]:
            return self._refuse(
                f"no linear map in {quoted(path)} makes values that its pattern mixes into what another is given, "
                "as it would with a gate, a norm or a cap between them, or in an order of columns that is not known"
            )
        bias = _tensor(part, "b_V", 2)
        affine = Affine(value.movedim(0, 1).flatten(1), None if bias is None else bias.flatten())
        columns = torch.arange(affine.weight.shape[1]).view(n_heads, -1)
        made = call._replace(gave=affine(call.given))
        return Values(made, affine, columns), call, Affine(out.flatten(0, 1), _tensor(part, "b_O", 1))

    def _norm_before(self, call: Call, where: str) -> tuple[Norm, Call]:
        """The norm whose output a call was given, and the call that was given what lies before it: that norm, or itself."""
        norms = [each for each in self._calls if each.part in self._norms and same(each.gave, call.given)]
        for each in reversed(norms):
            norm = norm_of(each)
            if norm is not None:
                self._once(where, [each.part])
                return norm, each
        if norms:
            self._refuse(f"the norm before {where}, `{type(norms[-1].part).__name__}`, is neither a LayerNorm nor an RMSNorm")
        return Norm(), call

    def _norm_behind(self, call: Call, where: str) -> tuple[Norm, Call]:
        """The norm that was given what a call gave, and its own call: else none, and the call itself."""
        later = self._calls[next(place for place, each in enumerate(self._calls) if each is call) + 1 :]
        found = next((each for each in later if each.part in self._norms and same(call.gave, each.given)), None)
        if found is None:
            return Norm(), call
        norm = norm_of(found)
        if norm is None:
            self._refuse(f"the norm behind {where}, `{type(found.part).__name__}`, is neither a LayerNorm nor an RMSNorm")
        self._once(where, [found.part])
        return norm, found

    def _end(self, last: _Layer) -> _End:
        for call in reversed(self._calls):
            affine = affine_of(call.part)
            if affine is None or (*call.given.shape[:-1], affine.n_in) != (*self._logits.shape[:2], call.given.shape[-1]):
                continue
            raw = call.gave[..., : self._logits.shape[-1]]
            related = self._related(raw) if raw.shape == self._logits.shape and agrees(affine(call.given), call.gave) else None
            if related is not None:
                norm, stream = self._norm_before(call, "the unembedding")
                return _End(affine, norm, *related, stream)
        weight = _tensor(self._root, "W_U", 2)
        given, gave = last.projects.given, last.adds.gave
        if weight is not None and given.shape == gave.shape and len(weight) == gave.shape[-1]:
            affine = Affine(weight, None)
            if agrees(affine(given + gave)[..., : self._logits.shape[-1]], self._logits):
                return _End(affine, Norm(), 1.0, (), None)
        return self._refuse("no linear map gives its logits, nor a multiple of them")

    def _related(self, raw: Tensor) -> tuple[float, tuple[str, ...]] | None:
        """The factor from what the unembedding gives to the logits, and what else is done to these; None for anything else."""
        factor = _factor(raw, self._logits)
        if factor is not None:
            return factor, ()
        cap = first_of(self._root, CAPS)
        if isinstance(cap, (int, float)) and cap > 0 and agrees(cap * torch.tanh(upcast(raw) / cap), self._logits):
            return 1.0, (f"logits are capped at {cap:g} after the unembedding; direct effects are on those before",)
        return None

    def _embedding(self, first: _Layer) -> tuple[Tensor, Call | None, float]:
        """The table of the embedding, the call that looks tokens up in it, and by what the entries are multiplied there."""
        for call in self._calls:
            table = table_of(call.part)
            if table is None or len(table) < self._subject.space.d_vocab:
                continue
            factor = _factor(table[self._tokens.to(table.device)], call.gave)
            if factor:
                self._once("the embedding", [call.part])
                return table, call, factor
        table, stream = _tensor(self._root, "W_E", 2), upcast(first.stream.given)
        if table is not None and table.shape[-1] == stream.shape[-1]:
            entries = upcast(table[self._tokens.to(table.device)])
            if agrees(stream - (stream - entries)[:1], entries):  # whatever else is there is the same in each row
                return table, None, 1.0
        return self._refuse("no table of embeddings was looked up")

    def _factors(self, layers: Sequence[_Layer], end: _End, looked_up: Call | None) -> list[float]:
        """How often what the embedding and each layer give counts in the residual stream: 1 unless the model scales it.

        What they give is moved while all norms give what they gave: the last of the stream must move by that much, and so must
        what each layer is given, by what comes before it.
        """
        streams = [layer.stream for layer in layers] + ([] if end.stream is None else [end.stream])
        shape = streams[-1].given.shape
        if looked_up is not None and looked_up.gave.shape != shape:
            self._refuse(f"its embedding is {looked_up.gave.shape[-1]} wide, and its residual stream {shape[-1]}")
        generator = torch.Generator().manual_seed(0)
        size = float(upcast(streams[-1].given).square().mean().sqrt()) or 1.0
        moves = [size * torch.randn(shape, generator=generator).double() for _ in range(len(layers) + 1)]
        if looked_up is None:
            moves[0].zero_()
        givers = [] if looked_up is None else [(looked_up, moves[0])]
        givers += [(layer.adds, move) for layer, move in zip(layers, moves[1:], strict=True)]
        moved = {call.part: move for call, move in givers}
        given = replayed(self._subject.caller, self._tokens, self._calls, self._norms, moved, [call.part for call in streams])
        changes = [given[call.part].cpu().double() - call.given.cpu().double() for call in streams]  # not every device has these
        factors = [*_fitted(changes[-1], moves[: len(streams)]), 1.0][: len(moves)]
        self._check_factors(factors, layers)
        for number, (change, call) in enumerate(zip(changes, streams, strict=True)):
            counted = zip(factors[: number + 1], moves, strict=False)
            wanted = sum((factor * move for factor, move in counted), torch.zeros_like(change))
            if not agrees(change.to(call.given.dtype), wanted.to(call.given.dtype)):
                place = f"{quoted(layers[number].path)} is given" if number < len(layers) else "the final norm is given"
                self._refuse(f"what {place} is not the sum of what was written before, as where a norm follows attention")
        return factors

    def _check_factors(self, factors: Sequence[float], layers: Sequence[_Layer]) -> None:
        if abs(factors[0]) < NO_FACTOR:
            self._refuse("what its embedding gives does not enter the residual stream as it is; a norm may follow it")
        for factor, layer in zip(factors[1:], layers, strict=True):
            if abs(factor) < NO_FACTOR:
                self._refuse(
                    f"what {quoted(layer.path)} gives is not added to the residual stream as it is; a norm may follow it"
                )

    def _part(self, path: str) -> nn.Module:
        try:
            return self._root.get_submodule(path)
        except AttributeError:
            return self._refuse(f"no module is known to make {quoted(path)}")

    def _once(self, where: str, parts: Sequence[nn.Module]) -> None:
        for part in parts:
            if sum(call.part is part for call in self._calls) != 1:
                self._refuse(f"a `{type(part).__name__}` of {where} runs more than once in a pass")

    def _refuse(self, why: str) -> NoReturn:
        packed = "".join(f"; {note}, which may be why" for note in quantisation_of(self._root))
        raise UnsupportedModel(
            f"the weights of the heads of {self._subject.name} cannot be read: {why}{packed}. "
            "What its heads attend to and what it predicts can be measured all the same"
        )


def _trial_tokens(subject: ModelUnderTest) -> Tensor:
    """Random ids, the first of each row the one that begins the model's sequences."""
    tokens = subject.random_ids(ROWS, POSITIONS)
    if subject.space.bos_id is not None:
        tokens[:, 0] = subject.space.bos_id
    return subject.fitting(tokens)


def _given(adds: Call, values: Values, pattern: Tensor) -> Tensor:
    """What the heads found, side by side: what the output projection was given, or where none is, what the pattern mixes."""
    if adds.part is not values.call.part:
        return adds.given
    return mix(pattern, values.call.gave[..., values.columns.to(values.call.gave.device)]).flatten(-2)


def _tensor(part: nn.Module, name: str, axes: int) -> Tensor | None:
    """A tensor that a module holds under a name, if it has that many axes."""
    found = getattr(part, name, None)
    return brought(part, name, found.detach()) if isinstance(found, Tensor) and found.ndim == axes else None


def _factor(found: Tensor, wanted: Tensor) -> float | None:
    """By what `found` is multiplied to be `wanted`; None where it is not."""
    if found.shape != wanted.shape:
        return None
    if agrees(found, wanted):
        return 1.0
    one, other = (each.cpu().double().flatten() for each in (found, wanted))
    factor = float(one @ other / (one @ one)) if bool(one.any()) else 0.0
    return factor if agrees(upcast(found) * factor, wanted) else None


def _fitted(change: Tensor, moves: Sequence[Tensor]) -> list[float]:
    """How often each move counts in a change; what is 1 but for rounding is 1."""
    matrix = torch.stack([move.flatten() for move in moves], dim=1)
    found = torch.linalg.lstsq(matrix, change.flatten()[:, None], driver="gelsd").solution[:, 0]
    return [
        1.0 if abs(factor - 1) < NEAR_ONE or not bool(move.any()) else factor
        for factor, move in zip(found.tolist(), moves, strict=True)
    ]
