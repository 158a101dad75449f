"""The self-check of a server: it does what the stable position relies on.

Some servers speak PostgreSQL's protocol and are not PostgreSQL. They may accept an advisory lock and take none, show
none in ``pg_locks``, or keep a setting that a savepoint should have undone. A log on such a server works in every test
with one connection, and skips events under load. The steps below try these things with two connections.

Nothing is written. Each step rolls back, and no lock is on a key that the store uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Table, Text, cast, select, text, union_all
from sqlalchemy.exc import DBAPIError

from pupsourcing_sa.errors import (
    PupsourcingError,
    ReplicatedLogError,
    SequenceBehindLogError,
    StablePositionError,
    TablesMissingError,
    UnsupportedServerError,
)
from pupsourcing_sa.postgres.catalog import ATTRIBUTES
from pupsourcing_sa.postgres.connections import SyncSession, connection_of
from pupsourcing_sa.postgres.errors import is_unsupported, translated
from pupsourcing_sa.postgres.expressions import constant, oid_of, qualified_name
from pupsourcing_sa.store.log_reader import STANDBY, LogReader
from pupsourcing_sa.tables import WorkerTables

__all__ = ["CheckResult", "check_server", "raise_problem"]

_OLDEST: Final = 120000
#: The key -1, which ``pg_locks`` shows as an unsigned number with the same bits.
_UNSIGNED: Final = 2**32 - 1

# The functions are those of the store, and are found by the same search_path. The first key of the locks is "pups" in
# ASCII. The store uses the oids of tables, which are smaller.
_VERSION: Final = text("SELECT current_setting('server_version'), current_setting('server_version_num')")
_IS_STANDBY: Final = text("SELECT pg_is_in_recovery()")
_PID: Final = text("SELECT pg_backend_pid()")
_TAKE_TWO: Final = text(
    "SELECT pg_advisory_xact_lock_shared(1886744691, 1), pg_advisory_xact_lock_shared(1886744691, -1)"
)
_TAKE_ANOTHER: Final = text("SELECT pg_advisory_xact_lock_shared(1886744691, 2)")
_TRY: Final = text("SELECT pg_try_advisory_xact_lock(1886744691, 1), pg_try_advisory_xact_lock_shared(1886744691, 1)")
_HELD: Final = text(
    "SELECT CAST(objid AS bigint) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
    " AND CAST(classid AS bigint) = 1886744691 AND objsubid = 2 AND mode = 'ShareLock' AND pid = :pid"
)
_SET: Final = text("SELECT set_config('pupsourcing_sa.check', CAST(:value AS text), true)")
_SETTING: Final = text("SELECT coalesce(current_setting('pupsourcing_sa.check', true), '')")


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one step.

    Attributes:
        name: the step.
        problem: the error that was found, with its remedy; ``None`` if there is none.
        is_skipped: True if the step was not run, because an earlier one has failed.
    """

    name: str
    problem: Exception | None = None
    is_skipped: bool = False


class _Server:
    """A session and another connection to its server, and the log."""

    def __init__(self, session: SyncSession, second: Connection, reader: LogReader) -> None:
        self.session = session
        self.second = second
        self.reader = reader

    @property
    def first(self) -> Connection:
        """The connection of the session. Events of the application may prepare it in each transaction."""
        return connection_of(self.session, self.reader.tables.events)

    def roll_back(self) -> None:
        self.session.rollback()
        self.second.rollback()


def check_server(session: SyncSession, reader: LogReader, workers: WorkerTables | None = None) -> list[CheckResult]:
    """Run all steps, and return their results.

    Args:
        session: a session or a connection without a transaction, and not in AUTOCOMMIT mode. Another connection is made
            outside of its pool, which may be of size 1.
        reader: the reader of the log.
        workers: the workers' tables, which another step checks.

    Raises:
        DBAPIError: the connection was lost, or a lock or a timeout interrupted a step.
        UnsupportedDriverError: the engine's driver is neither psycopg nor asyncpg.
    """
    engine = connection_of(session, reader.tables.events).engine
    pool = engine.pool.recreate()
    try:
        # Not engine.connect(): a pool of size 1 would have no connection left.
        with Connection(engine, pool.connect()) as second:
            second.execution_options(isolation_level="READ COMMITTED")
            results = list(_run(_Server(session, second, reader)))
    finally:
        pool.dispose()
    return results if workers is None else [*results, _check_worker_tables(session, workers)]


def raise_problem(results: Iterable[CheckResult]) -> None:
    """Raise the problem of the first step that has failed, if there is one."""
    for result in results:
        if result.problem is not None:
            raise result.problem


def _check_worker_tables(session: SyncSession, workers: WorkerTables) -> CheckResult:
    # They may be in another database than the log.
    try:
        _check_columns(connection_of(session, workers.worker_nodes), *workers.tables)
    except TablesMissingError as error:
        return CheckResult("worker tables", error)
    return CheckResult("worker tables")


