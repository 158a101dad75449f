"""The command ``pupsourcing-sa events check``."""

from __future__ import annotations

from typing import Final

import click

from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._help import Command
from pupsourcing_sa.cli._snapshot_file import differences, lines, read_snapshot, registry_option
from pupsourcing_sa.cli._target import load_registry

__all__ = ["check"]

_HELP: Final = """\
Check that your event classes can read stored events.

FILE is a snapshot that 'pupsourcing-sa events snapshot' wrote. The schemas in it are compared with the current classes,
and its payloads are decoded through the upcasters. Problems come first, with the field and the remedy. Notes, such as
about a field that was removed, do not change the exit status.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Check that event classes can read stored events.",
    examples=["pupsourcing-sa events check --registry myapp.events:events events.json"],
    exit_status={0: "no problems found", 1: "problems found", 2: "wrong usage"},
)
@click.argument("file", metavar="FILE")
@registry_option
def check(file: str, registry: str) -> int:
    """Run the command."""
    events = load_registry(registry)
    findings = differences(events, read_snapshot(file), file)
    problems = sum(finding.is_problem for finding in findings)
    outcome = f"failed: {problems:,} problems found" if problems else "ok: no problems found"
    write("".join(f"{line}\n" for line in [*lines(findings), outcome]))
    return 1 if problems else 0
