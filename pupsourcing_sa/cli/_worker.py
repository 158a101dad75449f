"""The command ``pupsourcing-sa worker``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import click
from click.core import ParameterSource

from pupsourcing_sa.cli._discovery import DiscoveredConsumer, discover_consumers, distinct_consumers
from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._logging import FORMATS, LEVELS, configure_logging, log_everything
from pupsourcing_sa.cli._supervised import SupervisedNode
from pupsourcing_sa.cli._supervisor import Supervisor
from pupsourcing_sa.cli._target import load_worker
from pupsourcing_sa.cli._values import one_of, whole_number
from pupsourcing_sa.cli._worker_settings import (
    SettingValue,
    given_settings,
    replace_settings,
    variable,
    worker_settings,
)
from pupsourcing_sa.postgres.redaction import redacted
from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.lifecycle import shutdown
from pupsourcing_sa.worker.lifecycle.signals import limit_exit

__all__ = ["worker"]


class WorkerCommand(Command):
    """The command, which keeps its command line for the nodes of ``--processes``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        ctx.meta["arguments"] = list(args)
        if _log_format(args) == "json":
            # From the first line on: a wrong option is reported as JSON, too.
            configure_logging("json", None)
            if ctx.obj:
                log_everything()
        return super().parse_args(ctx, args)


def _log_format(arguments: Sequence[str]) -> str | None:
    """Return the format of the log before the command line is parsed."""
    name, found = "--log-format", os.environ.get(variable("log_format"))
    for argument, following in pairwise([*arguments, ""]):
        if argument == name:
            found = following
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


_HELP: Final = """\
Run the consumers of a worker until SIGINT or SIGTERM.

MODULE:ATTRIBUTE is a Worker, or a function that returns one. The working directory is on the Python path.

You can start any number of workers on one database, on any machine. Each process is a node. The nodes share the
partitions of all consumers and take over those of a node that stops.

After the first signal, running batches have --shutdown-timeout seconds to finish. A second signal ends the process
at once.

Every option with a value, and --discover, is also an environment variable: PUPSOURCING_BATCH_SIZE=500 is --batch-size
500, and PUPSOURCING_DISCOVER=0 is --no-discover. Options override variables, and variables override the WorkerConfig in
the code. S is a time in seconds.
"""


@click.command(
    cls=WorkerCommand,
    help=_HELP,
    short_help="Run consumers until SIGINT or SIGTERM.",
    examples=[
        "pupsourcing-sa worker myapp.worker:worker",
        "pupsourcing-sa worker myapp.worker:make_worker --processes 4 --log-format json",
        "pupsourcing-sa worker myapp.worker:worker --drain --batch-size 1000 --quiet",
        "PUPSOURCING_SHUTDOWN_TIMEOUT=10 pupsourcing-sa worker myapp.worker:worker",
    ],
    exit_status={
        0: "stopped as requested",
        1: "failure",
        2: "wrong usage",
        130: "ended by a second SIGINT",
        143: "ended by a second SIGTERM",
    },
)
@click.argument("target", metavar="MODULE:ATTRIBUTE")
@option(
    "--processes",
    group="Run",
    metavar="N",
    type=whole_number(),
    envvar=variable("processes"),
    help="Run N nodes, each in a process of its own, and restart those that crash.",
    default_text="1",
)
@option("--drain", group="Run", is_flag=True, help="Process the events that the log has now, then exit.")
@option(
    "--discover/--no-discover",
    group="Run",
    default=True,
    envvar=variable("discover"),
    help="Also run consumers from entry points of installed packages, in the group pupsourcing_sa.consumers.",
    default_text="--discover",
)
@option(
    "--log-level",
    group="Logging, on standard error",
    metavar="LEVEL",
    type=one_of(*LEVELS),
    envvar=variable("log_level"),
    help="Lowest level to log: debug, info, warning or error.",
    default_text="info",
)
@option("--quiet", group="Logging, on standard error", is_flag=True, help="Same as --log-level warning.")
@option(
    "--log-format",
    group="Logging, on standard error",
    metavar="text|json",
    type=one_of(*FORMATS),
    envvar=variable("log_format"),
    help="Log lines of text, or one JSON object per line.",
    default_text="text, unless the application configures logging",
)
@worker_settings
@click.option("--supervised-by", metavar="DESCRIPTOR", type=int, hidden=True)
@click.pass_context
def worker(
    context: click.Context,
    /,
    target: str,
    processes: int | None,
    drain: bool,
    discover: bool,
    log_level: str | None,
    quiet: bool,
    log_format: str | None,
    supervised_by: int | None,
    **_: Any,
) -> int:
    """Run the command."""
    if quiet and context.get_parameter_source("log_level") is ParameterSource.COMMANDLINE:
        raise UsageError("--quiet is the same as --log-level warning. Leave out one of the two")
    level = "warning" if quiet else log_level
    if drain and context.get_parameter_source("processes") is ParameterSource.COMMANDLINE and (processes or 1) > 1:
        raise UsageError("--drain runs in one process. Leave out --processes")
    if processes is not None and processes > 1 and not drain and supervised_by is None:
        configure_logging(log_format, level)
        return Supervisor(_node_command(context.meta["arguments"]), processes).run()
    node = _supervised_node(supervised_by)
    try:
        ready = _configured(load_worker(target), target, given_settings(context), discover=discover)
    finally:
        # Now, because the application may configure logging when it is imported.
        configure_logging(log_format, level)
    if node is not None:
        node.attach(ready)
    failure: BaseException | None = None
    try:
        if drain:
            ready.drain()
        else:
            ready.run(on_ready=node.report_ready if node is not None else None)
    except Exception as error:  # noqa: BLE001 - a handler may raise anything
        failure = redacted(error, hide_parameters=ready.config.hide_parameters)
    finally:
        if context.obj:
            limit_exit(shutdown.EXIT_SECONDS)
    # Raise outside of the except block, whose exception would become the context.
    if failure is not None:
        raise failure
    return 0


def _configured(worker: Worker, target: str, settings: Mapping[str, SettingValue], *, discover: bool) -> Worker:
    """Return the application's worker with the consumers and settings that the deployment adds."""
    own = [DiscoveredConsumer(worker.consumer_named(name), target) for name in worker.consumers]
    more = distinct_consumers([*own, *(discover_consumers() if discover else ())])[len(own) :]
    if not more and not settings:
        return worker
    try:
        return worker.replace(more_consumers=more, config=replace_settings(worker.config, settings))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _supervised_node(descriptor: int | None) -> SupervisedNode | None:
    try:
        return SupervisedNode(descriptor) if descriptor is not None else None
    except OSError as error:
        raise UsageError("--supervised-by is set by --processes. Leave it out") from error


def _node_command(arguments: Sequence[str]) -> Callable[[int], list[str]]:
    """Return a function that returns the command of a node: this command, and the descriptor of the node's pipe."""
    program = [sys.executable, "-m", "pupsourcing_sa", "worker"]
    return lambda descriptor: [*program, "--supervised-by", str(descriptor), *arguments]
