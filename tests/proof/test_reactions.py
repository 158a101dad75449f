"""A reaction runs once for each event, with its cause, through failures and killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventRegistry, EventStore, WorkerTables
from tests.fix_store import make_tables
from tests.waiting import wait_until

EVENTS, BEFORE, PROCESSES = 1000, 30, 2

registry = EventRegistry()


@registry.register("OrderPlaced")
@dataclass(frozen=True)
class OrderPlaced:
    number: int


@registry.register("MailSent")
@dataclass(frozen=True)
class MailSent:
    number: int


PROGRAM = """
import os, random, sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from pupsourcing_sa import AnyVersion, EventStore, TypedConsumer
from pupsourcing_sa.registry import deterministic_id
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.proof.test_reactions import MailSent, OrderPlaced, registry

engine = create_engine(os.environ["DATABASE_URL"])
store = EventStore(registry=registry)
mailer = TypedConsumer("mailer", registry, partitions=3, batch_size=20, reacts=True)

@mailer.handles(OrderPlaced)
def mail(session, event):
    mail, aggregate = MailSent(event.data.number), ("Mail", event.aggregate_id)
    if sys.argv[1] == "right":
        store.append(session, AnyVersion(), [mail], aggregate=aggregate, event_ids=[deterministic_id(event, "mail")])
    else:
        with Session(engine) as other:
            store.append(other, AnyVersion(), [mail], aggregate=aggregate)
            other.commit()
    if random.random() < 0.02:
        raise ZeroDivisionError

config = WorkerConfig(
    poll_interval=0.005, max_poll_interval=0.01, rebalance_interval=0.05, heartbeat_interval=0.1, heartbeat_timeout=0.5,
    retry_delay=0.01, max_retry_delay=0.02,
)
Worker(sessionmaker(engine), store, [mailer], config=config).run()
"""


class Attack:
    """Worker processes that are killed, and the application that appends."""

    def __init__(self, engine: Engine, behaviour: str) -> None:
        self.engine = engine
        self.store = EventStore(make_tables(engine), registry=registry)
        WorkerTables(self.store.tables.metadata).metadata.create_all(engine)
        self._arguments = [sys.executable, "-c", PROGRAM, behaviour]
        self._environment = os.environ | {"DATABASE_URL": engine.url.render_as_string(hide_password=False)}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self.processes.append(subprocess.Popen(self._arguments, env=self._environment, stderr=subprocess.DEVNULL))

    def kill(self) -> None:
        process = self.processes.pop(0)
        process.kill()
        process.wait()

    def append(self, first: int, count: int) -> None:
        with Session(self.engine) as session:
            for number in range(first, first + count):
                self.store.append(session, AnyVersion(), [OrderPlaced(number)], aggregate=("Order", f"o{number % 50}"))
                session.commit()

    def count(self, sql: str) -> int:
        with self.engine.connect() as connection:
            found: int = connection.scalar(text(sql))
            return found


@contextmanager
def attack(engine: Engine, behaviour: str) -> Iterator[Attack]:
    attack = Attack(engine, behaviour)
    try:
        yield attack
    finally:
        while attack.processes:
            attack.kill()


MAILS = "SELECT count(DISTINCT payload) FROM events WHERE event_type = 'MailSent'"
#: Orders after the start whose mails are not exactly one with its cause, and mails of no such order.
DIFFERENCES = """
    SELECT count(*) FROM (
        SELECT orders.event_id::text AS cause, orders.event_id::text AS correlation, 1 AS mails
        FROM events AS orders WHERE event_type = 'OrderPlaced'
            AND global_position > (SELECT max(start_position) FROM consumer_checkpoints)
        EXCEPT ALL
        SELECT causation_id, correlation_id, count(*) FROM events WHERE event_type = 'MailSent' GROUP BY 1, 2
    ) AS missing
    UNION ALL SELECT count(*) - count(DISTINCT payload) FROM events WHERE event_type = 'MailSent'
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("behaviour", ["right", "in a transaction of its own"])
def test_each_event_has_one_reaction(engine: Engine, behaviour: str):
    with attack(engine, behaviour) as attacked:
        attacked.append(-BEFORE, BEFORE)
        for _ in range(PROCESSES):
            attacked.start()
        started = "SELECT count(*) FROM consumer_assignments WHERE worker_id IS NOT NULL"
        wait_until(lambda: attacked.count(started) == 3)
        for step in range(10):
            attacked.append(step * EVENTS // 10, EVENTS // 10)
            reached = (2 * step + 1) * EVENTS // 20  # in the middle of what was appended last
            wait_until(lambda: attacked.count(MAILS) >= reached)  # noqa: B023
            attacked.kill()
            attacked.start()
        wait_until(lambda: attacked.count(MAILS) == EVENTS, seconds=60)
        wait_until(lambda: attacked.count("SELECT count(*) FROM consumer_checkpoints WHERE attempts > 0") == 0)
    with engine.connect() as connection:
        differences = sum(connection.scalars(text(DIFFERENCES)))
    assert attacked.count("SELECT min(start_position) FROM consumer_checkpoints") == BEFORE
    assert (differences == 0) is (behaviour == "right"), f"{differences} differences"
