"""Standard output: plain text, and consoles of rich, which the extra ``cli`` installs."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["discard_output", "escape_unprintable", "open_console", "open_progress", "write"]


def open_console(*, to_stderr: bool = False) -> Console:
    """Return a console on standard output or standard error. It escapes characters that the stream cannot encode.

    Raises:
        MissingExtraError: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtraError("rich", "cli") from error
    escape_unprintable(sys.stderr if to_stderr else sys.stdout)
    return Console(stderr=to_stderr, highlight=False)


def open_progress(console: Console) -> Progress:
    """Return a display of progress: what is done, a bar, a percentage, and the time."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def escape_unprintable(stream: TextIO) -> None:
    """Escape the characters that a stream cannot encode."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Print to standard output. Ignore that its reader, such as ``head``, has closed the pipe.

    Raises:
        UsageError: the encoding of standard output lacks a character of the text. Nothing is printed.
    """
    try:
        print(text, end="", flush=True)
    except UnicodeEncodeError as error:
        character = error.object[error.start]
        raise UsageError(
            f"standard output cannot print {character!a}, because its encoding is {error.encoding}; "
            "set PYTHONIOENCODING=utf-8"
        ) from None
    except BrokenPipeError:
        discard_output()


def discard_output() -> None:
    """Discard the buffer of standard output, whose pipe is closed. Python would fail to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
