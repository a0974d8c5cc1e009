"""What files of tensors say of themselves, checked against what they are before anybody gives them memory. Standard library only.

A file of a few bytes may promise tensors of any size: each number here is held against the bytes that are there. Everything
raises `OSError` with one line for what is no such file.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pytest_induction.files import UnfitFileError, parse_json
from pytest_induction.model.pickles import check_pickle

MOST_TENSORS = 50_000  # in one file: torch takes 0.1 ms for each
LONGEST_HEADER = 2**24  # bytes of the header of a safetensors file
LONGEST_PICKLE = 2**25  # bytes of what a file of torch says of its tensors
LONGEST_METADATA = 2**27  # bytes of what a distributed checkpoint says of its pieces
MOST_RECORDS = MOST_TENSORS + 100  # of an archive,
LONGEST_LIST = 2**26  # bytes of the list of them
MOST_SPREAD = 2**26  # numbers that tensors may have beyond those that are stored
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
}
STORAGES = {  # bytes of a number in a storage of torch
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "UntypedStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
MOST_AXES = 64  # of a tensor
LARGEST_NUMBER = 16  # bytes; of a storage that is not known
_END = struct.Struct("<4s4H2LH")  # of an archive: what it holds, and where the list of that lies
_MARK, _MARK_64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ZIP, _ENTRY = b"PK\x03\x04", b"PK\x01\x02"


@dataclass(frozen=True)
class Header:
    """What a safetensors file says: of each tensor the type, shape and bytes, counted from `begin`; and its metadata."""

    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    begin: int


def safetensors_header(stream: BinaryIO, size: int) -> Header:
    """The header of a safetensors file of so many bytes, of which every one belongs to one tensor. Raises `OSError`."""
    stream.seek(0)
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        raise UnfitFileError(f"its header would have {length} bytes, and the file has {size}")
    if length > LONGEST_HEADER:
        raise UnfitFileError(f"its header has {length} bytes, expected at most {LONGEST_HEADER}")
    try:
        header = parse_json(stream.read(length), object_pairs_hook=_once)
    except ValueError as error:
        raise UnfitFileError(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise UnfitFileError("its header must be an object")
    metadata = header.pop("__metadata__", None) or {}
    _check_count(len(header))
    if not isinstance(metadata, dict):
        raise UnfitFileError("its `__metadata__` must be an object of texts")
    spans = sorted(_span(name, about) for name, about in header.items())
    end = 0
    for begins, ends, name in spans:
        if begins != end:
            raise UnfitFileError(f"the bytes of `{name}` begin at {begins}, expected {end}, where those before it end")
        end = ends
    if 8 + length + end != size:
        raise UnfitFileError(f"its tensors end at byte {8 + length + end}, and the file has {size}")
    return Header(header, {str(key): str(value) for key, value in metadata.items()}, 8 + length)


def _check_count(count: int) -> None:
    if count > MOST_TENSORS:
        raise UnfitFileError(f"it has {count} tensors, expected at most {MOST_TENSORS}: save it in shards")


def _span(name: str, about: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends. Raises `OSError` where that is not what its type and shape take."""
    try:
        (begin, end), shape, bits = about["data_offsets"], about["shape"], BITS.get(about["dtype"])
        is_whole = is_shape(shape) and is_shape((begin, end)) and begin <= end
    except (TypeError, ValueError, KeyError):
        is_whole = False
    if not is_whole:
        raise UnfitFileError(f"`{name[:80]}` must have a `dtype`, a `shape` and two `data_offsets`")
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise UnfitFileError(f"`{name[:80]}` of shape {shape[:9]} and type {about['dtype']} has {end - begin} bytes")
    return begin, end, name


def is_shape(sizes: Any) -> bool:
    """Whether these are as many whole numbers, of as many digits, as the sizes of a tensor: their product is soon there."""
    return len(sizes) <= MOST_AXES and all(type(size) is int and 0 <= size < 2**63 for size in sizes)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def check_torch_file(stream: BinaryIO, size: int) -> None:
    """Raise `OSError` for a file of `torch.save` whose tensors are not in it: that promises more bytes than it has.

    What else is wrong with it is for torch to say. Nothing that the file names is imported.
    """
    stream.seek(0)
    if stream.read(4) == _ZIP:
        _check_archive(stream, size)
        return
    stream.seek(0)
    claims = _Claims()
    for _ in range(4):  # a number, a version, the machine, the state
        if not _scanned(stream, claims):
            return
    check_pickle(stream.read(LONGEST_PICKLE))  # the keys of the storages
    _check_count(len(claims.storages))
    if sum(claims.storages.values()) > size:
        raise UnfitFileError(f"its tensors would take {sum(claims.storages.values())} bytes, and the file has {size}")
    claims.check_spread()


def _check_archive(stream: BinaryIO, size: int) -> None:
    with opened_archive(stream, size) as archive:
        records = {each.filename: each for each in archive.infolist()}
        main = f"{next(iter(records), '').partition('/')[0]}/data.pkl"
        if main not in records:
            return
        length = records[main].file_size
        if length > LONGEST_PICKLE:
            raise UnfitFileError(f"its {main[-80:]} has {length} bytes, expected at most {LONGEST_PICKLE}")
        content = record_in(archive, main)
    claims = _Claims()
    if not _scanned(io.BytesIO(content), claims):
        return
    _check_count(len(claims.storages))
    prefix = main.removesuffix("data.pkl")
    for key, claimed in claims.storages.items():
        record = records.get(f"{prefix}data/{key}")
        if record is not None and claimed > record.file_size:
            raise UnfitFileError(f"a tensor would take {claimed} bytes, and the file has {record.file_size} of it")
    claims.check_spread()


