"""Speed and memory of measuring, against the bare forward pass of the same model. `make bench` runs it.

One thread, GPT-2-small shape, float32, one sequence. Both sides alternate within one process; the ratio is the median over
pairs of their times. Peak memory is that of a fresh process for each side. Exits with 1 if a bar is missed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

BARS = {101: 1.05, 512: 1.05, 2048: 1.05}
MEMORY_AT, MEMORY_BAR = 2048, 32.0  # positions, MB
PAIRS = {101: 25, 512: 15, 2048: 9}


def gpt2_small(layers: int = 12):
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    return GPT2Model(GPT2Config(n_layer=layers, n_positions=8192)).eval()


def tokens_of(positions: int) -> torch.Tensor:
    """A first token and four copies of one block, the last one cut where the positions end."""
    period = -(-(positions - 1) // 4)
    generator = torch.Generator().manual_seed(0)
    block = torch.randperm(50_000, generator=generator)[:period]
    return torch.cat([torch.tensor([50_256]), block.repeat(4)])[None, :positions]


def sides(positions: int, layers: int):
    """The bare forward without logits, and the same with all four scores."""
    from transformers import GPT2LMHeadModel

    from pytest_induction import load_model
    from pytest_induction.measure import _observe
    from pytest_induction.metrics.attention import PeriodicScores, scores_for

    base = gpt2_small(layers)
    model = GPT2LMHeadModel(base.config).eval()
    model.transformer = base
    subject, tokens = load_model(model), tokens_of(positions)
    scores = scores_for(tokens)
    if not isinstance(scores, PeriodicScores):
        raise SystemExit("the probe of the benchmark must have a period")

    def bare() -> None:
        with torch.no_grad():
            base(tokens, use_cache=False)

    return bare, lambda: _observe(subject, tokens, scores)


def ratio(positions: int, layers: int) -> dict[str, float]:
    bare, measured = sides(positions, layers)
    pairs = []
    for index in range(PAIRS[positions] + 2):
        order = (bare, measured) if index % 2 else (measured, bare)
        seconds = {}
        for side in order:
            started = time.perf_counter()
            side()
            seconds[side] = time.perf_counter() - started
        pairs.append((seconds[bare], seconds[measured]))
    pairs = pairs[2:]  # warm-up
    return {
        "positions": positions,
        "pairs": len(pairs),
        "bare_ms": 1000 * statistics.median(bare for bare, _ in pairs),
        "measured_ms": 1000 * statistics.median(measured for _, measured in pairs),
        "ratio": statistics.median(measured / bare for bare, measured in pairs),
    }


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_mb() -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_of(side: str, layers: int) -> float:
    """Peak resident memory of one side above the loaded model, MB."""
    bare, measured = sides(MEMORY_AT, layers)
    run = bare if side == "bare" else measured
    reset_peak()
    before = peak_mb()
    run()  # the first run of this process: what an earlier one had freed would hide in the resident memory
    return peak_mb() - before


def memory(layers: int) -> dict[str, float]:
    peaks = {}
    for side in ("bare", "measured"):
        command = [sys.executable, __file__, "--peak", side, "--layers", str(layers)]
        runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)]
        peaks[side] = statistics.median(runs)
    return {
        "positions": MEMORY_AT,
        "bare_mb": peaks["bare"],
        "measured_mb": peaks["measured"],
        "extra_mb": peaks["measured"] - peaks["bare"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--peak", choices=("bare", "measured"), help="print the peak memory of one side and stop")
    parser.add_argument("--json", help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak_of(arguments.peak, arguments.layers))
        return 0
    rows, missed = [], False
    print(f"{'positions':>9}  {'bare ms':>9}  {'measured ms':>11}  {'ratio':>6}  bar")
    for positions, bar in BARS.items():
        row = ratio(positions, arguments.layers)
        rows.append(row)
        missed |= row["ratio"] > bar
        print(f"{positions:>9}  {row['bare_ms']:>9.1f}  {row['measured_ms']:>11.1f}  {row['ratio']:>6.3f}  {bar}", flush=True)
    peak = memory(arguments.layers)
    missed |= peak["extra_mb"] > MEMORY_BAR
    print(
        f"peak memory at {MEMORY_AT} positions: {peak['bare_mb']:.0f} MB bare, {peak['measured_mb']:.0f} MB measured, "
        f"{peak['extra_mb']:+.0f} MB (bar {MEMORY_BAR:.0f})"
    )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"layers": arguments.layers, "torch": torch.__version__, "speed": rows, "memory": peak}, file, indent=2)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
