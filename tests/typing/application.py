"""Code that an application's type checker accepts, and code that it refuses.

``make check`` checks this file; nothing runs it. An ignored error that does not occur is an error itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, Exact, ExpectedVersion, PersistedEvent, consumer
from pupsourcing_sa.consumer import BatchConsumer, Consumer
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


def sync_worker(engine: Engine) -> Worker:
    consumers: list[Consumer | BatchConsumer] = [function, View()]
    return Worker(sessionmaker(engine), EventStore(), consumers)


def async_worker(engine: AsyncEngine) -> Worker:
    return Worker(async_sessionmaker(engine), EventStore(), [coroutine, Totals("totals")])


def wrong_workers(engine: Engine) -> None:
    factory, store = sessionmaker(engine), EventStore()
    Worker(engine, store, [function])  # type: ignore[arg-type]
    Worker(factory, store, function)  # type: ignore[arg-type]
    Worker(factory, store, [Nameless()])  # type: ignore[list-item]
    Worker(factory, store, [View])  # type: ignore[list-item]
    Worker(factory, store, [Narrow()])  # type: ignore[list-item]

    @consumer("few")  # type: ignore[arg-type]
    def few(session: Session) -> None: ...


def version_of(expected: ExpectedVersion) -> int | None:
    match expected:
        case Exact(version):
            return version
        case _:
            return expected.version
