"""Notifications: what they spare, and that nothing depends on them."""

from __future__ import annotations

import asyncio
import logging
import time
from socket import socketpair
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, EventTables
from pupsourcing_sa.telemetry import NO_TELEMETRY
from pupsourcing_sa.worker import WorkerConfig
from pupsourcing_sa.worker.dispatch.listener import Listener
from pupsourcing_sa.worker.dispatch.notifications import (
    Notifications,
    _Psycopg,
)
from tests.fix_dispatcher import CHANNEL, KINDS, LISTENING, Lookout, kinds
from tests.fix_store import make_tables
from tests.waiting import wait_until

#: Nothing that happens within a test's deadline happens by polling.
NEVER = {"poll_interval": 600.0, "max_poll_interval": 600.0, "reconcile_interval": 600.0}
#: Short intervals while nothing listens, and no reconciliation.
POLL = {"poll_interval": 0.01, "max_poll_interval": 0.05, "reconcile_interval": 600.0}


@pytest.fixture(params=kinds("sync", "asyncpg"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestNotifications:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_commit_is_heard(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **NEVER) as lookout:
            lookout.listens()
            for number in range(1, 6):
                lookout.append()
                lookout.arrives(number)
        assert lookout.events == [("worker.listening", {"worker": "w1", "channel": CHANNEL})]

    def test_a_commit_before_listen_is_polled_for(self, engine: Engine, kind: str):
        with Lookout(engine, kind, hold_back="pupsourcing-listener", **NEVER) as lookout:
            wait_until(lambda: lookout.looks == 1)
            lookout.append()
            assert lookout.position == 0
            lookout.released.set()
            lookout.arrives(1)

    def test_a_commit_before_the_listener_is_ready_is_polled_for(self, engine: Engine, kind: str):
        with Lookout(engine, kind, hold="pupsourcing-listener", **NEVER) as lookout:
            wait_until(lambda: lookout.looks == 1 and lookout.is_listening())
            lookout.append()
            assert lookout.position == 0
            lookout.released.set()
            lookout.arrives(1)

    def test_a_look_that_began_before_a_commit_does_not_count_for_it(self, engine: Engine, kind: str):
        lookout = Lookout(engine, kind, hold="pupsourcing-dispatcher", **NEVER)
        lookout.released.set()
        with lookout, listening(engine) as mine:
            lookout.listens()
            lookout.append()
            lookout.arrives(1)
            lookout.settles()
            lookout.released.clear()
            lookout.append()
            wait_until(lambda: lookout.held == 1)
            lookout.append()
            assert len(list(mine.notifies(timeout=20, stop_after=3))) == 3  # they have been sent to everyone
            lookout.released.set()
            lookout.arrives(3)

    def test_many_notifications_cause_few_polls(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **NEVER) as lookout, listening(engine) as mine:
            lookout.listens()
            before, began = lookout.looks, time.monotonic()
            for _ in range(500):
                mine.execute("SELECT pg_notify(%s, '')", [CHANNEL])
            lookout.append()
            lookout.arrives(1)
            wait_until(lambda: lookout.looks > before)
            seconds = time.monotonic() - began
        assert lookout.looks - before <= 100 * seconds + 2

    def test_an_append_in_flight_may_end_without_a_notification(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **POLL) as lookout:
            lookout.listens()
            lookout.append()
            with lookout.append_in_flight() as session:
                lookout.append()
                lookout.looks_again()
                assert lookout.position == 1
                session.rollback()
                lookout.arrives(3)

    def test_it_does_not_poll_while_it_listens(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **POLL) as lookout:
            lookout.listens()
            lookout.append()
            lookout.arrives(1)
            lookout.settles()

    def test_it_takes_no_connection_of_the_pool(self, engine: Engine):
        own = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=2)
        with Lookout(engine, "sync", factory=sessionmaker(own), **NEVER) as lookout:
            lookout.listens()
            lookout.append()
            lookout.arrives(1)
            wait_until(lambda: own.pool.checkedout() == 0)
        own.dispose()

    def test_the_engine_is_that_of_the_log(self, engine: Engine):
        """A session may have a bind for each table; others lead elsewhere."""
        tables = make_tables(engine)
        elsewhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
        factory = sessionmaker(elsewhere, binds={tables.events: engine})
        with Lookout(engine, "sync", tables=tables, factory=factory, **NEVER) as lookout:
            lookout.listens()
            lookout.append()
            lookout.arrives(1)


def make_listener(cls: type[Listener] = Listener) -> Listener:
    return cls(
        CHANNEL,
        execution=None,  # type: ignore[arg-type]
        store=EventStore(EventTables()),
        config=WorkerConfig(),
        wake=lambda: None,
        worker_id="w1",
        hooks=NO_TELEMETRY,
    )


class TestReliability:
    """Of a listener, judged after each look; without a database."""

    @pytest.fixture
    def listener(self) -> Listener:
        listener = make_listener()
        listener._established()
        self.look(listener, has_grown=True)  # since it did not listen
        assert listener.is_reliable
        return listener

    def look(self, listener: Listener, *, has_grown: bool, heard_meanwhile: int = 0) -> None:
        listener.begin_poll()
        for _ in range(heard_meanwhile):
            listener._notified()
        listener.finish_poll(has_grown=has_grown)

    def test_a_notified_event_is_announced_growth(self, listener: Listener):
        for _ in range(3):
            listener._notified()
            self.look(listener, has_grown=True)
            assert listener.is_reliable

    def test_nor_is_one_that_is_notified_during_the_poll(self, listener: Listener):
        self.look(listener, has_grown=False)
        self.look(listener, has_grown=True, heard_meanwhile=1)
        assert listener.is_reliable

    def test_nor_is_what_the_next_poll_finds(self, listener: Listener):
        """The notification came when that look had read, and before it had ended."""
        self.look(listener, has_grown=False)
        self.look(listener, has_grown=False, heard_meanwhile=1)
        self.look(listener, has_grown=True)
        assert listener.is_reliable

    def test_a_failed_poll_does_not_use_up_a_notification(self, listener: Listener):
        self.look(listener, has_grown=False)
        listener._notified()
        listener.begin_poll()  # and no judgement
        self.look(listener, has_grown=True)
        assert listener.is_reliable

    def test_unannounced_growth_counts_until_there_is_a_notification(self, listener: Listener):
        self.look(listener, has_grown=False)
        for has_grown in (True, False, False):
            self.look(listener, has_grown=has_grown)
            assert not listener.is_reliable
        listener._notified()
        self.look(listener, has_grown=False)
        assert listener.is_reliable

    def test_a_quiet_log_has_not_grown(self, listener: Listener):
        for _ in range(3):
            self.look(listener, has_grown=False)
        assert listener.is_reliable

    def test_the_second_in_a_row_is_logged_once(self, listener: Listener, caplog: pytest.LogCaptureFixture):
        self.look(listener, has_grown=False)
        self.look(listener, has_grown=True)
        assert caplog.messages == []
        for _ in range(2):
            self.look(listener, has_grown=True)
            self.look(listener, has_grown=True)
            listener._notified()
            self.look(listener, has_grown=False)
            self.look(listener, has_grown=False)
        assert caplog.messages == ["events arrive without notifications; polling"]


class TestLoss:
    def test_it_listens_again(self, engine: Engine, kind: str, caplog: pytest.LogCaptureFixture):
        caplog.set_level(logging.INFO, "pupsourcing_sa.worker")
        with Lookout(engine, kind, **NEVER) as lookout:
            for number in range(1, 4):
                lookout.listens(number)
                lookout.append()
                lookout.arrives(number)
                assert lookout.terminate(LISTENING) == 1
            lookout.listens(4)
            lookout.append()
            lookout.arrives(4)
        assert lookout.names() == ["worker.listening", "worker.listener_lost"] * 3 + ["worker.listening"]
        data = lookout.events[1][1]
        assert data == {"worker": "w1", "channel": CHANNEL, "retry_after": pytest.approx(0.01, rel=0.3)}
        lost = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage() for record in lost] == [
            "lost the notification connection; polling until it is back"
        ] * 3
        assert all(record.exc_info is None and record.error for record in lost)  # one line each

    def test_commits_are_found_by_polling_until_it_listens_again(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **POLL | {"retry_delay": 60.0, "max_retry_delay": 60.0}) as lookout:
            lookout.listens()
            assert lookout.terminate(LISTENING) == 1
            wait_until(lambda: "worker.listener_lost" in lookout.names())
            lookout.append()
            lookout.arrives(1)
            lookout.looks_again()
            lookout.append()
            lookout.arrives(2)
        assert lookout.names() == ["worker.listening", "worker.listener_lost"]

    def test_all_connections_are_lost_at_once(self, engine: Engine, kind: str):
        with Lookout(engine, kind, **POLL) as lookout:
            for number in range(1, 6):
                lookout.listens(number)
                lookout.append()
                lookout.arrives(number)
                assert lookout.terminate("true") >= 1
            lookout.listens(6)

    def test_it_manages_without_notifications(self, engine: Engine, kind: str, caplog: pytest.LogCaptureFixture):
        """A connection that died silently, a pooler, and a store without a channel look the same."""
        with Lookout(engine, kind, **POLL | {"reconcile_interval": 0.02}) as lookout:
            lookout.listens()
            for number in range(1, 4):
                lookout.append(is_silent=True)
                lookout.arrives(number)
            wait_until(lambda: "events arrive without notifications; polling" in caplog.messages)
            lookout.append()
            lookout.arrives(4)
        assert len(caplog.messages) == 1

    @pytest.mark.parametrize("kind", kinds("sync"))
    def test_after_unannounced_growth_it_polls_until_there_is_a_notification(self, engine: Engine, kind: str):
        settings = {"poll_interval": 0.01, "max_poll_interval": 0.05, "reconcile_interval": 0.5}
        with Lookout(engine, kind, **settings) as lookout:
            lookout.listens()
            lookout.settles()
            lookout.append(is_silent=True)
            lookout.arrives(1)
            lookout.polls()
            lookout.append()
            lookout.arrives(2)
            lookout.settles()

    def test_an_unreachable_server_is_logged_once(self, engine: Engine, caplog: pytest.LogCaptureFixture):
        nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
        with Lookout(engine, "sync", factory=sessionmaker(nowhere), **POLL) as lookout:
            wait_until(lambda: len(lookout.begun) == 2)
            wait_until(lambda: min(lookout.begun.values()) >= 5)
        assert sorted(caplog.messages) == [
            "cannot read the stable position; will retry",
            "lost the notification connection; polling until it is back",
        ]
        assert lookout.names() == ["worker.listener_lost"]


