"""What a chart shows, for each kind, as types: what `charts` measures, and a report draws of a file. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pytest_induction.errors import ArgumentError, meant
from pytest_induction.ranges import MASS, NUMBER, PLACE, SCORES, SHARE, Count, Mass, Nats, Number, Range, Share, Small, is_known
from pytest_induction.records import ChartData
from pytest_induction.schema import Unfit, read, shown

OF_A_MODEL = ("heads", "attention", "repeats", "text", "ablations", "composition")
KINDS = (*OF_A_MODEL, "run")


def kinds_named(text: str) -> tuple[str, ...]:
    """The kinds that are meant by "all", "none" or names with commas between them, in the order of `KINDS`.

    Raises `ArgumentError` for anything else.
    """
    names = [name.strip() for name in text.split(",")]
    if names in (["all"], ["none"]):
        return KINDS if names == ["all"] else ()
    for name in names:
        if name not in KINDS:
            hint = f"; {name} stands alone" if name in ("all", "none") else meant(name, (*KINDS, "all", "none"))
            raise ArgumentError(f"charts must be all, none, or kinds with commas between, got {text!r}{hint}")
    return tuple(kind for kind in KINDS if kind in names)


MOST = Range(1, 1e7)  # of a place, a token number or a token id that a picture has room for
Place = Annotated[float, PLACE, is_known]
Known = Annotated[float, NUMBER, is_known]
Token = Annotated[float, MOST, is_known]
FromOne = Annotated[int, MOST]
Ends = tuple[Place, Place]
Matrix = list[list[Number | None]]


def _as_long(*names: str) -> Callable[[Mapping[str, Any]], str | Unfit]:
    """What is asked of lists of the same things: as many of each."""

    def check(data: Mapping[str, Any]) -> str | Unfit:
        length = len(data[names[0]])
        wrong = next((name for name in names if len(data[name]) != length), None)
        return (
            ""
            if wrong is None
            else Unfit(f"must have {length} entries, as `{names[0]}` has, got {len(data[wrong])}", f".{wrong}")
        )

    return check


def _rising(values: Sequence[float]) -> str:
    """What is asked of places one after the other."""
    falls = next(((one, other) for one, other in pairwise(values) if other <= one), None)
    return "" if falls is None else f"must rise, got {falls[1]:.6g} after {falls[0]:.6g}"


def _in_order(values: Sequence[float]) -> str:
    falls = next(((one, other) for one, other in pairwise(values) if other < one), None)
    return "" if falls is None else f"must not fall, got {falls[1]:.6g} after {falls[0]:.6g}"


def _not_empty(values: Sequence[Any]) -> str:
    return "" if values else "must have one entry at least, got none"


class Score(TypedDict):
    """One score of every head, with the ends of its interval."""

    name: str
    words: str
    unit: Literal["share", "nats"]
    value: Matrix
    low: Matrix
    high: Matrix


def _score_fits(score: Score) -> str | Unfit:
    """Each number within the range of the score, and matrices of one shape."""
    known = SCORES.get(score["name"], SHARE if score["unit"] == "share" else SCORES["copy_effect"])
    for side in ("value", "low", "high"):
        rows: Matrix = score[side]
        if [len(row) for row in rows] != [len(row) for row in score["value"]]:
            return Unfit("must have as many layers and heads as `value`", f".{side}")
        for layer, row in enumerate(rows):
            for head, value in enumerate(row):
                if value is not None and not known.holds(value):
                    return Unfit(f"must be {known}, got {value:.6g}", f".{side}[{layer}][{head}]")
    return ""


class Heads(TypedDict):
    layers: list[str]
    scores: list[Annotated[Score, _score_fits]]
    threshold: Share
    kinds: list[list[str | None]]
    confidence: Share
    about: str


class Pattern(TypedDict):
    name: str
    role: str
    score: Number | None
    pattern: list[list[Mass | None]]


class Attention(TypedDict):
    tokens: list[Count]
    texts: NotRequired[list[str]]
    starts: Annotated[list[Count], _rising]
    period: Count
    bos: bool
    heads: list[Pattern]
    about: str


def _attention_fits(data: Attention) -> str | Unfit:
    """Copies begin within the row, and a pattern has a row for each token, and in it a number for each that it may attend to."""
    count = len(data["tokens"])
    if len(data.get("texts", data["tokens"])) != count:
        return Unfit(f"must have {count} entries, as `tokens` has, got {len(data['texts'])}", ".texts")
    if data["starts"] and data["starts"][-1] >= count:
        return Unfit(f"must be positions below {count}, got {data['starts'][-1]}", ".starts")
    for place, head in enumerate(data["heads"]):
        lengths = [len(row) for row in head["pattern"]]
        if lengths != list(range(1, count + 1)):
            return Unfit(f"must have {count} rows of 1 to {count} numbers", f".heads[{place}].pattern")
    return ""


class Copy(TypedDict):
    name: str
    place: Annotated[list[FromOne], _rising]
    loss: list[Nats | None]
    low: list[Nats | None]
    high: list[Nats | None]


class Repeats(TypedDict):
    period: Count
    unit: str
    copies: list[Annotated[Copy, _as_long("place", "loss", "low", "high")]]
    uniform: Nats | None
    about: str


class Windows(TypedDict):
    early: Annotated[tuple[Count, Count], _in_order]
    late: Annotated[tuple[Count, Count], _in_order]


class Around(TypedDict):
    """A number with its interval."""

    value: Nats | None
    low: Nats | None
    high: Nats | None


class Text(TypedDict):
    tokens: Annotated[list[FromOne], _rising]
    loss: list[Nats | None]
    low: list[Nats | None]
    high: list[Nats | None]
    unit: str
    windows: Windows
    score: Around
    about: str


class Alone(Around):
    name: str


class Together(Around):
    names: list[str]


class Ablations(TypedDict):
    unit: str
    how: str
    loss: Nats | None
    of_all: Nats | None
    heads: list[Alone]
    together: Together
    controls: list[Nats | None]
    relaxed: bool
    about: str


class Node(TypedDict):
    name: str
    layer: Small
    head: Small
    role: str
    score: Number | None


Edge = TypedDict(
    "Edge",
    {
        "from": str,
        "to": str,
        "key": Number | None,
        "key_z": Number | None,
        "query": Number | None,
        "query_z": Number | None,
        "value": Number | None,
        "value_z": Number | None,
    },
)


class Composition(TypedDict):
    random_mean: Number | dict[str, Number | None] | None
    heads: list[Node]
    edges: list[Edge]
    about: str


class Series(TypedDict):
    name: str
    verdict: str
    midpoint: Place | None
    low: Place | None
    high: Place | None


def _midpoint_has_ends(series: Series) -> str:
    has = [series["midpoint"] is None, series["low"] is None, series["high"] is None]
    return "" if len(set(has)) == 1 else "must have a midpoint with both ends, or none of them"


class Curve(TypedDict):
    name: str
    unit: str
    x: list[Place]
    y: list[Number | None]


class OfHead(TypedDict):
    name: str
    x: Annotated[list[Place], _not_empty]
    y: list[Annotated[float, MASS, is_known]]


class OfToken(TypedDict):
    token: Token
    x: list[Place]
    y: list[Nats | None]


Hunt = TypedDict(
    "Hunt",
    {
        "name": str,
        "x": list[Place],
        "period": list[Annotated[int, MOST] | None],
        "copies": list[Annotated[int, MOST] | None],
        "holds": list[Place],
        "fails": list[Place],
        "from": Place | None,
        "texts": list[str],
    },
)


class Slopes(TypedDict):
    """The map of slopes: a row for each token number, in it a slope for each snapshot."""

    x: Annotated[list[Place], _in_order, _not_empty]
    tokens: Annotated[list[Token], _rising, _not_empty]
    slopes: list[list[Nats | None]]


def _slopes_fit(data: Slopes) -> str | Unfit:
    lengths = [len(row) for row in data["slopes"]]
    shape = f"{len(data['tokens'])} rows of {len(data['x'])} slopes"
    return "" if lengths == [len(data["x"])] * len(data["tokens"]) else Unfit(f"must have {shape}", ".slopes")


class Path(TypedDict):
    x: Annotated[list[Known], _not_empty]
    y: list[Known]
    at: list[Place]
    shares: tuple[Annotated[float, SHARE, is_known], Annotated[float, SHARE, is_known]]
    inside: Annotated[list[Count], _rising]
    turn: Count | None
    turn_at: Place | None


def _path_fits(path: Path) -> str | Unfit:
    """Places are of points that there are, and a turn says when."""
    count = len(path["x"])
    for name, places in (("inside", path["inside"]), ("turn", [] if path["turn"] is None else [path["turn"]])):
        if places and max(places) >= count:
            return Unfit(f"must be of points below {count}, got {max(places)}", f".{name}")
    return (
        Unfit("must say when, where there is a turn", ".turn_at") if path["turn"] is not None and path["turn_at"] is None else ""
    )


class Run(TypedDict):
    title: str
    subtitle: str
    unit: Literal["steps", "tokens"]
    range: Annotated[Ends, _in_order]
    begins_at_0: bool
    verdict: Literal["SHOWN", "REFUTED", "UNDETERMINED"] | None
    window: Ends | None
    reach: NotRequired[Ends | None]
    changes: list[Annotated[Series, _midpoint_has_ends]]
    curves: list[Annotated[Curve, _as_long("x", "y")]]
    heads: list[Annotated[OfHead, _as_long("x", "y")]]
    hunts: NotRequired[list[Annotated[Hunt, _as_long("x", "period", "copies", "texts")]]]
    n_heads: Count
    index: list[Annotated[OfToken, _as_long("x", "y")]]
    map: Annotated[Slopes, _slopes_fit] | None
    path: Annotated[Path, _as_long("x", "y", "at"), _path_fits] | None
    missing: list[str]
    about: NotRequired[str]


LAYOUTS: Mapping[str, Any] = {
    "heads": Heads,
    "attention": Annotated[Attention, _attention_fits],
    "repeats": Repeats,
    "text": Annotated[Text, _as_long("tokens", "loss", "low", "high")],
    "ablations": Ablations,
    "composition": Composition,
    "run": Run,
}
"""The layout of each kind of chart."""


def _is_as_its_kind(chart: ChartData) -> str | Unfit:
    """What is asked of the data of a chart: a kind that there is, and the layout of that kind."""
    if chart.kind not in LAYOUTS:
        return Unfit(f"must be one of {', '.join(LAYOUTS)}, got {shown(chart.kind)}", ".kind")
    if chart.data:
        try:
            read(LAYOUTS[chart.kind], chart.data)
        except Unfit as error:
            return error.within(".data")
    return ""


Drawn = Annotated[ChartData, _is_as_its_kind]
"""Data of a chart, read and checked."""
