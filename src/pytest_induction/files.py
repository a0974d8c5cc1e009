"""Opening, reading, listing and replacing files, so that nothing hangs, grows without bound, or follows a planted link."""

from __future__ import annotations

import errno
import json
import os
import os.path
import stat
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

Mode = Literal["rb", "ab", "a+b", "r+b"]
FLAGS: dict[Mode, int] = {
    "rb": os.O_RDONLY,
    "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    "a+b": os.O_RDWR | os.O_APPEND | os.O_CREAT,
    "r+b": os.O_RDWR,
}
ALWAYS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))  # whatever the system has
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
SETTINGS = 2**22  # bytes of a file of settings, or of source code
DOCUMENT = 2**25  # bytes of a JSON document: read whole it takes up to ten times as many
MOST_PARTS = 2**20  # lists and objects in it
MOST_NAMES = 50_000  # in a directory


class UnfitFileError(OSError):
    """It is there, and not what it must be: no regular file, or too large, or led to by a link that is not followed."""

    def __init__(self, message: str, path: object = "") -> None:
        super().__init__(errno.EINVAL, message, str(path))


def open_regular(path: str | os.PathLike[str], mode: Mode = "rb", *, within: str | None = None, buffering: int = -1) -> BinaryIO:
    """Open a regular file, and nothing else, without waiting. Raises `OSError`, `FileNotFoundError` where there is none.

    What it is is looked at before it is opened, since opening a device may do something, and again afterwards.
    """
    path = os.fspath(path)
    if within is not None:
        path = inside(path, within)
    try:
        _check_kind(Path(path).stat().st_mode, path)
    except FileNotFoundError:
        if not FLAGS[mode] & os.O_CREAT:
            raise
    except ValueError as error:  # a NUL in the name
        raise UnfitFileError(f"its name cannot be one: {error}", path) from None
    except OSError as error:
        raise _of_links(error, path) from None
    number = os.open(path, FLAGS[mode] | ALWAYS | (0 if within is None else NO_LINK), 0o666)
    try:
        _check_kind(os.fstat(number).st_mode, path)
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(number, True)
        return os.fdopen(number, mode, buffering)
    except BaseException:
        os.close(number)
        raise


def read_bytes(path: str | os.PathLike[str], most: int, *, within: str | None = None) -> bytes:
    """All of a regular file of at most so many bytes. Raises `OSError`."""
    with open_regular(path, within=within) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise UnfitFileError(f"it has {max(size, len(content))} bytes, expected at most {most}", path)
    return content


def read_text(path: str | os.PathLike[str], most: int, *, within: str | None = None) -> str:
    """The same as text. Raises `UnicodeDecodeError` for what is not UTF-8."""
    return read_bytes(path, most, within=within).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], most: int = DOCUMENT, *, within: str | None = None) -> Any:
    """What a JSON file holds. Raises `OSError`, and `ValueError` for what is none, or takes too much memory."""
    return parse_json(read_bytes(path, most, within=within))


def parse_json(text: str | bytes, **how: Any) -> Any:
    """`json.loads` that takes no more memory than some times the text. Raises `ValueError` alone."""
    parts = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if parts > MOST_PARTS:
        raise ValueError(f"it has {parts} lists and objects, expected at most {MOST_PARTS}")
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None


def check_regular(path: str | os.PathLike[str], *, most: int | None = None, within: str | None = None) -> int:
    """The bytes of a regular file that somebody else is going to open. Raises `OSError` for anything else, and for more bytes."""
    with open_regular(path, within=within) as stream:
        size = os.fstat(stream.fileno()).st_size
    if most is not None and size > most:
        raise UnfitFileError(f"it has {size} bytes, expected at most {most}", path)
    return size


def names_in(directory: str | os.PathLike[str], most: int = MOST_NAMES) -> list[str]:
    """What a directory holds, sorted. Raises `OSError`, also for one that holds more than is worth looking at."""
    found: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            found.append(entry.name)
            if len(found) > most:
                raise UnfitFileError(f"it holds more than {most} names, and is not looked through", directory)
    return sorted(found)


def seen_at(path: str | os.PathLike[str]) -> str:
    """What lies at a path that is no regular file and no directory, to follow the path in a message."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        return "is a link to something that is not there" if os.path.islink(path) else "is not there"  # noqa: PTH114 - that of `Path` raises
    return f"is {kind_of(mode)}"


def kind_of(mode: int) -> str:
    """What a mode says that something is."""
    return next((what for test, what in KINDS if test(mode)), "a regular file")


def tree_of(path: str | os.PathLike[str]) -> str:
    """The directory that links in what the user names may not lead out of: itself, or that of a file.

    A snapshot in the cache of the Hugging Face hub consists of links into `blobs`, two directories above: there it is the
    directory of the model that has both.
    """
    real = Path(os.path.realpath(path))
    place = real if is_directory(real) else real.parent
    for each in (place, *place.parents[:3]):
        if each.name == "snapshots" and is_directory(each.parent / "blobs"):
            return str(each.parent)
    return str(place)


def inside(path: str | os.PathLike[str], tree: str) -> str:
    """Where a path leads, without links. Raises `OSError` where that is not inside the directory."""
    try:
        real = os.path.realpath(path)
    except ValueError as error:
        raise UnfitFileError(f"its name cannot be one: {error}", path) from None
    if real != tree and not real.startswith(tree.rstrip(os.sep) + os.sep):
        raise UnfitFileError(f"it is a link that leads out of {tree}, to {real}: put a copy there, or name that", path)
    return real


def replace_text(path: Path, text: str) -> None:
    """The text in place of what was there, in one step, with the same permissions; a link stays one. Raises `OSError`."""
    path = Path(os.path.realpath(path))
    try:
        mode: int | None = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise _of_links(error, path) from None
    if mode is not None:
        _check_kind(mode, path)
    beside = path.with_name(f".{path.name[:99]}.{os.urandom(8).hex()}.tmp")
    try:
        with create_new(beside) as stream:
            stream.write(text.encode("utf-8"))
        if mode is not None:
            beside.chmod(stat.S_IMODE(mode))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def create_new(path: Path) -> BinaryIO:
    """A new file to be written, never one that is there, nor where a link leads. Raises `FileExistsError`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | ALWAYS
    return cast("BinaryIO", os.fdopen(os.open(path, flags, 0o666), "wb"))


def _check_kind(mode: int, path: object) -> None:
    if not stat.S_ISREG(mode):
        raise UnfitFileError(f"it is {kind_of(mode)}, expected a regular file", path)


def _of_links(error: OSError, path: object) -> OSError:
    return UnfitFileError("it is a link that leads back to itself", path) if error.errno == errno.ELOOP else error


Name = str | os.PathLike[str]


def expanded(name: Name) -> Path:
    """The path, from the home directory where it begins with `~`; as it is written where nobody of that name has one."""
    try:
        return Path(os.path.expanduser(name))  # noqa: PTH111 - that of `Path` raises
    except ValueError:  # a null, or half of a surrogate pair, where the name of a user would be
        return Path(name)


def is_there(path: Name) -> bool:
    """Whether there is anything of that name."""
    return os.path.exists(path)  # noqa: PTH110 - that of `Path` raises


def is_file(path: Name) -> bool:
    """Whether it is a regular file, or leads to one."""
    return os.path.isfile(path)  # noqa: PTH113 - that of `Path` raises


def is_directory(path: Name) -> bool:
    """Whether it is a directory, or leads to one."""
    return os.path.isdir(path)  # noqa: PTH112 - that of `Path` raises
