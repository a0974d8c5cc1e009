"""The rows of the table in docs/performance.md: what is measured, on what, how often, and the threshold it is held to."""

from collections.abc import Sequence
from dataclasses import dataclass

BARE = "bare forward"  # of the base model with sdpa, without logits
EAGER = "eager output_attentions"
LENS = "TransformerLens detect_head"
TOY = "bare forward of the toy"  # with logits, as this model has no part without
GIVEN = "plain `given`"
FACTORED = "TransformerLens FactoredMatrix"
LOADED = "what `load_model` gave"
PER_HEAD = "one forward pass per head"
SAMPLED_HEADS = 3  # of 144, of which the other side is timed; every head costs the same there
UNITS = {"ratio": "x", "faster": "x faster", "less": "x less", "extra_mb": "MB"}


@dataclass(frozen=True)
class Row:
    """One figure, ours against the other side, over pairs that alternate or over fresh processes.

    `early_stop=True` ends our pass after the last attention, as measuring does by default; False runs the model to its end.
    """

    name: str
    what: str
    positions: int
    layers: int
    repeats: int  # pairs, or for memory fresh processes of each side
    figure: str
    threshold: float | None  # None: no claim, reported only
    against: str = BARE
    dtype: str = "float32"
    early_stop: bool = False
    model: str = ""  # of fixtures/, where it is one of them
    scale: float = 1.0  # how often the other side would have to do what it is timed with, to do what ours does

    @property
    def at_least(self) -> bool:
        """Whether the threshold is a least and not a most."""
        return self.figure in ("faster", "less")

    def met(self, value: float, bounds: Sequence[float] = ()) -> bool:
        """Whether the figure meets the threshold, or is not shown to miss it: what decides is the better end of its interval."""
        if self.threshold is None:
            return True
        if self.at_least:
            return max((value, *bounds)) >= self.threshold
        return min((value, *bounds)) <= self.threshold

    def shown(self, value: float) -> str:
        """The figure as people read it."""
        form = {"ratio": ".3f", "faster": ".2f", "less": ".1f", "extra_mb": "+.0f"}[self.figure]
        return f"{value:{form}} {UNITS[self.figure]}"

    @property
    def threshold_shown(self) -> str:
        return "no claim" if self.threshold is None else f"{'>=' if self.at_least else '<='} {self.threshold:g}"


def _ratios(what: str, threshold: float, shapes: tuple[tuple[int, int, int], ...], dtype: str, *, early_stop: bool) -> list[Row]:
    stem = "early-stop" if early_stop else "scores"
    return [
        Row(f"{stem}-{dtype}-{positions}", what, positions, layers, pairs, "ratio", threshold, dtype=dtype, early_stop=early_stop)
        for positions, layers, pairs in shapes
    ]


FULL = ((101, 12, 25), (512, 12, 15), (2048, 6, 15), (8192, 2, 5))
STOPPED = ((101, 12, 25), (512, 12, 15), (2048, 12, 5), (8192, 4, 3))  # fewer layers would flatter: the last one is cut short

EXAMPLES = "a property of 200 generated sequences"


def _on_shipped(name: str, layers: int, model: str) -> Row:
    return Row(f"properties-{name}", f"{EXAMPLES}, {name}", 18, layers, 15, "faster", 4, GIVEN, model=model)


SPEED = (
    *_ratios("four scores of every head, whole forward pass", 1.03, FULL, "float32", early_stop=False),
    *_ratios("the same, bfloat16", 1.10, FULL, "bfloat16", early_stop=False),
    *_ratios("the same, float32, stopped after the last attention", 1.00, STOPPED, "float32", early_stop=True),
    Row("eager-101", "against eager `output_attentions`", 101, 12, 15, "faster", None, EAGER, early_stop=True),
    Row("eager-512", "against eager `output_attentions`", 512, 12, 9, "faster", None, EAGER, early_stop=True),
    Row("eager-2048", "against eager `output_attentions`", 2048, 12, 5, "faster", 2.2, EAGER, early_stop=True),
    Row("lens-101", "against TransformerLens `detect_head`, its three heads", 101, 12, 15, "faster", 5, LENS, early_stop=True),
    Row("lens-512", "against TransformerLens `detect_head`, its three heads", 512, 12, 7, "faster", 5, LENS, early_stop=True),
    Row("ov-eigenvalues", "OV eigenvalue scores of all heads; 3 heads timed there", 0, 12, 9, "faster", 30, FACTORED, scale=48),
    Row("direct-effects-101", "direct effect of all heads on the right token", 101, 12, 25, "ratio", 1.1),
    Row("module-101", "`measure_heads` of a module, one row", 101, 12, 25, "ratio", 1.1, LOADED),
    Row("virtual-101", "virtual prefix matching of all pairs of heads", 101, 12, 9, "ratio", 25),
    Row("ablations-101", "ablation of all heads; 12 heads timed there", 101, 12, 3, "faster", 2.8, PER_HEAD, scale=12),
    Row("ablations-257", "ablation of all heads; 12 heads timed there", 257, 12, 3, "faster", 2.1, PER_HEAD, scale=12),
    Row("ablations-screened-101", "the same, screened", 101, 12, 3, "faster", 8, PER_HEAD, scale=12),
    Row("ablations-screened-257", "the same, screened", 257, 12, 3, "faster", 8, PER_HEAD, scale=12),
    _on_shipped("attn-only-2l", 2, "attention_only.py:two_layers"),
    _on_shipped("attn-only-3l-text", 3, "attention_only.py:three_layers_text"),
    _on_shipped("llama-2l", 2, "models/llama-2l"),
    Row("properties-gpt2", f"{EXAMPLES}, GPT-2-small shape", 23, 12, 3, "faster", 1.8, GIVEN),
    Row("toy", "two attention-only layers, d_model 256", 101, 2, 101, "ratio", 1.4, TOY),
)
MEMORY = (
    Row("memory-2048", "peak memory, whole forward pass", 2048, 12, 3, "extra_mb", 32),
    Row("memory-8192", "peak memory, whole forward pass: four times the positions", 8192, 2, 1, "extra_mb", 4 * 32),
    Row("memory-eager-2048", "peak memory against eager `output_attentions`", 2048, 12, 1, "less", 9, EAGER, early_stop=True),
    Row("memory-lens-101", "peak memory against `detect_head`", 101, 12, 1, "less", 10, LENS, early_stop=True),
    Row("memory-lens-512", "peak memory against `detect_head`", 512, 12, 1, "less", 10, LENS, early_stop=True),
)
ROWS = {row.name: row for row in (*SPEED, *MEMORY)}
