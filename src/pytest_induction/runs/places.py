"""Where runs, checkpoints and logs lie: a local path, or wherever fsspec reaches (`s3://`, `gs://`, `memory://`, ...)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pytest_induction.errors import RunError


class Place:
    """A file or directory, here or elsewhere, to be read. Prints as what the user wrote.

    Every failure to read is a `RunError` of one line that names the place.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._text = os.fspath(path)
        self._system: Any = None
        if "://" in self._text:
            self._system, self._inside = _remote(self._text)
        else:
            self._local = Path(self._text).expanduser()

    def __str__(self) -> str:
        return self._text

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self._text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._text.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine, or None where it lies elsewhere."""
        return None if self._system is not None else self._local

    def is_file(self) -> bool:
        with self._named():
            return bool(self._local.is_file() if self._system is None else self._system.isfile(self._inside))

    def is_dir(self) -> bool:
        with self._named():
            return bool(self._local.is_dir() if self._system is None else self._system.isdir(self._inside))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def size(self) -> int:
        """Bytes of the file."""
        with self._named():
            return int(self._local.stat().st_size if self._system is None else self._system.size(self._inside))

    def names(self) -> list[str]:
        """What the directory holds, sorted."""
        with self._named():
            if self._system is None:
                return sorted(entry.name for entry in self._local.iterdir())
            found = self._system.ls(self._inside, detail=False)
            return sorted({str(entry).rstrip("/").rpartition("/")[2] for entry in found} - {""})

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file's bytes, to be read inside the block."""
        with self._named():
            stream = self._local.open("rb") if self._system is None else self._system.open(self._inside, "rb")
            with stream:
                yield cast("BinaryIO", stream)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except FileNotFoundError:
            raise RunError(f"{self} is not there") from None
        except Exception as error:
            if isinstance(error, (OSError, EOFError)) or self._system is not None:  # each system raises in its own words
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise RunError(f"{self} cannot be read: {reason}") from error
            raise


def _remote(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise RunError(f"reading {url} needs fsspec: pip install 'pytest-induction[remote]'") from None
    try:
        system, inside = url_to_fs(url)
    except (ImportError, ValueError) as error:  # a protocol that nobody knows, or one whose library is missing
        raise RunError(f"{url} cannot be reached: {str(error).splitlines()[0]}") from None
    return system, inside
