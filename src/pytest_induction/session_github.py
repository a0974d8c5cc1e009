"""What one pytest session gives GitHub Actions: the summary of the step, and marks. Imports the standard library until used."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_induction.printable import Command

if TYPE_CHECKING:
    from pytest_induction.report.session_records import SessionRecords

SUMMARY = "GITHUB_STEP_SUMMARY"
OTHER = "pytest_github_actions_annotate_failures"  # a plugin that marks each test that failed in its call
Line = tuple[str, dict[str, bool]]


def is_on_github() -> bool:
    """Whether GitHub Actions reads what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def has_summary() -> bool:
    """Whether there is a summary of a step to write to."""
    return bool(os.environ.get(SUMMARY))


class SessionGithub:
    """Told again when the session turned out otherwise, it says what is new and takes its old summary back."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._annotated: list[str] = []
        self._summary: tuple[int, bytes] | None = None  # where in the summary of the step we wrote, and what

    def tell(self, records: SessionRecords, marked: Collection[str], *, is_last: bool) -> list[Line]:
        """Write the summary; returns lines for the terminal, where GitHub finds marks. `marked` are tests that have theirs.

        What makes the session red beside its tests is said once, at the last.
        """
        return [*self._summarise(records), *self.annotate(records, marked, is_last=is_last)]

    def annotate(self, records: SessionRecords, marked: Collection[str] = (), *, is_last: bool = True) -> list[Line]:
        """Marks beside the code, each once."""
        if not is_on_github():
            return []
        from pytest_induction.report.github import annotations

        every = annotations(records, root=self._root, marked=marked, why=None if is_last else ())
        new = [line for line in every if line not in self._annotated]
        self._annotated += new
        return [(Command(line), {}) for line in new]

    def _summarise(self, records: SessionRecords) -> list[Line]:
        """Add ours to the summary of the step, in the place of what we added before, where nothing came after that."""
        if not has_summary():
            return []
        from pytest_induction.errors import reason
        from pytest_induction.files import open_regular
        from pytest_induction.report.github import ROOM, step_summary

        path = os.environ[SUMMARY]
        try:
            with open_regular(path, "a+b") as file:
                if self._summary is not None:
                    file.seek(self._summary[0])
                    if file.read() == self._summary[1]:
                        file.truncate(self._summary[0])
                start = file.seek(0, os.SEEK_END)
                added = step_summary(records, room=ROOM - start).encode()
                file.write(added)
        except OSError as error:
            return [(f"step summary: {path} cannot be written: {reason(error)}", {"yellow": True})]
        self._summary = start, added
        return []
