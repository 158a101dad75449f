"""Events: `Event` for appending, `PersistedEvent` from the log, and collections of them."""

from __future__ import annotations

from pupsourcing_sa.event._event import Event
from pupsourcing_sa.event._persisted import EventDecoder, PersistedEvent
from pupsourcing_sa.event._results import AppendResult, Stream

#: The name of `PersistedEvent` in annotations with the class of its data, as in ``Recorded[OrderPlaced]``.
Recorded = PersistedEvent

__all__ = ["AppendResult", "Event", "EventDecoder", "PersistedEvent", "Recorded", "Stream"]
