"""Pages of docs/ of which a part is written by a script, between two markers."""


def filled(page: str, begin: str, end: str, content: str) -> str | None:
    """The page with this between its markers, or None where they are missing."""
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    return f"{before}{begin}\n\n{content}{end}{after}" if first and last else None
