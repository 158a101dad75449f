"""A log that logical replication fills: positions arrive in the order of commits, and no marks are held."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import AnyVersion, EventStore, EventTables, NoStream, PersistedEvent, WorkerTables, consumer
from pupsourcing_sa.errors import ReplicatedLogError, SequenceBehindLogError, StablePositionError
from pupsourcing_sa.status import diagnose, read_status
from pupsourcing_sa.testing import embedded_postgres
from pupsourcing_sa.worker import Worker
from tests.fix_postgres import open_database
from tests.fix_store import make_event
from tests.waiting import wait_until

store = EventStore(EventTables(schema="Müller's %(shop)s"))
workers = WorkerTables(store.tables.metadata, schema="Müller's %(shop)s")
LOG = """"Müller's %(shop)s".events"""
PART = """"Müller's %(shop)s".part"""


class Replica:
    """A database with a log, and another one that subscribes to it."""

    def __init__(self, publisher: Engine, subscriber: Engine) -> None:
        self.publisher = publisher
        self.subscriber = subscriber
        self.name = f"replica_{uuid4().hex}"
        for engine in (publisher, subscriber):
            self.execute(engine, """CREATE SCHEMA "Müller's %(shop)s" """)
            store.tables.metadata.create_all(engine)
            self.execute(engine, f"CREATE TABLE {PART} () INHERITS ({LOG})")

    def publish(self, table: str) -> None:
        self.execute(self.publisher, f"CREATE PUBLICATION {self.name} FOR TABLE ONLY {table}")

    def subscribe(self, options: str) -> None:
        with self.publisher.connect() as connection:
            info = connection.connection.driver_connection.info
            address = f"host={info.host} port={info.port} user={info.user} dbname={info.dbname}"
        self.execute(
            self.subscriber,
            f"CREATE SUBSCRIPTION {self.name} CONNECTION '{address}' PUBLICATION {self.name} WITH ({options})",
        )

    def unsubscribe(self) -> None:
        for change in ("DISABLE", "SET (slot_name = NONE)"):
            self.execute(self.subscriber, f"ALTER SUBSCRIPTION {self.name} {change}")
        self.execute(self.subscriber, f"DROP SUBSCRIPTION {self.name}")

    def execute(self, engine: Engine, statement: str) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement))


def replicated(server: Engine) -> Iterator[Replica]:
    with open_database(server, poolclass=NullPool) as one, open_database(server, poolclass=NullPool) as other:
        replica = Replica(one, other)
        yield replica
        with other.connect() as connection:
            subscriptions = text("SELECT count(*) FROM pg_subscription WHERE subname = :name")
            is_left = connection.scalar(subscriptions, {"name": replica.name})
        if is_left:
            replica.unsubscribe()


@pytest.fixture
def replica(server: Engine) -> Iterator[Replica]:
    yield from replicated(server)


@pytest.fixture
def live_replica() -> Iterator[Replica]:
    """A replica on a server that can replicate."""
    with embedded_postgres(settings={"wal_level": "logical"}) as url:
        server = create_engine(url, isolation_level="AUTOCOMMIT")
        yield from replicated(server)
        server.dispose()


@pytest.mark.parametrize("published", [LOG, PART], ids=["log", "partition"])
def test_a_subscriber_refuses_the_stable_position(replica: Replica, published: str):
    replica.publish(published)
    role = f"plain_{uuid4().hex}"
    with Session(replica.subscriber) as session:
        session.execute(text(f"CREATE ROLE {role}"))
        session.execute(text(f"""GRANT USAGE ON SCHEMA "Müller's %(shop)s" TO {role}"""))
        session.execute(text(f"""GRANT SELECT ON ALL TABLES IN SCHEMA "Müller's %(shop)s" TO {role}"""))
        session.execute(text(f"""GRANT USAGE ON ALL SEQUENCES IN SCHEMA "Müller's %(shop)s" TO {role}"""))
        session.commit()
        try:
            session.execute(text(f"SET ROLE {role}"))
            assert store.stable_position(session) == 0
            # A subscription that is disabled counts, too. It needs no slot.
            replica.subscribe("create_slot = false, enabled = false, copy_data = false")
            for read in (store.stable_position, store.read_events):
                with pytest.raises(ReplicatedLogError, match="follow the log on the publisher") as raised:
                    read(session)
            assert isinstance(raised.value, StablePositionError)
            assert store.latest_global_position(session) == 0
            assert [finding.kind for finding in diagnose(read_status(session, store, workers))] == ["replicated_log"]
            replica.unsubscribe()
            assert store.stable_position(session) == 0
        finally:
            session.rollback()
            session.execute(text("RESET ROLE"))
            session.execute(text(f"DROP OWNED BY {role}"))
            session.execute(text(f"DROP ROLE {role}"))
            session.commit()


@pytest.mark.exhaustive
def test_a_switch_to_the_subscriber(live_replica: Replica):
    replica, seen = live_replica, list[int]()

    @consumer("all")
    def see(session: Session, event: PersistedEvent) -> None:
        seen.append(event.global_position)

    def events(session: Session) -> int:
        return session.scalar(text(f"SELECT count(*) FROM {LOG}")) or 0

    replica.publish(LOG)
    replica.execute(replica.publisher, f"SELECT pg_create_logical_replication_slot('{replica.name}', 'pgoutput')")
    # A copy would wait for the transactions below, which wait for the copy.
    replica.subscribe(f"create_slot = false, copy_data = false, slot_name = '{replica.name}'")
    with Session(replica.publisher) as early, Session(replica.publisher) as late:
        store.append(early, NoStream(), [make_event("early")])
        store.append(late, NoStream(), [make_event("late")])
        late.commit()
        with Session(replica.subscriber) as session:
            wait_until(lambda: (session.rollback(), events(session))[1] == 1)
            worker = Worker(sessionmaker(replica.subscriber), store, [see], tables=workers)
            with pytest.raises(ReplicatedLogError):
                worker.drain()
            early.commit()
            wait_until(lambda: (session.rollback(), events(session))[1] == 2)
            replica.unsubscribe()
            for refused in (
                lambda: store.append(session, AnyVersion(), [make_event("new")]),
                lambda: store.stable_position(session),
            ):
                with pytest.raises(SequenceBehindLogError) as raised:
                    refused()
            session.execute(text(raised.value.statement))
            assert store.append(session, AnyVersion(), [make_event("new")]).global_positions == (3,)
            session.commit()
        worker.drain()
    assert seen == [1, 2, 3]
