"""The engines behind a worker's sessions: whether they are such that it can do its work with them."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Connection, Pool, QueuePool, StaticPool, Table
from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.worker.execution.protocol import SessionFactory

__all__ = ["check_engines"]

_logger = logging.getLogger("pupsourcing_sa.worker")


def check_engines(factory: SessionFactory, *tables: Table, wanted: int = 0) -> None:
    """Refuse a factory whose sessions cannot have a connection to PostgreSQL each.

    One that has fewer than are wanted is complained of: when batches have all of them, the node cannot say that it is
    alive. Others then take it for dead, and end the very batches.

    Args:
        factory: the session factory.
        tables: by which a session that has several binds chooses one.
        wanted: how many connections may be needed at a time.

    Raises:
        TypeError: the driver is of another kind than the factory, the database is another one, or the sessions share a
            connection, so that their transactions would be one. Nothing has been sent to the database.
    """
    session: Any = factory()
    pools: set[Pool] = set()
    for table in tables:
        bind = getattr(session, "sync_session", session).get_bind(clause=table)
        dialect = bind.dialect
        if dialect.name != "postgresql":
            raise TypeError(f"session_factory is bound to {dialect.name}, and a log is in PostgreSQL")
        if dialect.is_async and isinstance(factory, sessionmaker):
            raise TypeError(
                f"session_factory is a sessionmaker, and its engine's driver, {dialect.driver}, is asynchronous: write "
                "async_sessionmaker(create_async_engine(url)), or take another driver, as in postgresql+psycopg://"
            )
        if isinstance(bind, Connection) or isinstance(bind.pool, StaticPool):
            shared = "a Connection" if isinstance(bind, Connection) else "an engine with a StaticPool"
            raise TypeError(
                f"session_factory is bound to {shared}, so that all sessions share one connection, and each batch "
                "needs a transaction of its own; bind it to an engine that has another pool"
            )
        pools.add(bind.pool)
    for pool in pools:
        most = _most_connections(pool)
        if most is not None and most < wanted:
            _logger.warning(
                "the engine's pool has fewer connections than the worker may need; when batches take long the node may "
                "be taken for dead: allow more, or less concurrency",
                extra={"pool": most, "needed": wanted},
            )


def _most_connections(pool: Pool) -> int | None:
    """How many connections a pool allows; ``None`` if that is any number, or is not known."""
    if not isinstance(pool, QueuePool) or pool.size() == 0 or pool._max_overflow < 0:
        return None
    return pool.size() + pool._max_overflow
