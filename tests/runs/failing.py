"""A filesystem of fsspec whose files lose their connection after so many bytes. Its buffered files have no `readline(size)`."""

import contextlib
from typing import ClassVar

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class FailingFile(AbstractBufferedFile):
    def read(self, length=-1):
        left = self.fs.breaks_after - self.tell()
        if left <= 0:
            raise ConnectionResetError("the line went dead\nand more")
        return super().read(left if length < 0 else min(length, left))

    def _fetch_range(self, start, end):
        return self.fs.files[self.path][start:end]


class FailingSystem(AbstractFileSystem):
    protocol = "failing"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    breaks_after: ClassVar[int] = 2**40

    def info(self, path, **_):
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **_):
        inside = [name for name in self.files if name.startswith(f"{self._strip_protocol(path)}/")]
        return [self.info(name) for name in inside] if detail else inside

    def _open(self, path, mode="rb", **_):
        return FailingFile(self, path, mode, size=len(self.files[path]))


@contextlib.contextmanager
def failing(files, breaks_after):
    """`failing://` with these files (path -> bytes), each of which can be read up to so many bytes."""
    fsspec.register_implementation("failing", FailingSystem, clobber=True)
    FailingSystem.files, FailingSystem.breaks_after = files, breaks_after
    try:
        yield
    finally:
        FailingSystem.files, FailingSystem.breaks_after = {}, 2**40
