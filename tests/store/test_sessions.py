"""The store in the sessions, engines and servers of real applications."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Delete, Engine, Insert, Update, text
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.exc import InternalError, InvalidRequestError, ResourceClosedError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from pupsourcing_sa import (
    AsyncEventStore,
    EventStore,
    EventTables,
    Exact,
    NoStream,
    OptimisticConcurrencyError,
)
from pupsourcing_sa.errors import StablePositionError, TransactionRequiredError
from tests.fix_store import Log, ids, make_async_engine, make_event


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str]


TABLES = EventTables(Base.metadata)


@pytest.fixture
def store(engine: Engine) -> EventStore:
    Base.metadata.create_all(engine)
    return EventStore(TABLES)


class TestSessions:
    @pytest.mark.parametrize("options", [{}, {"autoflush": False}, {"expire_on_commit": False}], ids=repr)
    def test_objects_and_events_are_one_transaction(self, engine: Engine, store: EventStore, options):
        with sessionmaker(engine, **options).begin() as session:
            ann = User(id="ann", email="old")
            session.add(ann)
            store.append(session, NoStream(), [make_event("ann")])
            assert ann in session.new, "an append flushes nothing"
        with Session(engine, **options) as session, pytest.raises(ZeroDivisionError), session.begin():
            session.get_one(User, "ann").email = "new"
            store.append(session, Exact(1), [make_event("ann")])
            raise ZeroDivisionError
        with Session(engine) as session:
            assert session.get_one(User, "ann").email == "old"
            assert store.read_aggregate_stream(session, "User", "ann").version == 1

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_what_is_pending_or_dirty_survives_a_conflict(self, engine: Engine, store: EventStore, is_nested: bool):
        with Session(engine, autoflush=False) as session:
            session.add(User(id="ann", email="old"))
            store.append(session, NoStream(), [make_event("ann")])
            session.commit()
            session.get_one(User, "ann").email, bob = "new", User(id="bob", email="b")
            savepoint = session.begin_nested() if is_nested else None
            session.add(bob)
            with pytest.raises(OptimisticConcurrencyError):
                store.append(session, NoStream(), [make_event("ann")])
            assert bob in session.new
            if savepoint:
                savepoint.commit()
            store.append(session, Exact(1), [make_event("ann")])
            session.commit()
            assert (session.get_one(User, "ann").email, session.get_one(User, "bob").email) == ("new", "b")

    def test_a_conflict_that_rolls_a_savepoint_back(self, engine: Engine, store: EventStore):
        with Session(engine) as session:
            store.append(session, NoStream(), [make_event("ann")])
            session.add(User(id="ann", email="kept"))
            with pytest.raises(OptimisticConcurrencyError), session.begin_nested():
                session.add(User(id="bob", email="lost"))
                store.append(session, NoStream(), [make_event("bob")])
                store.append(session, NoStream(), [make_event("ann")])
            session.commit()
            assert (session.get(User, "bob"), session.get_one(User, "ann").email) == (None, "kept")
            assert ids(store, session) == ["ann"]

    def test_scoped_sessions(self, engine: Engine, store: EventStore):
        registry = scoped_session(sessionmaker(engine))
        store.append(registry, NoStream(), [make_event()])
        registry.commit()
        assert ids(store, registry) == ["u1"]
        registry.remove()

    def test_async_scoped_sessions(self, engine: Engine, store: EventStore):
        async def main() -> list[str]:
            async_engine = make_async_engine(engine)
            session = async_scoped_session(async_sessionmaker(async_engine), scopefunc=asyncio.current_task)
            await AsyncEventStore(TABLES).append(session, NoStream(), [make_event()])
            await session.commit()
            found = await AsyncEventStore(TABLES).read_events(session)
            await session.remove()
            await async_engine.dispose()
            return [event.aggregate_id for event in found]

        assert asyncio.run(main()) == ["u1"]

    def test_a_test_setup_that_rolls_everything_back(self, engine: Engine, store: EventStore):
        with engine.connect() as connection:
            transaction = connection.begin()
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                store.append(session, NoStream(), [make_event()])
                session.commit()
                store.append(session, Exact(1), [make_event()])
                session.rollback()
                assert store.read_aggregate_stream(session, "User", "u1").version == 1
                assert store.read_events(session) == [], "for the log the transaction is unfinished"
            transaction.rollback()
            assert store.latest_global_position(connection) == 0

    def test_two_phases(self, engine: Engine, store: EventStore):
        with Session(engine, twophase=True) as session, Session(engine) as other:
            if not int(other.scalar(text("SHOW max_prepared_transactions")) or 0):
                pytest.fail("the server needs max_prepared_transactions")
            for number, finish in enumerate((session.commit, session.rollback)):
                store.append(session, NoStream(), [make_event(f"two-phase{number}")])
                store.append(other, NoStream(), [make_event(f"other{number}")])
                other.commit()
                session.prepare()
                assert f"other{number}" not in ids(store, other)
                other.rollback()
                finish()
            assert ids(store, other) == ["two-phase0", "other0", "other1"]

    def test_binds_of_tables(self, engine: Engine, store: EventStore, make_engine):
        log_engine = make_engine()
        used: list[str] = []
        sqlalchemy_event.listen(log_engine, "begin", lambda connection: used.append("log"))
        with Session(binds={User: engine, TABLES.events: log_engine}) as session:
            session.add(User(id="ann", email=""))
            session.flush()
            assert used == []
            store.append(session, NoStream(), [make_event()])
            session.commit()
            assert used == ["log"]
            assert ids(store, session) == ["u1"]
        with Session(binds={User: engine}) as session, pytest.raises(UnboundExecutionError):
            store.append(session, NoStream(), [make_event()])

    def test_a_session_that_routes_writes_to_the_primary(self, engine: Engine, store: EventStore, make_engine):
        """SQLAlchemy has this recipe. It chooses the engine by the statement."""
        replica = make_engine("default_transaction_read_only=on")

        class Routing(Session):
            def get_bind(self, mapper=None, *, clause=None, **kw):
                return engine if self._flushing or isinstance(clause, (Insert, Update, Delete)) else replica

        with Routing() as session:
            store.append(session, NoStream(), [make_event()])
            session.commit()
            assert ids(store, session) == ["u1"]

    def test_sessions_that_cannot_go_on_say_so(self, engine: Engine, store: EventStore):
        with Session(engine, close_resets_only=False) as session:
            with pytest.raises(Exception, match="division"):
                session.execute(text("SELECT 1 / 0"))
            for attempt in (store.append, lambda *_: store.read_events(session)):
                with pytest.raises(InternalError, match="aborted"):
                    attempt(session, NoStream(), [make_event()])
            session.rollback()
            store.append(session, NoStream(), [make_event()])
        with pytest.raises(InvalidRequestError, match="closed"):
            store.append(session, NoStream(), [make_event()])
        with engine.connect() as connection:
            pass
        with pytest.raises(ResourceClosedError):
            store.append(connection, NoStream(), [make_event()])


class TestTransactionsThatCannotAppend:
    @pytest.mark.parametrize("where", ["engine", "engine options", "connection", "driver"])
    def test_autocommit(self, engine: Engine, store: EventStore, make_engine, where: str):
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
        given = {"engine": options, "driver": {"connect_args": {"autocommit": True}}}.get(where, {})
        engine = make_engine(**given)
        if where == "engine options":
            engine = engine.execution_options(**options)
        with Session(engine) as session:
            if where == "connection":
                session.connection(execution_options=options)
            with pytest.raises(TransactionRequiredError, match="AUTOCOMMIT"):
                store.append(session, NoStream(), [make_event()])
            assert store.latest_global_position(session) == store.stable_position(session) == 0
            assert store.read_events(session) == []

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_autocommit_with_asyncio(self, engine: Engine, store: EventStore, driver: str):
        async def main() -> None:
            async_engine = make_async_engine(engine, driver).execution_options(isolation_level="AUTOCOMMIT")
            async with AsyncSession(async_engine) as session:
                with pytest.raises(TransactionRequiredError, match="AUTOCOMMIT"):
                    await AsyncEventStore(TABLES).append(session, NoStream(), [make_event()])
                assert await AsyncEventStore(TABLES).read_events(session) == []
            await async_engine.dispose()

        asyncio.run(main())

    def test_read_only(self, engine: Engine, store: EventStore):
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            with pytest.raises(TransactionRequiredError, match="read-only"):
                store.append(connection, NoStream(), [make_event()])
            connection.rollback()
            assert store.read_events(connection) == []

    @pytest.mark.parametrize("level", ["repeatable read", "serializable"])
    def test_a_default_isolation_level_that_cannot_follow(self, store: EventStore, make_engine, level: str):
        with Session(make_engine(rf"default_transaction_isolation={level.replace(' ', chr(92) + ' ')}")) as session:
            store.append(session, NoStream(), [make_event()])
            session.commit()
            with pytest.raises(StablePositionError, match=level.upper()):
                store.read_events(session)
            session.rollback()
            up_to = store.stable_position(session)
            session.rollback()
            assert ids(store, session, up_to=up_to) == ["u1"]


class TestSharing:
    def test_by_threads(self, engine: Engine, store: EventStore):
        def write(number: int) -> list[int]:
            with Session(engine) as session:
                for version in range(20):
                    store.append(session, Exact(version), [make_event(f"u{number}")])
                    session.commit()
                return [each.aggregate_version for each in store.read_aggregate_stream(session, "User", f"u{number}")]

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(write, range(8))) == [list(range(1, 21))] * 8

    def test_by_processes(self, log: Log):
        transaction = log.begin()
        result = transaction.append(NoStream(), [make_event(metadata={"a": 1})])
        transaction.commit()
        found = transaction.read_aggregate_stream("User", "u1")
        script = "import pickle, sys; pickle.dump(pickle.load(sys.stdin.buffer), sys.stdout.buffer)"
        given = pickle.dumps((result, found))
        other = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, check=True)
        assert pickle.loads(other.stdout) == (result, found)
