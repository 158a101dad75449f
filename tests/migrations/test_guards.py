"""Guards in the database: the statements that they refuse, and the mark that they take for other programs."""

from __future__ import annotations

from collections.abc import Callable

import psycopg.errors
import pytest
from sqlalchemy import Connection, Engine, MetaData

from pupsourcing_sa import AnyVersion, EventTables, NoStream
from pupsourcing_sa.errors import TableNameError
from tests.fix_guards import GuardedLog
from tests.fix_postgres import new_schema
from tests.fix_store import NAMES, make_event, make_named_tables


def quoted(name: str) -> str:
    escaped = name.replace("'", "''")
    return f"'{escaped}'"


_ALLOW = "SET LOCAL pupsourcing_sa.allow_rewrite = 'on'"


@pytest.fixture(params=NAMES)
def log(request: pytest.FixtureRequest, engine: Engine) -> GuardedLog:
    make_named_tables(engine, request.param, guarded=True)
    return GuardedLog(engine, NAMES[request.param])


class TestAppendOnly:
    @pytest.mark.parametrize("statement", ["UPDATE {log} SET payload = ''", "DELETE FROM {log}", "TRUNCATE {log}"])
    def test_what_it_refuses(self, log: GuardedLog, statement: str):
        with log.engine.begin() as connection:
            log.append(connection, "a")
        with log.engine.connect() as connection:
            with pytest.raises(psycopg.errors.RestrictViolation) as caught:
                log.execute(connection, statement)
            connection.rollback()
            assert caught.value.diag.message_primary.endswith("is refused: events are appended, and never changed")
            assert statement.partition(" ")[0] in caught.value.diag.message_primary
            assert _ALLOW in caught.value.diag.message_hint
            log.execute(connection, _ALLOW)
            log.execute(connection, statement)
            connection.commit()
            with pytest.raises(psycopg.errors.RestrictViolation):  # the setting was local to that transaction
                log.execute(connection, statement)

    @pytest.mark.parametrize("value", ["off", "", "true"])
    def test_other_values_of_the_setting(self, log: GuardedLog, value: str):
        with log.engine.connect() as connection, pytest.raises(psycopg.errors.RestrictViolation):
            log.execute(connection, f"SET LOCAL pupsourcing_sa.allow_rewrite = '{value}'")
            log.execute(connection, "DELETE FROM {log}")

    def test_heads_may_change(self, log: GuardedLog):
        with log.engine.begin() as connection:
            log.append(connection, "a")
            assert connection.execute(log.tables.aggregate_heads.delete()).rowcount == 1


_COLUMNS = "aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload"
_INSERT = f"INSERT INTO {{log}} ({_COLUMNS}) "
_ROW = "'User', name, 1, CAST(md5(name) AS uuid), 'UserRegistered', CAST('{{}}' AS bytea)"
_X = f"VALUES ({_ROW.replace('name', repr('x'))})"
_Y = f"VALUES ({_ROW.replace('name', repr('y'))})"
_SELECT = f"SELECT {_ROW} FROM (VALUES ('x'), ('y')) AS new (name)"


def _run(sql: str) -> Callable[[GuardedLog, Connection], None]:
    return lambda log, connection: log.execute(connection, sql)


def _copy(log: GuardedLog, connection: Connection) -> None:
    with log.cursor(connection) as cursor, cursor.copy(f"COPY {log.name} ({_COLUMNS}) FROM STDIN".encode()) as copy:
        for name in ("x", "y"):
            copy.write_row(("User", name, 1, make_event().event_id, "UserRegistered", b"{}"))


def _prepared(log: GuardedLog, connection: Connection) -> None:
    log.execute(connection, f"PREPARE foreign_writer (text) AS {_INSERT} SELECT {_ROW.replace('name', '$1')}")
    log.execute(connection, "EXECUTE foreign_writer ('x')")
    log.execute(connection, "EXECUTE foreign_writer ('y')")
    log.execute(connection, "DEALLOCATE foreign_writer")


