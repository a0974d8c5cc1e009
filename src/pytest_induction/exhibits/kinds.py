"""Which exhibits there are, and which an option asks for. Standard library only."""

from __future__ import annotations

import difflib

from pytest_induction.errors import ArgumentError

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
            near = difflib.get_close_matches(name, (*KINDS, "all", "none"), n=1)
            alone = f"; {name} stands alone" if name in ("all", "none") else f"; did you mean {near[0]}?" if near else ""
            raise ArgumentError(f"exhibits are all, none, or some of {', '.join(KINDS)} with commas between, got {text!r}{alone}")
    return tuple(kind for kind in KINDS if kind in names)
