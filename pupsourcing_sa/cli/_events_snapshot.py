"""The command ``pupsourcing-sa events snapshot``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from pupsourcing_sa.cli._console import write
from pupsourcing_sa.cli._errors import fail
from pupsourcing_sa.cli._help import Command, option
from pupsourcing_sa.cli._snapshot_file import (
    differences,
    lines,
    read_snapshot,
    registry_option,
    snapshot_text,
    write_file,
)
from pupsourcing_sa.cli._target import load_registry
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.registry.snapshots import take_snapshot

__all__ = ["snapshot"]

_HELP: Final = """\
Write the schemas of your event classes, and an example payload of each version.

Commit the file, and run 'pupsourcing-sa events check' in CI. Take a new snapshot after each change of an event class.

The file's payloads are kept: the classes that wrote older versions are gone. You may replace a payload by a better one.
The command refuses to overwrite a file that has problems with the current classes, because the proof would be lost.
"""


@click.command(
    cls=Command,
    help=_HELP,
    short_help="Write schemas and example payloads to a file to commit.",
    examples=["pupsourcing-sa events snapshot --registry myapp.events:events -o events.json"],
    exit_status={
        0: "the snapshot was written",
        1: "the file has problems with the current classes; see events check",
        2: "wrong usage",
    },
)
@registry_option
@option(
    "-o",
    "--output",
    group="Output",
    metavar="FILE",
    help="File to create or to update. Do not use '> FILE', which empties it first.",
    default_text="standard output",
)
def snapshot(registry: str, output: str | None) -> int:
    """Run the command."""
    events = load_registry(registry)
    if output is None:
        write(snapshot_text(take_snapshot(events)))
        return 0
    previous = read_snapshot(output) if Path(output).exists() else None
    if previous is not None:
        problems = [finding for finding in differences(events, previous, output) if finding.is_problem]
        if problems:
            write("".join(f"{line}\n" for line in lines(problems)))
            hint = "Correct the classes. If no such event is stored anywhere, delete its entry in the file"
            return fail(f"{output} is unchanged, because the classes cannot read what it describes", 1, hint=hint)
    taken = take_snapshot(events, previous)
    write_file(output, snapshot_text(taken))
    write("".join(f"{line}\n" for line in _summary(taken["events"], output)))
    return 0


def _summary(entries: Mapping[str, Any], output: str) -> list[str]:
    missing = [
        (name, version)
        for name, entry in sorted(entries.items())
        for version, payload in entry["payloads"].items()
        if payload is None
    ]
    count = sum(len(entry["payloads"]) for entry in entries.values())
    return [
        f"{one_line(output)}: {len(entries):,} event types, {count - len(missing):,} payloads",
        *(
            f"note: {one_line(name)}: no example of version {version} is known; write its payload into the file"
            for name, version in missing
        ),
    ]
