"""The store for asyncio. SQLAlchemy's greenlet runs the methods of `EventStore`.

``sqlalchemy.ext.asyncio`` needs greenlet, an optional dependency. It is imported when a method is called.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from pupsourcing_sa._checks import check_type
from pupsourcing_sa.consumer import Scope
from pupsourcing_sa.event import AppendResult, Event, PersistedEvent, Stream
from pupsourcing_sa.expected import ExpectedVersion
from pupsourcing_sa.postgres.connections import async_session_of
from pupsourcing_sa.registry import EventRegistry
from pupsourcing_sa.store._sync import EventStore
from pupsourcing_sa.store.pages import EventList
from pupsourcing_sa.store.positions import BlockingAppend
from pupsourcing_sa.store.server_checks import check_server, raise_problem
from pupsourcing_sa.tables import EventTables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from pupsourcing_sa.postgres.connections import AsyncSessionArgument as _Session

__all__ = ["AsyncEventStore"]

_T = TypeVar("_T")


class AsyncEventStore:
    """`EventStore` for ``AsyncSession`` and ``AsyncConnection``, with the same methods as coroutines.

    Args:
        tables: the log's tables; by default, tables with the default names on a new ``MetaData``.
        notify_channel, registry: see `EventStore`.

    Attributes:
        sync_store: the wrapped `EventStore`, for use inside ``run_sync``.
    """

    def __init__(
        self,
        tables: EventTables | None = None,
        *,
        notify_channel: str | None = None,
        registry: EventRegistry | None = None,
    ) -> None:
        self.sync_store = EventStore(tables, notify_channel=notify_channel, registry=registry)

    @property
    def tables(self) -> EventTables:
        return self.sync_store.tables

    @property
    def notify_channel(self) -> str | None:
        return self.sync_store.notify_channel

    @property
    def registry(self) -> EventRegistry | None:
        return self.sync_store.registry

    async def append(
        self,
        session: _Session,
        expected_version: ExpectedVersion,
        events: Iterable[Any],
        *,
        aggregate: tuple[str, str] | None = None,
        event_ids: Sequence[UUID] | None = None,
        idempotent: bool = False,
    ) -> AppendResult:
        """See `EventStore.append`."""
        return await _run(
            session,
            self.sync_store.append,
            expected_version,
            events,
            aggregate=aggregate,
            event_ids=event_ids,
            idempotent=idempotent,
        )

    async def append_many(
        self,
        session: _Session,
        appends: Iterable[
            tuple[ExpectedVersion, Iterable[Event]] | tuple[ExpectedVersion, Iterable[Any], tuple[str, str]]
        ],
    ) -> list[AppendResult]:
        """See `EventStore.append_many`."""
        return await _run(session, self.sync_store.append_many, appends)

    async def read_aggregate_stream(
        self,
        session: _Session,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        limit: int | None = None,
        max_bytes: int | None = None,
        backwards: bool = False,
    ) -> Stream:
        """See `EventStore.read_aggregate_stream`."""
        return await _run(
            session,
            self.sync_store.read_aggregate_stream,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            limit=limit,
            max_bytes=max_bytes,
            backwards=backwards,
        )

    def iterate_aggregate_stream(
        self,
        session: _Session,
        aggregate_type: str,
        aggregate_id: str,
        *,
        from_version: int | None = None,
        to_version: int | None = None,
        page_size: int = 1000,
        max_bytes: int | None = None,
    ) -> AsyncIterator[PersistedEvent]:
        """See `EventStore.iterate_aggregate_stream`; for ``async for``."""
        return _iterate(
            session,
            self.sync_store._stream_pages,
            aggregate_type,
            aggregate_id,
            from_version=from_version,
            to_version=to_version,
            page_size=page_size,
            max_bytes=max_bytes,
        )

    async def aggregate_version(self, session: _Session, aggregate_type: str, aggregate_id: str) -> int:
        """See `EventStore.aggregate_version`."""
        return await _run(session, self.sync_store.aggregate_version, aggregate_type, aggregate_id)

    async def read_events(
        self,
        session: _Session,
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
        """See `EventStore.read_events`."""
        return await _run(
            session,
            self.sync_store.read_events,
            after=after,
            limit=limit,
            max_bytes=max_bytes,
            aggregate_types=aggregate_types,
            event_types=event_types,
            correlation_id=correlation_id,
            up_to=up_to,
            backwards=backwards,
        )

    def iterate_events(
        self,
        session: _Session,
        *,
        after: int = 0,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
        up_to: int | None = None,
        page_size: int = 1000,
        max_bytes: int | None = None,
    ) -> AsyncIterator[PersistedEvent]:
        """See `EventStore.iterate_events`; for ``async for``."""
        # Read the iterables here, as the sync store does, and not when the first event is requested.
        scope = Scope.of(aggregate_types=aggregate_types, event_types=event_types, correlation_id=correlation_id)
        return _iterate(
            session,
            self.sync_store._event_pages,
            after=after,
            aggregate_types=scope.aggregate_types,
            event_types=scope.event_types,
            correlation_id=correlation_id,
            up_to=up_to,
            page_size=page_size,
            max_bytes=max_bytes,
        )

    async def latest_global_position(self, session: _Session) -> int:
        """See `EventStore.latest_global_position`."""
        return await _run(session, self.sync_store.latest_global_position)

    async def stable_position(self, session: _Session) -> int:
        """See `EventStore.stable_position`."""
        return await _run(session, self.sync_store.stable_position)

    async def blocking_appends(self, session: _Session) -> list[BlockingAppend]:
        """See `EventStore.blocking_appends`."""
        return await _run(session, self.sync_store.blocking_appends)

    async def check(self, engine: AsyncEngine) -> None:
        """See `EventStore.check`; for an ``AsyncEngine``."""
        from sqlalchemy.ext.asyncio import AsyncEngine

        check_type("engine", engine, AsyncEngine, "an AsyncEngine", "; EventStore has the check for an Engine")
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="READ COMMITTED")
            await connection.run_sync(lambda sync: raise_problem(check_server(sync, self.sync_store.reader)))

    def __repr__(self) -> str:
        return f"AsyncEventStore({self.tables!r})"


async def _run(session: _Session, method: Callable[..., _T], *args: Any, **kw: Any) -> _T:
    session = async_session_of(session, "EventStore is the store for Session and Connection")
    return await session.run_sync(method, *args, **kw)


async def _iterate(
    session: _Session, method: Callable[..., Iterator[list[PersistedEvent]]], *args: Any, **kw: Any
) -> AsyncIterator[PersistedEvent]:
    """Iterate over the events of a method's pages. Enter the greenlet once per page and not once per event."""
    pages = await _run(session, method, *args, **kw)
    while (page := await _run(session, lambda _: next(pages, None))) is not None:
        for event in page:
            yield event
        # Only one page is in memory.
        del page
