"""How the parts of a module hold each other: what torch walks without end, or along very many paths, is told before it is."""

from __future__ import annotations

from torch import nn

MOST_PATHS = 1_000_000  # to parts; torch walks each when it moves or saves a module, however few parts there are


def why_endless(module: nn.Module) -> str:
    """Why torch cannot walk the parts of a module, as the end of a sentence about it; "" where it can."""
    paths: dict[int, int] = {}  # of each part that is done with: to itself and all below
    below = {id(module): 1}  # the same, so far, of those on the way to where we are
    way = [("", module, iter(_children(module)))]
    while way:
        _, part, children = way[-1]
        name, child = next(children, ("", None))
        if child is None:
            paths[id(part)] = below.pop(id(part))
            way.pop()
            if way:
                below[id(way[-1][1])] += paths[id(part)]
        elif id(child) in below:
            named = ".".join([*(each for each, *_ in way[1:]), name])
            return f"has a module that holds itself, `{named}`, which torch walks without end: keep it in a list or a tuple"
        elif id(child) in paths:
            below[id(part)] += paths[id(child)]
        else:
            below[id(child)] = 1
            way.append((name, child, iter(_children(child))))
    if paths[id(module)] > MOST_PATHS:
        return (
            f"holds its {len(paths)} modules along {paths[id(module)]:.3g} paths, of which torch walks each: hold each part once"
        )
    return ""


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Those of a module under each of their names."""
    return [(name, child) for name, child in module._modules.items() if child is not None]  # noqa: SLF001 - others are told once