def _check_columns(connection: Connection, *tables: Table) -> None:
    c = ATTRIBUTES.c
    columns = [
        select(constant(number).label("number"), cast(c.attname, Text)).where(
            c.attrelid == oid_of(table), ~c.attisdropped
        )
        for number, table in enumerate(tables)
    ]
    with translated(*tables):
        found = {tuple(row) for row in connection.execute(union_all(*columns))}
    for number, table in enumerate(tables):
        if missing := [column.name for column in table.columns if (number, column.name) not in found]:
            raise TablesMissingError(
                f"table {table.key} has no column {', '.join(missing)}: run your migrations, such as `alembic upgrade "
                "head`"
            )


def _run(server: _Server) -> Iterator[CheckResult]:
    has_log = True
    for name, step in _STEPS.items():
        if step in _NEED_LOG and not has_log:
            yield CheckResult(name, is_skipped=True)
            continue
        problem: Exception | None = None
        try:
            with _unsupported_explained(name):
                step(server)
        except PupsourcingError as error:
            problem = error
        finally:
            server.roll_back()
        if problem is not None and step in _PROVIDE_LOG:
            has_log = False
        yield CheckResult(name, problem)


@contextmanager
def _unsupported_explained(name: str) -> Iterator[None]:
    """Explain that the server refuses a statement, such as a function that it lacks."""
    try:
        yield
    except DBAPIError as error:
        if not is_unsupported(error):
            raise
        raise UnsupportedServerError(name, f"it refused a statement: {error.orig}") from error


# -- the steps -----------------------------------------------------------------------------------------------------


def _check_version(server: _Server) -> None:
    version, number = server.first.execute(_VERSION).one()
    if int(number) < _OLDEST:
        raise UnsupportedServerError("server version", f"it is PostgreSQL {version}")


def _check_primary(server: _Server) -> None:
    if server.first.scalar(_IS_STANDBY):
        raise StablePositionError(STANDBY)


def _check_tables(server: _Server) -> None:
    _check_columns(server.first, *server.reader.tables.tables)


def _check_replication(server: _Server) -> None:
    if server.reader.is_replicated(server.session):
        raise ReplicatedLogError(qualified_name(server.reader.tables.events, server.first))


def _check_sequence(server: _Server) -> None:
    """Check that the sequence issues positions in order, above the log, and that its last position is shown."""
    _, problem = server.reader.inspect(server.session)
    if isinstance(problem, SequenceBehindLogError):
        raise problem
    # Other transactions may append between the statements.
    found = server.reader.last_issued(server.session)
    if found is not None and list(found) != sorted(found):
        raise UnsupportedServerError("sequence", f"pg_sequence_last_value() returns {found[1]} instead of {found[0]}")


def _check_locks(server: _Server) -> None:
    """Check that a mark is seen by other connections, as it is and for as long as it is held."""
    first, second = server.first, server.second
    holder = {"pid": first.scalar(_PID)}

    def expect(moment: str, *keys: int) -> None:
        found = sorted(second.scalars(_HELD, holder))
        if found != sorted(keys):
            raise UnsupportedServerError(
                "advisory locks", f"pg_locks shows {found} instead of {sorted(keys)} of another connection {moment}"
            )

    first.execute(_TAKE_TWO)
    expect("that holds shared locks", 1, _UNSIGNED)
    is_exclusive, is_shared = second.execute(_TRY).one()
    if is_exclusive or not is_shared:
        granted = "an exclusive lock" if is_exclusive else "no shared lock"
        raise UnsupportedServerError("advisory locks", f"it grants {granted} while another connection shares the lock")
    with first.begin_nested() as savepoint:
        first.execute(_TAKE_ANOTHER)
        expect("that holds another lock", 1, 2, _UNSIGNED)
        savepoint.rollback()
    expect("that has rolled back to a savepoint", 1, _UNSIGNED)
    server.session.commit()
    expect("that has committed")


def _check_settings(server: _Server) -> None:
    """Check that a transaction-local setting ends with its savepoint and its transaction."""
    first = server.first

    def expect(value: str, moment: str) -> None:
        found = server.first.scalar(_SETTING)
        if found != value:
            raise UnsupportedServerError(
                "transaction settings", f"a local setting is {found!r} instead of {value!r} {moment}"
            )

    first.execute(_SET, {"value": "outer"})
    with first.begin_nested() as savepoint:
        first.execute(_SET, {"value": "inner"})
        expect("inner", "after it was set")
        savepoint.rollback()
    expect("outer", "after a rollback to a savepoint")
    server.session.commit()
    expect("", "after a commit")


_STEPS: Final[dict[str, Callable[[_Server], None]]] = {
    "server version": _check_version,
    "primary server": _check_primary,
    "tables": _check_tables,
    "replication": _check_replication,
    "sequence": _check_sequence,
    "advisory locks": _check_locks,
    "transaction settings": _check_settings,
}
#: Steps that are skipped if one of these has failed.
_NEED_LOG: Final = (_check_sequence, _check_replication)
_PROVIDE_LOG: Final = (_check_primary, _check_tables)