#: Ways in which programs insert the events of x and y; the last ones are the store's.
WRITERS: dict[str, Callable[[GuardedLog, Connection], None]] = {
    "values": _run(f"{_INSERT} {_X}, {_Y.removeprefix('VALUES ')}"),
    "select": _run(f"{_INSERT} {_SELECT}"),
    "ordered": _run(f"{_INSERT} {_SELECT} ORDER BY name DESC"),
    "returning": _run(f"{_INSERT} {_SELECT} RETURNING global_position"),
    "on-conflict": _run(f"{_INSERT} {_SELECT} ON CONFLICT DO NOTHING"),
    "cte": _run(f"WITH written AS ({_INSERT} {_SELECT} RETURNING 1) SELECT count(*) FROM written"),
    "function": _run(f"DO $do$ BEGIN {_INSERT} {_X}; {_INSERT} {_Y}; END $do$"),
    "prepared": _prepared,
    "copy": _copy,
    "store": lambda log, connection: log.append(connection, "x", "y"),
    "store-many": lambda log, connection: log.store.append_many(
        connection, [(AnyVersion(), [make_event("x")]), (NoStream(), [make_event("y")])]
    ),
}


class TestLowWaterMark:
    @pytest.mark.parametrize("writer", WRITERS)
    @pytest.mark.parametrize("before", [0, 3])
    def test_it_is_the_last_position_before_the_first_of_the_transaction(
        self, log: GuardedLog, writer: str, before: int
    ):
        """A statement trigger runs before the first position is issued to its statement."""
        with log.engine.begin() as connection:
            log.append(connection, *"abc"[:before])
        with log.engine.begin() as connection:
            WRITERS[writer](log, connection)
            mark = before or -1
            assert log.marks(connection) == ([mark], str(mark))
            positions = connection.scalars(
                log.tables.events.select()
                .with_only_columns(log.tables.events.c.global_position)
                .where(log.tables.events.c.aggregate_id.in_(["x", "y"]))
            ).all()
            assert sorted(positions) == [before + 1, before + 2]
            log.append(connection, "z")
            assert log.marks(connection) == ([mark], str(mark))  # a transaction has one mark, whatever the writer

    @pytest.mark.parametrize("before", [0, 3])
    def test_it_is_the_mark_that_the_store_takes_without_a_guard(self, engine: Engine, before: int):
        log = GuardedLog(engine, {}, guarded=False)
        log.tables.metadata.create_all(engine)
        with engine.begin() as connection:
            log.append(connection, *"abc"[:before])
        with engine.begin() as connection:
            log.append(connection, "x", "y")
            mark = before or -1
            assert log.marks(connection) == ([mark], str(mark))

    def test_a_position_that_needs_more_than_31_bits(self, log: GuardedLog):
        with log.engine.begin() as connection:
            log.append(connection, "a")
            log.execute(connection, "ALTER TABLE {log} ALTER COLUMN global_position RESTART WITH 10737418238")
            log.append(connection, "b")
        with log.engine.begin() as connection:
            WRITERS["values"](log, connection)
            assert log.marks(connection) == ([2147483646], "2147483646")

    @pytest.mark.parametrize("writer", ["values", "copy"])
    def test_it_refuses_a_sequence_that_is_behind_the_log(self, log: GuardedLog, writer: str):
        with log.engine.begin() as connection:
            log.append(connection, "a", "b", "c")
            log.execute(connection, f"SELECT setval(pg_get_serial_sequence({quoted(log.name)}, 'global_position'), 1)")
        with log.engine.connect() as connection:
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
                WRITERS[writer](log, connection)
            connection.rollback()
            assert "is behind the log" in str(caught.value.diag.message_primary)
            log.execute(connection, str(caught.value.diag.message_hint))
            WRITERS[writer](log, connection)
            assert log.marks(connection) == ([3], "3")

    def test_it_goes_with_the_savepoint_that_it_was_taken_in(self, log: GuardedLog):
        with log.engine.begin() as connection:
            savepoint = connection.begin_nested()
            WRITERS["values"](log, connection)
            savepoint.rollback()
            assert log.marks(connection) == ([], "")
            WRITERS["values"](log, connection)
            assert log.marks(connection) == ([2], "2")

    @pytest.mark.parametrize("writer", WRITERS)
    def test_no_event_of_another_program_is_skipped(self, log: GuardedLog, writer: str):
        with log.engine.connect() as slow:
            WRITERS[writer](log, slow)
            with log.engine.begin() as fast:
                log.append(fast, "late")
            assert log.read() == []
            slow.commit()
            assert sorted(log.read()[:2]) == ["x", "y"]
            assert log.read()[2:] == ["late"]

    def test_without_a_guard_it_is(self, engine: Engine):
        """Otherwise the test above proves nothing."""
        log = GuardedLog(engine, {}, guarded=False)
        log.tables.metadata.create_all(engine)
        with engine.connect() as slow:
            WRITERS["values"](log, slow)
            with engine.begin() as fast:
                log.append(fast, "late")
            assert log.read() == ["late"]

    def test_rows_of_a_merge(self, log: GuardedLog):
        with log.engine.begin() as connection:
            if connection.dialect.server_version_info < (15,):
                pytest.skip("MERGE is from PostgreSQL 15 on")
            log.execute(
                connection,
                f"MERGE INTO {{log}} USING ({_SELECT}) AS new ({_COLUMNS}) ON false WHEN NOT MATCHED THEN "
                f"INSERT ({_COLUMNS}) VALUES ({', '.join('new.' + each for each in _COLUMNS.split(', '))})",
            )
            assert log.marks(connection) == ([-1], "-1")


