"""The tables of claims in docs/reference.md, from the registry: `python docs/theme/claims.py` writes them anew."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from pytest_induction.claims import MODEL, RUN, Claim, claims

PAGE = Path(__file__).parents[1] / "reference.md"
END = "<!-- end -->"
MARKS = {MODEL: "claims about models", RUN: "claims about runs"}
HEADINGS = {
    MODEL: "| assertion | claim | gate of `--induction-model` |",
    RUN: "| assertion about a training run ([more](runs.md)) | claim | gate of `--induction-run` |",
}
GATES = {
    "text": "with `--induction-text`",
    "reference": "with `--induction-reference`",
    "bound": "with `--induction-before-tokens` or `--induction-before-step`",
    "baseline": "with `--induction-baseline`",
    "asking": "in gate files",
}


def row(claim: Claim) -> str:
    """One claim: its assertion, what it asserts, when it is a gate."""
    more = f" ([more]({claim.more}))" if claim.more else ""
    gate = ", ".join(GATES[need] for need in claim.needs) or "yes"
    return f"| `{claim.method}` | {claim.asserts}{more} | {gate if claim.about else 'in a test'} |"


def table(about: str) -> str:
    """The table of all claims about a model or a run; a family may be of either, and stands with models."""
    every = [claim for claim in claims() if (claim.about or MODEL) == about]
    return "\n".join([HEADINGS[about], "|---|---|---|", *map(row, every)])


def page_with(page: str) -> str:
    """The page with these tables in the place of those that it has."""
    for about, mark in MARKS.items():
        begin = f"<!-- {mark}: written by docs/theme/claims.py -->\n"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table(about)}\n\n{END}{rest.partition(END)[2]}"
    return page


def main() -> int:
    """Write the page; with `--check` say instead whether it is as it should be."""
    page = PAGE.read_text(encoding="utf-8")
    wanted = page_with(page)
    if "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
        return 0
    if page == wanted:
        return 0
    sys.stderr.write("docs/reference.md does not have the claims as they are: run `python docs/theme/claims.py`\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
