"""One analysis of one model timed: seconds through pytest-benchmark, and beside them what seconds do not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_induction.benchmarks.analyses import Analysis, bare, batches_of, fresh
from pytest_induction.benchmarks.memory import measured_by, peak_megabytes
from pytest_induction.benchmarks.pairs import ERROR_RATE, FEWEST_JUDGED, Paired, Turns
from pytest_induction.models.calling import as_found
from pytest_induction.models.protocol import ModelUnderTest
from pytest_induction.undoing import puts_back

if TYPE_CHECKING:
    from pytest_induction.bound import Induction

BASE = "bare forward pass over the same tokens, without logits where the model has a base model that gives none"


class Timing:
    """One analysis of the session's model, made ready; `take` times it."""

    @puts_back
    def __init__(self, analysis: Analysis, induction: Induction) -> None:
        self._analysis = analysis
        self._subject = induction.model
        with as_found(self._subject.module):
            self._measure = analysis.prepare(induction)
            self._batches = batches_of(self._measure, self._subject)

    @puts_back
    def take(self, benchmark: Any, *, fewest: int, seconds: float) -> Paired | None:
        """Time the analysis and note what is known of it in `benchmark.extra_info`. None where benchmarks are disabled.

        `benchmark` is the fixture of pytest-benchmark, `fewest` and `seconds` what its options ask for.
        """
        device = self._subject.device
        benchmark.group = self._analysis.group
        with as_found(self._subject.module):
            turns = Turns(self._ours, self._base, device)
            paired = turns.take(benchmark, fewest=max(fewest, FEWEST_JUDGED if self._analysis.judged else 1), seconds=seconds)
            if paired is None:
                return None
            peaks = [peak_megabytes(side, device) for side in (self._ours, self._base)]
        parts = (_about(self._subject), _of_tokens(self._batches, paired), _of_pairs(paired), _of_memory(peaks, device))
        for part in parts:
            benchmark.extra_info.update(part)
        return paired

    def _ours(self) -> None:
        self._measure(fresh(self._subject))

    def _base(self) -> None:
        for tokens in self._batches:
            bare(self._subject, tokens)


def objection(name: str, paired: Paired, max_overhead: float) -> str | None:
    """Why the measured ratio breaks the bound, in a line; None unless the whole interval lies above it.

    So a ratio that equals the bound fails in fewer than one of a thousand runs, whatever the noise of a pair is distributed like.
    """
    interval = paired.interval()
    if interval is None:
        return f"{name}: {len(paired.ours)} pairs show nothing about --induction-max-overhead={max_overhead:g}"
    if interval.low <= max_overhead:
        return None
    return (
        f"{name} takes {paired.ratio:.3f} times the bare forward pass ({100 * (1 - ERROR_RATE):.1f} % interval "
        f"{interval.low:.3f}..{interval.high:.3f}), {len(paired.ours)} pairs: above --induction-max-overhead={max_overhead:g}"
    )


def _about(subject: ModelUnderTest) -> dict[str, Any]:
    """What a figure holds for."""
    return {
        "model": subject.name,
        "weights": subject.fingerprint(),
        "way_in": subject.way.name if subject.way else "none",
        "dtype": str(subject.dtype).removeprefix("torch."),
        "device": _named(subject.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _named(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _of_tokens(batches: list[torch.Tensor], paired: Paired) -> dict[str, Any]:
    tokens = sum(batch.numel() for batch in batches)
    seconds, _ = paired.medians
    return {
        "sequences": sum(len(batch) for batch in batches),
        "positions": max(batch.shape[1] for batch in batches),
        "tokens": tokens,
        "forward_passes": len(batches),
        "tokens_per_second": round(tokens / seconds, 1),
    }


def _of_pairs(paired: Paired) -> dict[str, Any]:
    """The ratio, and its interval where there are pairs enough to have one."""
    seconds, base_seconds = paired.medians
    found = {
        "seconds": seconds,
        "base": BASE,
        "base_seconds": base_seconds,
        "pairs": len(paired.ours),
        "ratio_to_base": round(paired.ratio, 4),
    }
    interval = paired.interval()
    if interval is not None:
        found |= {"ratio_low": round(interval.low, 4), "ratio_high": round(interval.high, 4), "confidence": 1 - ERROR_RATE}
    return found


def _of_memory(peaks: list[float | None], device: torch.device) -> dict[str, Any]:
    """Peaks of both sides in megabytes (2**20 bytes); absent where nothing tells them."""
    ours, base = peaks
    if ours is None or base is None:
        return {}
    return {"peak_memory_mb": round(ours, 1), "base_peak_memory_mb": round(base, 1), "peak_memory_is": measured_by(device)}
