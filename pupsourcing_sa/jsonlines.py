"""Events as JSON Lines: one object per line, with the fields of `Event`.

.. code-block:: json

    {"aggregate_type": "User", "aggregate_id": "u1", "event_type": "UserRegistered", "payload": {"email": "a@b.c"}}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa._checks import check_int, check_type
from pupsourcing_sa.context import event_context
from pupsourcing_sa.errors import ImportFailed, PupsourcingError, TablesMissingError
from pupsourcing_sa.event import Event
from pupsourcing_sa.expected import AnyVersion
from pupsourcing_sa.postgres.errors import is_outage
from pupsourcing_sa.store import EventStore

__all__ = ["import_events", "parse_event"]

_REQUIRED: Final = ("aggregate_type", "aggregate_id", "event_type", "payload")
_OPTIONAL: Final = (
    "event_version",
    "event_id",
    "metadata",
    "trace_id",
    "correlation_id",
    "causation_id",
    "created_at",
)
#: The fields in the order of messages.
_FIELDS: Final = dict.fromkeys(_REQUIRED + _OPTIONAL)

_decode = json.JSONDecoder().decode


@event_context(inherit=False)
def parse_event(line: str | bytes) -> Event:
    """Return the event of one line.

    Args:
        line: a JSON object with the arguments of `Event`. ``event_id`` is text, ``created_at`` is in ISO 8601 with a
            time zone, and ``payload`` is any JSON value. Any other field that is null counts as absent.

    Raises:
        TypeError, ValueError: the line is not such an object. The message names the field.
    """
    return _parsed(line)


def _parsed(line: str | bytes) -> Event:
    try:
        return _event(line)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _event(line: str | bytes) -> Event:
    try:
        text = line if isinstance(line, str) else line.decode()
        fields = _decode(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    check_type("an event", fields, dict, "a JSON object")
    if not fields.keys() <= _FIELDS.keys():
        unknown = min(fields.keys() - _FIELDS.keys())
        raise ValueError(f"unknown field {unknown!r}; the fields are {', '.join(_FIELDS)}")
    if None in fields.values():
        fields = {name: value for name, value in fields.items() if value is not None or name == "payload"}
    for name in _REQUIRED:
        if name not in fields:
            raise ValueError(f"{name} is missing")
    _convert(fields, "event_id", UUID)
    _convert(fields, "created_at", datetime.fromisoformat)
    return Event(**fields)


def _convert(fields: dict[str, Any], name: str, convert: Callable[[str], Any]) -> None:
    if name in fields:
        try:
            fields[name] = convert(fields[name])
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{name} {fields[name]!r} cannot be read: {error}") from None


def import_events(
    session_factory: sessionmaker[Session],
    store: EventStore,
    lines: Iterable[str | bytes],
    *,
    batch_size: int = 5000,
    batch_bytes: int = 8 * 1024**2,
    first_line: int = 1,
    on_batch: Callable[[int, int], object] = lambda line, events: None,
) -> int:
    """Append the events in the order of the lines with `AnyVersion`, and return their number.

    Args:
        session_factory: creates a session for each batch.
        store: the event store.
        lines: the events. Empty lines are skipped.
        batch_size: maximum number of events in one transaction.
        batch_bytes: a transaction ends with the line that reaches this size, so that large lines need little memory.
        first_line: number of the first line to read, from 1. Use it to continue an import that failed.
        on_batch: called after each commit with the number of the last line and the number of events in the batch.

    Raises:
        TypeError, ValueError: an argument is invalid.
        ImportFailed: a line is invalid or was refused. The batches before it are committed; no event of its own batch
            is appended.
        TablesMissingError: the log's tables do not exist.
    """
    check_int("batch_size", batch_size, minimum=1)
    check_int("batch_bytes", batch_bytes, minimum=1)
    check_int("first_line", first_line, minimum=1)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if number >= first_line and line.strip())
    total, next_line = 0, first_line
    while batch := _read(numbered, batch_size, batch_bytes, next_line):
        with session_factory() as session:
            _append(session, store, batch, next_line)
            session.commit()
        total += len(batch)
        last_line = batch[-1][0]
        next_line = last_line + 1
        on_batch(last_line, len(batch))
    return total


@event_context(inherit=False)
def _read(
    numbered: Iterator[tuple[int, str | bytes]], batch_size: int, batch_bytes: int, first_line: int
) -> list[tuple[int, Event]]:
    """Return the events of the next batch, with the numbers of their lines."""
    batch: list[tuple[int, Event]] = []
    size = 0
    for number, line in numbered:
        try:
            batch.append((number, _parsed(line)))
        except (TypeError, ValueError) as error:
            raise ImportFailed(number, first_line, str(error)) from error
        size += len(line)
        if len(batch) == batch_size or size >= batch_bytes:
            break
    return batch


def _append(session: Session, store: EventStore, batch: Sequence[tuple[int, Event]], first_line: int) -> None:
    """Append a batch in one statement. If it is refused, append its halves, to find the line that is the reason."""
    refusal: Exception
    reason: object
    try:
        with session.begin_nested():
            store.append_many(session, ((AnyVersion(), (event,)) for _, event in batch))
        return
    except TablesMissingError:
        raise
    except DBAPIError as error:
        if is_outage(error):
            raise
        refusal, reason = error, error.orig
    except (TypeError, ValueError, PupsourcingError) as error:
        refusal = reason = error
    if len(batch) == 1:
        raise ImportFailed(batch[0][0], first_line, str(reason)) from refusal
    middle = len(batch) // 2
    _append(session, store, batch[:middle], first_line)
    _append(session, store, batch[middle:], first_line)
