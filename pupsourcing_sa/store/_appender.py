"""Execution of appends, and translation of conflicts and database errors."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import islice
from operator import itemgetter
from typing import Final, NoReturn

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import UniqueConstraint

from pupsourcing_sa.errors import (
    DuplicateEventError,
    KeyTooLongError,
    OptimisticConcurrencyError,
    SequenceBehindLogError,
    StaleHeadsError,
)
from pupsourcing_sa.event import AppendResult
from pupsourcing_sa.postgres.compiled import CompiledStatements
from pupsourcing_sa.postgres.connections import require_transaction
from pupsourcing_sa.postgres.errors import (
    detail_of,
    exceeds_a_limit,
    is_serialization_failure,
    raise_translated,
    violates,
)
from pupsourcing_sa.postgres.expressions import qualified_name
from pupsourcing_sa.store._append import (
    Aggregate,
    Append,
    aggregate_parameter,
    aggregates_of,
    check_ids,
    event_parameters,
    starts_of,
)
from pupsourcing_sa.store._append_statements import AppendStatements
from pupsourcing_sa.store._idempotency import are_same
from pupsourcing_sa.store.log_reader import LogReader, sequence_not_readable
from pupsourcing_sa.tables import EventTables

__all__ = ["Appender"]

#: An entry of a btree index holds a third of a page, 2,704 bytes, including its overhead.
_LONGEST_KEY: Final = 2500


class Appender:
    """Appender to one log.

    Args:
        tables: the log.
        reader: reads the same log.
        notify_channel: a channel that every append notifies, or ``None``.
    """

    def __init__(self, tables: EventTables, reader: LogReader, notify_channel: str | None) -> None:
        self._tables = tables
        self._has_json_payload = tables.has_json_payload
        #: A session with several binds chooses the one for writing to the log by this clause.
        self.clause = tables.events.insert()
        self._reader = reader
        self._statements = AppendStatements(tables, notify_channel)
        self._compiled = CompiledStatements()
        unique = {
            tuple(constraint.columns.keys()): constraint
            for constraint in tables.events.constraints
            if isinstance(constraint, UniqueConstraint)
        }
        self._unique_id = unique["event_id",]
        self._unique_version = unique["aggregate_type", "aggregate_id", "aggregate_version"]

    def append(self, connection: Connection, append: Append) -> AppendResult:
        """Append events of one aggregate; see `EventStore.append`."""
        expected, events = append.expected, append.events
        parameters = event_parameters(events, has_json_payload=self._has_json_payload)
        parameters["stream_type"] = append.aggregate_type
        parameters["stream_id"] = append.aggregate_id
        parameters["count"] = len(events)
        if expected.version:
            parameters["expected_version"] = expected.version
        require_transaction(connection)
        try:
            written = self._compiled.rows(connection, self._statements.one(expected), parameters)
        except DBAPIError as error:
            self._raise_translated(error, connection, [append])
            raise
        if not written:
            raise append.conflict(self._version_of(connection, append))
        written.sort()
        to_version: int = written[-1][1]
        positions = tuple([row[0] for row in written])
        return AppendResult(positions, to_version - len(written), to_version, events, self._reader.decoder)

    def append_many(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        """Append events of several aggregates; see `EventStore.append_many`."""
        events = [event for append in appends for event in append.events]
        check_ids(events)
        aggregates = aggregates_of(appends)
        starts = starts_of(events, aggregates)
        parameters = event_parameters(events, has_json_payload=self._has_json_payload, starts=starts)
        parameters["streams"] = aggregate_parameter(aggregates.values())
        require_transaction(connection)
        try:
            rows = self._compiled.rows(connection, self._statements.many, parameters)
        except DBAPIError as error:
            self._raise_translated(error, connection, appends)
            raise
        heads = {number: version for number, version in rows if number}
        written = sorted([position for number, position in rows if not number])
        if not written:
            self._raise_conflict(connection, list(aggregates.values()), heads)
        positions = iter(written)
        versions = {name: heads[aggregate.number] - aggregate.size for name, aggregate in aggregates.items()}
        results = []
        for append in appends:
            size, from_version = len(append.events), versions[append.aggregate]
            to_version = versions[append.aggregate] = from_version + size
            given = tuple(islice(positions, size))
            results.append(AppendResult(given, from_version, to_version, append.events, self._reader.decoder))
        return results

    def append_once(self, connection: Connection, append: Append) -> AppendResult:
        """Append, or return the result for the same events if they are in the log already.

        The append runs in a savepoint, so that the log can be read after a failure.
        """
        require_transaction(connection)
        try:
            with connection.begin_nested():
                return self.append(connection, append)
        except (DuplicateEventError, OptimisticConcurrencyError, SequenceBehindLogError, StaleHeadsError) as error:
            found = self._reader.events_by_id(connection, [event.event_id for event in append.events])
            if not found:
                raise
            if not are_same(append.events, found, has_json_payload=self._has_json_payload):
                raise DuplicateEventError(event.event_id for event in found) from error
            positions = tuple(event.global_position for event in found)
            return AppendResult(positions, found[0].aggregate_version - 1, found[-1].aggregate_version, tuple(found))

    def _version_of(self, connection: Connection, append: Append) -> int:
        """Return the version of an aggregate after its append wrote nothing.

        Raises:
            SequenceBehindLogError, StablePositionError: the sequence is the reason.
        """
        parameters = {"stream_type": append.aggregate_type, "stream_id": append.aggregate_id}
        version, is_behind, is_readable = connection.execute(self._statements.refusal, parameters).one()
        if not is_readable:
            raise sequence_not_readable(self._tables.events)
        if is_behind:
            raise self._behind_log(connection)
        return int(version)

    def _behind_log(self, connection: Connection) -> SequenceBehindLogError:
        return SequenceBehindLogError(qualified_name(self._tables.events, connection))

    def _raise_conflict(
        self, connection: Connection, aggregates: Sequence[Aggregate], written: Container[int]
    ) -> NoReturn:
        """Restore the written heads, then raise the conflict of the first aggregate that has another version.

        Args:
            connection: the connection of the append.
            aggregates: the aggregates of the append.
            written: numbers of the aggregates whose heads were written.
        """
        if undone := [aggregate for aggregate in aggregates if aggregate.number in written]:
            try:
                connection.execute(self._statements.undo, {"streams": aggregate_parameter(undone)})
            except BaseException:
                # Even after Ctrl-C, heads that were not restored must not be committed.
                connection.invalidate()
                raise
        unwritten = []
        for aggregate in aggregates:
            append, actual = aggregate.first, self._version_of(connection, aggregate.first)
            if append.expected.version not in (None, actual):
                raise append.conflict(actual)
            if aggregate.number not in written:
                unwritten.append((append, actual))
        # Meanwhile another writer has made every version match again. Report an aggregate whose head was not written.
        append, version = next((pair for pair in unwritten if pair[0].expected.version is not None), unwritten[0])
        raise append.conflict(version)

    def _raise_translated(self, error: DBAPIError, connection: Connection, appends: Sequence[Append]) -> None:
        """Raise this library's error for a failed append. Return if there is none."""
        if violates(error, self._unique_id, connection):
            ids = [event.event_id for append in appends for event in append.events]
            detail = detail_of(error)
            raise DuplicateEventError([event_id for event_id in ids if str(event_id) in detail] or ids) from error
        if violates(error, self._unique_version, connection):
            # This is not a lost race. The loser of a race waits for the head's row and then gets no row, or a 40001.
            names = list(aggregates_of(appends))
            detail = detail_of(error)
            reported = [name for name in names if f"({name[0]}, {name[1]}, " in detail]
            raise StaleHeadsError(reported or names, self._tables.aggregate_heads.key) from error
        if violates(error, self._tables.events.primary_key, connection):
            # The position belongs to an event that is not in the snapshot of this transaction's first append.
            raise self._behind_log(connection) from error
        if is_serialization_failure(error):
            # PostgreSQL does not report which aggregate it was. Prefer one with an expected version.
            firsts = [aggregate.first for aggregate in aggregates_of(appends).values()]
            expecting = (append for append in firsts if append.expected.version is not None)
            raise next(expecting, firsts[0]).conflict(None) from error
        if exceeds_a_limit(error):
            _raise_too_long(error, appends)
        raise_translated(error, self._tables.events, self._tables.aggregate_heads)


def _raise_too_long(error: DBAPIError, appends: Sequence[Append]) -> None:
    """Raise `KeyTooLongError` for the longest indexed value. Return if no value is too long."""
    # Lengths are not checked before an append, because a value that compresses well may be longer.
    sizes: list[tuple[int, int, str, Append]] = []
    for append in appends:
        type_size, id_size = len(append.aggregate_type.encode()), len(append.aggregate_id.encode())
        longer = "aggregate_id" if id_size >= type_size else "aggregate_type"
        sizes.append((type_size + id_size, max(type_size, id_size), longer, append))
        for event in append.events:
            size = len((event.correlation_id or "").encode())
            sizes.append((size, size, "correlation_id", append))
    key, size, name, append = max(sizes, key=itemgetter(0))
    if key > _LONGEST_KEY:
        raise KeyTooLongError(append.aggregate_type, append.aggregate_id, name, size) from error
