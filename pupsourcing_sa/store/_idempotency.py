"""Comparison of events to append with events in the log, for idempotent appends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from pupsourcing_sa.event import Event, PersistedEvent

__all__ = ["are_same"]

#: Compared by value. Payload and metadata are compared as JSON; ``created_at`` and ``trace_id`` are not compared,
#: because they differ between attempts.
_COMPARED: Final = (
    "event_id",
    "aggregate_type",
    "aggregate_id",
    "event_type",
    "event_version",
    "correlation_id",
    "causation_id",
)


def are_same(events: Sequence[Event], found: Sequence[PersistedEvent], *, has_json_payload: bool) -> bool:
    """Return True if the log has all of the events, equal, with consecutive versions, in this order.

    Args:
        events: events of one aggregate.
        found: the events in the log that have their ids, in the log's order.
        has_json_payload: compare payloads as JSON, because JSONB does not keep their text.
    """
    return len(events) == len(found) and all(
        _is_same(event, persisted, has_json_payload=has_json_payload) and persisted.aggregate_version == version
        for version, (event, persisted) in enumerate(zip(events, found, strict=True), found[0].aggregate_version)
    )


def _is_same(event: Event, persisted: PersistedEvent, *, has_json_payload: bool) -> bool:
    if has_json_payload:
        is_same_payload = _canonical(event.payload) == _canonical(persisted.payload)
    else:
        is_same_payload = event.payload == persisted.payload
    return (
        is_same_payload
        and _canonical(event.metadata_json) == _canonical(persisted.metadata_json)
        and all(getattr(event, name) == getattr(persisted, name) for name in _COMPARED)
    )


def _canonical(text: str | bytes | None) -> Any:
    """Decode JSON into a value that compares like JSONB: numbers are decimals, and true differs from 1."""

    def tagged(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tagged(member) for key, member in value.items()}
        if isinstance(value, list):
            return [tagged(element) for element in value]
        return (type(value), value)

    return None if text is None else tagged(json.loads(text, parse_float=Decimal, parse_int=Decimal))
