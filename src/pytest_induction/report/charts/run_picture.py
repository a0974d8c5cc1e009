"""One training run as a file: an SVG that needs nothing else, of the charts that a report has of it, beside one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_induction.formatting import in_markup
from pytest_induction.report.charts.chart import WIDTH, picture
from pytest_induction.report.charts.drawing import GOLD, as_file, text
from pytest_induction.report.charts.path import HEIGHT as PATH_HEIGHT
from pytest_induction.report.charts.path import LEFT as PATH_LEFT
from pytest_induction.report.charts.path import WIDTH as PATH_WIDTH
from pytest_induction.report.charts.path import path_parts
from pytest_induction.report.charts.run import LEFT, plots, reach_text, window_text
from pytest_induction.report.view import amount

TOP, SIDE = 78, WIDTH + 24  # where plots begin, and what is beside them
SIDE_LEFT, SIDE_RIGHT = SIDE + PATH_LEFT, SIDE + PATH_WIDTH - 12
LONGEST_TITLE = 58  # characters that fit beside the legend


def svg(data: Mapping[str, Any]) -> str:
    """The whole picture as SVG. What was not recorded is left out, and named below the title."""
    about = f"{data['title']}: {data['subtitle']}"
    parts, height = plots(data)
    side, bottom = _side(data)
    whole = [f"<title>{in_markup(about)}</title>", _head(data), f'<g transform="translate(0 {TOP})">{"".join(parts)}</g>', *side]
    return as_file(picture(whole, SIDE_RIGHT + 30, max(TOP + height, bottom + 24), about)) + "\n"


def _head(data: Mapping[str, Any]) -> str:
    """The title, what was not recorded, and what gold is."""
    missing = f"; not recorded: {', '.join(data['missing'])}" if data["missing"] else ""
    title, gold = data["title"], ""
    if len(title) > LONGEST_TITLE:
        title = f"\u2026{title[1 - LONGEST_TITLE :]}"  # what tells runs apart is at the end
    if data["window"] is not None:
        gold = f'<rect x="{SIDE_LEFT}" y="27" width="14" height="14" fill="{GOLD}" fill-opacity="0.3"/>'
        gold += text(SIDE_LEFT + 22, 38, window_text(data), "faint")
        if data.get("reach"):
            gold += text(SIDE_LEFT + 22, 56, f"lighter: {reach_text(data)}", "faint")
    return text(LEFT, 38, title, "title") + text(LEFT, 60, data["subtitle"] + missing, "faint") + gold


def _side(data: Mapping[str, Any]) -> tuple[list[str], float]:
    """The path, and below it the verdict on every series; how far down they reach."""
    parts, y = [], TOP + 17.0
    if data["path"] is not None:
        parts.append(f'<g transform="translate({SIDE} {TOP})">{"".join(path_parts(data))}</g>')
        y = TOP + PATH_HEIGHT + 34.0
    if not data["changes"]:
        return parts, y
    parts.append(text(SIDE_LEFT, y, "what changed", "name"))
    parts.append(text(SIDE_RIGHT, y, f"half-way, in {data['unit']}", "faint", anchor="end"))
    for change in data["changes"]:
        y += 21
        at = change["midpoint"]
        where = "" if at is None else f"{amount(10**at)} ({amount(10 ** change['low'])}..{amount(10 ** change['high'])})"
        parts += [text(SIDE_LEFT, y, change["name"]), text(SIDE_LEFT + 124, y, change["verdict"].replace("_", " "), "faint")]
        parts.append(text(SIDE_RIGHT, y, where, "faint", anchor="end"))
    return parts, y
