"""Another database takes over under the same address, and lacks the last commits of the former."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion
from pupsourcing_sa.errors import StablePositionError
from pupsourcing_sa.worker import Worker
from pupsourcing_sa.worker.execution.factory import execution_for
from pupsourcing_sa.worker.processing.drain import DrainProcessor
from tests.fix_postgres import open_database
from tests.fix_processing import assign, context_of
from tests.fix_store import make_event
from tests.fix_worker import Fleet
from tests.waiting import wait_until


class Replicated:
    """A database, and a copy of it as it was at some moment."""

    def __init__(self, server: Engine, engine: Engine) -> None:
        self._server = server
        self._engine = engine
        self._name = engine.url.database
        self._copy = f"{self._name}_standby"

    def copy(self) -> None:
        self._engine.dispose()  # a template must have no connections
        self._execute(f"CREATE DATABASE {self._copy} TEMPLATE {self._name}")

    def fail_over(self) -> None:
        """Replace the database with the copy."""
        self._execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        connections = f"FROM pg_stat_activity WHERE datname = '{self._name}'"
        with self._server.connect() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {connections}"))
            wait_until(lambda: connection.scalar(text(f"SELECT count(*) {connections}")) == 0)
        self._execute(f"DROP DATABASE {self._name}", f"ALTER DATABASE {self._copy} RENAME TO {self._name}")

    def close(self) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {self._copy}")

    def _execute(self, *statements: str) -> None:
        with self._server.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


@pytest.fixture
def engine(server: Engine) -> Iterator[Engine]:
    """Connections to a database of the test's own, whose loss is noticed where they are taken from the pool."""
    with open_database(server, pool_pre_ping=True) as engine:
        yield engine


@pytest.fixture
def replicated(server: Engine, engine: Engine) -> Iterator[Replicated]:
    replicated = Replicated(server, engine)
    yield replicated
    replicated.close()


def test_events_in_the_place_of_those_that_are_lost_are_not_skipped(replicated: Replicated, every_fleet: Fleet):
    """Their positions are issued again, below the stable position of the server before."""
    fleet = every_fleet
    fleet.append(3)
    fleet.append(event_type="Rare")
    replicated.copy()
    fleet.start(fleet.worker(fleet.see("all"), fleet.see("rare", event_types={"Rare"})))
    fleet.append(30)
    fleet.wait(lambda: len(fleet.seen("all")) == 34 and fleet.seen("rare") == [4])
    replicated.fail_over()
    fleet.append(5)
    fleet.append(event_type="Rare")
    assert fleet.query("SELECT max(global_position) FROM events") == [(10,)]
    fleet.wait(lambda: len(fleet.seen("all")) == 10 and fleet.seen("rare") == [4, 10])
    fleet.stop()
    assert fleet.seen("all") == list(range(1, 11))
    assert fleet.checkpoint("all").last_position == fleet.checkpoint("rare").last_position == 10


def test_connections_that_were_made_to_a_standby_are_not_used_again(
    server: Engine, every_fleet: Fleet, caplog: pytest.LogCaptureFixture
):
    """The primary's name led to the standby for a while. Without a check, the connections would stay in the pool."""
    fleet, name = every_fleet, every_fleet.engine.url.database
    fleet.append()
    fleet.start(fleet.worker(fleet.see("all")))
    fleet.wait(lambda: fleet.seen("all") == [1])
    fleet.engine = create_engine(fleet.engine.url, poolclass=NullPool)  # for us
    with server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        fleet.wait(lambda: "cannot reach the database to coordinate; will retry" in caplog.messages)
        connection.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1, 2])


def test_statistics_that_are_reset_only_make_nodes_start_over(fleet: Fleet, caplog: pytest.LogCaptureFixture):
    """Recovery from a crash resets them, and so can an administrator."""
    caplog.set_level("INFO", "pupsourcing_sa.worker")
    fleet.append(3)
    fleet.start(fleet.worker(fleet.see("all")))
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3])
    fleet.query("SELECT pg_stat_reset_shared('bgwriter')")
    fleet.wait(lambda: "database server was restarted or replaced" in caplog.messages)
    fleet.append(3)
    fleet.wait(lambda: fleet.seen("all") == [1, 2, 3, 4, 5, 6])


def test_no_batch_begins_with_the_stable_position_of_another_server(sync_fleet: Fleet):
    """It may be found before the dispatcher has looked at the new one."""
    fleet = sync_fleet

    def drain() -> DrainProcessor:
        execution = execution_for(sessionmaker(fleet.engine), 1)
        context = context_of(fleet.see("all"), execution=execution, store=fleet.store, tables=fleet.tables)
        assign(fleet.engine, fleet.tables, "all")
        return DrainProcessor(context, 10, "another server")

    async def main() -> None:
        with pytest.raises(StablePositionError, match="belongs to another server or database"):
            await drain().start()
        assert (fleet.checkpoint("all").last_position, fleet.seen("all")) == (0, [])

    fleet.append(3)
    asyncio.run(main())


def test_the_log_may_be_in_another_database_than_the_checkpoints(sync_fleet: Fleet, server: Engine):
    """The place of the events counts."""
    fleet = sync_fleet
    log = fleet.store.tables
    with open_database(server) as other:
        log.metadata.create_all(other)
        with Session(other) as session:
            fleet.store.append(session, AnyVersion(), [make_event(), make_event()])
            session.commit()
        factory = sessionmaker(fleet.engine, binds={log.events: other, log.aggregate_heads: other})
        Worker(factory, fleet.store, [fleet.see("all")], tables=fleet.tables).drain()
    assert fleet.seen("all") == [1, 2]
