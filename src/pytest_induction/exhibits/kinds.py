"""Which exhibits there are, and which an option asks for. Standard library only."""

from __future__ import annotations

from pytest_induction.errors import ArgumentError, meant

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
            raise ArgumentError(f"exhibits must be all, none, or kinds with commas between, got {text!r}{hint}")
    return tuple(kind for kind in KINDS if kind in names)
