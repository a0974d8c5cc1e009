"""`run.json`: what is known of a run as a whole, read with care, for anybody may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from pytest_induction.errors import RunError
from pytest_induction.ranges import FROM_ONE, Count, Small
from pytest_induction.runs.places import Place
from pytest_induction.runs.record import PerStep, ScheduledChange, Window
from pytest_induction.schema import Unfit, parsed, read, shown

SCHEMA = 1
HEADER = "run.json"
LONGEST_HEADER = 2**20  # bytes
Source = Literal["recorder", "sweep", "log"]


class About(TypedDict, total=False):
    """What describes the measurements; whatever else a writer says of them is kept as it is."""

    model: str
    way_in: str
    n_layers: Small
    n_heads: Small
    dtype: str
    device: str
    seed: Count | None
    layers: list[str]
    notes: list[str]
    versions: dict[str, str]
    log: str
    format: str
    columns: dict[str, str]
    where: dict[str, Any]
    evaluation: bool


@dataclass(frozen=True)
class Header:
    """What `run.json` says. Names that are not known are passed over: a later version may write more."""

    source: Source
    name: str = ""
    tokens_per_step: PerStep | None = None
    icl_windows: tuple[Window, Window] | None = None
    first_token: Annotated[int, FROM_ONE] = 2
    schedule: tuple[ScheduledChange, ...] = ()
    about: About = field(default_factory=About)
    cost: Mapping[str, Any] = field(default_factory=dict)
    stopped: str = ""
    is_open: bool = False
    notes: tuple[str, ...] = ()


def read_header(place: Place) -> dict[str, Any]:
    """What `run.json` in a directory says, as it stands. Raises `RunError` where it is missing or is not what it must be."""
    where = place / HEADER
    text = header_text(place)
    if len(text) > LONGEST_HEADER:
        raise RunError(f"{where} is longer than {LONGEST_HEADER} bytes: it is no header of a run")
    try:
        header = parsed(text)
    except ValueError as error:
        raise RunError(f"{where} is not JSON: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        seen = shown(header.get("schema")) if isinstance(header, dict) else shown(type(header).__name__)
        raise RunError(f"{where} must be an object with schema {SCHEMA}, got {seen}; was it written by another version?")
    try:
        header_of(header)
    except Unfit as error:
        raise RunError(f"{where}: {error}") from None
    return header


def header_text(place: Place) -> bytes:
    """What is written there, as far as it is worth reading: a byte more than it may have, where it has more."""
    with (place / HEADER).open() as stream:
        return stream.read(LONGEST_HEADER + 1)


def header_of(data: Mapping[str, Any]) -> Header:
    """The header that `read_header` gave. Raises `Unfit` where something is not what it must be; null is nothing."""
    return read(Header, {name: value for name, value in data.items() if value is not None}, more=True)
