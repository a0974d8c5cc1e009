"""Check the package on a GPU: `python benchmarks/check_gpu.py`, or `make check-gpu`; under ten minutes.

Every attention backend and every fused kernel, in float32, bfloat16 and float16, against slow references; planted heads that
must be found; a measured pass against a bare one; memory; what happens where memory does not last. Prints a table, writes it as
Markdown and exits with 1 if a line misses. Without a CUDA device it says so and exits with 0. `--device cpu` tries the script
itself out, without what a CPU lacks. `--only` names lines, by a part of their names.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the slow references of the tests

from tests.measuring.slow import head_scores

from gpu_models import D_VOCAB, ROWS, SAMPLES, Missing, Sample, fused, masked, repeated, small
from pytest_induction import ExpectationFailed, assert_has_induction_head, load_model, measure_copying, measure_heads
from pytest_induction.attention import kernels
from pytest_induction.attention.scores import scores_for
from pytest_induction.forward.calling import first_line
from pytest_induction.measuring.observing import observe
from pytest_induction.planted import STRENGTH, induction_head, previous_token_head
from pytest_induction.plugin.benchmarks.timing import Paired, peak_megabytes, timed

MISSED = "MISSED"
OUT = Path(".benchmarks/check-gpu.md")
SECONDS = 540.0  # after which nothing more is begun
DTYPES = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}  # what scores may differ from the reference by
SCORES = ("prefix_matching", "previous_token", "duplicate_token", "first_token")
SHAPES = ((ROWS, 13), (1, 64))  # rows and period: short, and of another order of length
FUSED = {"FLASH_ATTENTION": kernels.FLASH, "EFFICIENT_ATTENTION": kernels.EFFICIENT, "CUDNN_ATTENTION": kernels.CUDNN, "MATH": 0}
SIZES = {"cuda": ((12, 101), (4, 512), (2, 2048), (1, 8192)), "cpu": ((1, 101), (1, 257))}  # rows and positions of a timed pass
LAYERS, WIDTH, HEADS = {"cuda": 12, "cpu": 2}, 768, 12
RATIOS = {"float32": 1.03, "bfloat16": 1.10, "float16": 1.10}  # as in docs/performance.md
EXTRA_MB = 32.0  # beyond a bare pass, for up to 2048 positions of one row; in proportion beyond
PAIRS = 25
NEAR = 0.2  # nats that a planted effect may be off
REPEATS = 1e-6  # what a second measurement may differ by
HALF_A_GB = 2**29
LARGE = "64GB"  # a budget that no device has in one pass


class Outcome(NamedTuple):
    """What a check found: a figure, the bound that it is held to ("" for none), whether it is met."""

    figure: str
    bound: str
    met: bool


class Line(NamedTuple):
    """A line of the table. The state is `ok`, `MISSED`, or why it was left out."""

    name: str
    figure: str
    bound: str
    state: str


@dataclass(frozen=True)
class Check:
    """Something to check, on the device that it is given."""

    name: str
    run: Callable[[torch.device], Outcome]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script out")
    parser.add_argument("--out", type=Path, default=OUT, help=f"Markdown file that is written (default {OUT})")
    parser.add_argument("--only", action="append", default=[], help="part of the names of lines; may be repeated")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked")
        return 0
    chosen = [check for check in checks(device) if not given.only or any(part in check.name for part in given.only)]
    lines = list(done(chosen, device))
    page = as_page(lines, device)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(page, encoding="utf-8")
    missed = [line.name for line in lines if line.state == MISSED]
    print(f"{page}\nwritten to {given.out}" + (f"\nmissed: {'; '.join(missed)}" if missed else ""))
    return int(bool(missed) or not lines)


def done(chosen: Sequence[Check], device: torch.device) -> Iterator[Line]:
    """Every check's line, as it comes; whatever one raises is its own miss."""
    began = time.monotonic()
    for check in chosen:
        if time.monotonic() - began > SECONDS:
            yield Line(check.name, "not begun", f"{SECONDS:.0f} s", MISSED)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = check.run(device)
            line = Line(check.name, outcome.figure, outcome.bound, "ok" if outcome.met else MISSED)
        except Missing as why:
            line = Line(check.name, "", "", f"left out: {why}")
        except Exception as error:  # noqa: BLE001 - each is a finding, and the others go on
            line = Line(check.name, f"{type(error).__name__}: {first_line(error)}", "", MISSED)
        print(f"{line.state:<8.8} {line.name}  {line.figure}", file=sys.stderr, flush=True)
        yield line


