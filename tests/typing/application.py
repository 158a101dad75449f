"""Code that an application's type checker accepts, and code that it refuses.

``make check`` checks this file; nothing runs it. An ignored error that does not occur is an error itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, Exact, ExpectedVersion, PersistedEvent, consumer
from pupsourcing_sa.consumer import AsyncConsumer, BatchConsumer, Consumer, SyncConsumer
from pupsourcing_sa.worker import Worker


@consumer("function", aggregate_types={"User"}, partitions=2)
def function(session: Session, event: PersistedEvent) -> None: ...


@consumer("coroutine")
async def coroutine(session: AsyncSession, event: PersistedEvent) -> None: ...


class View:
    name = "view"

    def handle(self, session: Session, event: PersistedEvent) -> None: ...


class Totals:
    def __init__(self, table: str) -> None:
        self._table = table

    @property
    def name(self) -> str:
        return self._table

    async def handle_batch(self, session: AsyncSession, events: Sequence[PersistedEvent]) -> None: ...


class Nameless:
    def handle(self, session: Session, event: PersistedEvent) -> None: ...


class Narrow:
    name = "narrow"

    def handle_batch(self, session: Session) -> None: ...


class AsyncView:
    name = "async view"

    async def handle(self, session: AsyncSession, event: PersistedEvent) -> None: ...


class OwnSession(Session):
    tenant = "t1"


@consumer("own session", isolation="READ COMMITTED")
def of_own_session(session: OwnSession, event: PersistedEvent) -> None:
    print(session.tenant)


@consumer("lists")
def lists_without_types(session, event):  # type: ignore[no-untyped-def]
    ...


def listed(engine: Engine, own: list[SyncConsumer[Session]], others: list[AsyncConsumer[AsyncSession]]) -> None:
    own += [function, View()]
    others += [coroutine, AsyncView()]
    Worker(sessionmaker(engine), EventStore(), own)
    Worker(sessionmaker(engine), EventStore(), others)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


def sync_worker(engine: Engine) -> Worker:
    consumers: list[Consumer | BatchConsumer] = [function, View(), lists_without_types]
    Worker(sessionmaker(engine, class_=OwnSession), EventStore(), [of_own_session, function])
    Worker(sessionmaker(engine), EventStore(), [lists_without_types])
    return Worker(sessionmaker(engine), EventStore(), consumers)


def async_worker(engine: AsyncEngine) -> Worker:
    # A handler that is no coroutine function gets a Session.
    Worker(async_sessionmaker(engine), EventStore(), [function, AsyncView(), lists_without_types])
    return Worker(async_sessionmaker(engine), EventStore(), [coroutine, Totals("totals")])


def wrong_workers(engine: Engine) -> None:
    factory, store = sessionmaker(engine), EventStore()
    Worker(engine, store, [function])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, function)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [Nameless()])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [View])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [Narrow()])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]

    @consumer("few")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def few(session: Session) -> None: ...

    @consumer("loose", isolation="READ UNCOMMITTED")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def loose(session: Session, event: PersistedEvent) -> None: ...


@consumer("wrong session")
async def wrong_session(session: Session, event: PersistedEvent) -> None: ...


@consumer("not a coroutine")
def not_a_coroutine(session: AsyncSession, event: PersistedEvent) -> None: ...


def wrong_handlers(engine: Engine, async_engine: AsyncEngine) -> None:
    factory, async_factory, store = sessionmaker(engine), async_sessionmaker(async_engine), EventStore()
    Worker(factory, store, [coroutine])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [AsyncView()])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [Totals("totals")])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [not_a_coroutine])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(factory, store, [of_own_session])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(async_factory, store, [wrong_session])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Worker(async_factory, store, [not_a_coroutine])  # type: ignore[list-item]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def call_handlers(session: AsyncSession, event: PersistedEvent) -> None:
    await coroutine(session, event)
    coroutine(session, event)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    function(session, event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def version_of(expected: ExpectedVersion) -> int | None:
    match expected:
        case Exact(version):
            return version
        case _:
            return expected.version
