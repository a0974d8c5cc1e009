"""An interval against its threshold, as small as a word."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_induction.formatting import in_markup
from pytest_induction.records import Estimate
from pytest_induction.report.charts.chart import known, number

WIDTH, HEIGHT, EDGE = 132, 22, 6


def interval(estimate: Estimate, thresholds: Sequence[float] = ()) -> str:
    """A small SVG: the interval, the value as a dot on it, each threshold as a rule across. Nothing where nothing is known."""
    if not known([estimate.value]):
        return ""
    low, high = _ends(estimate, thresholds)
    places = [_at(value, low, high) for value in (estimate.low, estimate.value, estimate.high)]
    left, dot, right = (places[1] if math.isnan(place) else place for place in places)
    middle = HEIGHT / 2
    parts = [f'<path d="M{EDGE} {middle}H{WIDTH - EDGE}" class="track"/>']
    parts += [f'<path d="M{_at(threshold, low, high):.1f} 2V{HEIGHT - 2}" class="bar"/>' for threshold in known(thresholds)]
    parts.append(f'<path d="M{left:.1f} {middle}H{max(right, left + 0.5):.1f}" class="reach"/>')
    parts.append(f'<circle cx="{dot:.1f}" cy="{middle}" r="4.5" class="dot"/>')
    label = f"{number(estimate.value)}, interval {number(estimate.low)} to {number(estimate.high)}"
    if thresholds:
        label += f", threshold {' and '.join(number(threshold) for threshold in thresholds)}"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg class="interval" {size} role="img" aria-label="{in_markup(label)}">{"".join(parts)}</svg>'


def _ends(estimate: Estimate, thresholds: Sequence[float]) -> tuple[float, float]:
    """Of a share all of it, from 0 to 1; else as far as what is shown reaches, and 0."""
    values = known([estimate.value, estimate.low, estimate.high, *thresholds])
    if estimate.unit == "share" and min(values) >= 0 and max(values) <= 1:
        return 0.0, 1.0
    low, high = min(*values, 0.0), max(*values, 0.0)
    room = (high - low) * 0.08 or 0.5
    return low - (room if low < 0 else 0), high + (room if high > 0 else 0)


def _at(value: float, low: float, high: float) -> float:
    if not math.isfinite(value):
        return math.nan
    return EDGE + (WIDTH - 2 * EDGE) * min(1.0, max(0.0, (value - low) / (high - low)))
