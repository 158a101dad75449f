"""Events as JSON Lines: one object for each event, with the fields of `Event`.

.. code-block:: json

    {"aggregate_type": "User", "aggregate_id": "u1", "event_type": "UserRegistered", "payload": {"email": "a@b.c"}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import groupby, islice
from typing import Any, Final
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa.errors import DuplicateEventError, ImportFailed, PupsourcingError, TablesMissingError
from pupsourcing_sa.event import Event
from pupsourcing_sa.expected import AnyVersion
from pupsourcing_sa.postgres.errors import is_outage
from pupsourcing_sa.store import EventStore

__all__ = ["import_events", "parse_event"]

_FIELDS: Final = {
    "aggregate_type": True,
    "aggregate_id": True,
    "event_type": True,
    "payload": True,
    "event_version": False,
    "event_id": False,
    "metadata": False,
    "trace_id": False,
    "correlation_id": False,
    "causation_id": False,
    "created_at": False,
}


def parse_event(line: str | bytes) -> Event:
    """The event of one line.

    Args:
        line: a JSON object with the arguments of `Event`: ``event_id`` as text, ``created_at`` in ISO 8601 with a time
            zone, ``payload`` any JSON value. Fields that are null are taken as absent, except the payload.

    Raises:
        TypeError, ValueError: the line is no such object; the field is named.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise TypeError(f"an event must be a JSON object, not {type(fields).__name__}")
    unknown = sorted(fields.keys() - _FIELDS.keys())
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    given = {name: value for name, value in fields.items() if value is not None or name == "payload"}
    for name, is_required in _FIELDS.items():
        if is_required and name not in given:
            raise ValueError(f"{name} is missing")
    return Event(
        **given | _converted(given, "event_id", UUID) | _converted(given, "created_at", datetime.fromisoformat)
    )


def _converted(given: dict[str, Any], name: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    if name not in given:
        return {}
    try:
        return {name: convert(given[name])}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} {given[name]!r} cannot be read: {error}") from None


def import_events(
    session_factory: sessionmaker[Session],
    store: EventStore,
    lines: Iterable[str | bytes],
    *,
    batch_size: int = 1000,
    first_line: int = 1,
    on_batch: Callable[[int, int], object] = lambda line, events: None,
) -> int:
    """Append events in the order of the lines, whatever their aggregates' versions are.

    Args:
        session_factory: makes the session of each batch.
        store: the log.
        lines: the events; empty lines are passed over.
        batch_size: so many events are one transaction.
        first_line: lines before this one, counted from 1, are passed over: where an import that failed is to go on.
        on_batch: called after each commit with the number of the last line and of the batch's events.

    Returns:
        How many events were appended.

    Raises:
        ImportFailed: a line is bad or was refused; it names the line. Nothing of its batch was appended, and everything
            before the batch was.
        TablesMissingError: the log's tables do not exist.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if number >= first_line and line.strip())
    total, next_line = 0, first_line
    while batch := list(islice(numbered, batch_size)):
        with session_factory() as session:
            _append(session, store, batch, next_line)
            session.commit()
        total += len(batch)
        next_line = batch[-1][0] + 1
        on_batch(batch[-1][0], len(batch))
    return total


def _append(session: Session, store: EventStore, batch: list[tuple[int, str | bytes]], next_line: int) -> None:
    number = batch[0][0]
    events: list[tuple[int, Event]] = []
    neighbours: list[tuple[int, Event]] = []
    try:
        for number, line in batch:
            events.append((number, parse_event(line)))
        # Neighbours of one aggregate are one append; more would change the order of the log.
        for _, run in groupby(events, key=lambda each: (each[1].aggregate_type, each[1].aggregate_id)):
            neighbours = list(run)
            number = neighbours[0][0]
            store.append(session, AnyVersion(), [event for _, event in neighbours])
    except TablesMissingError:
        raise
    except DuplicateEventError as error:
        number = next(number for number, event in neighbours if event.event_id in error.event_ids)
        raise ImportFailed(number, next_line, str(error)) from error
    except (TypeError, ValueError, PupsourcingError) as error:
        raise ImportFailed(number, next_line, str(error)) from error
    except DBAPIError as error:
        if is_outage(error):
            raise
        raise ImportFailed(number, next_line, str(error.orig)) from error
