"""Events: `Event` for appending, `PersistedEvent` from the log, and collections of them."""

from __future__ import annotations

from pupsourcing_sa.event._event import Event
from pupsourcing_sa.event._persisted import PersistedEvent
from pupsourcing_sa.event._results import AppendResult, Stream

__all__ = ["AppendResult", "Event", "PersistedEvent", "Stream"]
