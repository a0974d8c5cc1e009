"""A training run that is gated, opened: as it was recorded, or from its checkpoints, swept. Standard library only until used."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_induction.runs.record import TrainingRun

BUSY = 0.5  # seconds between two looks at a sweep that another worker is at


def opened(
    name: str,
    kept_at: Path,
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
    **settings: Any,
) -> TrainingRun:
    """The run of that name. Checkpoints are swept with `settings`, which are those of `sweep`, once: what was measured is kept.

    `columns` and `where` are for a log. Raises `RunError` or `ModelError` in one line.
    """
    from pytest_induction.runs.opening import holds_checkpoints, is_log, load_run
    from pytest_induction.runs.places import Place

    place = Place(name)
    if holds_checkpoints(place):
        return _swept(name, kept_at, settings)
    return load_run(name, columns=columns or None, where=where or None) if is_log(place) else load_run(name)


def opens_at_once(name: str) -> bool:
    """Whether a run can be read while tests are collected; checkpoints are swept when the first of their tests runs."""
    from pytest_induction.runs.opening import holds_checkpoints
    from pytest_induction.runs.places import Place

    return not holds_checkpoints(Place(name))


def kept_at(config: pytest.Config) -> Path:
    """Where sweeps are kept from one session to the next: pytest's cache, if it has one."""
    cache = getattr(config, "cache", None)
    return _own_directory() if cache is None else cache.mkdir("induction-sweeps")


def _own_directory() -> Path:
    """One among the temporary files that is this user's alone: what another has put there is not taken for a sweep of ours."""
    place = Path(tempfile.gettempdir()) / f"pytest-induction-of-{getattr(os, 'getuid', lambda: 'user')()}"
    with suppress(OSError):
        place.mkdir(mode=0o700)
    try:
        status = place.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
    except OSError:
        is_ours = False
    return place if is_ours else Path(tempfile.mkdtemp(prefix="pytest-induction-"))


def _swept(name: str, kept: Path, settings: dict[str, Any]) -> TrainingRun:
    from hashlib import blake2b

    from pytest_induction.errors import RunBusyError
    from pytest_induction.runs.opening import load_run
    from pytest_induction.runs.options_named import spelt
    from pytest_induction.runs.sweep import sweep

    place = name if "://" in name else Path(name).resolve()
    named = ("factory", "device", "dtype", "memory", "seed", "text")
    trusted = ("trust_remote_code",) if settings.get("trust_remote_code") else ()
    without = tuple(settings.get("without_pattern") or ())
    key = repr((str(place), *(None if settings.get(each) is None else str(settings[each]) for each in named), *trusted, *without))
    out = kept / blake2b(key.encode(), digest_size=8).hexdigest()
    while True:
        try:
            with spelt("pytest"):
                found = sweep(name, out, workers=1, **settings)  # what takes a process down is not to end the session
        except RunBusyError:  # another worker of this session
            time.sleep(BUSY)
        else:
            return load_run(replace(found, name=name.rstrip("/").rpartition("/")[2], place=name))
