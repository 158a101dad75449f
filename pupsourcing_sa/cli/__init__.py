"""The command ``pupsourcing-sa``. A subcommand's module only parses options, loads code and calls the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pupsourcing_sa.errors import MissingExtraError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: command line without the program's name. By default the arguments of this process; the command may
            then also end the process when threads of the application keep it alive.

    Returns:
        0 success, 1 failure, 2 wrong usage, 3 problems found by ``status``, 130 interrupted, 143 terminated.
    """
    try:
        import click  # noqa: F401 - the modules of the commands need it when they are imported
    except ImportError:
        print(f"pupsourcing-sa: {MissingExtraError('click', 'cli')}", file=sys.stderr)
        return 1
    from pupsourcing_sa.cli._application import run

    return run(sys.argv[1:] if arguments is None else arguments, owns_process=arguments is None)
