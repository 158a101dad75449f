"""A snapshot of a registry: the schemas and golden payloads of all versions, as a file in the application's repository.

Before a release, the current classes are compared with the file::

    take_snapshot   registry, and the file's payloads of older versions ──▶ file
    check_snapshot  registry and file ──▶ problems

A changed class is found in two ways. Its schema is compared with the schema in the file. Every payload in the file is
decoded by the current classes and upcasters, which finds more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pupsourcing_sa.errors import PupsourcingError
from pupsourcing_sa.registry._event_type import EventType
from pupsourcing_sa.registry._registry import EventRegistry
from pupsourcing_sa.registry.snapshots._examples import example_of
from pupsourcing_sa.registry.snapshots.compatibility import changes

__all__ = ["SnapshotFinding", "check_snapshot", "take_snapshot"]

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class SnapshotFinding:
    """A difference between a registry and a snapshot.

    Attributes:
        event_type: name of the event type.
        message: the difference, with the remedy.
        is_problem: True if stored events may not be readable.
    """

    event_type: str
    message: str
    is_problem: bool = True


def take_snapshot(registry: EventRegistry, previous: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the snapshot of a registry, for JSON.

    Args:
        registry: the event classes.
        previous: the last snapshot. Its payloads are kept: those of older versions cannot be made again, and you may
            have replaced others by better ones.

    A version without a payload has ``None``: there is no example of a type, or a constraint refuses it. Write one.

    Raises:
        ValueError: the previous snapshot has an unknown format, or an entry of it is damaged.
    """
    older = {} if previous is None else _events(previous)
    events = {}
    for event_type in registry.event_types:
        payloads: dict[str, Any] = {}
        for name in sorted(_stored_names(registry, event_type.name)):
            payloads |= older.get(name, {}).get("payloads", {})
        version = str(event_type.version)
        if payloads.get(version) is None:
            payloads[version] = _golden_payload(registry, event_type)
        events[event_type.name] = {
            "version": event_type.version,
            "schema": event_type.codec.json_schema(),
            "payloads": dict(sorted(payloads.items(), key=lambda item: int(item[0]))),
        }
    for name in sorted(registry.retired & older.keys()):
        events[name] = {"retired": True, "payloads": older[name]["payloads"]}
    return {"format": _FORMAT, "events": events}


def check_snapshot(registry: EventRegistry, snapshot: Mapping[str, Any]) -> list[SnapshotFinding]:
    """Return the differences between a registry and a snapshot, those of one event type together.

    Raises:
        ValueError: the snapshot has an unknown format, or an entry of it is damaged.
    """
    events = _events(snapshot)
    findings: list[SnapshotFinding] = []
    for name in sorted(events.keys() | set(registry.names.values())):
        if name in events:
            findings += _compare(registry, name, events[name])
        else:
            message = "it is not in the snapshot; take a new one"
            findings.append(SnapshotFinding(name, message, is_problem=False))
    return findings


def _compare(registry: EventRegistry, name: str, taken: Mapping[str, Any]) -> Iterator[SnapshotFinding]:
    current = registry.names.get(name)
    if current is None:
        if name not in registry.retired and not registry.is_known(name):
            yield SnapshotFinding(
                name, "it is no longer registered; register its class, make it an alias of the new name, or retire() it"
            )
        elif registry.is_known(name):
            yield from _decode(registry, name, taken)
        return
    event_type = next(found for found in registry.event_types if found.name == current)
    version = taken.get("version", 0)
    if event_type.version < version:
        message = f"its version was {version} and is {event_type.version} now; versions must not decrease"
        yield SnapshotFinding(name, message)
    if event_type.version == version:
        for change in changes(taken["schema"], event_type.codec.json_schema()):
            message = f"{change.path}: {change.problem}"
            yield SnapshotFinding(name, message, is_problem=change.is_breaking)
    if event_type.version > version:
        message = f"version {event_type.version} is not in the snapshot; take a new one"
        yield SnapshotFinding(name, message, is_problem=False)
    yield from _decode(registry, name, taken)


def _decode(registry: EventRegistry, name: str, taken: Mapping[str, Any]) -> Iterator[SnapshotFinding]:
    for version, payload in taken["payloads"].items():
        if payload is None:
            if not registry.is_readable(name, int(version)):
                yield SnapshotFinding(name, f"there is no upcaster from version {version}; write one")
            continue
        try:
            registry.decode(name, int(version), json.dumps(payload).encode())
        except PupsourcingError as error:
            yield SnapshotFinding(name, f"the payload of version {version} cannot be decoded: {error}")


def _golden_payload(registry: EventRegistry, event_type: EventType) -> Any:
    try:
        example = example_of(event_type.cls)
        return json.loads(registry.encode(registry.event(event_type.name, example)).payload)
    except (TypeError, ValueError, NameError, PupsourcingError):
        return None


def _stored_names(registry: EventRegistry, name: str) -> set[str]:
    return {stored for stored, current in registry.names.items() if current == name}


def _events(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    is_snapshot = isinstance(snapshot, Mapping) and snapshot.get("format") == _FORMAT
    if not is_snapshot or not isinstance(snapshot.get("events"), Mapping):
        raise ValueError(f"the snapshot must have the format {_FORMAT}; take a new one")
    events = dict(snapshot["events"])
    for name, entry in events.items():
        if not _is_entry(entry):
            raise ValueError(f"the entry of {name!r} is damaged; restore it from an older file")
    return events


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("payloads"), Mapping):
        return False
    is_current = isinstance(entry.get("version"), int) and isinstance(entry.get("schema"), Mapping)
    return (is_current or entry.get("retired") is True) and all(map(str.isdecimal, entry["payloads"]))
