"""The event store: appending to the log and reading from it, in the caller's session."""

from __future__ import annotations

from pupsourcing_sa.store._async import AsyncEventStore
from pupsourcing_sa.store._sync import EventStore
from pupsourcing_sa.store.positions import BlockingAppend

__all__ = ["AsyncEventStore", "BlockingAppend", "EventStore"]