def as_page(lines: Sequence[Line], device: torch.device) -> str:
    """The table as Markdown."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    ok = sum(line.state == "ok" for line in lines)
    about = f"{named}, torch {torch.__version__}: {ok} of {len(lines)} lines ok"
    head = ["# Checked on a GPU" if device.type == "cuda" else "# Tried out on a CPU", "", about, ""]
    cells = [("what", "found", "at most", "state"), ("---",) * 4, *lines]
    return "\n".join([*head, *("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in cells), ""])


def checks(device: torch.device) -> list[Check]:
    """All of them, the quick and telling ones first."""
    found = [
        Check(f"scores, {name}, {dtype}", partial(_scores_of, sample, dtype))
        for name, sample in SAMPLES.items()
        for dtype in DTYPES
    ]
    for kernel in FUSED:
        for how, attend in (("causal", fused), ("masked", masked)):
            for dtype in DTYPES:
                made = partial(_under_kernel, kernel, small(attend, "sdpa"), dtype)
                found.append(Check(f"kernel {kernel}, {how}, {dtype}", made))
    for dtype in DTYPES:
        found += [
            Check(f"planted induction head found, {dtype}", partial(_found, dtype)),
            Check(f"no induction head in a previous-token model, {dtype}", partial(_none_found, dtype)),
            Check(f"planted head copies, {dtype}", partial(_copies, dtype)),
        ]
    found += [
        Check("a second measurement gives the same", _repeats),
        Check("TF32 in matrix products", _tf32),
        Check("a batch that is too large is halved", _halved),
        Check("layers on several devices, by accelerate", _dispatched),
    ]
    sizes = SIZES["cuda" if device.type == "cuda" else "cpu"]
    for dtype in DTYPES:
        found += [Check(f"time of {r} x {n} tokens, {dtype}", partial(_time, r, n, dtype)) for r, n in sizes]
    found += [Check(f"memory of {r} x {n} tokens, bfloat16", partial(_memory, r, n)) for r, n in sizes]
    return found


# Scores against slow references


def _scores_of(made: Callable[[], Sample], dtype: str, device: torch.device) -> Outcome:
    sample = made()
    return _compared(sample, sample.model.to(device, getattr(torch, dtype)), dtype, device)


def _compared(sample: Sample, model: nn.Module, dtype: str, device: torch.device) -> Outcome:
    """The largest difference of any score of any head from loops over the entries of another account's patterns."""
    subject = load_model(model)
    if subject.reading.name != sample.backend:
        return Outcome(f"read by {subject.reading.name}", sample.backend, met=False)
    worst = 0.0
    for rows, period in SHAPES:
        tokens = repeated(rows, period)
        found = measure_heads(subject, tokens=tokens)
        for layer, pattern in enumerate(sample.patterns(model, tokens.to(device))):
            for row, head in np.ndindex(*pattern.shape[:2]):
                slow = head_scores(pattern[row, head], tokens[row].tolist())
                worst = max(worst, *(abs(found.per_sequence[name][row, layer, head] - slow[name]) for name in SCORES))
    return Outcome(f"{worst:.1e} off", f"{DTYPES[dtype]:g}", met=worst <= DTYPES[dtype])


