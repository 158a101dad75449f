"""Lost connections, listeners without notifications, and a server that crashes and is restarted."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import PersistedEvent, consumer
from pupsourcing_sa.testing import embedded_postgres
from tests.fix_postgres import new_database, open_database
from tests.fix_worker import INSERT
from tests.fix_worker import Fleet as Workers
from tests.scenarios.application import CHANNEL, Follows
from tests.scenarios.fleet import Fleet
from tests.scenarios.pooler import POOLER
from tests.scenarios.scene import Scene
from tests.scenarios.server import Server

CONSUMERS = {"a": Follows(partitions=3), "b": Follows(), "c": Follows(partitions=2, by_batch=True)}
ONE = {"one": Follows()}
DAY = 86_400
DRIVERS = ["psycopg", "async-psycopg", "asyncpg"]

#: For tests about connections that a node keeps for longer than a transaction.
not_pooled = pytest.mark.skipif(POOLER is not None, reason="behind a pooler nodes have no connections of their own")


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with embedded_postgres() as url:
        server = Server(url)
        yield server
        server.close()


@contextmanager
def own_stage(server: Server, directory: Path) -> Iterator[tuple[Scene, Fleet]]:
    """The same as the fixtures `scene` and `fleet`, on a separate server."""
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with new_database(engine) as url:
        scene, fleet = Scene(url), Fleet(url, directory)
        try:
            yield scene, fleet
        finally:
            fleet.close()
            fleet.show_logs()
            scene.close()
    engine.dispose()


@not_pooled
@pytest.mark.parametrize("rounds", [11, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_backends_are_terminated_in_turn_and_together_under_load(scene: Scene, fleet: Fleet, rounds: int):
    """Terminate by a condition, not from a list: after a lost connection, a node closes the others of its pool."""
    chance = random.Random(1)
    nodes = [fleet.start(CONSUMERS, driver=driver, channel=CHANNEL) for driver in DRIVERS]
    with scene.load(*CONSUMERS):
        for node in nodes:
            fleet.wait_until(scene.progress(node), f"{node.name} at work")
        for number in range(rounds):
            backends = scene.backends()
            for backend in backends if number % 10 == 0 else [chance.choice(backends)]:
                scene.scalar("SELECT pg_terminate_backend(:pid)", pid=backend)
            fleet.wait_until(scene.progress(), "work that goes on")
        for node in nodes:
            fleet.wait_until(scene.progress(node), f"{node.name} still at work")
    fleet.wait_until(lambda: not scene.backlog(CONSUMERS), "everything applied")
    fleet.stop()
    scene.assert_applied_exactly_once(*CONSUMERS)


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_the_server_is_stopped_at_once_and_started_again_under_load(own_server: Server, tmp_path: Path, times: int):
    with own_stage(own_server, tmp_path) as (scene, fleet):
        nodes = [fleet.start(CONSUMERS, driver=driver, channel=CHANNEL) for driver in DRIVERS]
        with scene.load(*CONSUMERS):
            for _ in range(times):
                for node in nodes:
                    fleet.wait_until(scene.progress(node), f"{node.name} at work")
                own_server.restart_at_once()
            for node in nodes:
                fleet.wait_until(scene.progress(node), f"{node.name} still at work")
        fleet.wait_until(lambda: not scene.backlog(CONSUMERS), "everything applied")
        fleet.stop()
        scene.assert_applied_exactly_once(*CONSUMERS)


def test_a_batch_that_a_crash_has_undone_does_not_count_as_committed(own_server: Server):
    """After the crash the server issues the id of the batch's transaction again, and that transaction commits."""
    first_attempt: list[int] = []

    def crash(session: Session) -> None:
        first_attempt.append(session.scalars(text("SELECT txid_current()")).one())
        own_server.restart_at_once()
        issued = 0
        with other.connect() as connection:
            while issued < first_attempt[0]:
                issued = connection.scalar(text("SELECT txid_current()")) or 0
        assert issued == first_attempt[0]
        session.execute(text("SELECT 1"))

    @consumer("crashing")
    def handle(session: Session, event: PersistedEvent) -> None:
        session.execute(INSERT, {"consumer": "crashing", "position": event.global_position})
        if not first_attempt:
            crash(session)

    server = create_engine(own_server.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with open_database(server, pool_pre_ping=True) as engine:
        other = engine.execution_options(isolation_level="AUTOCOMMIT")
        workers = Workers(engine, is_async=False)
        workers.append(2)
        with pytest.raises(OperationalError):
            workers.worker(handle).drain()
        assert workers.checkpoint("crashing").parked_at is None
        workers.worker(handle).drain()
        assert workers.seen("crashing") == [1, 2]
    server.dispose()


def listeners(scene: Scene) -> list[int]:
    return scene.backends("query LIKE 'LISTEN%'")


@not_pooled
@pytest.mark.parametrize(
    "driver", ["asyncpg", *(pytest.param(driver, marks=pytest.mark.exhaustive) for driver in DRIVERS[:2])]
)
def test_a_listener_whose_connection_dies(scene: Scene, fleet: Fleet, driver: str):
    """Only notifications, or polling without them, can deliver an event within a day."""
    fleet.start(ONE, driver=driver, channel=CHANNEL, reconcile_interval=DAY)
    for _ in range(3):
        fleet.wait_until(lambda: listeners(scene), "the listener")
        scene.append("x")
        fleet.wait_until(lambda: not scene.backlog(ONE), "the event")
        (listener,) = listeners(scene)
        scene.scalar("SELECT pg_terminate_backend(:pid)", pid=listener)
        scene.append("x", "y")
        fleet.wait_until(lambda: not scene.backlog(ONE), "the event without a listener")
        fleet.wait_until(lambda old=listener: listeners(scene) not in ([], [old]), "another listener")
    fleet.stop()
    scene.assert_applied_exactly_once("one")


@not_pooled
def test_as_long_as_there_is_no_listener(scene: Scene, fleet: Fleet):
    slow = {"reconcile_interval": DAY, "retry_delay": DAY, "max_retry_delay": DAY}
    fleet.start(ONE, channel=CHANNEL, **slow)
    fleet.wait_until(lambda: listeners(scene), "the listener")
    (listener,) = listeners(scene)
    scene.scalar("SELECT pg_terminate_backend(:pid)", pid=listener)
    fleet.wait_until(lambda: not listeners(scene), "its end")
    for _ in range(3):
        scene.append("x", "y")
        fleet.wait_until(lambda: not scene.backlog(ONE), "the event without a listener")
    assert listeners(scene) == []
    fleet.stop()
    scene.assert_applied_exactly_once("one")


def test_a_listener_that_receives_nothing(own_server: Server, tmp_path: Path):
    """A firewall may forget a connection. Neither side is notified that it is dead."""
    with own_stage(own_server, tmp_path) as (scene, fleet):
        fleet.start(ONE, channel=CHANNEL, reconcile_interval=0.3)
        fleet.wait_until(lambda: listeners(scene), "the listener")
        (listener,) = listeners(scene)
        os.kill(listener, signal.SIGSTOP)
        try:
            for _ in range(4):
                scene.append("x")
                fleet.wait_until(lambda: not scene.backlog(ONE), "the event")
        finally:
            os.kill(listener, signal.SIGCONT)
        fleet.stop()
        scene.assert_applied_exactly_once("one")
