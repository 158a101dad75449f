"""Holders of a checkpoint: idle transactions, and roles that may not see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pupsourcing_sa import WorkerTables
from pupsourcing_sa.worker.processing.checkpoints import Checkpoint

__all__ = ["holding", "is_alive", "pid_of", "unprivileged", "write_node"]


@contextmanager
def holding(
    engine: Engine, checkpoint: Checkpoint, worker_id: UUID | None, *, moves: bool = False
) -> Iterator[Session]:
    """Keep a transaction open that has locked the checkpoint like a batch."""
    with Session(engine) as session:
        found = checkpoint.lock(session, worker_id=worker_id)
        assert found is not None
        if moves:
            checkpoint.move(session, 1, found)
        yield session


def pid_of(session: Session) -> int:
    pid: int = session.connection().connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
    return pid


def is_alive(session: Session) -> bool:
    try:
        return bool(session.scalar(select(1)))
    except OperationalError:
        return False


def write_node(connection: Connection, tables: WorkerTables, worker_id: UUID) -> None:
    """Insert a node with a recent heartbeat."""
    connection.execute(
        tables.worker_nodes.insert().values(
            worker_id=worker_id, hostname="h", pid=1, consumers=[], heartbeat_at=func.clock_timestamp()
        )
    )


@contextmanager
def unprivileged(engine: Engine, schema: str | None = None) -> Iterator[Engine]:
    """Yield an engine whose role may use the tables and nothing else."""
    role = f"worker_{uuid4().hex}"
    with engine.begin() as connection:
        search_path = connection.scalar(text("SELECT current_schema()"))
        quoted = '"{}"'.format((schema or search_path).replace('"', '""'))
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        for what in (f"SCHEMA {quoted}", f"ALL TABLES IN SCHEMA {quoted}", f"ALL SEQUENCES IN SCHEMA {quoted}"):
            connection.execute(text(f"GRANT ALL ON {what} TO {role}"))
    options = {"options": f"-csearch_path={search_path} -crole={role}"}
    other = create_engine(engine.url.update_query_dict(options))
    try:
        yield other
    finally:
        other.dispose()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
