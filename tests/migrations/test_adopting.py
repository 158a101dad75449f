"""A log that pupsourcing/store (Go) created: used without a change, and converted by autogenerate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, Exact, NoStream
from pupsourcing_sa.errors import DuplicateEventError, OptimisticConcurrencyError, StaleHeadsError
from pupsourcing_sa.postgres.errors import is_lost_race
from tests.fix_alembic import Autogenerate, Project, index_files
from tests.fix_postgres import new_schema
from tests.fix_store import make_event
from tests.waiting import wait_until

DUMP = (Path(__file__).parent / "go" / "dump.sql").read_text()

#: The effect of BIGSERIAL and of constraints without names, in the SQL that its generator writes for another name.
_TABLE = """
CREATE TABLE {log} (
    global_position BIGSERIAL PRIMARY KEY, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL, event_id UUID NOT NULL UNIQUE, event_type TEXT NOT NULL,
    event_version INT NOT NULL DEFAULT 1, payload BYTEA NOT NULL, trace_id TEXT, correlation_id TEXT,
    causation_id TEXT, metadata JSONB, created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    UNIQUE (aggregate_type, aggregate_id, aggregate_version)
)
"""


def create(engine: Engine, tables: EventTables) -> None:
    """Create the tables, with the log as another program would create it."""
    with engine.begin() as connection:
        log = connection.dialect.identifier_preparer.format_table(tables.events)
        connection.exec_driver_sql(_TABLE.format(log=log))
        tables.aggregate_heads.create(connection)


def append(engine: Engine, store: EventStore, aggregate_id: str) -> int:
    with Session(engine) as session:
        (position,) = store.append(session, AnyVersion(), [make_event(aggregate_id)]).global_positions
        session.commit()
    return position


def assert_stale_heads_raise(engine: Engine, tables: EventTables, error: type[Exception]) -> None:
    store = EventStore(tables)
    append(engine, store, "a")
    with Session(engine) as session, pytest.raises(error):
        session.execute(tables.aggregate_heads.update().values(aggregate_version=0))
        store.append(session, AnyVersion(), [make_event("a")])


def read(engine: Engine, store: EventStore) -> list[tuple[int, str, int]]:
    with Session(engine) as session:
        return [
            (each.global_position, each.aggregate_id, each.aggregate_version) for each in store.read_events(session)
        ]


def waiting(engine: Engine) -> int:
    """Return the number of backends that wait for another transaction."""
    sql = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = "
    with engine.connect() as connection:
        return int(connection.scalar(text(f"{sql} current_database()")) or 0)


_EVENTS = [(1, "ann", 1), (2, "ann", 2), (3, "bob", 1), (5, "ann", 3)]


@pytest.fixture
def store(project: Project) -> EventStore:
    """A store on the unchanged log."""
    project.execute(DUMP)
    return EventStore()


class TestAsItIs:
    def test_reading_and_appending_go_on(self, project: Project, store: EventStore) -> None:
        assert read(project.database, store) == _EVENTS
        assert append(project.database, store, "ann") == 6
        assert read(project.database, store) == [*_EVENTS, (6, "ann", 4)]
        with Session(project.database) as session:
            assert store.read_aggregate_stream(session, "User", "ann").version == 4
            (first, *_) = store.read_aggregate_stream(session, "User", "ann").events
            assert first.json() == {"email": "ann@example.org"}
            assert first.metadata == {"source": "go"}

    def test_errors_are_recognised_by_the_names_that_it_has(self, project: Project, store: EventStore) -> None:
        with Session(project.database) as session:
            (event,) = store.read_aggregate_stream(session, "User", "bob").events
            with pytest.raises(DuplicateEventError) as duplicate, session.begin_nested():
                store.append(session, Exact(1), [make_event("bob", event_id=event.event_id)])
            assert duplicate.value.event_ids == (event.event_id,)
            with pytest.raises(OptimisticConcurrencyError):
                store.append(session, NoStream(), [make_event("bob")])
            session.execute(text("UPDATE aggregate_heads SET aggregate_version = 2 WHERE aggregate_id = 'ann'"))
            with pytest.raises(StaleHeadsError), session.begin_nested():
                store.append(session, Exact(2), [make_event("ann")])


class TestTogether:
    """The store and the Go program append to one aggregate. The Go program writes the event first, then the head."""

    _EVENT = text(
        "INSERT INTO events (aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload) "
        "VALUES ('User', 'bob', 2, CAST(md5('go') AS uuid), 'UserRenamed', '{}')"
    )
    _HEAD = text("UPDATE aggregate_heads SET aggregate_version = 2 WHERE aggregate_id = 'bob'")

    def test_the_one_that_wrote_the_head_first_wins(self, project: Project, store: EventStore) -> None:
        with project.database.connect() as go, Session(project.database) as session:
            store.append(session, Exact(1), [make_event("bob")])
            go.execute(text("SET LOCAL lock_timeout = '10ms'"))
            with pytest.raises(OperationalError):  # it waits, and then finds that its version exists
                go.execute(self._EVENT)
            session.commit()
            go.rollback()
            with pytest.raises(IntegrityError):  # and reports the conflict
                go.execute(self._EVENT)

    def test_in_the_middle_of_the_others_append_the_server_ends_one_of_them(
        self, project: Project, store: EventStore
    ) -> None:
        """They wait for each other, and PostgreSQL detects the deadlock."""
        with project.database.connect() as go, ThreadPoolExecutor() as pool:
            go.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            go.execute(self._EVENT)
            ours = pool.submit(append, project.database, store, "bob")
            wait_until(lambda: waiting(project.database) == 1)
            try:
                go.execute(self._HEAD)
                go.commit()
            except OperationalError as error:
                assert is_lost_race(error)
                go.rollback()
            error = ours.exception()
            assert error is None or is_lost_race(error)
        assert read(project.database, store)[-1][1:] == ("bob", 2)
        append(project.database, store, "bob")


class TestAutogenerate:
    @pytest.fixture(params=[False, True], ids=["", "compare-server-default"])
    def compare_server_default(self, request: pytest.FixtureRequest) -> bool:
        return bool(request.param)

    def test_it_becomes_one_of_ours_and_goes_on(self, project: Project, compare_server_default: bool) -> None:
        project.execute(DUMP)
        tables = EventTables()
        store = EventStore(tables)
        autogenerate = Autogenerate(project.database, tables.metadata, compare_server_default=compare_server_default)
        before = project.objects()

        upgrade, downgrade = autogenerate.upgrade(), autogenerate.downgrade()

        assert upgrade.splitlines() == [
            "op.drop_index(op.f('idx_aggregate_heads_updated'), table_name='aggregate_heads')",
            "op.drop_index(op.f('idx_events_aggregate'), table_name='events')",
            "op.drop_index(op.f('idx_events_correlation'), table_name='events', "
            "postgresql_where='(correlation_id IS NOT NULL)')",
            "op.drop_index(op.f('idx_events_event_type'), table_name='events')",
            "op.create_index('events_aggregate_type_global_position_idx', 'events', "
            "['aggregate_type', 'global_position'], unique=False)",
            "op.create_index('events_correlation_id_global_position_idx', 'events', "
            "['correlation_id', 'global_position'], unique=False, "
            "postgresql_where=sa.text('correlation_id IS NOT NULL'))",
            "log_op.alter_log_sequence('events', to='identity')",
        ]
        autogenerate.execute(upgrade)
        assert autogenerate.upgrade() == ""
        assert append(project.database, store, "ann") == 6
        after = project.objects()
        with project.database.begin() as connection:
            tables.metadata.drop_all(connection)
            tables.metadata.create_all(connection)
        assert after == project.objects()

        with project.database.begin() as connection:
            tables.metadata.drop_all(connection)
        project.execute(DUMP)
        autogenerate.execute(upgrade)
        append(project.database, store, "ann")
        autogenerate.execute(downgrade)
        assert project.objects() == before
        assert append(project.database, store, "ann") == 7

    def test_guards_on_it_as_it_is(self, project: Project) -> None:
        """The guard takes the mark for the Go program, whose BIGSERIAL the log still has."""
        project.execute(DUMP)
        with project.database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE events RENAME TO log")
        tables = EventTables(events="log", guarded=True)
        Autogenerate(project.database, tables.metadata).execute(
            "log_op.create_log_guard('append_only', 'log', version=1)\n"
            "log_op.create_log_guard('low_water_mark', 'log', version=1)"
        )
        store = EventStore(tables)
        with project.database.connect() as slow:
            slow.execute(
                text(
                    "INSERT INTO log (aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)"
                    "VALUES ('User', 'go', 1, CAST(md5('go') AS uuid), 'UserRegistered', '{}')"
                )
            )
            append(project.database, store, "late")
            assert read(project.database, store) == _EVENTS
            slow.commit()
        assert read(project.database, store) == [*_EVENTS, (6, "go", 1), (7, "late", 1)]


class TestSequence:
    @pytest.mark.parametrize("schema", [None, "Müller's %(shop)s"])
    @pytest.mark.parametrize(
        ("sql", "then"),
        [
            ("", (1, 2)),
            ("SELECT setval('{sequence}', 9, false)", (9, 10)),
            ("SELECT setval('{sequence}', 9)", (10, 11)),
            ("ALTER SEQUENCE {sequence} RENAME TO another", (1, 2)),
        ],
        ids=["never-used", "restarted", "used", "renamed"],
    )
    def test_it_goes_on_where_it_was(self, engine: Engine, schema: str | None, sql: str, then: tuple[int, int]) -> None:
        """Upgrade and downgrade."""
        tables = EventTables(schema=schema)
        sequence = f'"{schema}".events_global_position_seq' if schema else "events_global_position_seq"
        with new_schema(engine, schema):
            create(engine, tables)
            with engine.begin() as connection, connection.connection.cursor() as cursor:
                cursor.execute(
                    sql.format(sequence=sequence)
                    .replace(f"'\"{schema}", f"'\"{str(schema).replace(chr(39), chr(39) * 2)}")
                    .encode()
                    or b"SELECT"
                )
            autogenerate = Autogenerate(engine, tables.metadata)
            arguments = f"'events', to={{!r}}{f', schema={schema!r}' if schema else ''}"
            autogenerate.execute(f"log_op.alter_log_sequence({arguments.format('identity')})")
            position = {each["name"]: each for each in inspect(engine).get_columns("events", schema)}["global_position"]
            assert position["identity"]["always"]
            assert append(engine, EventStore(tables), "a") == then[0]
            autogenerate.execute(f"log_op.alter_log_sequence({arguments.format('serial')})")
            assert append(engine, EventStore(tables), "a") == then[1]
            position = {each["name"]: each for each in inspect(engine).get_columns("events", schema)}["global_position"]
            assert "identity" not in position

    @pytest.mark.parametrize("name", ["a$name$b", 'the "$name$"', "a$name", "a$do$b", "$do"])
    def test_a_name_with_dollars(self, engine: Engine, name: str) -> None:
        tables = EventTables(events=name)
        create(engine, tables)
        autogenerate = Autogenerate(engine, tables.metadata)
        for position, to in enumerate(("identity", "serial"), 1):
            autogenerate.execute(f"log_op.alter_log_sequence({name!r}, to={to!r})")
            assert append(engine, EventStore(tables), "a") == position
        assert len(read(engine, EventStore(tables))) == 2

    def test_privileges_on_it_stay(self, database: Engine) -> None:
        role = f"reader_{database.url.database}"
        tables = EventTables()
        create(database, tables)
        with database.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {role}")
        try:
            with database.begin() as connection:
                connection.exec_driver_sql(
                    f"GRANT USAGE, SELECT ON SEQUENCE events_global_position_seq TO {role}, PUBLIC"
                )
                connection.exec_driver_sql(
                    f"GRANT USAGE ON SEQUENCE events_global_position_seq TO {role} WITH GRANT OPTION"
                )
            autogenerate = Autogenerate(database, tables.metadata)
            for to in ("identity", "serial"):
                autogenerate.execute(f"log_op.alter_log_sequence('events', to={to!r})")
                with database.connect() as connection:
                    for who in (role, "public"):
                        for privilege in ("USAGE", "SELECT"):
                            check = (
                                f"SELECT has_sequence_privilege('{who}', 'events_global_position_seq', '{privilege}')"
                            )
                            assert connection.scalar(text(check)), (to, who, privilege)
                        check = f"SELECT has_sequence_privilege('{who}', 'events_global_position_seq', 'UPDATE')"
                        assert not connection.scalar(text(check))
                    for privilege, is_grantable in (("USAGE", True), ("SELECT", False)):
                        check = (
                            f"SELECT has_sequence_privilege('{role}', 'events_global_position_seq', "
                            f"'{privilege} WITH GRANT OPTION')"
                        )
                        assert connection.scalar(text(check)) is is_grantable, (to, privilege)
        finally:
            with database.begin() as connection:
                connection.exec_driver_sql(f"DROP OWNED BY {role}")
                connection.exec_driver_sql(f"DROP ROLE {role}")

    def test_one_that_is_not_the_columns_own(self, engine: Engine) -> None:
        tables = EventTables()
        create(engine, tables)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER SEQUENCE events_global_position_seq OWNED BY NONE")
        with pytest.raises(DBAPIError, match="global_position of events has no sequence of its own"):
            Autogenerate(engine, tables.metadata).execute("log_op.alter_log_sequence('events', to='identity')")


class TestConstraints:
    _NAME = "customer_support_case_events"  # PostgreSQL truncates the names that it generates for it

    def test_other_names_are_changed_and_no_index_is_built(self, engine: Engine) -> None:
        tables = EventTables(events=self._NAME)
        create(engine, tables)
        autogenerate = Autogenerate(engine, tables.metadata)
        upgrade, downgrade = autogenerate.upgrade(), autogenerate.downgrade()
        renames = [line for line in upgrade.splitlines() if "constraint" in line]
        (ours,) = (each.name for each in tables.events.constraints if len(each.columns) == 3)
        assert renames == [
            "log_op.rename_log_constraint('customer_support_case_events_aggregate_type_aggregate_id_ag_key', "
            f"{ours!r}, '{self._NAME}')"
        ]
        before = index_files(engine, self._NAME)

        autogenerate.execute(upgrade)

        assert autogenerate.upgrade() == ""
        after = index_files(engine, self._NAME)
        assert after[ours] == before["customer_support_case_events_aggregate_type_aggregate_id_ag_key"]
        assert_stale_heads_raise(engine, tables, StaleHeadsError)
        autogenerate.execute(downgrade)
        assert set(index_files(engine, self._NAME)) == set(before)

    def test_names_of_a_convention(self, project: Project) -> None:
        project.execute(DUMP)
        convention = {"uq": "uq_%(table_name)s_%(column_0_N_name)s", "ix": "ix_%(table_name)s_%(column_0_N_name)s"}
        tables = EventTables(MetaData(naming_convention=convention))
        autogenerate = Autogenerate(project.database, tables.metadata)
        upgrade, downgrade = autogenerate.upgrade(), autogenerate.downgrade()
        assert [line for line in upgrade.splitlines() if "constraint" in line] == [
            "log_op.rename_log_constraint('events_aggregate_type_aggregate_id_aggregate_version_key', "
            "'uq_events_aggregate_type_aggregate_id_aggregate_version', 'events')",
            "log_op.rename_log_constraint('events_event_id_key', 'uq_events_event_id', 'events')",
        ]
        before = project.objects()
        autogenerate.execute(upgrade)
        assert autogenerate.upgrade() == ""
        autogenerate.execute(downgrade)
        assert project.objects() == before

    def test_names_of_a_convention_that_are_too_long(self, engine: Engine) -> None:
        """SQLAlchemy shortens them in its own way, and the store recognises the result."""
        convention = {"uq": "uq_%(table_name)s_%(column_0_N_name)s", "ix": "ix_%(column_0_label)s"}
        tables = EventTables(MetaData(naming_convention=convention), events=self._NAME)
        create(engine, tables)
        autogenerate = Autogenerate(engine, tables.metadata)
        autogenerate.execute(autogenerate.upgrade())
        assert autogenerate.upgrade() == ""
        assert_stale_heads_raise(engine, tables, StaleHeadsError)

    def test_another_constraint_of_the_same_name_is_built_anew(self, engine: Engine) -> None:
        tables = EventTables()
        tables.metadata.create_all(engine)
        if engine.dialect.server_version_info < (15,):
            pytest.skip("NULLS NOT DISTINCT is from PostgreSQL 15 on")
        autogenerate = Autogenerate(engine, tables.metadata)
        autogenerate.execute(
            "op.drop_constraint('events_event_id_key', 'events')\n"
            "op.create_unique_constraint('events_event_id_key', 'events', ['event_id'],"
            " postgresql_nulls_not_distinct=True)"
        )
        upgrade = autogenerate.upgrade()
        assert "op.create_unique_constraint" in upgrade
        assert "rename" not in upgrade
        autogenerate.execute(upgrade)
        assert autogenerate.upgrade() == ""

    def test_before_that_the_errors_are_those_of_the_database(self, engine: Engine) -> None:
        """No error is mistaken for another one, and none is translated."""
        tables = EventTables(events=self._NAME)
        create(engine, tables)
        assert_stale_heads_raise(engine, tables, IntegrityError)
