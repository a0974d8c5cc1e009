"""Verdicts that are kept from one session to the next: `--induction-cache`. Imports the standard library and pytest until used.

What is kept is the evidence of a gate, as JSON, in a file whose name is the digest of all that it depends on: every byte of the
model's files, what is asked and with which arguments and seed, how the model is loaded, and the versions of what measures. Where
one of these cannot be told, as of a factory or a hook of the user's own, nothing is kept. Files of others, and broken ones, are
told and measured anew.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_induction.files import expanded, names_in, open_regular, parse_json, read_bytes, replace_text
from pytest_induction.plugin.session import usage_error

if TYPE_CHECKING:
    from pytest_induction.records import Evidence
    from pytest_induction.registry import Claim

LAYOUT = 1
MARK = "induction-cache.json"  # the file by which a directory is known as one of ours
MOST_FILES = 10_000  # of a model
LARGEST = 2**26  # bytes of a verdict
CHUNK = 2**24
DISTRIBUTIONS = (
    "pytest-induction",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "gguf",
    "hypothesis",
    "bitsandbytes",
    "kernels",
)
ADAPTERS = "pytest_induction.backends"  # entry points that show the attention of models
OPTION = "--induction-cache"
PLAIN = (bool, int, float, str, type(None))
Key = dict[str, Any]
CACHE: pytest.StashKey[VerdictCache] = pytest.StashKey()


class VerdictCache:
    """The directory of a session, and what a verdict depends on; None of both where nothing is to be kept."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._digests: dict[str, tuple[str, str]] = {}  # of each model: what was seen of its files, and their digest
        given = config.option.induction_cache
        self._directory = None if given is None else self._checked(given)
        self._measures: Key = {} if given is None else {"code": code_digest(), "versions": installed_versions()}  # as loaded

    @property
    def is_on(self) -> bool:
        """Whether verdicts are kept at all."""
        return self._directory is not None

    def _checked(self, given: str) -> Path:
        """The directory, made where it is not there. Raises a usage error for one that is not ours to write to."""
        if not given:
            cache = getattr(self._config, "cache", None)
            if cache is None:
                raise usage_error(f"{OPTION} keeps verdicts in pytest's cache, which is off: name a directory, {OPTION}=DIR")
            place = cache.mkdir("induction-verdicts")
        else:
            place = expanded(given)
        try:
            place.mkdir(parents=True, exist_ok=True)
            names = [name for name in names_in(place) if not name.endswith(".tmp")]
            if names and MARK not in names:
                raise usage_error(f"{OPTION}: {place} has other files ({names[0]}): name a directory of its own, {OPTION}=DIR")
            if not names:
                replace_text(place / MARK, f'{{"layout": {LAYOUT}, "about": "verdicts kept by pytest --induction-cache"}}\n')
        except OSError as error:
            raise usage_error(f"{OPTION}: {place} cannot be used: {error.strerror or error}") from None
        return place

    def entry(self, spec: str, claim: Claim, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> Entry | None:
        """Where the verdict on a claim about a model is kept; None where it cannot be."""
        if self._directory is None:
            return None
        try:
            return self._entry(self._directory, spec, claim, arguments, settings)
        except (OSError, ValueError):  # files that nothing can be told of, or values that are not plain
            return None

    def _entry(
        self, directory: Path, spec: str, claim: Claim, arguments: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Entry | None:
        from pytest_induction.claims import BUILT_IN, snapshot

        has_own = bool(snapshot().keys() - BUILT_IN.keys() or self._config.hook.pytest_induction_attach.get_hookimpls())
        spends_time = any(_is_of_time(each.get("budget")) for each in (arguments, settings))
        if BUILT_IN.get(claim.name) is not claim or has_own or settings.get("trust_remote_code") or spends_time:
            return None
        seen, weights = self._weights(spec)
        key: Key = {
            "layout": LAYOUT,
            "weights": weights,
            "model": spec,  # which stands in the evidence
            "claim": claim.name,
            "arguments": {name: _plain(each) for name, each in sorted(arguments.items())},
            "settings": {name: _plain(each) for name, each in sorted(settings.items())},
            **self._measures,
            "machine": [platform.system(), platform.machine(), platform.processor(), _device(settings.get("device") or "cpu")],
        }
        return Entry(directory / f"{_digest(key)}.json", key, lambda: _seen(spec) == seen)

    def _weights(self, spec: str) -> tuple[str, str]:
        """What is seen of a model's files from outside, and the digest of all that is in them. Raises `ValueError`."""
        seen = _seen(spec)
        if self._digests.get(spec, ("", ""))[0] != seen:
            self._digests[spec] = seen, _digest_of_files(_files(spec))
        return self._digests[spec]


@dataclass(frozen=True)
class Entry:
    """A verdict that is kept, or may be: its file, all that it depends on, and whether the model is still what was read of it."""

    path: Path
    key: Key
    is_same: Callable[[], bool]

    def read(self) -> tuple[Evidence | None, str]:
        """The verdict, if it is there; else why a file that is there is of no use, or nothing."""
        from pytest_induction.records import Evidence

        try:
            found = parse_json(read_bytes(self.path, LARGEST))
            _check(found, self.key)
            evidence = Evidence.from_dict(found["evidence"])
            measured = datetime.fromisoformat(found["measured"])
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return (
                None,
                f"{self.path.name} of {OPTION} could not be used ({str(error).partition(chr(10))[0][:120]}): measured anew",
            )
        dated = replace(evidence.provenance, cached_from=measured.isoformat(timespec="seconds"))
        return noted(replace(evidence, provenance=dated), f"kept by {OPTION}: measured on {measured.date()}"), ""

    def write(self, evidence: Evidence) -> None:
        """Keep a verdict, where the model's files did not change while it was measured. What cannot be written is not kept."""
        from pytest_induction.formatting import in_json
        from pytest_induction.report.session_records import finite

        data = finite(replace(evidence, is_asserted=False).to_dict())
        kept = {"key": self.key, "measured": datetime.now(UTC).isoformat(timespec="seconds"), "digest": "", "evidence": data}
        try:
            text = in_json(json.dumps(kept, ensure_ascii=False, allow_nan=False))
            kept["digest"] = _digest(parse_json(text)["evidence"])
            if self.is_same():
                replace_text(self.path, in_json(json.dumps(kept, ensure_ascii=False, allow_nan=False)) + "\n")
        except (OSError, ValueError):
            return


def _device(name: str) -> str:
    """What a device is. Raises `ValueError` for those of which that is not asked."""
    if name == "cpu":
        return name
    if not name.startswith("cuda"):
        raise ValueError(f"what {name} is is not known")
    import torch

    try:
        return torch.cuda.get_device_name(name)
    except (RuntimeError, AssertionError) as error:  # it is not here, which loading says
        raise ValueError(str(error)) from None


def _check(found: Any, key: Key) -> None:
    """Raise `ValueError` for what is kept of another question, or was changed since."""
    if not (isinstance(found, dict) and found.keys() >= {"key", "measured", "digest", "evidence"}):
        raise ValueError("it is no verdict that was kept")
    if found["key"] != json.loads(json.dumps(key)):
        raise ValueError("it is of another question")
    if found["digest"] != _digest(found["evidence"]):
        raise ValueError("it was changed")


def noted(evidence: Evidence, note: str) -> Evidence:
    """The same evidence with another note on where it comes from."""
    about = evidence.provenance
    return replace(evidence, provenance=replace(about, notes=(*about.notes, note)))


def _is_of_time(budget: Any) -> bool:
    """Whether a budget is one of seconds: what is found within it is not the same every time."""
    return budget is not None and "pass" not in str(budget)


def _plain(value: Any) -> Any:
    """The value as it stands in a key; of a text its content. Raises `ValueError` for what has none, such as another model."""
    if isinstance(value, Path):
        return ["file", _digest_of_files([(value.name, value)])]
    if isinstance(value, str) and (":" in value or os.path.lexists(value)):
        raise ValueError("it may name code or a file")
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    raise ValueError(f"a {type(value).__name__} has no plain form")


def _files(spec: str) -> list[tuple[str, Path]]:
    """All files of a model, by their names below it. Raises `ValueError` for what is no directory, GGUF file, or has a base."""
    from pytest_induction.model.specs import ADAPTER_CONFIG, CONFIG, GGUF

    place = expanded(spec)
    if place.is_file() and place.suffix == GGUF:
        return [(place.name, place)]
    if not (place / CONFIG).is_file() or (place / ADAPTER_CONFIG).exists():
        raise ValueError("a factory, a model of the hub or an adapter: what it is made of is not known")
    found = []
    for folder, folders, names in os.walk(place, followlinks=True):
        folders[:] = sorted(each for each in folders if each not in (".git", ".cache", "__pycache__"))
        found += [(os.path.relpath(os.path.join(folder, name), place), Path(folder, name)) for name in sorted(names)]  # noqa: PTH118
        if len(found) > MOST_FILES:
            raise ValueError(f"it has more than {MOST_FILES} files")
    return found


def _seen(spec: str) -> str:
    """Names, sizes and times of a model's files: others where one was written to."""
    states = [(name, path.stat()) for name, path in _files(spec)]
    return _digest([(name, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in states])


def _digest_of_files(files: Iterable[tuple[str, Path]]) -> str:
    digest = blake2b(digest_size=20)
    for name, path in files:
        inner = blake2b(digest_size=20)
        with open_regular(path) as stream:
            while chunk := stream.read(CHUNK):
                inner.update(chunk)
        digest.update(f"{len(name)} {name} {inner.hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(data: Any) -> str:
    return blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=20).hexdigest()


def code_digest() -> str:
    """The digest of this package's own source: a version that is being worked on keeps its number."""
    package = Path(inspect.getfile(VerdictCache)).parent.parent
    return _digest_of_files((str(path.relative_to(package)), path) for path in sorted(package.rglob("*.py")))


def installed_versions() -> dict[str, Any]:
    from pytest_induction.records import installed

    adapters = sorted((each.value, each.dist.version if each.dist else "") for each in entry_points(group=ADAPTERS))
    return {"python": platform.python_version(), "adapters": adapters, **installed(DISTRIBUTIONS)}
