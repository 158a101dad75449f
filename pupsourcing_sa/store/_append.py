"""Appending: what is handed in, checked and made parameters; the statements executed; conflicts made errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NoReturn

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import UniqueConstraint

from pupsourcing_sa.errors import DuplicateEventError, NoEventsError, OptimisticConcurrencyError
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, has_nul
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream
from pupsourcing_sa.store._append_statements import AppendStatements
from pupsourcing_sa.store._connection import driver_rows, require_transaction
from pupsourcing_sa.store._errors import detail_of, is_serialization_failure, translated, violates
from pupsourcing_sa.store._read_statements import ReadStatements
from pupsourcing_sa.tables import EventTables

__all__ = ["Appender", "Batch"]

#: Besides payload and metadata, which are compared as JSON.
_WHAT_IT_SAYS: Final = (
    "event_id",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "event_version",
    "correlation_id",
    "causation_id",
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one aggregate, checked, and what is expected of its version."""

    expected: ExpectedVersion
    events: tuple[Event, ...]

    @classmethod
    def of(cls, expected_version: object, events: object) -> Batch:
        """Check what a caller hands in.

        Raises:
            NoEventsError, DuplicateEventError, TypeError, ValueError: as `EventStore.append` says.
        """
        if not isinstance(expected_version, (AnyVersion, NoStream, Exact)):
            hint = f"; write {expected_version.__name__}()" if isinstance(expected_version, type) else ""
            raise TypeError(
                "expected_version must be AnyVersion(), NoStream() or Exact(version), "
                f"not {type(expected_version).__name__}{hint}"
            )
        if isinstance(events, Event):
            raise TypeError("events must be a sequence of Event, such as [event], not a single Event")
        if not isinstance(events, Iterable):
            raise TypeError(f"events must be a sequence of Event, not {type(events).__name__}")
        batch = tuple(events)
        if not batch:
            raise NoEventsError
        for event in batch:
            if not isinstance(event, Event):
                raise TypeError(f"events must contain Event only, not {type(event).__name__}")
            if event.aggregate_id != batch[0].aggregate_id or event.aggregate_type != batch[0].aggregate_type:
                raise ValueError(
                    "events must be of one aggregate; there are "
                    f"{batch[0].aggregate_type} {batch[0].aggregate_id!r} and "
                    f"{event.aggregate_type} {event.aggregate_id!r}; append_many() takes several"
                )
        check_ids(batch)
        return cls(expected_version, batch)

    @property
    def aggregate_type(self) -> str:
        return self.events[0].aggregate_type

    @property
    def aggregate_id(self) -> str:
        return self.events[0].aggregate_id

    def conflict(self, actual: int | None) -> OptimisticConcurrencyError:
        return OptimisticConcurrencyError(self.aggregate_type, self.aggregate_id, self.expected, actual)


def check_ids(events: Sequence[Event]) -> None:
    """Refuse an id that comes twice."""
    if len({event.event_id for event in events}) < len(events):
        times = Counter(event.event_id for event in events)
        raise DuplicateEventError(event_id for event_id, count in times.items() if count > 1)


