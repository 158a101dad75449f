"""The check that a registry can read the events of a log.

Each transaction is short, so that a check of a large log delays neither VACUUM nor migrations. Appends do not wait for
it, and it may run on a standby. It ends at the last position that it reads at the start.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection

from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.errors import PayloadError, UnknownEventTypeError
from pupsourcing_sa.event import PersistedEvent
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store.log_reader import LogReader

__all__ = ["LogCheck", "StoredType", "UndecodableEvent"]

#: Maximum number of undecodable events of a type and version to list.
_MAX_LISTED: Final = 10
#: Number of events to sample from in one statement.
_CHUNK: Final = 50_000
#: Number of sampled events to read at a time.
_FETCH: Final = 100
#: Limits of a page of events to decode.
_PAGE: Final = 1000
_PAGE_BYTES: Final = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class UndecodableEvent:
    """An event that the registry cannot read.

    Attributes:
        position: global position.
        event_id: id of the event.
        problem: the reason, without values of the payload.
    """

    position: int
    event_id: UUID
    problem: str


@dataclass(slots=True)
class StoredType:
    """The events of one type and version in the log.

    Attributes:
        event_type: stored name of the type.
        event_version: stored version.
        is_readable: the registry knows the type, and this version is the current one or has an upcaster.
        is_retired: the type is retired, so its events have no data.
        count: number of events.
        decoded: number of events that were decoded.
        failed: number of events that could not be decoded; all events if neither readable nor retired.
        listed: the first ten events that could not be decoded; one event if neither readable nor retired.
    """

    event_type: str
    event_version: int
    is_readable: bool
    is_retired: bool
    count: int = 0
    decoded: int = 0
    failed: int = 0
    listed: list[UndecodableEvent] = field(default_factory=list)


class LogCheck:
    """Check of a log.

    Args:
        reader: reader of the log.
        registry: the event classes.
        begin: begins a transaction that ends with the block.
        on_progress: called with a position that the check has reached, and the position at which it ends.
    """

    def __init__(
        self,
        reader: LogReader,
        registry: EventRegistry,
        begin: Callable[[], AbstractContextManager[Connection]],
        on_progress: Callable[[int, int], object] = lambda position, end: None,
    ) -> None:
        self._reader = reader
        self._registry = registry
        self._begin = begin
        self._on_progress = on_progress
        self._types: dict[tuple[str, int], StoredType] = {}

    def sample(self, size: int) -> list[StoredType]:
        """Count all events. Decode a random sample of this size of each type and version."""
        samples: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for rows in self._chunks(size):
            counts: dict[tuple[str, int], int] = {}
            for event_type, event_version, count, key, position, _ in rows:
                counts[event_type, event_version] = count
                samples.setdefault((event_type, event_version), []).append((key, position))
            for pair, count in counts.items():
                self._type(*pair).count += count
                # The sample of both chunks: the events with the smallest random keys.
                samples[pair] = heapq.nsmallest(size, samples[pair])
        for pair, sample in samples.items():
            positions = sorted(position for _, position in sample)
            for first in range(0, len(positions), _FETCH):
                with self._begin() as connection:
                    events = self._reader.events_at(connection, positions[first : first + _FETCH])
                for event in events:
                    self._decode(self._type(*pair), event)
        return self._found()

    def every(self) -> list[StoredType]:
        """Count and decode all events."""
        after, end, has_more = 0, self._end(), True
        while has_more:
            with self._begin() as connection:
                page = self._reader.page(connection, Scope(), after, end, _PAGE, max_bytes=_PAGE_BYTES)
            for event in page.events:
                after = event.global_position
                stored = self._type(event.event_type, event.event_version)
                stored.count += 1
                self._decode(stored, event)
            self._on_progress(after, end)
            has_more = page.has_more
        return self._found()

    def _chunks(self, size: int) -> Iterator[list[Any]]:
        """Yield the rows that `LogReader.sample` returns for each part of the log."""
        after, end = 0, self._end()
        while True:
            with self._begin() as connection:
                rows = self._reader.sample(connection, after, end, _CHUNK, size)
            if not rows:
                return
            yield rows
            after = rows[0][-1]
            self._on_progress(after, end)

    def _end(self) -> int:
        with self._begin() as connection:
            return self._reader.last_position(connection)

    def _type(self, event_type: str, event_version: int) -> StoredType:
        pair = (event_type, event_version)
        if pair not in self._types:
            is_known = self._registry.is_known(event_type)
            is_readable = is_known and self._registry.is_readable(event_type, event_version)
            is_retired = event_type in self._registry.retired and not is_known
            self._types[pair] = StoredType(*pair, is_readable=is_readable, is_retired=is_retired)
        return self._types[pair]

    def _decode(self, stored: StoredType, event: PersistedEvent) -> None:
        if stored.is_retired or (stored.listed and not stored.is_readable):
            return
        problem = self._problem(event)
        if problem is None:
            stored.decoded += 1
            return
        stored.failed += 1
        if len(stored.listed) < _MAX_LISTED:
            stored.listed.append(UndecodableEvent(event.global_position, event.event_id, problem))

    def _problem(self, event: PersistedEvent) -> str | None:
        """Return the reason why an event cannot be decoded."""
        try:
            self._registry.decode(event.event_type, event.event_version, event.payload)
        except PayloadError as error:
            return error.problem if error.path is None else f"{error.path}: {error.problem}"
        except UnknownEventTypeError as error:
            return str(error)
        return None

    def _found(self) -> list[StoredType]:
        for stored in self._types.values():
            if stored.listed and not stored.is_readable:
                stored.failed = stored.count
        return [self._types[pair] for pair in sorted(self._types)]