def _under_kernel(kernel: str, made: Callable[[], Sample], dtype: str, device: torch.device) -> Outcome:
    """The same with one of torch's kernels alone, which must tell the log-sum-exp of its rows, and the truth."""
    sample = made()
    model = sample.model.to(device, getattr(torch, dtype))
    with _only(kernel):
        try:
            model(repeated(*SHAPES[0]).to(device))
        except RuntimeError as error:
            raise Missing(first_line(error)) from None
        kernels._known.clear()
        kernels._trusted.clear()
        outcome = _compared(sample, model, dtype, device)
        serving = kernels.KERNELS.get((device.type, FUSED[kernel]))
        trusted = [good for kind, good in kernels._trusted.items() if kind[0] is serving]
    if serving is None:
        return outcome._replace(figure=f"{outcome.figure}; log-sum-exp computed again, as it tells none")
    if not trusted:
        raise Missing("torch took another kernel")
    told = f"{outcome.figure}; log-sum-exp {'told' if all(trusted) else 'WRONG in some calls, computed again'}"
    return outcome._replace(figure=told, met=outcome.met and all(trusted))


def _only(kernel: str) -> AbstractContextManager[object]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, kernel))


# Planted heads


def _planted(model: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    return model.to(device, getattr(torch, dtype))


def _found(dtype: str, device: torch.device) -> Outcome:
    evidence = assert_has_induction_head(_planted(induction_head(), dtype, device))
    heads = [str(each) for each in evidence.heads[:1]]
    return Outcome(f"{evidence.verdict.value}: {', '.join(heads)}", "SHOWN: L1H0", met=heads == ["L1H0"])


def _none_found(dtype: str, device: torch.device) -> Outcome:
    try:
        verdict = assert_has_induction_head(_planted(previous_token_head(), dtype, device)).verdict.value
    except ExpectationFailed as failure:
        verdict = failure.evidence.verdict.value
    return Outcome(verdict, "REFUTED", met=verdict == "REFUTED")


def _copies(dtype: str, device: torch.device) -> Outcome:
    effect = float(measure_copying(_planted(induction_head(), dtype, device), n_sequences=6).copy_effect[1, 0])
    return Outcome(f"copy effect {effect:.3f}", f"{STRENGTH:g} within {NEAR:g}", met=abs(effect - STRENGTH) <= NEAR)


# What may differ from run to run


def _repeats(device: torch.device) -> Outcome:
    subject = load_model(small(fused, "sdpa")().model.to(device))
    one, other = (measure_heads(subject, tokens=repeated(*SHAPES[0])).per_sequence for _ in range(2))
    worst = max(float(np.abs(one[name] - other[name]).max()) for name in SCORES)
    return Outcome(f"{worst:.1e} off", f"{REPEATS:g}", met=worst <= REPEATS)


def _tf32(device: torch.device) -> Outcome:
    """Scores in float32 with TF32 switched on, which the model itself then computes in as well, against those without."""
    if device.type != "cuda":
        raise Missing("a CPU has no TF32")
    subject, was = load_model(small(fused, "sdpa")().model.to(device)), torch.backends.cuda.matmul.allow_tf32
    found = []
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            found.append(measure_heads(subject, tokens=repeated(*SHAPES[0])).per_sequence)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = was
    worst = max(float(np.abs(found[0][name] - found[1][name]).max()) for name in SCORES)
    return Outcome(f"{worst:.1e} off", "0.01", met=worst <= 0.01)


def _halved(device: torch.device) -> Outcome:
    """With a budget far too large, a pass runs out of memory; fewer rows are tried, and scores are those of small batches."""
    if device.type != "cuda":
        raise Missing("the memory of a CPU is not limited here")
    model = _large(8, 512, "bfloat16", device)
    rows = repeated(1, 16, copies=31).expand(256, -1)
    expected = measure_heads(load_model(model, memory="400MB"), tokens=rows).prefix_matching
    subject = load_model(model, memory=LARGE)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + HALF_A_GB) / total, device)
    try:
        found = measure_heads(subject, tokens=rows).prefix_matching
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    worst = float(np.abs(found - expected).max())
    return Outcome(f"{worst:.1e} off", f"{DTYPES['bfloat16']:g}", met=worst <= DTYPES["bfloat16"])


