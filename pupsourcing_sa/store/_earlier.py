"""Idempotency: the result of an earlier append that wrote the same events."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection

from pupsourcing_sa.event import AppendResult, Event, PersistedEvent
from pupsourcing_sa.postgres.connections import driver_rows
from pupsourcing_sa.store._append import Append
from pupsourcing_sa.store._read_statements import ReadStatements
from pupsourcing_sa.tables import EventTables

__all__ = ["EarlierAppends"]

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


class EarlierAppends:
    """Finds what was appended before.

    Args:
        tables: the log.
    """

    def __init__(self, tables: EventTables) -> None:
        self._has_json_payload = tables.has_json_payload
        self._statements = ReadStatements(tables)

    def same_as(self, connection: Connection, append: Append) -> AppendResult | list[PersistedEvent] | None:
        """The result of the append that wrote the same events; else those of the same ids, if there are any."""
        ids = {"event_ids": [event.event_id for event in append.events]}
        found = list(map(PersistedEvent._from_row, driver_rows(connection, self._statements.by_id, ids)))
        if not found:
            return None
        first, last = found[0].aggregate_version, found[-1].aggregate_version
        is_same = len(found) == len(append.events) and all(
            self._is_same(event, earlier) and earlier.aggregate_version == version
            for version, (event, earlier) in enumerate(zip(append.events, found, strict=True), first)
        )
        if is_same:
            range_ = {
                "stream_type": append.aggregate_type,
                "stream_id": append.aggregate_id,
                "first": first,
                "last": last,
            }
            is_same = not connection.scalar(self._statements.is_part_of_an_append, range_)
        if not is_same:
            return found
        result = AppendResult(tuple(event.global_position for event in found), first - 1, last, append.events)
        vars(result)["events"] = tuple(found)  # as the log has them, not as they were given this time
        return result

    def _is_same(self, event: Event, earlier: PersistedEvent) -> bool:
        """Whether they say the same; when and in which trace they were recorded differs between two attempts."""
        if self._has_json_payload:
            is_same_payload = _canonical(event.payload) == _canonical(earlier.payload)
        else:
            is_same_payload = event.payload == earlier.payload
        is_same_metadata = _canonical(event._metadata_json) == _canonical(earlier._row[11])
        return (
            is_same_payload
            and is_same_metadata
            and all(getattr(event, name) == getattr(earlier, name) for name in _WHAT_IT_SAYS)
        )


def _canonical(text: str | bytes | None) -> Any:
    """JSON in a form in which equal values are equal, as JSONB sees them: numbers are decimals, and true is not 1."""

    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tagged(each) for key, each in value.items()}
        if isinstance(value, list):
            return [tagged(each) for each in value]
        return (type(value), value)

    return None if text is None else tagged(json.loads(text, parse_float=Decimal, parse_int=Decimal))