class LostConnection:
    """Stands in for psycopg's connection, and for that of libpq: lost before it starts, or when it is read."""

    def __init__(self, *, is_lost_at_start: bool) -> None:
        self.pgconn = self
        self.is_lost_at_start = is_lost_at_start
        self.reading, self.writing = socketpair()
        self.writing.close()  # so that there is something to read: the end of file

    @property
    def socket(self) -> int:
        if self.is_lost_at_start:
            raise psycopg.OperationalError("the connection is lost")
        return self.reading.fileno()

    def consume_input(self) -> None:
        raise psycopg.OperationalError("consuming input failed: server closed the connection\n\tThis probably means …")

    def finish(self) -> None:
        self.reading.close()


class LostListener(Listener):
    """A listener on a connection of psycopg that is lost at once, without an SQLSTATE."""

    is_lost_at_start = False

    async def _open(self) -> Notifications:
        return _Psycopg(LostConnection(is_lost_at_start=self.is_lost_at_start))

    def _lost(self, error: Exception) -> float:
        self.stopping.set()
        return super()._lost(error)


@pytest.mark.parametrize(
    ("is_lost_at_start", "reason"),
    [(True, "the connection is lost"), (False, "consuming input failed: server closed the connection")],
)
def test_a_lost_connection_is_logged_in_one_line_whatever_the_driver_says(
    is_lost_at_start: bool, reason: str, caplog: pytest.LogCaptureFixture
):
    listener = make_listener(LostListener)
    listener.is_lost_at_start = is_lost_at_start
    asyncio.run(listener._run())
    assert caplog.messages == ["lost the notification connection; polling until it is back"]
    (record,) = caplog.records
    assert (record.exc_info, record.error) == (None, f"ConnectionError: {reason}")


def test_a_stop_leaves_no_connection_behind(engine: Engine, kind: str):
    with Lookout(engine, kind, **NEVER) as lookout:
        lookout.listens()
    wait_until(lambda: not lookout.is_listening())


def test_nor_does_a_stop_in_the_middle_of_connecting(engine: Engine, kind: str):
    with Lookout(engine, kind, hold="pupsourcing-listener", **NEVER) as lookout:
        wait_until(lookout.is_listening)
        lookout.stop()
        wait_until(lambda: not lookout.is_listening())


def listening(engine: Engine) -> Any:
    """A connection of the test's own that listens as well."""
    connection = psycopg.connect(
        engine.url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    )
    with Session(engine) as session:
        channel = session.connection().dialect.identifier_preparer.quote_identifier(CHANNEL).replace("%%", "%")
    connection.execute(f"/* mine */ LISTEN {channel}".encode())
    return connection
