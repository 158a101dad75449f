"""Errors of the command line and of optional features."""

from __future__ import annotations

from pupsourcing_sa.errors.base import PupsourcingError

__all__ = [
    "ImportFailed",
    "MissingExtraError",
    "TemplateError",
]


class ImportFailed(PupsourcingError):
    """A line of an import is invalid.

    Attributes:
        line: number of the line, from 1.
        first_line: first line of its batch. No event of the batch was appended; the lines before it are in the log.
        reason: what is wrong with the line.
    """

    def __init__(self, line: int, first_line: int, reason: str) -> None:
        self.line = line
        self.first_line = first_line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


class MissingExtraError(PupsourcingError, ImportError):
    """An optional dependency is not installed or too old.

    Attributes:
        package: the distribution that is missing.
        extra: the extra of this distribution that installs it.
        problem: what is wrong with the installed version; ``None`` if it is not installed.
    """

    def __init__(self, package: str, extra: str, problem: str | None = None) -> None:
        self.package = package
        self.extra = extra
        self.problem = problem
        command = "install --upgrade" if problem else "install"
        super().__init__(f"{problem or f'{package} is not installed'}: pip {command} 'pupsourcing-sa[{extra}]'")


class TemplateError(PupsourcingError, LookupError):
    """There is no such Alembic template."""
