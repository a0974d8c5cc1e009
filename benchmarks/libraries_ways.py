"""What `compare_libraries.py` compares: the ways, each a file of `benchmarks/libraries`, and the models with a known answer."""

from dataclasses import dataclass
from pathlib import Path

PLACE = Path(__file__).with_name("libraries")
WAYS = {
    "notebook": "transformers in a notebook",
    "lens_cache": "TransformerLens, `run_with_cache`",
    "lens_hooks": "TransformerLens, `run_with_hooks`",
    "lens_detector": "TransformerLens, `detect_head`",
    "nnsight_trace": "nnsight, `trace`",
    "induction_scores": "pytest-induction, `measure_heads`",
    "induction_list": "pytest-induction, `find_induction_heads`",
    "list_of_bridge": "the same, of a `TransformerBridge`",
    "list_of_nnsight": "the same, of an nnsight model",
}
BARE = "bare_pass"
SAME_SCORE = ("notebook", "lens_cache", "lens_hooks", "nnsight_trace", "induction_scores")
LISTS = ("induction_list",)  # of a dozen passes
TIMED = (BARE, *SAME_SCORE, "lens_detector", *LISTS)  # on the real model
SHOWN = ("notebook", "lens_hooks", "nnsight_trace", "induction_list")  # on the page
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")


@dataclass(frozen=True)
class Subject:
    """A model: what a head of it does, and its induction heads; `answer` is None where nobody set them."""

    title: str
    answer: tuple[str, ...] | None


KNOWN = {
    "induction": Subject("an induction head", ("L1H0",)),
    "llama": Subject("llama-2l, trained", None),
    "random": Subject("random weights", ()),
    "count_back": Subject("counts 49 back", ()),
    "matching": Subject("matches, writes nothing", ()),
    "suppression": Subject("matches, and suppresses", ()),
}


def lines_of(way: str) -> list[str]:
    """Its lines of code: what is neither empty, a comment, nor the docstring."""
    _, _, code = source_of(way).split('"""', 2)
    return [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]


def source_of(way: str) -> str:
    return (PLACE / f"{way}.py").read_text(encoding="utf-8")
