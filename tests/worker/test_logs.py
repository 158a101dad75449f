"""A checkpoint belongs to one log, whatever names lead to it. Every case here would skip events without an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, NullPool, create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, EventTables, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.errors import LogMismatchError, PartitionsError
from pupsourcing_sa.worker import Worker
from tests.fix_postgres import new_schema, open_database
from tests.fix_store import make_event
from tests.fix_worker import Fleet

TENANTS = ("tenant one", 'tenant "2"')


class Tenants:
    """A worker's tables for several logs, and drains of them."""

    def __init__(self, engine: Engine, **events: Any) -> None:
        self.engine = engine
        self.workers = WorkerTables(MetaData())
        self.workers.metadata.create_all(engine)
        self.seen: list[str] = []

        @consumer("audit")
        def see(session: Session, event: PersistedEvent) -> None:
            self.seen.append(event.aggregate_id)

        self.consumer = see

    def append(self, engine: Engine, store: EventStore, *aggregate_ids: str) -> None:
        with Session(engine) as session:
            store.append_many(session, [(AnyVersion(), [make_event(aggregate_id)]) for aggregate_id in aggregate_ids])
            session.commit()

    def drain(self, factory: Any, store: EventStore) -> None:
        Worker(factory, store, [self.consumer], tables=self.workers).drain()


@contextmanager
def schemas(engine: Engine) -> Iterator[None]:
    with new_schema(engine, TENANTS[0]), new_schema(engine, TENANTS[1]):
        yield


def test_logs_of_other_names(engine: Engine):
    tenants, metadata = Tenants(engine), MetaData()
    one, two = (EventStore(EventTables(metadata, events=name, aggregate_heads=f"{name} heads")) for name in TENANTS)
    metadata.create_all(engine)
    tenants.append(engine, one, "a", "b")
    tenants.append(engine, two, "c")
    tenants.drain(sessionmaker(engine), one)
    with pytest.raises(LogMismatchError) as caught:
        tenants.drain(sessionmaker(engine), two)
    assert caught.value.log.endswith('."tenant ""2"""')
    assert caught.value.existing.endswith('."tenant one"')
    assert tenants.seen == ["a", "b"]


def test_tenants_by_schema_translate_map(engine: Engine):
    tenants, store = Tenants(engine), EventStore(EventTables(schema="tenant"))
    engines = [engine.execution_options(schema_translate_map={"tenant": name}) for name in TENANTS]
    with schemas(engine):
        for tenant in engines:
            store.tables.metadata.create_all(tenant)
            tenants.append(tenant, store, "a")
        tenants.drain(sessionmaker(engines[0]), store)
        with pytest.raises(LogMismatchError, match='"tenant ""2""".events'):
            tenants.drain(sessionmaker(engines[1]), store)
        tenants.drain(sessionmaker(engines[0]), store)


def test_tenants_by_database(engine: Engine, server: Engine):
    """Both logs are public.events, and the checkpoints are in a third database."""
    tenants, store = Tenants(engine), EventStore(EventTables())
    with open_database(server) as one, open_database(server) as two:
        for database in (one, two):
            store.tables.metadata.create_all(database)
            tenants.append(database, store, "a")
        factories = [
            sessionmaker(engine, binds=dict.fromkeys(store.tables.tables, database)) for database in (one, two)
        ]
        tenants.drain(factories[0], store)
        with pytest.raises(LogMismatchError, match=f"{two.url.database}.public.events"):
            tenants.drain(factories[1], store)
        tenants.append(one, store, "b")
        tenants.drain(factories[0], store)
    assert tenants.seen == ["a", "b"]


def test_another_engine_for_the_same_log(engine: Engine):
    tenants, store = Tenants(engine), EventStore(EventTables())
    store.tables.metadata.create_all(engine)
    tenants.append(engine, store, "a")
    tenants.drain(sessionmaker(engine), store)
    other = create_engine(engine.url)
    tenants.append(engine, store, "b")
    tenants.drain(sessionmaker(engine, binds={store.tables.events: other}), store)
    other.dispose()
    assert tenants.seen == ["a", "b"]


def test_connections_that_come_to_another_log(engine: Engine, caplog: pytest.LogCaptureFixture):
    """A proxy or ``ALTER ROLE`` may change the search_path of new connections. The fence looks under the lock."""
    tenants, store = Tenants(engine), EventStore(EventTables())
    store.tables.metadata.create_all(engine)
    tenants.append(engine, store, "a")
    with schemas(engine), engine.connect() as connection:
        connection.execute(text(f'CREATE TABLE "{TENANTS[0]}".events (LIKE events INCLUDING ALL)'))
        connection.commit()
        schema = connection.scalar(text("SELECT current_schema()"))
        pooled = create_engine(engine.url, poolclass=NullPool)

        @event.listens_for(pooled, "connect")
        def set_path(dbapi_connection: Any, _: object) -> None:
            with dbapi_connection.cursor() as cursor:
                # The drain has declared the consumer, so the next connections are those of its batches.
                cursor.execute(f'SELECT EXISTS (SELECT FROM "{schema}".consumer_checkpoints)')
                path = f'"{TENANTS[0]}", "{schema}"' if cursor.fetchone()[0] else f'"{schema}"'
                cursor.execute(f"SET search_path = {path}")
            dbapi_connection.commit()

        with pytest.raises(LogMismatchError, match='"tenant one".events'):
            tenants.drain(sessionmaker(pooled), store)
    assert tenants.seen == []


@pytest.mark.parametrize("error", [LogMismatchError, PartitionsError])
def test_the_fence(sync_fleet: Fleet, caplog: pytest.LogCaptureFixture, error: type[Exception]):
    """An operator replaces the consumer between two batches, before the node ticks."""
    fleet = sync_fleet
    change = "log = 'public.other'" if error is LogMismatchError else "partitions = 2"
    fleet.append(2)
    fleet.start(fleet.worker(fleet.see("all"), rebalance_interval=600, heartbeat_interval=300, heartbeat_timeout=1000))
    fleet.wait(lambda: fleet.seen("all") == [1, 2])
    fleet.query(f"UPDATE consumer_checkpoints SET {change}", commit=True)
    fleet.append(1)
    message = "checkpoint belongs to another log or number of partitions; partition is not run"
    fleet.wait(lambda: message in caplog.messages)
    assert fleet.checkpoint("all").last_position == 2
    assert fleet.seen("all") == [1, 2]
