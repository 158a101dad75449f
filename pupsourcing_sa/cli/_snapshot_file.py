"""The file of a snapshot, and the option that names the registry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pupsourcing_sa.cli._errors import UsageError
from pupsourcing_sa.cli._help import option
from pupsourcing_sa.printable import one_line
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.registry.snapshots import SnapshotFinding, check_snapshot

__all__ = ["differences", "lines", "read_snapshot", "registry_option", "snapshot_text", "write_file"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def registry_option(function: _Function) -> _Function:
    """Add ``--registry``."""
    return option(
        "--registry",
        group="Event classes",
        metavar="MODULE:ATTRIBUTE",
        required=True,
        help="An EventRegistry, a store or a Worker that has one, or a function that returns one of these.",
    )(function)


def read_snapshot(path: str) -> Any:
    """Return the content of a snapshot file.

    Raises:
        UsageError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}. Restore it, or take a new snapshot in another file") from error


def differences(registry: EventRegistry, snapshot: Any, path: str) -> list[SnapshotFinding]:
    """Return the differences between a registry and a snapshot file.

    Raises:
        UsageError: the file is not a snapshot.
    """
    try:
        return check_snapshot(registry, snapshot)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def lines(findings: Iterable[SnapshotFinding]) -> list[str]:
    """Return a line for each finding, the problems first."""
    ordered = sorted(findings, key=lambda finding: not finding.is_problem)
    return [
        f"{'problem' if finding.is_problem else 'note'}: {one_line(finding.event_type)}: {one_line(finding.message)}"
        for finding in ordered
    ]


def snapshot_text(snapshot: Mapping[str, Any]) -> str:
    """Return the content of the file, in the same order whatever the order of registration."""
    return json.dumps(snapshot, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_file(path: str, text: str) -> None:
    """Write a file. If that fails, the file keeps its former content.

    Raises:
        UsageError: the file cannot be written.
    """
    target = Path(path).resolve()
    new = target.with_name(f".{target.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(target)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
