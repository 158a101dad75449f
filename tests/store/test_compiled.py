"""The store's statements are compiled once for each engine, on every version of SQLAlchemy."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import JSON, Engine, Integer, Text, bindparam, cast, create_engine, func, literal, select
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from pupsourcing_sa import (
    AnyVersion,
    AsyncEventStore,
    DuplicateEventError,
    EventStore,
    EventTables,
    Exact,
    NoStream,
    OptimisticConcurrencyError,
)
from pupsourcing_sa.postgres import compiled as compiled_statements
from pupsourcing_sa.postgres.compiled import CompiledStatements
from tests.fix_store import Log, Transaction, make_async_engine, make_event, tenant


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that SQLAlchemy compiles while the test runs."""
    texts: list[str] = []
    init = SQLCompiler.__init__

    def counting(self: SQLCompiler, *args: Any, **kw: Any) -> None:
        init(self, *args, **kw)
        if "SAVEPOINT" not in self.string:  # SQLAlchemy compiles this one each time
            texts.append(self.string)

    monkeypatch.setattr(SQLCompiler, "__init__", counting)
    return texts


def do_everything(transaction: Transaction) -> None:
    """Call each method of the store, so that each of its statements but `undo` is executed."""
    one, two = str(uuid4()), str(uuid4())
    event = make_event(one, correlation_id="c")
    transaction.append(NoStream(), [event])
    transaction.append(Exact(1), [make_event(one)])
    transaction.append(AnyVersion(), [make_event(one)])
    transaction.append(NoStream(), [event], idempotent=True)
    with pytest.raises(OptimisticConcurrencyError):
        transaction.append(NoStream(), [make_event(one)])
    transaction.append_many([(Exact(3), [make_event(one)]), (NoStream(), [make_event(two)])])
    transaction.commit()
    transaction.aggregate_version("User", one)
    transaction.latest_global_position()
    transaction.stable_position()
    transaction.blocking_appends()
    for backwards in (False, True):
        transaction.read_aggregate_stream("User", one, backwards=backwards)
        for scope in (
            {},
            {"aggregate_types": {"User"}},
            {"event_types": {"UserRegistered"}},
            {"aggregate_types": {"User"}, "event_types": {"UserRegistered"}},
            {"correlation_id": "c"},
            {"aggregate_types": {"User"}, "correlation_id": "c"},
        ):
            assert transaction.read_events(backwards=backwards, **scope)
    transaction.commit()


def test_nothing_is_compiled_twice(log: Log, compiled: list[str]):
    do_everything(log.begin())
    assert compiled
    compiled.clear()
    do_everything(log.begin())
    assert compiled == []


def test_nothing_is_compiled_twice_with_notifications(plain_log: Log, compiled: list[str]):
    store = EventStore(plain_log.tables, notify_channel="events")
    with Session(plain_log.engine) as session:
        do_everything(Transaction(store, session, lambda value: value))
        assert compiled
        compiled.clear()
        do_everything(Transaction(store, session, lambda value: value))
    assert compiled == []


def test_undoing_is_not_compiled_twice(plain_log: Log, compiled: list[str]):
    """It is executed only after a lost race; test_append_many has one."""
    undo = plain_log.store._appender._statements.undo
    with plain_log.engine.connect() as connection:
        connection.execute(undo, {"streams": "[]"})
        compiled.clear()
        connection.execute(undo, {"streams": "[]"})
    assert compiled == []


@pytest.mark.parametrize("options", [{}, {"paramstyle": "format"}, {"paramstyle": "pyformat"}], ids=repr)
def test_parameters_arrive_as_core_would_send_them(engine: Engine, make_engine: Any, options: dict[str, Any]):
    """Parameters by name or position, used twice, from the statement itself, or converted by SQLAlchemy's types."""
    given, twice = bindparam("given", type_=JSON()), bindparam("twice", type_=Integer())
    statement = select(twice, cast(given, JSON)["a"].as_string(), literal("100 %"), twice + 1, bindparam("own", 7))
    parameters = {"given": {"a": "é %s"}, "twice": 5}
    with make_engine(**options).connect() as connection:
        expected = tuple(connection.execute(statement, parameters).one())
        for _ in range(2):
            assert CompiledStatements().rows(connection, statement, dict(parameters)) == [expected]
    assert expected == (5, "é %s", "100 %", 6, 7)


