"""Event sourcing on PostgreSQL inside the application's own SQLAlchemy session."""

from __future__ import annotations

from pupsourcing_sa.consumer import Consumer, consumer
from pupsourcing_sa.errors import (
    DuplicateEventError,
    NoEventsError,
    OptimisticConcurrencyError,
    PupsourcingError,
)
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Stream
from pupsourcing_sa.expected import AnyVersion, Exact, ExpectedVersion, NoStream
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.tables import EventTables, WorkerTables

__all__ = [
    "AnyVersion",
    "AppendResult",
    "AsyncEventStore",
    "Consumer",
    "DuplicateEventError",
    "Event",
    "EventStore",
    "EventTables",
    "Exact",
    "ExpectedVersion",
    "NoEventsError",
    "NoStream",
    "OptimisticConcurrencyError",
    "PersistedEvent",
    "PupsourcingError",
    "Stream",
    "WorkerTables",
    "consumer",
]

__version__ = "0.1.0"
