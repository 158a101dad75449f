"""Events as JSON Lines: one object per line, with the fields of `Event`.

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

from pupsourcing_sa._checks import check_int, check_type
from pupsourcing_sa.errors import DuplicateEventError, ImportFailed, PupsourcingError, TablesMissingError
from pupsourcing_sa.event import Event
from pupsourcing_sa.expected import AnyVersion
from pupsourcing_sa.postgres.errors import is_outage
from pupsourcing_sa.store import EventStore

__all__ = ["import_events", "parse_event"]

#: The fields, and True for those that are required.
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
    """Return the event of one line.

    Args:
        line: a JSON object with the arguments of `Event`. ``event_id`` is text, ``created_at`` is in ISO 8601 with a
            time zone, and ``payload`` is any JSON value. Any other field that is null counts as absent.

    Raises:
        TypeError, ValueError: the line is not such an object. The message names the field.
    """
    try:
        return _event(line)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _event(line: str | bytes) -> Event:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    check_type("an event", fields, dict, "a JSON object")
    unknown = sorted(fields.keys() - _FIELDS.keys())
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; the fields are {', '.join(_FIELDS)}")
    present = {name: value for name, value in fields.items() if value is not None or name == "payload"}
    for name, is_required in _FIELDS.items():
        if is_required and name not in present:
            raise ValueError(f"{name} is missing")
    return Event(
        **present | _convert(present, "event_id", UUID) | _convert(present, "created_at", datetime.fromisoformat)
    )


def _convert(present: dict[str, Any], name: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    if name not in present:
        return {}
    try:
        return {name: convert(present[name])}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} {present[name]!r} cannot be read: {error}") from None


def import_events(
    session_factory: sessionmaker[Session],
    store: EventStore,
    lines: Iterable[str | bytes],
    *,
    batch_size: int = 1000,
    first_line: int = 1,
    on_batch: Callable[[int, int], object] = lambda line, events: None,
) -> int:
    """Append the events in the order of the lines with `AnyVersion`, and return their number.

    Args:
        session_factory: creates a session for each batch.
        store: the event store.
        lines: the events. Empty lines are skipped.
        batch_size: number of events in one transaction.
        first_line: number of the first line to read, from 1. Use it to continue an import that failed.
        on_batch: called after each commit with the number of the last line and the number of events in the batch.

    Raises:
        TypeError, ValueError: an argument is invalid.
        ImportFailed: a line is invalid or was refused. The batches before it are committed; no event of its own batch
            is appended.
        TablesMissingError: the log's tables do not exist.
    """
    check_int("batch_size", batch_size, minimum=1)
    check_int("first_line", first_line, minimum=1)
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


def _append(session: Session, store: EventStore, batch: list[tuple[int, str | bytes]], first_line: int) -> None:
    number = batch[0][0]
    events: list[tuple[int, Event]] = []
    neighbours: list[tuple[int, Event]] = []
    try:
        for number, line in batch:
            events.append((number, parse_event(line)))
        # Adjacent events of one aggregate are one append. Larger appends would change the order of the log.
        for _, group in groupby(events, key=lambda pair: (pair[1].aggregate_type, pair[1].aggregate_id)):
            neighbours = list(group)
            number = neighbours[0][0]
            store.append(session, AnyVersion(), [event for _, event in neighbours])
    except TablesMissingError:
        raise
    except DuplicateEventError as error:
        number = next(number for number, event in neighbours if event.event_id in error.event_ids)
        raise ImportFailed(number, first_line, str(error)) from error
    except (TypeError, ValueError, PupsourcingError) as error:
        raise ImportFailed(number, first_line, str(error)) from error
    except DBAPIError as error:
        if is_outage(error):
            raise
        raise ImportFailed(number, first_line, str(error.orig)) from error