class TestTables:
    def test_create_all_and_drop_all(self, engine: Engine):
        with new_schema(engine, NAMES["custom"]["schema"]):
            log = GuardedLog(engine, NAMES["custom"])
            log.tables.metadata.create_all(engine)
            assert log.objects() == [
                "pupsourcing_sa_append_only",
                "pupsourcing_sa_low_water_mark",
                "the.events_append_only",
                "the.events_low_water_mark",
            ]
            log.tables.metadata.drop_all(engine)
            assert log.objects() == []
            log.tables.metadata.create_all(engine)  # nothing blocks it

    def test_without_them_there_is_nothing(self, engine: Engine):
        log = GuardedLog(engine, {}, guarded=False)
        log.tables.metadata.create_all(engine)
        assert log.objects() == []

    def test_a_copy_of_the_metadata_and_a_schema_for_each_tenant(self, engine: Engine):
        with new_schema(engine, NAMES["custom"]["schema"]):
            copy = MetaData()
            for table in EventTables(MetaData(), guarded=True).metadata.sorted_tables:
                table.to_metadata(copy)
            assert EventTables(copy, guarded=True).events is copy.tables["events"]
            schema = NAMES["custom"]["schema"]
            with engine.begin() as connection:
                copy.create_all(connection.execution_options(schema_translate_map={None: schema}))
            assert GuardedLog(engine, {"schema": schema}).objects() == [
                "events_append_only",
                "events_low_water_mark",
                "pupsourcing_sa_append_only",
                "pupsourcing_sa_low_water_mark",
            ]

    def test_two_logs_in_one_schema_have_functions_of_their_own(self, engine: Engine):
        for name in ("e" * 62 + "a", "e" * 62 + "b"):
            GuardedLog(engine, {"events": name, "aggregate_heads": f"h{name[1:]}"}).tables.metadata.create_all(engine)
        functions = [name for name in GuardedLog(engine, {}).objects() if name.startswith("e")]
        assert len(functions) == 4
        GuardedLog(engine, {"events": "e" * 62 + "a"}).tables.metadata.drop_all(engine)
        functions = [name for name in GuardedLog(engine, {}).objects() if name.startswith("e")]
        assert len(functions) == 2

    def test_they_are_declared_alike_everywhere(self):
        metadata = MetaData()
        assert EventTables(metadata, guarded=True).is_guarded
        assert EventTables(metadata, guarded=True).events is metadata.tables["events"]
        with pytest.raises(TableNameError, match="with guarded=True; use the same everywhere"):
            EventTables(metadata)
        with pytest.raises(TypeError, match="^guarded must be a bool, not str"):
            EventTables(guarded="yes")
