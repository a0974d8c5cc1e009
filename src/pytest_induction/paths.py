"""Names that users give, as paths: one that no file can have, too long or with a null in it, is not there. Standard library."""

from __future__ import annotations

import os.path
from pathlib import Path

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
