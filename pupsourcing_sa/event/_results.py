"""Results of the store: the events of one aggregate, and the outcome of an append."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pupsourcing_sa.event._event import Event
from pupsourcing_sa.event._persisted import EventDecoder, PersistedEvent

__all__ = ["AppendResult", "Stream"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Events of one aggregate in the order of their versions, or in reverse order if they were read backwards."""

    aggregate_type: str
    aggregate_id: str
    events: tuple[PersistedEvent, ...]
    # Upcasters may have turned the last row into no event.
    _version: int | None = field(default=None, compare=False)

    @property
    def version(self) -> int:
        """The highest version among the rows that were read, or 0 if there are none."""
        if self._version is not None:
            return self._version
        return max(self.events[0].aggregate_version, self.events[-1].aggregate_version) if self.events else 0

    @property
    def is_empty(self) -> bool:
        return not self.events

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[PersistedEvent]:
        return iter(self.events)

    def __repr__(self) -> str:
        return (
            f"Stream(aggregate_type={self.aggregate_type!r}, aggregate_id={self.aggregate_id!r}, "
            f"version={self.version}, events=<{len(self)}>)"
        )


@dataclass(frozen=True)
class AppendResult:
    """The outcome of an append. The caller has not committed it yet.

    Attributes:
        global_positions: the position of each event, in order.
        from_version: version of the aggregate before the append; 0 if the aggregate is new.
        to_version: version of the aggregate after the append.
    """

    global_positions: tuple[int, ...]
    from_version: int
    to_version: int
    # Not compared, so that the result of an idempotent retry, which has the events of the log here, equals the first.
    _appended: tuple[Event | PersistedEvent, ...] = field(compare=False)
    _decoder: EventDecoder | None = field(default=None, compare=False)

    @cached_property
    def events(self) -> tuple[PersistedEvent, ...]:
        """The events as the log holds them, created on first use."""
        decoder = self._decoder
        versions = range(self.from_version + 1, self.to_version + 1)
        return tuple(
            event
            if isinstance(event, PersistedEvent)
            else PersistedEvent._from_event(event, position, version, decoder)
            for event, position, version in zip(self._appended, self.global_positions, versions, strict=True)
        )

    def __repr__(self) -> str:
        return (
            f"AppendResult(from_version={self.from_version}, to_version={self.to_version}, "
            f"global_positions={self.global_positions!r})"
        )