class Appender:
    """Executes what appends to one log.

    Args:
        tables: the log.
        notify_channel: a channel that every append notifies, or ``None``.
    """

    def __init__(self, tables: EventTables, notify_channel: str | None) -> None:
        self._tables = tables
        #: By which a session that has several binds tells that this writes to the log.
        self.clause = tables.events.insert()
        self._statements = AppendStatements(tables, notify_channel)
        self._read = ReadStatements(tables)
        unique = {
            tuple(each.columns.keys()): each for each in tables.events.constraints if isinstance(each, UniqueConstraint)
        }
        self._unique_id = unique["event_id",]
        self._unique_version = unique["aggregate_type", "aggregate_id", "aggregate_version"]

    def append(self, connection: Connection, batch: Batch) -> AppendResult:
        parameters = self._parameters([batch])
        parameters["stream_type"] = batch.aggregate_type
        parameters["stream_id"] = batch.aggregate_id
        parameters["count"] = len(batch.events)
        if batch.expected.version:
            parameters["expected_version"] = batch.expected.version
        require_transaction(connection)
        try:
            with translated(self._tables.events, self._tables.aggregate_heads):
                written = driver_rows(connection, self._statements.one(batch.expected), parameters)
        except DBAPIError as error:
            self._raise_meaning(error, connection, [batch])
            raise
        if not written:
            raise batch.conflict(self.aggregate_version(connection, batch.aggregate_type, batch.aggregate_id))
        written.sort()
        to_version: int = written[-1][1]
        return AppendResult(tuple(row[0] for row in written), to_version - len(written), to_version, batch.events)

    def append_many(self, connection: Connection, batches: Sequence[Batch]) -> list[AppendResult]:
        check_ids([event for batch in batches for event in batch.events])
        parameters = self._parameters(batches)
        parameters["streams"] = _streams(enumerate(batches, 1))
        require_transaction(connection)
        try:
            with translated(self._tables.events, self._tables.aggregate_heads):
                rows = driver_rows(connection, self._statements.many, parameters)
        except DBAPIError as error:
            self._raise_meaning(error, connection, batches)
            raise
        if not rows or rows[0][2] is None:
            self._raise_conflict(connection, batches, {number: version for number, version, _ in rows})
        positions: dict[int, list[int]] = {number: [] for number in range(1, len(batches) + 1)}
        versions: dict[int, int] = {}
        for number, version, position in sorted(rows):
            positions[number].append(position)
            versions[number] = version
        return [
            AppendResult(tuple(positions[number]), versions[number] - len(batch.events), versions[number], batch.events)
            for number, batch in enumerate(batches, 1)
        ]

    def append_once(self, connection: Connection, batch: Batch) -> AppendResult:
        """Append, or find that an earlier append wrote the same events; in a savepoint, to be able to look."""
        require_transaction(connection)
        try:
            with connection.begin_nested():
                return self.append(connection, batch)
        except (DuplicateEventError, OptimisticConcurrencyError) as error:
            earlier = self._earlier(connection, batch)
            if earlier is None:
                raise
            if isinstance(earlier, AppendResult):
                return earlier
            raise DuplicateEventError(event.event_id for event in earlier) from error

    def _earlier(self, connection: Connection, batch: Batch) -> AppendResult | list[PersistedEvent] | None:
        """The result of the append that wrote the same events; else those of the same ids, if there are any."""
        ids = {"event_ids": [event.event_id for event in batch.events]}
        found = list(map(PersistedEvent._from_row, driver_rows(connection, self._read.by_id, ids)))
        if not found:
            return None
        first, last = found[0].aggregate_version, found[-1].aggregate_version
        is_same = len(found) == len(batch.events) and all(
            self._is_same(event, earlier) and earlier.aggregate_version == version
            for version, (event, earlier) in enumerate(zip(batch.events, found, strict=True), first)
        )
        if is_same:
            range_ = {
                "stream_type": batch.aggregate_type,
                "stream_id": batch.aggregate_id,
                "first": first,
                "last": last,
            }
            is_same = not connection.scalar(self._read.is_part_of_an_append, range_)
        if not is_same:
            return found
        result = AppendResult(tuple(event.global_position for event in found), first - 1, last, batch.events)
        vars(result)["events"] = tuple(found)  # as the log has them, not as they were given this time
        return result

    def _is_same(self, event: Event, earlier: PersistedEvent) -> bool:
        """Whether they say the same; when and in which trace they were recorded differs between two attempts."""
        if self._tables.has_json_payload:
            is_same_payload = _canonical(event.payload) == _canonical(earlier.payload)
        else:
            is_same_payload = event.payload == earlier.payload
        is_same_metadata = _canonical(event._metadata_json) == _canonical(earlier._row[11])
        return (
            is_same_payload
            and is_same_metadata
            and all(getattr(event, name) == getattr(earlier, name) for name in _WHAT_IT_SAYS)
        )

    def _parameters(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """The events as the statements take them: a JSON array, and their payloads in one piece."""
        rows: list[str] = []
        start = 1
        for stream, batch in enumerate(batches, 1):
            for event in batch.events:
                if self._tables.has_json_payload:
                    payload = f'"payload":{_json_text(event)}'
                else:
                    size = len(event.payload)
                    payload = f'"start":{start},"size":{size}'
                    start += size
                rows.append(f'{{"stream":{stream},"number":{len(rows) + 1},{payload},{event._json}')
        parameters: dict[str, Any] = {"events": f"[{','.join(rows)}]"}
        if not self._tables.has_json_payload:
            parameters["payloads"] = b"".join([event.payload for batch in batches for event in batch.events])
        return parameters

    def aggregate_version(self, connection: Connection, aggregate_type: str, aggregate_id: str) -> int:
        names = {"stream_type": aggregate_type, "stream_id": aggregate_id}
        return connection.scalar(self._statements.aggregate_version, names) or 0

    def _raise_conflict(self, connection: Connection, batches: Sequence[Batch], written: dict[int, int]) -> NoReturn:
        """Raise the conflict of the first aggregate that is not as expected, once nothing of the append is left."""
        if written:
            undone = _streams((number, batches[number - 1]) for number in written)
            try:
                connection.execute(self._statements.undo, {"streams": undone})
            except BaseException:  # such as Ctrl-C: what could not be undone must not be committed
                connection.invalidate()
                raise
        actual = {}
        for number, batch in enumerate(batches, 1):
            actual[number] = self.aggregate_version(connection, batch.aggregate_type, batch.aggregate_id)
            if batch.expected.version not in (None, actual[number]):
                raise batch.conflict(actual[number])
        # Another writer made it fit in the meantime. What was not written is the one that did not.
        unwritten = [(batch, actual[n]) for n, batch in enumerate(batches, 1) if n not in written]
        batch, version = next((each for each in unwritten if each[0].expected.version is not None), unwritten[0])
        raise batch.conflict(version)

    def _raise_meaning(self, error: DBAPIError, connection: Connection, batches: Sequence[Batch]) -> None:
        """Raise what a failed append means; return if it means nothing in particular."""
        if violates(error, self._unique_id, connection):
            ids = [event.event_id for batch in batches for event in batch.events]
            detail = detail_of(error)
            raise DuplicateEventError([each for each in ids if str(each) in detail] or ids) from error
        if is_serialization_failure(error) or violates(error, self._unique_version, connection):
            # Of several it is not known which one; it can only be one of which something was expected.
            raise next((each for each in batches if each.expected.version is not None), batches[0]).conflict(
                None
            ) from error


def _streams(numbered: Iterable[tuple[int, Batch]]) -> str:
    """The aggregates as the statements take them."""
    rows: list[dict[str, Any]] = []
    before = 0
    for number, batch in numbered:
        row = {"stream": number, "stream_type": batch.aggregate_type, "stream_id": batch.aggregate_id}
        row |= {"expected": batch.expected.version, "count": len(batch.events), "before": before}
        rows.append(row)
        before += len(batch.events)
    return json.dumps(rows, ensure_ascii=False)


def _canonical(text: str | bytes | None) -> Any:
    """JSON in a form in which equal values are equal, as JSONB sees them: numbers are decimals, and true is not 1."""

    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tagged(each) for key, each in value.items()}
        if isinstance(value, list):
            return [tagged(each) for each in value]
        return (type(value), value)

    return None if text is None else tagged(json.loads(text, parse_float=Decimal, parse_int=Decimal))


def _json_text(event: Event) -> str:
    """The payload for a JSONB column, which holds less than JSON does."""
    try:
        text = event.payload.decode()
        json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"payload of event {event.event_id} must be JSON for a JSONB column: {error}") from None
    if has_nul(text):
        raise ValueError(f"payload of event {event.event_id} has a NUL character, which JSONB cannot store")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
