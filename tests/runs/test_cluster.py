"""A sweep on a Ray cluster: a real one on this machine. The numbers are those of one process, and what dies is done again."""

import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from pytest_induction.errors import RunError
from pytest_induction.runs.lines import from_line, to_line
from pytest_induction.runs.sweep import sweep

from .small_models import HERE, MAKE, state

pytestmark = pytest.mark.filterwarnings("ignore")  # ray's own, of files and processes


@pytest.fixture(scope="module")
def rays():
    """Ray, whose usage is told to nobody, and which is shut down at the end."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield ray
    ray.shutdown()


@pytest.fixture
def cluster(rays):
    """One on this machine, with two places to measure at."""
    if not rays.is_initialized():
        rays.init(num_cpus=2, include_dashboard=False, log_to_driver=False, address="local")
    return rays


@pytest.fixture
def place(tmp_path):
    directory = tmp_path / "training"
    directory.mkdir()
    for step in (0, 10, 20):
        torch.save(state(step), directory / f"step_{step}.pt")
    return directory


def numbers(run):
    lines = [to_line(replace(snapshot, seconds=None))[0] for snapshot in run.snapshots]
    return [from_line(line, lambda _: {}) for line in lines]


def test_a_cluster_gives_the_numbers_of_one_process(cluster, place, tmp_path):
    (place / "step_10.pt").write_bytes(b"broken")
    one = sweep(place, tmp_path / "one", factory=MAKE, n_sequences=6)
    found = sweep(place, tmp_path / "run", factory=MAKE, n_sequences=6, ray="auto")
    assert numbers(found) == numbers(one) and found.about == one.about
    assert [snapshot.step for snapshot in found.snapshots if snapshot.problem] == [10]
    assert cluster.is_initialized(), "the connection was there before"


@pytest.mark.exhaustive
def test_a_process_that_dies_on_the_cluster_costs_its_own_checkpoint_alone(cluster, place, tmp_path):
    torch.save(state(10, first=7), place / "step_10.pt")
    run = sweep(place, tmp_path / "run", factory=f"{HERE}:make_fatal", n_sequences=6, ray="auto", workers=2)
    assert [bool(snapshot.problem) for snapshot in run.snapshots] == [False, True, False]
    assert run.snapshots[1].problem.startswith("step_10.pt: the process that measured it died 2 times")
    torch.save(state(10), place / "step_10.pt")
    later = sweep(place, tmp_path / "run", factory=MAKE, n_sequences=6, ray="auto", workers=2)
    assert numbers(later) == numbers(sweep(place, tmp_path / "one", factory=MAKE, n_sequences=6))


def test_a_factory_that_is_a_function_of_a_script_is_sent_along(cluster, place, tmp_path):
    """Also one that cannot be imported by name."""
    from .small_models import Small

    run = sweep(place, tmp_path / "run", factory=lambda: Small(), n_sequences=6, ray="auto", steps=[20])
    assert not run.snapshots[0].problem


def test_a_cluster_without_gpus_is_told_at_once(cluster, place, tmp_path):
    with pytest.raises(RunError, match=r"has 0 GPUs, and 0.5 are needed"):
        sweep(place, tmp_path / "run", factory=MAKE, ray="auto", num_gpus=0.5)


@pytest.mark.exhaustive
def test_what_cannot_begin_on_the_cluster_is_an_error(cluster, place, tmp_path, monkeypatch):
    from pytest_induction.runs import cluster as module

    class Broken:
        def __init__(self, plan, beside):
            raise ModuleNotFoundError("No module named 'pytest_induction'")

        def begin(self):
            pass

        def outcome(self, checkpoint):
            pass

    monkeypatch.setattr(module, "Actor", Broken)
    with pytest.raises(RunError, match=r"a worker died before it could begin, .*: ModuleNotFoundError: No module") as caught:
        sweep(place, tmp_path / "run", factory=MAKE, ray="auto")
    assert "\n" not in str(caught.value)


def test_without_ray_the_error_names_the_extra(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"pip install 'pytest-induction\[ray\]'"):
        sweep(place, tmp_path / "run", factory=MAKE, ray="")


@pytest.mark.exhaustive
def test_a_node_that_is_lost_costs_what_was_measured_there_just_then(rays, place, tmp_path):
    """Its checkpoint is measured by the one that is left; the others are measured once."""
    from ray.cluster_utils import Cluster

    from .small_models import Small

    here = tmp_path / "node"

    class Lost(Small):
        """The first that runs with weights that begin with 5 says on which node it is, and is held there."""

        def forward(self, tokens):
            if float(self.embed.weight[0, 0]) == 5 and not here.exists():
                here.with_suffix(".part").write_text(rays.get_runtime_context().get_node_id())
                here.with_suffix(".part").rename(here)
                time.sleep(600)
            return super().forward(tokens)

    torch.save(state(10, first=5), place / "step_10.pt")
    rays.shutdown()
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        rays.init(address=cluster.address, log_to_driver=False)
        found = []
        sweeping = threading.Thread(
            target=lambda: found.append(sweep(place, tmp_path / "run", factory=Lost, n_sequences=6, ray=cluster.address))
        )
        sweeping.start()
        while not here.exists() and sweeping.is_alive():
            time.sleep(0.05)
        (lost,) = [node for node in nodes if node.node_id == here.read_text()]
        cluster.remove_node(lost)
        sweeping.join(timeout=60)
        assert not sweeping.is_alive()
    finally:
        rays.shutdown()
        cluster.shutdown()
    (run,) = found
    assert not any(snapshot.problem for snapshot in run.snapshots)
    assert numbers(run) == numbers(sweep(place, tmp_path / "one", factory=Small, n_sequences=6))
