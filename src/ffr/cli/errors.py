"""Errors that end a command without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class CliError(Exception):
    """A run that cannot go on for a reason the user can mend; exit code 1."""


class ConfigError(ValueError):
    """A configuration that cannot be used; exit code 2.

    Attributes:
        problems: One entry for each thing that is wrong, each possibly of several lines.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
