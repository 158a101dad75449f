"""The sequence is behind the log, as after a switch to a logical replica, or a restore of data only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from pupsourcing_sa import AnyVersion, EventStore, EventTables, Exact, NoStream, OptimisticConcurrencyError
from pupsourcing_sa.errors import AppendError, SequenceBehindLogError, StablePositionError
from pupsourcing_sa.postgres.expressions import qualified_name
from pupsourcing_sa.store._low_water_mark import low_water_mark
from tests.fix_holders import unprivileged
from tests.fix_postgres import before_statements
from tests.fix_store import Log, Transaction, make_event, tenant

#: A position that the sequence is set to: not used since, or used once.
RESTARTS = pytest.mark.parametrize("is_used", [False, True], ids=["unused", "used"])

APPENDS: dict[str, Callable[[Transaction], object]] = {
    "to none": lambda log: log.append(NoStream(), [make_event("new")]),
    "exact": lambda log: log.append(Exact(3), [make_event("u1")]),
    "to any": lambda log: log.append(AnyVersion(), [make_event("u1"), make_event("u1")]),
    "idempotent": lambda log: log.append(AnyVersion(), [make_event("u1")], idempotent=True),
    "many": lambda log: log.append_many([(Exact(3), [make_event("u1")]), (NoStream(), [make_event("new")])]),
}


def restart(log: Log, position: int, *, is_used: bool) -> None:
    """Set the position after which the sequence continues, or at which it begins."""
    with log.engine.begin() as connection:
        name = qualified_name(log.tables.events, connection)
        statement = text("SELECT setval(pg_get_serial_sequence(:name, 'global_position'), :position, :is_used)")
        connection.execute(statement, {"name": name, "position": position, "is_used": is_used})


@pytest.fixture
def behind(log: Log, is_used: bool) -> Log:
    """A log with the positions 1, 4 and 5, whose sequence continues at 2."""
    transaction = log.begin()
    transaction.append(NoStream(), [make_event("u1")])
    transaction.commit()
    transaction.append(AnyVersion(), [make_event("u1"), make_event("u1")])
    transaction.rollback()
    transaction.append(Exact(1), [make_event("u1"), make_event("u1")])
    transaction.commit()
    restart(log, 1 if is_used else 2, is_used=is_used)
    return log


@RESTARTS
@pytest.mark.parametrize("append", APPENDS.values(), ids=APPENDS)
def test_appending_refuses_before_anything_is_written(behind: Log, append: Callable[[Transaction], object]):
    for _ in range(2):  # the second time, the first has used the sequence
        transaction = behind.begin()
        with pytest.raises(SequenceBehindLogError, match="is behind the log") as raised:
            append(transaction)
        assert isinstance(raised.value, AppendError)
        # The transaction stays usable, and refuses again.
        with pytest.raises(SequenceBehindLogError):
            append(transaction)
        own_locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        assert transaction.execute(own_locks) == [(0,)]
        transaction.commit()
    assert behind.heads() == {"u1": 3}
    transaction.execute(raised.value.statement)
    transaction.commit()
    append(transaction)
    assert [event.aggregate_id for event in transaction.read_aggregate_stream("User", "u1")][:3] == ["u1"] * 3
    transaction.commit()
    assert transaction.latest_global_position() == transaction.stable_position() >= 6


@RESTARTS
def test_the_stable_position_refuses_and_other_reads_go_on(behind: Log):
    transaction = behind.begin()
    for read in (transaction.stable_position, transaction.read_events):
        with pytest.raises(StablePositionError, match="is behind the log") as raised:
            read()
        assert isinstance(raised.value, SequenceBehindLogError)
    assert transaction.latest_global_position() == 5
    assert transaction.aggregate_version("User", "u1") == 3
    assert len(transaction.read_aggregate_stream("User", "u1")) == 3
    transaction.execute(raised.value.statement)
    assert transaction.stable_position() == 5


@RESTARTS
def test_a_sequence_that_was_restarted_above_the_log_is_not_behind(log: Log, is_used: bool):
    transaction = log.begin()
    transaction.append(NoStream(), [make_event()])
    transaction.commit()
    restart(log, 2, is_used=is_used)
    assert transaction.stable_position() == 1
    result = transaction.append(Exact(1), [make_event()])
    transaction.commit()
    assert result.global_positions[0] > 2 - (not is_used)
    assert transaction.stable_position() == result.global_positions[0]


@pytest.mark.parametrize("append", APPENDS.values(), ids=APPENDS)
def test_a_sequence_that_begins_at_the_last_position_is_not_behind_once_it_is_used(
    log: Log, append: Callable[[Transaction], object]
):
    """`ALTER SEQUENCE … RESTART WITH max`: the check of the first append uses the position that an event has."""
    transaction = log.begin()
    transaction.append(NoStream(), [make_event("u1") for _ in range(3)])
    transaction.commit()
    restart(log, 3, is_used=False)
    append(transaction)
    transaction.commit()
    assert transaction.latest_global_position() == transaction.stable_position() > 3


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("count", [0, 3], ids=["empty", "not empty"])
def test_a_role_without_the_privilege_on_the_sequence_cannot_append(
    plain_log: Log, engine: Engine, count: int, many: bool
):
    """An identity column needs no such privilege, but the role could not see that the sequence is behind."""
    store, given = EventStore(plain_log.tables), [(AnyVersion(), [make_event("u1")])]
    with engine.connect() as owner, unprivileged(engine) as other, Session(other) as session:
        fill(owner, first=1, count=count)
        role = session.scalar(text("SELECT current_user"))
        owner.execute(text(f"REVOKE ALL ON SEQUENCE events_global_position_seq FROM {role}"))
        owner.commit()
        refusal: tuple[type[Exception], str] = StablePositionError, "GRANT USAGE on the sequence"
        try:
            session.execute(text("SELECT pg_sequence_last_value('events_global_position_seq')"))
        except ProgrammingError:  # an older server refuses to read the sequence, in an append, too
            session.rollback()
            refusal = ProgrammingError, "permission denied for sequence"
        with pytest.raises(refusal[0], match=refusal[1]):
            store.append_many(session, given) if many else store.append(session, *given[0])
        session.rollback() if refusal[0] is ProgrammingError else session.commit()
        owner.execute(text(f"GRANT USAGE ON SEQUENCE events_global_position_seq TO {role}"))
        restart(plain_log, count + 1, is_used=False)
        owner.commit()
        store.append(session, *given[0])


def test_an_empty_log_begins_at_the_first_position(log: Log):
    transaction = log.begin()
    assert transaction.stable_position() == 0
    assert transaction.append(NoStream(), [make_event()]).global_positions == (1,)


def test_an_idempotent_append_of_events_that_are_there_returns_them(plain_log: Log):
    transaction, event = plain_log.begin(), make_event()
    first = transaction.append(NoStream(), [make_event("other")])
    first = transaction.append(NoStream(), [event])
    transaction.commit()
    restart(plain_log, 1, is_used=True)
    assert transaction.append(NoStream(), [event], idempotent=True) == first


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_a_position_that_another_transaction_has_written_meanwhile(plain_log: Log, many: bool):
    """The first append of a transaction checks. A restore may commit after that."""
    transaction, other = plain_log.begin(), plain_log.begin()
    transaction.append(NoStream(), [make_event("first")])
    other.execute(
        "INSERT INTO events (global_position, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,"
        " payload) OVERRIDING SYSTEM VALUE VALUES (2, 'User', 'restored', 1, gen_random_uuid(), 'E', '')"
    )
    other.commit()
    with pytest.raises(SequenceBehindLogError) as raised:
        if many:
            transaction.append_many([(NoStream(), [make_event("second")])])
        else:
            transaction.append(NoStream(), [make_event("second")])
    assert raised.value.table == "events"
    transaction.rollback()
    assert plain_log.heads() == {}


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_appends_that_are_correct_are_never_refused(plain_log: Log, engine: Engine, isolation: str):
    """The snapshot of the first append is older than other events; later ones see their own events."""
    store = EventStore(plain_log.tables)
    with (
        Session(engine.execution_options(isolation_level=isolation)) as session,
        Session(engine) as other,
        Session(engine) as in_flight,
    ):
        store.append(in_flight, NoStream(), [make_event("in flight")])
        session.execute(text("SELECT 1 FROM events")).all()
        store.append(other, NoStream(), [make_event("other")])
        other.commit()
        for version in range(3):
            store.append(session, Exact(version), [make_event("own")])
            store.append(other, Exact(version + 1), [make_event("other")])
            other.commit()
        with session.begin_nested() as savepoint:
            store.append(session, NoStream(), [make_event("undone")])
            savepoint.rollback()
        store.append_many(session, [(Exact(3), [make_event("own")])])
        session.commit()
        in_flight.commit()
    assert plain_log.heads() == {"own": 4, "other": 4, "in flight": 1}


def test_a_conflict_is_not_reported_as_a_sequence(plain_log: Log):
    transaction = plain_log.begin()
    transaction.append(NoStream(), [make_event()])
    transaction.commit()
    for append in (
        lambda: transaction.append(NoStream(), [make_event()]),
        lambda: transaction.append_many([(Exact(7), [make_event()])]),
    ):
        with pytest.raises(OptimisticConcurrencyError) as raised:
            append()
        assert raised.value.actual == 1


def test_a_tenant_gets_the_statement_for_its_own_log(engine: Engine):
    store = EventStore(EventTables())
    with tenant(engine, store.tables) as schema:
        tenants = engine.execution_options(schema_translate_map={None: schema})
        with Session(tenants) as session:
            store.append(session, NoStream(), [make_event(), make_event()])
            session.commit()
            name = qualified_name(store.tables.events, session.connection())
            session.execute(text("SELECT setval(pg_get_serial_sequence(:name, 'global_position'), 1)"), {"name": name})
            session.commit()
            with pytest.raises(SequenceBehindLogError) as raised:
                store.append(session, AnyVersion(), [make_event()])
            session.execute(text(raised.value.statement))
            assert store.append(session, AnyVersion(), [make_event()]).global_positions == (3,)


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    statements: list[str] = []
    with before_statements(engine, statements.append):
        yield statements


def test_an_append_is_still_one_statement(plain_log: Log):
    with counted(plain_log.engine) as statements:
        transaction = plain_log.begin()
        transaction.append(NoStream(), [make_event()])
        transaction.append(Exact(1), [make_event()])
    assert len(statements) == 2


def test_events_in_flight_do_not_slow_the_check_down(plain_log: Log, engine: Engine):
    """The check reads no event of a large append that is not committed."""
    in_flight = plain_log.begin()
    in_flight.append(NoStream(), [make_event() for _ in range(5000)])
    with engine.connect() as connection:
        mark = select(low_water_mark(plain_log.tables.events)).compile(engine, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {mark}").scalar_one()
    assert plan[0]["Plan"]["Shared Hit Blocks"] < 100


def fill(connection: Connection, *, first: int, count: int) -> None:
    """Write events with positions of their own, as a restore does. The sequence stays where it is."""
    connection.execute(
        text(
            "INSERT INTO events (global_position, aggregate_type, aggregate_id, aggregate_version, event_id,"
            " event_type, payload) OVERRIDING SYSTEM VALUE"
            " SELECT n, 'User', n::text, 1, md5(n::text)::uuid, 'E', ''"
            " FROM generate_series(CAST(:first AS bigint), :last) n"
        ),
        {"first": first, "last": first + count - 1},
    )
    connection.commit()


def test_an_old_plan_does_not_read_the_whole_log(plain_log: Log, make_engine: Callable[..., Engine]):
    """A connection that has planned its appends on an empty log would scan the events of all that follow."""
    with plain_log.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE events"))
    engine = make_engine("plan_cache_mode=force_generic_plan", connect_args={"prepare_threshold": 0})
    store = EventStore(plain_log.tables)
    with Session(engine) as session:
        store.append(session, NoStream(), [make_event("first")])
        session.commit()
        with plain_log.engine.connect() as connection:
            connection.execute(text("SELECT setval(pg_get_serial_sequence('events', 'global_position'), 5001)"))
            fill(connection, first=2, count=5000)
        store.append(session, NoStream(), [make_event("second")])  # checks the log, which has grown meanwhile
        session.commit()
        reads = text("SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = CAST('events' AS regclass)")
        before = session.scalar(reads)
        store.append(session, NoStream(), [make_event("third")])
        assert session.scalar(reads) == before


@pytest.mark.parametrize("count", [1, 5000], ids=["small", "large"])
def test_events_that_were_restored_without_their_sequence(plain_log: Log, engine: Engine, count: int):
    """A small log is checked by every transaction, a large one by every connection."""
    store = EventStore(plain_log.tables)
    with Session(engine) as session:
        for aggregate_id in ("first", "second"):
            store.append(session, NoStream(), [make_event(aggregate_id)])
            session.commit()
    with engine.connect() as connection:
        fill(connection, first=100, count=count)
    if count > 1:
        engine.dispose()
    with Session(engine) as session, pytest.raises(SequenceBehindLogError):
        store.append(session, NoStream(), [make_event("third")])


def test_a_sequence_that_goes_back_is_found_by_every_connection(plain_log: Log, engine: Engine):
    store = EventStore(plain_log.tables)
    with engine.connect() as connection:
        connection.execute(text("SELECT setval(pg_get_serial_sequence('events', 'global_position'), 5000)"))
        fill(connection, first=1, count=4000)
        fill(connection, first=4900, count=100)
    with Session(engine) as session:
        store.append(session, NoStream(), [make_event("first")])
        session.commit()
        session.execute(text("SELECT setval(pg_get_serial_sequence('events', 'global_position'), 4000)"))
        session.commit()
        with pytest.raises(SequenceBehindLogError):
            store.append(session, NoStream(), [make_event("second")])
