"""Pieces of an SVG picture: plots with a scale each way, curves, texts, rules and dots, in colours that every eye tells apart."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_induction.formatting import in_markup

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Curves beside one another: Okabe and Ito's."""
GREY, GOLD = "#8b95a3", "#d9a300"
SHADES = ("#97b4d4", "#769fca", "#5689be", "#3873b0", "#1f5e9f")
"""Curves in an order, from the first to the last."""
SHARES = (
    *("#00204c", "#002a66", "#00346e", "#273f6c", "#3c4a6b", "#4c556b", "#5b5f6d", "#686a70", "#757575"),
    *("#838178", "#928c78", "#a19876", "#b0a572", "#c0b16d", "#d1bf66", "#e1cc5c", "#f3db4f", "#ffe945"),
)
"""Cividis, from 0 to 1: as seen by all, brightness alone tells it."""
SIGNED_LIGHT = (
    *("#0a4a82", "#22669f", "#4a88b8", "#9cc0dc", "#cfdfea", "#f1f1ee"),
    *("#f7dfc0", "#efbd80", "#c9761d", "#a85c0a", "#7d4200"),
)
"""From blue below 0 to orange above, on light."""
SIGNED = tuple(f"var(--s{place},{colour})" for place, colour in enumerate(SIGNED_LIGHT))
"""The same as the page has them: on dark, 0 is dark and the ends are bright."""


def signed_colour(share: float) -> str:
    """The colour of `SIGNED_LIGHT` at -1 to 1, mixed from its neighbours; beyond, that of the end."""
    at = (max(-1.0, min(1.0, share)) + 1) / 2 * (len(SIGNED_LIGHT) - 1)
    place = min(int(at), len(SIGNED_LIGHT) - 2)
    low, high = (bytes.fromhex(SIGNED_LIGHT[each][1:]) for each in (place, place + 1))
    return "#{:02x}{:02x}{:02x}".format(*(round(a + (b - a) * (at - place)) for a, b in zip(low, high, strict=True)))


GRID = "#e4e8ee"


@dataclass(frozen=True)
class Plot:
    """A rectangle with a scale each way."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value lies in the picture."""
        return self.left + self.width * _share(x, self.x), self.top + self.height * (1 - _share(y, self.y))

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.left + self.width

    def line(self, x: Sequence[float], y: Sequence[float | None], colour: str, width: float = 1.8) -> str:
        """A curve, broken where a value is missing."""
        steps, pen = [], "M"
        for place, value in zip(x, y, strict=True):
            if value is None or not math.isfinite(value):
                pen = "M"
                continue
            steps.append("{}{:.1f} {:.1f}".format(pen, *self.at(place, value)))
            pen = "L"
        return f'<path d="{"".join(steps)}" stroke="{colour}" stroke-width="{width}"/>'


def _share(value: float, scale: tuple[float, float]) -> float:
    return (value - scale[0]) / (scale[1] - scale[0])


def scaled(plot: Plot, values: Iterable[float | None]) -> Plot:
    """The plot with room for these values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = room_for(low, high, 0.07)
    return Plot(plot.left, plot.top, plot.width, plot.height, plot.x, (low - room, high + room))


def room_for(low: float, high: float, share: float) -> float:
    """What an axis has beyond its values on either side: a share of what they span, where that can be told from nothing."""
    size = max(abs(low), abs(high))
    return (high - low) * share if high - low > size * 1e-9 else max(0.5, size * share)


def ticks_between(low: float, high: float, count: int) -> list[float]:
    """Round values between two others, about so many."""
    rough = (high - low) / count
    if not rough > max(abs(low), abs(high)) * 1e-12:
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.9)
    return [round(place * step, 12) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start", fill: str = "") -> str:
    if not words:
        return ""
    style = f' style="fill:{fill}"' if fill else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{style}>{in_markup(words)}</text>'


def rule(x: float, y: float, to_x: float, to_y: float, colour: str = GRID, width: float = 1) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def dot(plot: Plot, point: tuple[float, float], size: float, colour: str) -> str:
    x, y = plot.at(*point)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'


def dashed(line: str, dashes: str) -> str:
    """The line with gaps: lengths of dashes and gaps by turns, "" for none."""
    return line.replace("/>", f' stroke-dasharray="{dashes}"/>') if dashes else line


def mark(x: float, y: float, size: float, colour: str, symbol: str) -> str:
    """A square, a circle or a diamond around a place."""
    shape = (
        f' rx="{size / 2:g}"' if symbol == "circle" else f' transform="rotate(45 {x:.1f} {y:.1f})"' if symbol == "diamond" else ""
    )
    left, top = x - size / 2, y - size / 2
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{size:g}" height="{size:g}" fill="{colour}"{shape}/>'


def address(svg: str) -> str:
    """An address that holds the picture, for an image whose style is its own."""
    whole = svg if "xmlns=" in svg.partition(">")[0] else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(whole.encode()).decode()}"
