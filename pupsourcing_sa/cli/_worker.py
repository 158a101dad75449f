"""The command ``pupsourcing-sa worker``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

from pupsourcing_sa.cli._usage import UsageError
from pupsourcing_sa.worker import Worker

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    worker = commands.add_parser(
        "worker",
        help="run consumers until SIGINT or SIGTERM",
        description="Run the consumers of a Worker until SIGINT or SIGTERM; running batches may finish first.",
    )
    worker.add_argument(
        "target",
        metavar="MODULE:ATTRIBUTE",
        help="a Worker or what returns one, as myapp.worker:worker",
    )
    worker.add_argument("--drain", action="store_true", help="process everything up to now, then return")
    worker.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    worker.set_defaults(call=_worker)


def _worker(options: argparse.Namespace) -> int:
    worker = _load_worker(options.target)
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if options.drain:
        worker.drain()
    else:
        worker.run()
    return 0


def _load_worker(target: str) -> Worker:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{target!r} must be a module and an attribute, such as myapp.worker:worker")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # as with `python -m`
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that is not
        raise UsageError(f"there is no module {error.name!r} in {here} or on the Python path") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UsageError(f"module {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, name)
    if not isinstance(found, Worker) and callable(found):
        found = found()
    if not isinstance(found, Worker):
        raise UsageError(f"{target} must be a Worker or a function that returns one, not {type(found).__name__}")
    return found
