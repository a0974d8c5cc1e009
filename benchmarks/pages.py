"""Pages of docs/ of which a part is written by a script, between two markers."""

from pathlib import Path


def filled(page: str, begin: str, end: str, content: str) -> str:
    """The page with this between its markers; ends with a line on these where they are missing."""
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"the page must have the lines {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{content}{end}{after}"


def drawn(page: Path, wanted: str, *, check: bool, source: str) -> int:
    """Write the page, or with `check` only say whether it is what its source gives: the exit status."""
    if check:
        is_there = page.read_text(encoding="utf-8") == wanted
        print(f"{page.name} is {'' if is_there else 'not '}what {source}")
        return int(not is_there)
    page.write_text(wanted, encoding="utf-8")
    print(f"written: {page.name}")
    return 0
