"""The rows of the paper's table that are curves over the tokens trained on: what is drawn of each run, and in which colours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from paper_runs import INDUCES, INDUCTION, OTHER, PREVIOUS, PREVIOUS_TOKEN, Kind, Measured, Zoo
from pytest_induction.report.charts.drawing import INK, SHADES

QUIET, PALE, COMPARED = "#8b98a9", "#b9c3cf", "#c2410c"
EARLY, LATE = (206, 44, 36), (29, 78, 216)  # red and blue: the first layer and the last
TYPES = {OTHER: (PALE, "other"), PREVIOUS: ("#d9480f", "previous-token head"), INDUCES: ("#1d4ed8", "induction head")}
TOKENS = (1, 3, 8, 20, 60)  # of the loss by token number, those whose bins are nearest
FINE = 1.0  # width of the lines of other seeds


@dataclass(frozen=True)
class Curve:
    """A line over log10 tokens."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    width: float = 1.7


@dataclass(frozen=True)
class Column:
    """One kind of model: the run that is shown, those of other seeds, and those of one layer to compare the loss with."""

    kind: Kind
    shown: Measured
    others: tuple[Measured, ...]
    one_layer: Measured | None


@dataclass(frozen=True)
class Row:
    """A row of the paper, by its number: `curves` of a column, back to front, colours and their meaning (`keys`), and what the
    scale holds in any case (`marks`). `absent` says in two lines why a model has none.
    """

    number: str
    name: str
    unit: str
    curves: Callable[[Column], list[Curve]] = lambda _: []
    keys: Sequence[tuple[str, str]] = ()
    marks: tuple[float, ...] = ()
    absent: Callable[[Column], tuple[str, str]] = lambda _: ("not measured", "")


def columns_of(zoo: Zoo, kinds: Sequence[Kind]) -> list[Column]:
    """The columns of some kinds; the loss is compared with that of the model of one layer that is most like each."""
    return [Column(kind, zoo[kind][0], tuple(zoo[kind][1:]), _one_layer(zoo, kind)) for kind in kinds]


def _one_layer(zoo: Zoo, kind: Kind) -> Measured | None:
    plain = kind.family.replace("-smeared", "")  # smeared keys are what lets one layer do more
    return next((runs[0] for other, runs in zoo.items() if other.is_one_layer and other.family == plain and other != kind), None)


def _number(name: str, one: Measured, colour: str, width: float = 1.7) -> Curve:
    return Curve(one.x[one.drawn].tolist(), one.run.column(name)[one.drawn].tolist(), colour, width)


def loss(column: Column) -> list[Curve]:
    compared = [] if column.one_layer is None else [_number("loss", column.one_layer, COMPARED, FINE)]
    faint = [_number("loss", one, PALE, FINE) for one in column.others]
    return [*compared, *faint, _number("loss", column.shown, INK)]


def in_context_score(column: Column) -> list[Curve]:
    return [*(_number("icl_score", one, PALE, FINE) for one in column.others), _number("icl_score", column.shown, INK)]


def loss_by_token(column: Column) -> list[Curve]:
    index, slopes = column.shown.run.loss_slopes()
    kept = column.shown.drawn[index]
    places = [int(np.abs(np.log(slopes.bins / token)).argmin()) for token in TOKENS]
    x = column.shown.x[index][kept].tolist()
    return [Curve(x, slopes.means[kept, place].tolist(), shade) for place, shade in zip(places, SHADES, strict=True)]


def layer_colour(layer: int, n_layers: int) -> str:
    """Red for the first layer, blue for the last."""
    share = layer / max(n_layers - 1, 1)
    return "#{:02x}{:02x}{:02x}".format(*(round(one + (two - one) * share) for one, two in zip(EARLY, LATE, strict=True)))


def prefix_matching(column: Column) -> list[Curve]:
    best = [
        Curve(one.x[one.drawn].tolist(), one.run.best_of_heads("prefix_matching")[0][one.drawn].tolist(), PALE, FINE)
        for one in column.others
    ]
    one = column.shown
    scores = np.array([one.run.snapshots[place].prefix_matching for place in np.flatnonzero(one.drawn)], dtype=np.float64)
    return [*best, *_by_layer(one.x[one.drawn], scores)]


def _by_layer(x: np.ndarray, values: np.ndarray) -> list[Curve]:
    """A curve for each head that has numbers, the heads of late layers last: (snapshots, layers, heads)."""
    heads = [divmod(place, values.shape[2]) for place in range(values.shape[1] * values.shape[2])]
    known = [(layer, head) for layer, head in heads if np.isfinite(values[:, layer, head]).any()]
    colours = [layer_colour(layer, values.shape[1]) for layer, _ in known]
    return [Curve(x.tolist(), values[:, a, b].tolist(), colour, 1.4) for (a, b), colour in zip(known, colours, strict=True)]


def qk_trace(column: Column) -> list[Curve]:
    values = column.shown.values("qk_trace")
    return [] if values is None else _by_layer(column.shown.x_of(column.shown.steps), values)


def _of_types(name: str) -> Callable[[Column], list[Curve]]:
    def curves(column: Column) -> list[Curve]:
        one, values = column.shown, column.shown.values(name)
        if values is None:
            return []
        x = one.x_of(one.steps).tolist()
        heads = [(kind, *place) for kind in TYPES for place in np.argwhere(one.types == kind).tolist()]
        return [Curve(x, values[:, layer, head].tolist(), TYPES[kind][0], 1.4) for kind, layer, head in heads]

    return curves


def _no_trace(column: Column) -> tuple[str, str]:
    if column.shown.types.shape[0] == 1:
        return "n/a: no earlier layer", "to read from"
    return "n/a: a smeared key", "is of two tokens"


def _no_change(_: Column) -> tuple[str, str]:
    return "n/a: no phase change,", "no before and after"


LAYERS = (
    (layer_colour(0, 3), "first"),
    (layer_colour(1, 3), "middle"),
    (layer_colour(2, 3), "last"),
)
HEAD_TYPES = tuple(TYPES[kind] for kind in (INDUCES, PREVIOUS, OTHER))
LOSS = Row("2", "Loss over training", "nats", loss, ((INK, "seed 0"), (PALE, "other seeds"), (COMPARED, "one layer")))
BY_TOKEN = Row(
    "3",
    "Loss by token number",
    "nats, at token number",
    loss_by_token,
    tuple(zip(SHADES, map(str, TOKENS), strict=True)),
)
SCORE = Row(
    "5",
    "In-context learning score",
    "nats, below 0: it learns",
    in_context_score,
    ((INK, "seed 0"), (PALE, "other seeds")),
    (0.0,),
)
MATCHING = Row(
    "6",
    "Prefix matching",
    "share, each head, by its layer",
    prefix_matching,
    (*LAYERS, (PALE, "best head of other seeds")),
    (0.0, 1.0),
)
TRACE = Row("7", "QK trace", "each head, by its layer", qk_trace, LAYERS[1:], (0.0,), _no_trace)
BEFORE_AND_AFTER = Row(
    "8",
    "Ablation: before and after",
    "nats \u00d7 \u221atokens, each head",
    _of_types("before_and_after"),
    HEAD_TYPES,
    (0.0,),
    _no_change,
)
IN_CONTEXT = Row("9", "Ablation: in-context score", "nats, each head, patterns kept", _of_types("in_context"), HEAD_TYPES, (0.0,))
THRESHOLDS = (
    f"Induction head: prefix matching of {INDUCTION} or more at the end of training; "
    f"previous-token head: another with a previous-token score of {PREVIOUS_TOKEN} or more."
)
