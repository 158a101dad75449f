"""The methods of the event store that read: they check arguments, and `LogReader` does the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from pupsourcing_sa._checks import check_int, check_type
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.event import PersistedEvent, Stream
from pupsourcing_sa.postgres.connections import SyncSession
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store.log_reader import LogReader
from pupsourcing_sa.store.pages import EventList, expanded
from pupsourcing_sa.store.positions import BlockingAppend

__all__ = ["EventReads"]


class EventReads:
    """The part of `EventStore` that reads."""

    registry: EventRegistry | None
    reader: LogReader

    # -- reading -----------------------------------------------------------------------------------------------

    def read_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
        backwards: bool = False,
    ) -> Stream:
        """Return the events of one aggregate in the order of their versions.

        Args:
            session: the transaction to read in. It sees its own appends.
            aggregate_type: type of the aggregate.
            aggregate_id: id of the aggregate.
            from_version: version of the first event; by default the first version.
            to_version: version of the last event; by default the current version. An inverted range is empty.
            limit: maximum number of events; unlimited by default.
            max_bytes: maximum number of bytes of payloads and metadata; unlimited by default. The first event is
                returned even if it alone has more. If fewer events are returned than you want, continue after them;
                `aggregate_version` returns the last version.
            backwards: return the latest version first. With ``limit=1``, this is the latest event.

        Raises:
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        from_version, to_version = _check_range(from_version, to_version)
        limit = check_int("limit", limit, minimum=1, is_optional=True)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        page = self.reader.stream(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            limit=limit,
            max_bytes=max_bytes,
            backwards=backwards,
        )
        events = page.events
        version = max(events[0].aggregate_version, events[-1].aggregate_version) if events else 0
        return Stream(
            aggregate_type, aggregate_id, tuple(expanded(events, self.registry, backwards=backwards)), version
        )

    def iterate_aggregate_stream(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        page_size: int = 1000,
        max_bytes: int | None = None,
    ) -> Iterator[PersistedEvent]:
        """Iterate over the events of one aggregate in version order, reading one page at a time.

        Args:
            session: as for `read_aggregate_stream`, like the versions.
            page_size: number of events in memory at a time.
            max_bytes: maximum number of bytes of payloads and metadata in a page, unless one event alone has more;
                unlimited by default.
        """
        pages = self._stream_pages(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return chain.from_iterable(pages)

    def _stream_pages(
        self,
        session: SyncSession,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None,
        to_version: int | None,
        page_size: int,
        max_bytes: int | None,
    ) -> Iterator[list[PersistedEvent]]:
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        from_version, to_version = _check_range(from_version, to_version)
        page_size = check_int("page_size", page_size, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        pages = self.reader.stream_pages(
            session,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return (expanded(events, self.registry) for events in pages)

    def aggregate_version(self, session: SyncSession, aggregate_type: str, aggregate_id: str) -> int:
        """Return the current version of an aggregate, which is the number of its events, or 0 if it does not exist."""
        aggregate_type, aggregate_id = _check_name(aggregate_type, aggregate_id)
        return self.reader.aggregate_version(session, aggregate_type, aggregate_id)

    def read_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        limit: int = 100,
        max_bytes: int | None = None,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        backwards: bool = False,
    ) -> EventList:
        """Return stable events in the log's order. A follower that continues after ``last_position`` misses none.

        Args:
            session: the transaction to read in, under READ COMMITTED unless ``up_to`` is given.
            after: position to continue after; 0 for the beginning of the log.
            limit: maximum number of rows of the log, 1 or more.
            max_bytes: maximum number of bytes of payloads and metadata; unlimited by default. The first event is
                returned even if it alone has more.
            aggregate_types: return only events of these aggregate types; ``None`` and empty mean all.
            event_types: return only events of these types; ``None`` and empty mean all.
            correlation_id: return only events with this correlation id.
            up_to: position of the last event to return. REPEATABLE READ and SERIALIZABLE require it; it must then be a
                stable position that was read before this transaction took its snapshot.
            backwards: return the latest events first. To continue, pass the last event's position minus 1 as ``up_to``.

        Returns:
            The events, in a list with the attribute ``last_position``: continue after it, until it no longer changes.
            Upcasters may turn rows into several events or none, so the list may be empty before the end.

        Raises:
            StablePositionError: the stable position cannot be determined: because of the isolation level, on a standby,
                or because a privilege is missing.
            TypeError, ValueError: an argument is wrong.
            TablesMissingError: the log's tables do not exist.
        """
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        after = check_int("after", after)
        limit = check_int("limit", limit, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        up_to = check_int("up_to", up_to, is_optional=True)
        end = self.reader.end(session, up_to)
        events = self.reader.page(session, scope, after, end, limit, max_bytes=max_bytes, backwards=backwards).events
        last_position = events[-1].global_position if events else after
        return EventList(expanded(events, self.registry, backwards=backwards), last_position)

    def iterate_events(
        self,
        session: SyncSession,
        *,
        after: int = 0,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        page_size: int = 1000,
        max_bytes: int | None = None,
    ) -> Iterator[PersistedEvent]:
        """Iterate over stable events in the log's order, reading one page at a time.

        Args:
            session: as for `read_events`, like the other arguments except the last two.
            page_size: number of events in memory at a time.
            max_bytes: maximum number of bytes of payloads and metadata in a page, unless one event alone has more;
                unlimited by default.

        The iteration ends at the stable position that it reads before the first page.
        """
        pages = self._event_pages(
            session,
            after=after,
            aggregate_types=aggregate_types,
            event_types=event_types,
            correlation_id=correlation_id,
            up_to=up_to,
            page_size=page_size,
            max_bytes=max_bytes,
        )
        return chain.from_iterable(pages)

    def _event_pages(
        self,
        session: SyncSession,
        *,
        after: int,
        aggregate_types: Iterable[str] | None,
        event_types: Iterable[str] | None,
        correlation_id: str | None,
        up_to: int | None,
        page_size: int,
        max_bytes: int | None,
    ) -> Iterator[list[PersistedEvent]]:
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        after = check_int("after", after)
        page_size = check_int("page_size", page_size, minimum=1)
        max_bytes = check_int("max_bytes", max_bytes, minimum=1, is_optional=True)
        up_to = check_int("up_to", up_to, is_optional=True)
        pages = self.reader.pages(session, scope, after, up_to, page_size, max_bytes=max_bytes)
        return (expanded(events, self.registry) for events in pages)

    # -- positions ---------------------------------------------------------------------------------------------

    def latest_global_position(self, session: SyncSession) -> int:
        """Return the last position in the log as this transaction sees it, or 0 if the log is empty.

        Events below it may still be uncommitted. At and below `stable_position` there are none.
        """
        return self.reader.last_position(session)

    def stable_position(self, session: SyncSession) -> int:
        """Return the stable position: no event at or below it is uncommitted, so the log up to it never changes.

        The value stays true. Every snapshot taken afterwards contains all events up to it, so under REPEATABLE READ and
        SERIALIZABLE use it in the next transaction.

        Raises:
            StablePositionError: the session is on a standby, or may not read the log's sequence.
            TablesMissingError: the log's tables do not exist.
        """
        return self.reader.positions(session).stable

    def blocking_appends(self, session: SyncSession) -> list[BlockingAppend]:
        """Return the unfinished transactions that have appended. The first one holds back the stable position.

        Operators use this to find the pid to investigate or terminate. Only superusers and members of
        ``pg_read_all_stats`` see the queries of other roles.
        """
        return self.reader.blocking_appends(session)


def _check_name(aggregate_type: str, aggregate_id: str) -> tuple[str, str]:
    # Any text may be asked for, even if no log can have it.
    check_type("aggregate_type", aggregate_type, str, "a str")
    check_type("aggregate_id", aggregate_id, str, "a str")
    return str.__str__(aggregate_type), str.__str__(aggregate_id)


def _check_range(from_version: int | None, to_version: int | None) -> tuple[int | None, int | None]:
    return (
        check_int("from_version", from_version, is_optional=True),
        check_int("to_version", to_version, is_optional=True),
    )