def _scanned(stream: BinaryIO, claims: _Claims) -> bool:
    """Whether the pickle where a stream is could be gone through to its end, which is then where the stream is."""
    begin = stream.tell()
    content = stream.read(LONGEST_PICKLE)
    length = check_pickle(content)
    if length < 0:
        if len(content) == LONGEST_PICKLE:
            raise UnfitFileError(f"it has a pickle of {LONGEST_PICKLE} bytes and more, expected at most so many")
        return False
    stream.seek(begin + length)
    try:
        _Scan(io.BytesIO(content[:length]), claims).load()
    except UnfitFileError:
        raise
    except Exception:  # noqa: BLE001 - it is for torch to say what is wrong with it
        return False
    return True


@contextmanager
def opened_archive(stream: BinaryIO, size: int) -> Iterator[zipfile.ZipFile]:
    """An archive as torch writes it. Raises `OSError` where it is compressed, or has more in it than there are bytes."""
    count = _count_of_records(stream, size)
    if count > MOST_RECORDS:
        raise UnfitFileError(f"it is an archive of {count} files, expected at most {MOST_RECORDS}")
    try:
        with zipfile.ZipFile(stream) as archive:
            records = [each for each in archive.infolist() if "/code/" not in each.filename]  # which is for torch to refuse
            plain = (each.compress_type == zipfile.ZIP_STORED and each.file_size == each.compress_size for each in records)
            packed = next((each for each, is_plain in zip(records, plain, strict=True) if not is_plain), None)
            if packed is not None:
                raise UnfitFileError(f"its {packed.filename[-80:]} is compressed, which torch.save never does: save it anew")
            if sum(each.file_size for each in records) > size:
                raise UnfitFileError(f"its parts would have {sum(each.file_size for each in records)} bytes of {size}")
            yield archive
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, KeyError, struct.error) as error:
        raise UnfitFileError(f"it is no whole archive: {error}") from None


def record_in(archive: zipfile.ZipFile, name: str) -> bytes:
    """A part of an archive; its checksum, which torch need not write, is not looked at."""
    with archive.open(name) as part:
        setattr(part, "_expected_crc", None)  # noqa: B010 - there is no other way
        return part.read()


def _count_of_records(stream: BinaryIO, size: int) -> int:
    """How many files an archive lists, 0 where it has no end. Raises `OSError` for a list that is longer than any."""
    before = min(size, _END.size + 2**16 + 20)
    stream.seek(size - before)
    tail = stream.read(before)
    place = tail.rfind(_MARK)
    if place < 0 or len(tail) - place < _END.size:
        return 0
    listed, end = _END.unpack_from(tail, place)[5], size - before + place
    if tail[max(0, place - 20) : place].startswith(_LOCATOR):  # a larger one has another end before it
        end -= 76
        stream.seek(max(0, end))
        other = stream.read(56)
        listed = int.from_bytes(other[40:48], "little") if other.startswith(_MARK_64) else listed
    if listed > LONGEST_LIST:
        raise UnfitFileError(f"it is an archive whose list has {listed} bytes, expected at most {LONGEST_LIST}")
    stream.seek(max(0, end - listed))
    return stream.read(listed).count(_ENTRY)


@dataclass
class _Claims:
    """What a pickle says of its storages, by their keys, in bytes; and how many numbers its tensors have beyond these."""

    storages: dict[str, int] = field(default_factory=dict)
    spread: int = 0

    def take(self, saved: Any) -> _Storage:
        """A storage, as the pickle refers to it."""
        kind, key, numel = (saved[1], saved[2], saved[4]) if isinstance(saved, tuple) and len(saved) >= 5 else (None, "", 0)
        if not is_shape((numel,)):
            raise UnfitFileError("a tensor of it has no size that is a number")
        if not isinstance(key, (str, int)):
            raise UnfitFileError("a tensor of it is stored under a name that is none")
        name = getattr(kind, "named", "").rpartition(".")[2]
        self.storages[str(key)] = max(self.storages.get(str(key), 0), numel * STORAGES.get(name, LARGEST_NUMBER))
        return _Storage(numel)

    def view(self, storage: Any, shape: Any) -> None:
        """A tensor of a storage."""
        if isinstance(storage, _Storage) and isinstance(shape, tuple):
            if not is_shape(shape):
                raise UnfitFileError("a tensor of it has a shape that is none")
            self.spread += max(0, math.prod(shape) - storage.numel)

    def check_spread(self) -> None:
        """Raise `OSError` for tensors that repeat few numbers very often."""
        if self.spread > MOST_SPREAD:
            raise UnfitFileError(f"its tensors have {self.spread} numbers more than are stored: save them contiguous")


@dataclass(frozen=True)
class _Storage:
    numel: int


class _Stub:
    """Stands for whatever a pickle names: it takes everything, and does nothing."""

    named = ""
    claims: _Claims

    def __new__(cls, *given: Any, **_: Any) -> Any:
        if cls.named.endswith("bytearray") and given and type(given[0]) is int:
            raise UnfitFileError(f"it asks for {given[0]} bytes that it does not have")
        if cls.named == "torch.Size":
            return tuple(given[0]) if given else ()
        if "_rebuild_tensor" in cls.named and len(given) > 2:
            cls.claims.view(given[0], given[2])
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Scan(pickle.Unpickler):
    """Goes through a pickle without making or importing anything but plain values."""

    def __init__(self, stream: Any, claims: _Claims) -> None:
        super().__init__(stream, encoding="latin1")  # which every text of old is in
        self._claims = claims
        self._known: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        named = f"{module}.{name}"
        if named not in self._known:
            self._known[named] = type("Stub", (_Stub,), {"named": named, "claims": self._claims})
        return self._known[named]

    def persistent_load(self, saved: Any) -> Any:
        return self._claims.take(saved)