def _dispatched(device: torch.device) -> Outcome:
    """The layers on all devices that there are and in main memory: the same scores as on one device."""
    try:
        import accelerate
    except ImportError:
        raise Missing("accelerate is not installed") from None
    whole, parts = (small(fused, "sdpa")().model for _ in range(2))
    others = ["cpu"] if device.type == "cpu" else [*range(1, torch.cuda.device_count()), "cpu"]
    first: int | str = "cpu" if device.type == "cpu" else 0
    places = {"embed": first, "places": first, "layers.0": first, "layers.1": others[0], "unembed": first}
    placed = accelerate.dispatch_model(parts, places, main_device=first, force_hooks=True)
    tokens = repeated(*SHAPES[0])
    one, other = (measure_heads(model, tokens=tokens).per_sequence for model in (whole.to(device), placed))
    worst = max(float(np.abs(one[name] - other[name]).max()) for name in SCORES)
    return Outcome(f"{worst:.1e} off, on {sorted({str(each) for each in places.values()})}", "1e-4", met=worst <= 1e-4)


# Time and memory against a bare pass


def _large(layers: int, positions: int, dtype: str, device: torch.device) -> nn.Module:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise Missing("transformers is not installed") from None
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=WIDTH, n_head=HEADS, n_positions=positions, vocab_size=D_VOCAB)
    return GPT2LMHeadModel(config).to(device, getattr(torch, dtype)).eval()


def _sides(rows: int, positions: int, dtype: str, device: torch.device) -> tuple[Callable[[], object], Callable[[], object]]:
    """A pass with four scores of every head, run to its end, and a bare one; both without logits."""
    model = _large(LAYERS["cuda" if device.type == "cuda" else "cpu"], positions, dtype, device)
    block = torch.randperm(positions, generator=torch.Generator().manual_seed(0))[: -(-(positions - 1) // 4)] % D_VOCAB
    tokens = (
        torch.cat([torch.zeros(1, dtype=torch.long), block.repeat(4)])[None, :positions].expand(rows, -1).contiguous().to(device)
    )
    subject, scores = load_model(model), scores_for(tokens)

    def bare() -> object:
        with torch.no_grad():
            return model.base_model(tokens, use_cache=False)

    return lambda: observe(subject, tokens, scores, early_stop=False), bare


def _time(rows: int, positions: int, dtype: str, device: torch.device) -> Outcome:
    """Missed where the interval of the ratio lies beyond the bound; alternating pairs."""
    ours, bare = _sides(rows, positions, dtype, device)
    for side in (ours, bare, ours, bare):
        side()
    taken: list[list[float]] = [[], []]
    for pair in range(PAIRS):
        for side in (0, 1) if pair % 2 else (1, 0):
            taken[side].append(timed((ours, bare)[side], device))
    paired = Paired(tuple(taken[0]), tuple(taken[1]))
    interval = paired.interval()
    lowest = paired.ratio if interval is None else interval.low
    figure = f"{paired.ratio:.3f} of {1000 * paired.medians[1]:.2f} ms"
    return Outcome(figure, f"{RATIOS[dtype]:g}", met=device.type == "cpu" or lowest <= RATIOS[dtype])


def _memory(rows: int, positions: int, device: torch.device) -> Outcome:
    ours, bare = _sides(rows, positions, "bfloat16", device)
    ours(), bare()
    peaks = [peak_megabytes(side, device) for side in (ours, bare)]
    if None in peaks:
        raise Missing("nothing tells the peak of memory here")
    extra, most = peaks[0] - peaks[1], EXTRA_MB * max(1.0, rows * positions / 2048)
    return Outcome(f"{extra:+.0f} MB", f"{most:g} MB", met=device.type == "cpu" or extra <= most)


if __name__ == "__main__":
    sys.exit(main())
