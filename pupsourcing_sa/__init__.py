"""Event sourcing on PostgreSQL inside the application's own SQLAlchemy session."""

from __future__ import annotations

from pupsourcing_sa.consumer import Consumer, TypedConsumer, consumer
from pupsourcing_sa.context import event_context
from pupsourcing_sa.errors import (
    DuplicateEventError,
    NoEventsError,
    OptimisticConcurrencyError,
    PupsourcingError,
)
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Recorded, Stream
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = [
    "AnyVersion",
    "AppendResult",
    "AsyncEventStore",
    "Consumer",
    "DuplicateEventError",
    "Event",
    "EventRegistry",
    "EventStore",
    "EventTables",
    "Exact",
    "ExpectedVersion",
    "NoEventsError",
    "NoStream",
    "OptimisticConcurrencyError",
    "PersistedEvent",
    "PupsourcingError",
    "Recorded",
    "Stream",
    "TypedConsumer",
    "WorkerTables",
    "consumer",
    "event_context",
]

__version__ = "0.1.0"
