"""The colours of all pictures and charts: every eye tells them apart, on light as on dark. Plain strings."""

from __future__ import annotations

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