def test_parameters_arrive_by_asyncpg(engine: Engine):
    async def main() -> None:
        async_engine = make_async_engine(engine, "asyncpg")
        statement = select(bindparam("own", 7), bindparam("second", type_=Integer()), bindparam("first", type_=Text()))
        async with async_engine.connect() as connection:
            rows = CompiledStatements().rows
            assert await connection.run_sync(rows, statement, {"first": "1", "second": 2}) == [(7, 2, "1")]
        await async_engine.dispose()

    asyncio.run(main())


def test_listeners_see_every_append(log: Log):
    seen: list[str] = []
    transaction = log.begin()
    event = make_event()
    listened = log._async_engine.sync_engine if isinstance(log.store, AsyncEventStore) else log.engine
    for name in ("before_cursor_execute", "after_cursor_execute"):
        sqlalchemy_event.listen(listened, name, lambda *args: seen.append(args[2]))
    sqlalchemy_event.listen(listened, "handle_error", lambda context: seen.append(context.statement))
    transaction.append(NoStream(), [event])
    assert len(seen) == 2
    seen.clear()
    with pytest.raises(DuplicateEventError) as caught:
        transaction.append(AnyVersion(), [event])
    assert seen == [caught.value.__cause__.statement] * 2  # before, and the error


def test_a_listener_may_change_the_statement(plain_log: Log):
    """Such listeners add a comment for the server's log."""

    def commented(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        return f"/* request 5 */ {statement}", parameters

    sqlalchemy_event.listen(plain_log.engine, "before_cursor_execute", commented, retval=True)
    with Session(plain_log.engine) as writer, Session(plain_log.engine) as reader:
        plain_log.store.append(writer, NoStream(), [make_event()])
        (blocking,) = plain_log.store.blocking_appends(reader)
    assert blocking.query.startswith("/* request 5 */")


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_a_session_of_each_tenant(engine: Engine, monkeypatch: pytest.MonkeyPatch, most: int):
    """There are more tenants than texts that are kept."""
    monkeypatch.setattr(compiled_statements, "_MAX_TEXTS", most)
    store = EventStore()
    with ExitStack() as stack:
        tenants = [stack.enter_context(tenant(engine, store.tables)) for _ in range(3)]
        for version in range(3):
            for number, name in enumerate(tenants):
                with Session(engine) as session:
                    session.connection(execution_options={"schema_translate_map": {None: name}})
                    events = [make_event() for _ in range(number + 1)]
                    expected = version * len(events)
                    assert store.append(session, Exact(expected), events).from_version == expected
                    session.commit()
        with engine.connect() as connection:
            logs = [EventTables(schema=name).events for name in tenants]
            assert [connection.scalar(select(func.count()).select_from(log)) for log in logs] == [3, 6, 9]
    assert all(len(texts) <= most for texts in store._appender._compiled._texts.values())


def test_an_engine_that_is_gone_leaves_nothing(plain_log: Log):
    store = plain_log.store
    engine = create_engine(plain_log.engine.url)
    with Session(engine) as session:
        store.append(session, NoStream(), [make_event()])
    assert len(store._appender._compiled._texts) == 1
    engine.dispose()
    gone = weakref.ref(engine.dialect)
    del engine, session
    gc.collect()
    assert gone() is None
    assert len(store._appender._compiled._texts) == 0


def test_a_store_that_has_appended_can_be_pickled(plain_log: Log):
    with Session(plain_log.engine) as session:
        plain_log.store.append(session, NoStream(), [make_event()])
        again = pickle.loads(pickle.dumps(plain_log.store))
        assert again.append(session, Exact(1), [make_event()]).to_version == 2
