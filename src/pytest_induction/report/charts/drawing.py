"""Pieces of an SVG picture: plots with a scale each way, curves, maps, texts and marks, in colours that every eye tells apart.

What the page's script (templates/hover.js) says of a picture is in the picture: the words of each point of a `curve` and of each
cell of a map as JSON in a `metadata` element, those of a mark in its `title`. Colours are those of the page, which has others on
dark; `as_file` makes a picture of the same that needs no page.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_induction.formatting import in_json, in_markup

INK, FAINT, PAPER = "var(--ink,#1d2733)", "var(--faint,#5f6b7a)", "var(--card,#ffffff)"
GRID, AXIS = "var(--grid,#e4e8ee)", "var(--axis,#aab4c0)"
FONT = "var(--sans,system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif)"
STYLE = {
    "text": f"font:12px {FONT};fill:{INK};stroke:none",
    ".halo": f"paint-order:stroke;stroke:{PAPER};stroke-width:4px;stroke-linejoin:round",
    ".faint": f"fill:{FAINT}",
    ".tiny": "font-size:9px",
    ".name": "font-weight:600;font-size:13px",
    ".title": "font-weight:700;font-size:20px",
}
"""How texts look, in the page and in a file."""
IN_PAGE = re.compile(r"var\(--[\w-]+,([^()]*)\)")

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Curves beside one another: Okabe and Ito's."""
GREY, GOLD = "#8b95a3", "#d9a300"
SHADES_LIGHT = ("#97b4d4", "#769fca", "#5689be", "#3873b0", "#1f5e9f")
SHADES_DARK = ("#35608f", "#4379b3", "#5f97d0", "#86b5e4", "#b8d6f4")
SHADES = tuple(f"var(--h{step},{colour})" for step, colour in enumerate(SHADES_LIGHT))
"""Curves in an order, from the first to the last, which stands out most on light and on dark."""
SHARES = (
    *("#00204c", "#002a66", "#00346e", "#273f6c", "#3c4a6b", "#4c556b", "#5b5f6d", "#686a70", "#757575"),
    *("#838178", "#928c78", "#a19876", "#b0a572", "#c0b16d", "#d1bf66", "#e1cc5c", "#f3db4f", "#ffe945"),
)
"""Cividis, from 0 to 1: as seen by all, brightness alone tells it."""
SIGNED_LIGHT = (
    *("#0a4a82", "#22669f", "#4a88b8", "#9cc0dc", "#cfdfea", "#f1f1ee"),
    *("#f7dfc0", "#efbd80", "#c9761d", "#a85c0a", "#7d4200"),
)
SIGNED_DARK = (
    *("#9fd3ff", "#6db5ec", "#4693cc", "#2f648c", "#2a475e", "#262c35"),
    *("#4f3f2c", "#7d5726", "#c27f2a", "#e9a04a", "#ffc988"),
)
"""From blue below 0 to orange above: on light, and on dark, where 0 is dark and the ends are bright."""


def signed_colour(share: float, colours: Sequence[str] = SIGNED_LIGHT) -> str:
    """The colour at -1 to 1, mixed from its neighbours; beyond, that of the end."""
    at = (max(-1.0, min(1.0, share)) + 1) / 2 * (len(colours) - 1)
    place = min(int(at), len(colours) - 2)
    low, high = (bytes.fromhex(colours[each][1:]) for each in (place, place + 1))
    return "#{:02x}{:02x}{:02x}".format(*(round(a + (b - a) * (at - place)) for a, b in zip(low, high, strict=True)))


STEPS = 21  # of a map with signs
SIGNED = tuple(f"var(--s{step},{signed_colour(step / 10 - 1)})" for step in range(STEPS))
"""The colours of a map with signs, in the page."""


def colours_in_css(shades: Sequence[str], signed: Sequence[str]) -> str:
    """What the page calls the colours that are others on dark."""
    steps = [f"--s{step}:{signed_colour(step / 10 - 1, signed)}" for step in range(STEPS)]
    return ";".join([*(f"--h{step}:{colour}" for step, colour in enumerate(shades)), *steps])


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


def embedded(data: Any) -> str:
    """JSON that is text in HTML and in XML, and cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return in_json(text).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def curve(line: str, words: Mapping[str, Any], of: str = "") -> str:
    """A line, its `name`, and what each of its points says: `values` with their unit `after` them, and `at` where that is."""
    return f'<g class="curve"{_part(of)}><metadata>{embedded(words)}</metadata>{line}</g>'


def cell_words(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[str | None]], **rest: Any) -> str:
    """What each cell of a map says: its row, `join`, its column, and in a second line its value, if it has one.

    `across` and `down` are the edges of columns and rows, where these are not one unit wide.
    """
    return f"<metadata>{embedded({'rows': rows, 'columns': columns, 'values': values, **rest})}</metadata>"


def marked(lines: Iterable[str], shapes: Iterable[str], of: str = "") -> str:
    """Shapes that are one mark, and the lines that it says."""
    return f'<g class="mark"{_part(of)}><title>{"&#10;".join(map(in_markup, lines))}</title>{"".join(shapes)}</g>'


def legend(of: str, shapes: Iterable[str]) -> str:
    """An entry of a legend: a click on it hides what is `of` it, and another shows it again."""
    return f'<g class="key" data-key="{of}">{"".join(shapes)}</g>'


def _part(of: str) -> str:
    return f' data-of="{of}"' if of else ""


def as_file(svg: str) -> str:
    """The picture on its own: with its style, light, and without what a script would say."""
    style = "".join(f"{names}{{{look}}}" for names, look in STYLE.items())
    ground = f'<style>{style}</style><rect width="100%" height="100%" fill="{PAPER}"/>'
    head, _, rest = svg.partition(">")
    whole = f'<svg xmlns="http://www.w3.org/2000/svg"{head.removeprefix("<svg")}>{ground}{rest}'
    return IN_PAGE.sub(r"\1", re.sub(r"<metadata>[^<]*</metadata>", "", whole))


def address(svg: str) -> str:
    """An address that holds the picture, for an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(as_file(svg).encode()).decode()}"
