"""The store with the options that engines and servers have in production, and in schemas that change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, MetaData, NullPool, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from pupsourcing_sa import (
    AnyVersion,
    DuplicateEventError,
    EventStore,
    EventTables,
    Exact,
    NoStream,
    OptimisticConcurrencyError,
)
from pupsourcing_sa.errors import UnsupportedDriverError
from pupsourcing_sa.status import read_status
from tests.fix_store import ids, make_event, tenant


def assert_everything_works(engine: Engine, store: EventStore) -> None:
    """Check appends, a conflict, a duplicate, and every way to read."""
    moment = datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    for name in ("first", "again"):  # the second time with statements and plans from caches
        first = make_event(name, payload=b"\x00\\\xff'", metadata={"ä": [1, 0.5, None]}, created_at=moment)
        more = [make_event(name, trace_id=text, correlation_id="") for text in ("NULL", 'a\\"b,{c}', None)]
        with Session(engine) as session:
            after = store.stable_position(session)
            result = store.append(session, NoStream(), [first, *more])
            with pytest.raises(OptimisticConcurrencyError) as conflict:
                store.append(session, NoStream(), [make_event(name)])
            assert conflict.value.actual == 4
            session.commit()
            with pytest.raises(DuplicateEventError) as duplicate:
                store.append(session, AnyVersion(), [make_event(name, event_id=first.event_id)])
            assert duplicate.value.event_ids == (first.event_id,)
            session.rollback()
            stream = store.read_aggregate_stream(session, "User", name)
            assert stream.events == result.events
            assert stream.events[0].payload == first.payload
            assert stream.events[0].created_at == moment
            assert stream.events[0].metadata == {"ä": [1, 0.5, None]}
            for scope in ({}, {"aggregate_types": {"User"}}, {"event_types": {"UserRegistered"}}):
                assert store.read_events(session, after=after, **scope) == list(stream)
            assert store.latest_global_position(session) == result.global_positions[-1]


@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
@pytest.mark.parametrize("kind", [Session, Connection])
def test_other_drivers_are_refused_at_first_use(engine: Engine, store: EventStore, kind: Any, driver: str):
    # The drivers are not installed. SQLAlchemy's dialects for them have these names.
    other = create_engine(engine.url)
    other.dialect.driver = driver
    uses: list[Callable[[Any], object]] = [
        lambda session: store.append(session, NoStream(), [make_event()]),
        lambda session: store.append(session, NoStream(), [make_event()], idempotent=True),
        lambda session: store.append_many(session, [(NoStream(), [make_event()])]),
        lambda session: store.read_aggregate_stream(session, "User", "u1"),
        lambda session: store.aggregate_version(session, "User", "u1"),
        store.read_events,
        lambda session: list(store.iterate_events(session)),
        store.stable_position,
        store.latest_global_position,
        store.blocking_appends,
        lambda session: read_status(session, store),
    ]
    with Session(other) if kind is Session else other.connect() as session:
        for use in uses:
            with pytest.raises(UnsupportedDriverError, match=r"psycopg:// or postgresql\+asyncpg://") as caught:
                use(session)
            assert caught.value.driver == f"postgresql+{driver}"
    other.dispose()


class TestEngines:
    @pytest.mark.parametrize(
        "options",
        [
            {"poolclass": NullPool},  # each transaction on another connection, like behind PgBouncer
            {"connect_args": {"prepare_threshold": None}, "poolclass": NullPool},
            {"connect_args": {"prepare_threshold": None}},
            {"connect_args": {"prepare_threshold": 0}},
            {"connect_args": {"cursor_factory": psycopg.ClientCursor}},
            {"json_serializer": lambda value: "[]", "json_deserializer": lambda text: None},
            {"hide_parameters": True, "query_cache_size": 0},
            {"use_native_hstore": False, "client_encoding": "utf8", "use_insertmanyvalues": False},
            {"paramstyle": "format"},
            {"execution_options": {"logging_token": "app", "preserve_rowcount": True, "compiled_cache": None}},
            {"execution_options": {"stream_results": True}},
            {"execution_options": {"yield_per": 2}},
        ],
        ids=lambda options: ",".join(options.get("execution_options", options)),
    )
    def test_options(self, store: EventStore, make_engine, options: dict[str, Any]):
        assert_everything_works(make_engine(**options), store)

    def test_a_streaming_connection_loses_no_events(self, engine: Engine, store: EventStore):
        with engine.connect() as connection:
            store.append(connection, NoStream(), [make_event() for _ in range(20)])
            connection.commit()
            streaming = connection.execution_options(stream_results=True)
            assert len(store.read_events(streaming)) == 20
            assert len(store.read_aggregate_stream(streaming, "User", "u1")) == 20

    @pytest.mark.parametrize(
        "setting",
        [
            "timezone=Asia/Kathmandu", "timezone=America/New_York", "bytea_output=escape", "IntervalStyle=sql_standard",
            "DateStyle=German", "extra_float_digits=-15", "plan_cache_mode=force_generic_plan", "enable_nestloop=off",
            "plan_cache_mode=force_custom_plan", "quote_all_identifiers=on", "standard_conforming_strings=off",
            "backslash_quote=off", "client_encoding=LATIN1", "lc_messages=C", "synchronous_commit=off",
        ],
    )  # fmt: skip
    def test_settings_of_the_server(self, store: EventStore, make_engine, setting: str):
        assert_everything_works(make_engine(setting), store)

    def test_a_search_path_that_changes_under_a_prepared_statement(self, store: EventStore, make_engine):
        engine, schemas = make_engine(connect_args={"prepare_threshold": 0}), ["path_a", "path_b"]
        with engine.connect() as connection:
            for schema in schemas:
                connection.execute(CreateSchema(schema))
                connection.execute(text(f"SET LOCAL search_path = {schema}"))
                store.tables.metadata.create_all(connection)
            for schema, appended in [("path_a", 1), ("path_b", 1), ("path_a", 2), ("path_a", 3), ("path_b", 2)]:
                connection.execute(text(f"SET LOCAL search_path = {schema}"))
                assert store.append(connection, AnyVersion(), [make_event()]).global_positions == (appended,)
                marks = text("SELECT count(*) FROM pg_locks WHERE classid = 'events'::regclass")
                assert connection.scalar(marks) == 1, "the mark is on the log that was appended to"
                assert store.stable_position(connection) == 0
                assert store.read_aggregate_stream(connection, "User", "u1").version == appended
            connection.rollback()

    @pytest.mark.parametrize("where", ["engine", "connection"])
    @pytest.mark.parametrize("own_schema", [None, "shop"])
    def test_tenants_by_schema_translate_map(self, engine: Engine, own_schema: str | None, where: str):
        store = EventStore(EventTables(MetaData(), schema=own_schema))

        def connect(tenant: str) -> Connection:
            options = {"schema_translate_map": {own_schema: tenant}}
            if where == "engine":
                return engine.execution_options(**options).connect()
            return engine.connect().execution_options(**options)

        with tenant(engine, store.tables) as one, tenant(engine, store.tables) as two:
            with connect(one) as writer, connect(one) as reader, connect(two) as other:
                store.append(writer, NoStream(), [make_event()])
                writer.commit()
                store.append(writer, Exact(1), [make_event()])
                store.append(other, NoStream(), [make_event(), make_event()])
                with pytest.raises(OptimisticConcurrencyError) as caught:
                    store.append(other, NoStream(), [make_event()])
                assert caught.value.actual == 2
                other.commit()
                assert ids(store, other) == ["u1", "u1"], "an unfinished append to another log"
                assert ids(store, other, aggregate_types={"User"}) == ["u1", "u1"]
                assert ids(store, reader) == ["u1"]
                writer.commit()
                assert ids(store, reader) == ["u1", "u1"]
            assert_everything_works(engine.execution_options(schema_translate_map={own_schema: two}), store)
