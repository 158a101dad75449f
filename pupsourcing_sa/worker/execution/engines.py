"""The check of the engines behind a worker's sessions."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Pool, QueuePool, StaticPool, Table
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.postgres.connections import require_supported_driver
from pupsourcing_sa.worker.execution.protocol import SessionFactory

__all__ = ["check_engines"]

_logger = logging.getLogger("pupsourcing_sa.worker")


def check_engines(factory: SessionFactory, *tables: Table, wanted: int = 0) -> None:
    """Refuse engines that cannot give each session a connection to PostgreSQL. Nothing is sent to the database.

    Warn if the pool is smaller than ``wanted``: when batches use all connections, the node cannot send heartbeats.
    Other nodes then presume it dead, and terminate those batches.

    Args:
        factory: the session factory.
        tables: the tables whose engines are checked; a session may have several binds.
        wanted: number of connections that may be needed at a time.

    Raises:
        TypeError: the driver does not fit the factory, the database is not PostgreSQL, or all sessions share one
            connection and therefore one transaction.
        ValueError: the spelling of the engine's ``isolation_level`` does not let SQLAlchemy restore it.
        UnsupportedDriverError: the driver is neither psycopg nor asyncpg.
    """
    session: Any = factory()
    pools: set[Pool] = set()
    for table in tables:
        bind = getattr(session, "sync_session", session).get_bind(clause=table)
        dialect = bind.dialect
        if dialect.name != "postgresql":
            raise TypeError(
                f"session_factory is bound to {dialect.name}, but a log is in PostgreSQL; bind it to postgresql+psycopg://"
            )
        require_supported_driver(dialect)
        if dialect.is_async and isinstance(factory, sessionmaker):
            raise TypeError(
                f"session_factory is a sessionmaker, but the driver of its engine, {dialect.driver}, is asynchronous; "
                "write async_sessionmaker(create_async_engine(url)), or use another driver, as in postgresql+psycopg://"
            )
        if isinstance(bind, Connection) or isinstance(bind.pool, StaticPool):
            shared = "a Connection" if isinstance(bind, Connection) else "an engine with a StaticPool"
            raise TypeError(
                f"session_factory is bound to {shared}, so that all sessions share one connection, but each batch "
                "needs a transaction of its own; bind it to an engine with another pool"
            )
        _check_isolation_level(dialect)
        pools.add(bind.pool)
    for pool in pools:
        size = _max_connections(pool)
        if size is not None and size < wanted:
            _logger.warning(
                "connection pool is smaller than the worker may need, and the node may be presumed dead during long "
                "batches; enlarge the pool or reduce concurrency",
                extra={"pool": size, "needed": wanted},
            )


def _check_isolation_level(dialect: Any) -> None:
    """Refuse a spelling that SQLAlchemy sends to the server, but with which it cannot reset a connection.

    A batch may have another level than the engine, and the connection would then fail to return to its pool.
    """
    level = dialect._on_connect_isolation_level
    if level is not None and level != (proper := level.replace("_", " ").upper()):
        raise ValueError(
            f"the engine of session_factory has isolation_level={level!r}, which SQLAlchemy cannot restore after a "
            f"batch; write isolation_level={proper!r}"
        )


def _max_connections(pool: Pool) -> int | None:
    """Return the maximum size of a pool; ``None`` if it is unlimited or unknown."""
    if not isinstance(pool, QueuePool) or pool.size() == 0 or pool._max_overflow < 0:
        return None
    return pool.size() + pool._max_overflow
