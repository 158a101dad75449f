"""The dispatcher: how often it polls the log, which position it publishes, and its warnings."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, WorkerTables, consumer
from pupsourcing_sa.worker import Worker, WorkerConfig
from pupsourcing_sa.worker.dispatch.dispatcher import interval_after
from tests.fix_dispatcher import Lookout, kinds
from tests.fix_network import Proxy
from tests.fix_postgres import before_statements
from tests.fix_store import make_event, make_tables
from tests.fix_worker import Fleet, Recorder
from tests.waiting import patiently, wait_until

CONFIG = WorkerConfig(poll_interval=0.05, max_poll_interval=0.5, reconcile_interval=5)


class TestPause:
    def test_it_doubles_while_nothing_is_new(self):
        pauses = [0.05]
        for _ in range(5):
            pauses.append(interval_after(pauses[-1], has_news=False, is_settled=False, config=CONFIG))
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]

    def test_news_make_it_short(self):
        assert interval_after(0.5, has_news=True, is_settled=False, config=CONFIG) == 0.05

    def test_it_is_long_when_all_is_settled(self):
        assert interval_after(0.05, has_news=True, is_settled=True, config=CONFIG) == 5

    def test_it_is_short_when_that_comes_to_an_end(self):
        assert interval_after(5, has_news=False, is_settled=False, config=CONFIG) == 0.05


@pytest.fixture(params=kinds("sync"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def polling(engine: Engine, kind: str, **config: Any) -> Lookout:
    settings = {"poll_interval": 0.01, "max_poll_interval": 0.05} | config
    return Lookout(engine, kind, channel=None, **settings)


class TestPolling:
    def test_it_publishes_what_is_committed(self, engine: Engine, kind: str):
        with polling(engine, kind) as lookout:
            lookout.append(3)
            lookout.arrives(3)
            lookout.append(2)
            lookout.arrives(5)
            lookout.looks_again()
        assert lookout.names() == []
        assert {name for name, _, _ in lookout.spans} == {"worker.look"}
        assert lookout.spans[0][1] == {"worker": "w1"}
        assert lookout.spans[-1][2] == {"worker": "w1", "position": 5}

    def test_not_what_an_append_in_flight_holds_back(self, engine: Engine, kind: str):
        with polling(engine, kind) as lookout:
            lookout.append(1)
            with lookout.append_in_flight() as session:
                lookout.append(1)
                lookout.looks_again()
                assert lookout.position == 1
                session.commit()
            lookout.arrives(3)

    def test_it_does_not_listen_when_it_is_told_to_poll(self, engine: Engine, kind: str):
        with Lookout(engine, kind, dispatcher="poll", poll_interval=0.01, max_poll_interval=0.05) as lookout:
            lookout.append()
            lookout.arrives(1)
        assert lookout.names() == []

    def test_it_publishes_before_it_does_anything_else(self, engine: Engine, kind: str):
        """Nor does it wait for the end of its own transaction."""
        lookout = Lookout(engine, kind, channel=None, hold="pupsourcing-dispatcher")
        lookout.append(2)
        with lookout:
            lookout.arrives(2)
            assert lookout.looks == 0


class TestOutage:
    @pytest.mark.parametrize("kind", kinds("sync", "asyncpg"))
    def test_it_is_logged_once_and_so_is_its_end(self, database: Engine, kind: str, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        name = database.url.database

        def execute(sql: str) -> None:
            elsewhere = create_engine(database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
            with elsewhere.connect() as connection:
                connection.execute(text(sql))
            elsewhere.dispose()

        def messages() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == "pupsourcing_sa.worker"]

        with polling(database, kind) as lookout:
            lookout.append()
            lookout.arrives(1)
            database.dispose()
            execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            wait_until(lambda: "cannot read the stable position; will retry" in messages())
            looks = lookout.looks
            execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            wait_until(lambda: lookout.looks > looks)
            lookout.append()
            lookout.arrives(2)
            wait_until(lambda: "stable position is readable again" in messages())
        counts = Counter(messages())
        # asyncpg, unlike psycopg, has an SQLSTATE for the refused connection, so this error is news.
        assert counts.pop("cannot read the stable position; will retry") <= (2 if kind == "asyncpg" else 1)
        assert counts == {"stable position is readable again": 1}
        assert {record.worker for record in caplog.records if record.name == "pupsourcing_sa.worker"} == {"w1"}

    @pytest.mark.parametrize("kind", kinds("sync", "asyncpg"))
    def test_a_look_whose_backend_is_terminated_is_repeated(self, engine: Engine, kind: str):
        with polling(engine, kind) as lookout:
            for number in range(1, 6):
                lookout.append()
                lookout.arrives(number)
                assert lookout.terminate("query NOT LIKE 'LISTEN %'")

    def test_a_look_that_is_never_answered_is_given_up(self, engine: Engine, kind: str):
        """The connection has died silently, and TCP would wait for hours."""
        tables = make_tables(engine)
        with Proxy(engine) as proxy:
            there = create_engine(proxy.url)
            settings = {"heartbeat_interval": 0.05, "heartbeat_timeout": patiently(1.0)}
            with polling(there, kind, tables=tables, **settings) as lookout, Session(engine) as session:
                lookout.looks_again()
                assert proxy.forget() >= 1
                lookout.store.append(session, AnyVersion(), [make_event()])
                session.commit()
                lookout.arrives(1)
            there.dispose()


class TestStall:
    def test_it_is_reported_with_the_holders_of_the_position(
        self, engine: Engine, kind: str, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        with polling(engine, kind, stall_warning=0.05) as lookout:
            lookout.append()
            with lookout.append_in_flight() as session:
                pid = session.scalar(text("SELECT pg_backend_pid() /* slow */"))
                lookout.append()
                with lookout.append_in_flight("third"):  # holds nothing: it began later
                    wait_until(lambda: lookout.names().count("worker.stalled") >= 2)
                session.commit()
            lookout.arrives(3)
            wait_until(lambda: "stable position advances again" in caplog.messages)
        record = next(record for record in caplog.records if record.getMessage() == "stable position is stalled")
        assert (record.levelno, record.worker, record.position) == (logging.WARNING, "w1", 1)
        assert record.seconds >= 0.05
        (holder,) = record.holders
        assert (holder["pid"], holder["state"], holder["mark"]) == (pid, "idle in transaction", 1)
        assert "slow" in holder["query"]
        assert holder["age"] > 0
        name, data = lookout.events[0]
        assert name == "worker.stalled"
        assert data == {
            "worker": "w1",
            "position": 1,
            "seconds": record.seconds,
            "holders": record.holders,
        }
        assert caplog.messages.count("stable position advances again") == 1

    def test_a_prepared_transaction_is_named(self, engine: Engine):
        with polling(engine, "sync", stall_warning=0.05) as lookout:
            gid = f"forgotten {uuid4()}"  # the server has one name space for all databases
            with lookout.append_in_flight() as session:
                session.execute(text(f"PREPARE TRANSACTION '{gid}'"))
            try:
                lookout.append()
                wait_until(lambda: bool(lookout.events))
            finally:
                with lookout.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(text(f"ROLLBACK PREPARED '{gid}'"))
            lookout.arrives(2)
        (holder,) = lookout.events[0][1]["holders"]
        assert (holder["gid"], holder["pid"], holder["state"]) == (gid, None, "prepared")

    def test_an_append_in_flight_without_events_above_it_stalls_nothing(self, engine: Engine):
        with polling(engine, "sync", stall_warning=0.01) as lookout:
            lookout.append()
            with lookout.append_in_flight():
                for _ in range(5):
                    lookout.looks_again()
        assert lookout.events == []


def test_polls_of_a_locked_log_do_not_pile_up(sync_fleet: Fleet):
    """A migration may lock the log. A thread that waits for the lock cannot be ended, nor can its connection."""
    fleet, recorder = sync_fleet, Recorder()
    times = {"heartbeat_interval": 0.1, "heartbeat_timeout": patiently(0.4)}
    fleet.start(fleet.worker(fleet.see("all"), telemetry=recorder, **times))
    fleet.wait(lambda: fleet.checkpoint("all") is not None)
    with fleet.engine.connect() as migration:
        migration.execute(text("LOCK TABLE events IN ACCESS EXCLUSIVE MODE"))
        looks = len(recorder.named("worker.look"))
        fleet.wait(lambda: len(recorder.named("worker.look")) > looks + 5)
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        assert len(fleet.query(waiting)) <= 2
    fleet.append()
    fleet.wait(lambda: fleet.seen("all") == [1])


def test_an_idle_worker_with_many_consumers_polls_no_more_often(engine: Engine):
    store = EventStore(make_tables(engine))
    WorkerTables(store.tables.metadata).metadata.create_all(engine)
    seen: list[str] = []
    found: list[tuple[str, str]] = []  # the thread and the text of every statement

    def count(name: str) -> Any:
        return consumer(name)(lambda session, event: seen.append(name))

    names = [f"consumer{number}" for number in range(50)]
    worker = Worker(
        sessionmaker(engine),
        store,
        list(map(count, names)),
        config=WorkerConfig(poll_interval=0.005, max_poll_interval=0.01),
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with Session(engine) as session:
            store.append(session, AnyVersion(), [make_event()])
            session.commit()
        wait_until(lambda: sorted(seen) == sorted(names))
        wait_until(lambda: _all_moved(engine, len(names)))
        with before_statements(engine, lambda text: found.append((threading.current_thread().name, text))):
            wait_until(lambda: sum("pg_locks" in statement for _, statement in found) > 20)
    finally:
        worker.stop()
        thread.join()
    by_thread = Counter(name for name, _ in found if "coordination" not in name)
    assert set(by_thread) == {"pupsourcing-dispatcher"}
    looks = sum("pg_locks" in statement for _, statement in found)
    assert by_thread["pupsourcing-dispatcher"] <= 2 * looks + 1


def _all_moved(engine: Engine, number: int) -> bool:
    with engine.connect() as connection:
        moved = "SELECT count(*) FROM consumer_checkpoints WHERE last_position = 1"
        return connection.scalar(text(moved)) == number
