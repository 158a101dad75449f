"""The command ``pupsourcing-sa worker``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

from pupsourcing_sa.cli._discovery import Found, discovered, distinct
from pupsourcing_sa.cli._logs import configure_logging
from pupsourcing_sa.cli._processes import Channel, Supervisor
from pupsourcing_sa.cli._settings import (
    DISCOVER,
    LOG_FORMAT,
    PROCESSES,
    Given,
    add_worker_settings,
    changed,
    given_arguments,
    given_settings,
)
from pupsourcing_sa.cli._target import load_worker
from pupsourcing_sa.cli._usage import UsageError
from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.lifecycle.signals import limit_exit

__all__ = ["add_to"]

#: What the application's own threads have for their end when the worker has stopped.
_EXIT_SECONDS: Final = 5.0

_DESCRIPTION = """\
Run the consumers of a Worker until SIGINT or SIGTERM. Running batches may finish first, within --shutdown-timeout; a
second signal ends the process at once. Any number of nodes may run on one database: start the command as often as you
like, on any machine. They share the partitions of the consumers among themselves, and take over those of a node that
is gone.

Each option that takes a value is also an environment variable: --batch-size is PUPSOURCING_BATCH_SIZE, and
PUPSOURCING_DISCOVER=0 is --no-discover. Options win over variables, and these over the WorkerConfig of the code.
Times are in seconds.
"""

_EPILOG = """\
examples:
  pupsourcing-sa worker myapp.worker:worker
  pupsourcing-sa worker myapp.worker:make_worker --processes 4 --log-format json
  pupsourcing-sa worker myapp.worker:worker --drain --batch-size 1000 --quiet
  PUPSOURCING_SHUTDOWN_TIMEOUT=10 pupsourcing-sa worker myapp.worker:worker

Exit status: 0 stopped as asked, 1 failure, 2 wrong usage, 130 or 143 ended by a second signal.
"""


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    worker = commands.add_parser(
        "worker",
        help="run consumers until SIGINT or SIGTERM",
        usage="%(prog)s [OPTION ...] MODULE:ATTRIBUTE",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is unambiguous now is not for ever
    )
    worker.add_argument(
        "target",
        metavar="MODULE:ATTRIBUTE",
        help="a Worker or what returns one, as myapp.worker:worker; the working directory is on the Python path",
    )
    worker.add_argument(
        "--drain", action="store_true", help="process everything up to now in this one process, then return"
    )
    worker.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    for setting in (PROCESSES, DISCOVER, LOG_FORMAT):
        setting.add_to(worker)
    add_worker_settings(worker)
    worker.add_argument("--supervised-by", metavar="DESCRIPTOR", type=int, help=argparse.SUPPRESS)
    worker.set_defaults(call=_worker)


def _worker(options: argparse.Namespace) -> int:
    settings = given_settings(options, os.environ)
    processes, discover, log_format = (
        setting.given(options, os.environ) for setting in (PROCESSES, DISCOVER, LOG_FORMAT)
    )
    if options.drain and (options.processes or 1) > 1:
        raise UsageError("--drain runs in one process; leave out --processes")
    if processes is not None and processes.value > 1 and not options.drain and options.supervised_by is None:
        configure_logging(log_format and log_format.value, is_quiet=options.quiet)
        return Supervisor(_node_command(options), processes.value).run()
    channel = _channel(options.supervised_by)
    worker = _adapted(load_worker(options.target), options.target, settings, discover=not discover or discover.value)
    configure_logging(log_format and log_format.value, is_quiet=options.quiet)
    if channel is not None:
        channel.ready(worker)
    try:
        if options.drain:
            worker.drain()
        else:
            worker.run()
    finally:
        if options.is_process:
            limit_exit(_EXIT_SECONDS)
    return 0


def _adapted(worker: Worker, target: str, settings: dict[str, Given], *, discover: bool) -> Worker:
    """The code's worker with what the deployment adds to it."""
    own = [Found(consumer, target) for consumer in worker._consumers]
    more = distinct([*own, *(discovered() if discover else ())])[len(own) :]
    if not more and not settings:
        return worker
    try:
        return worker.replace(more_consumers=more, config=changed(worker.config, settings))
    except (TypeError, ValueError) as error:
        raise UsageError(error) from error


def _channel(descriptor: int | None) -> Channel | None:
    try:
        return Channel(descriptor) if descriptor is not None else None
    except OSError as error:
        raise UsageError("--supervised-by is what the supervisor of --processes gives to its nodes") from error


def _node_command(options: argparse.Namespace) -> list[str]:
    quiet = ["--quiet"] if options.quiet else []
    command = [sys.executable, "-m", "pupsourcing_sa", "worker", options.target, *quiet, *given_arguments(options)]
    return [*command, "--supervised-by"]
