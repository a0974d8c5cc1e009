"""Workers of a sweep end with it, however it ends: within a second, also while they still start."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.runs.small_models import state

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up as Linux has them")


def children(number):
    """The processes that a process began, without what multiprocessing tracks resources with."""
    found = []
    for listed in Path(f"/proc/{number}/task").glob("*/children"):
        for child in listed.read_text().split():
            words = Path(f"/proc/{child}/cmdline")
            if words.exists() and b"spawn_main" in words.read_bytes():
                found.append(int(child))
    return found


def is_alive(number):
    """A process that has ended and that nobody has asked after is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def until(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    return condition()


def threads(number):
    return len(list(Path(f"/proc/{number}/task").glob("*")))


@pytest.mark.parametrize("moment", ["starting", "loading torch", "measuring"])
def test_workers_of_a_killed_sweep_end_within_a_second(tmp_path, monkeypatch, moment):
    torch.save(state(20, first=5), tmp_path / "step_0020.pt")
    hold, held = tmp_path / "hold", tmp_path / "held"
    hold.touch()
    monkeypatch.setenv("HOLD", str(hold))
    making = f"    Path({str(held)!r}).touch()\n    return small_models.make_held()\n"
    (tmp_path / "model.py").write_text(f"from pathlib import Path\nfrom tests.runs import small_models\ndef make():\n{making}")
    command = [sys.executable, "-m", "pytest_induction", "sweep", "--factory", f"{tmp_path}/model.py:make"]
    run = subprocess.Popen([*command, str(tmp_path), "-o", str(tmp_path / "out"), "--workers", "1"])
    try:
        workers = until(lambda: children(run.pid), 100)
        assert workers
        (worker,) = workers
        if moment == "loading torch":
            assert until(lambda: b"libtorch" in Path(f"/proc/{worker}/maps").read_bytes(), 60)
        elif moment == "measuring":
            assert until(held.exists, 100)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    began = time.monotonic()
    assert until(lambda: not is_alive(worker), 20)
    assert time.monotonic() - began < 1


def test_the_thread_ends_it_where_the_system_does_not(tmp_path):
    """As on systems other than Linux."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "def child(line):\n"
        "    sys.platform = 'other'\n"
        "    from pytest_induction.runs.serving import end_with_parent\n"
        "    end_with_parent()\n"
        "    line.send(os.getpid())\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ours, theirs = context.Pipe()\n"
        "    context.Process(target=child, args=(theirs,), daemon=True).start()\n"
        "    print(ours.recv(), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == -signal.SIGKILL
    assert until(lambda: not is_alive(int(ran.stdout)), 1)
