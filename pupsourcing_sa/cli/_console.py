"""What the commands print on: rich, which the extra ``cli`` installs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pupsourcing_sa.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["open_console"]


def open_console(*, to_stderr: bool = False) -> Console:
    """A console on standard output or standard error.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError("rich", "cli") from error
    return Console(stderr=to_stderr, highlight=False)
