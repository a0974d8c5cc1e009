"""One thread, how often to measure, and one place that notes a figure and holds it to its threshold."""

import os
from collections.abc import Callable

import pytest

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers

from rows import Row

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pairs", type=int, help="pairs of each row, or processes of each side, instead of the row's own")


@pytest.fixture
def pairs(request: pytest.FixtureRequest) -> int | None:
    return request.config.option.pairs


@pytest.fixture
def judge(benchmark) -> Callable[..., None]:
    """Note a row's figure for the table, then fail if it is shown to miss the threshold: its whole interval does."""

    def judged(row: Row, figure: float, ours: float, other: float, repeats: int, bounds: tuple[float, ...]) -> None:
        benchmark.extra_info.update(
            row=row.name,
            figure=figure,
            ours=ours,
            other=other,
            repeats=repeats,
            bounds=bounds,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            transformers=transformers.__version__,
        )
        if not row.met(figure, bounds):
            pytest.fail(
                f"{row.name}: {row.shown(figure)}, shown to miss {row.threshold_shown}",
                pytrace=False,
            )

    return judged
