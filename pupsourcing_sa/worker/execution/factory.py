"""The execution that fits a session factory."""

from __future__ import annotations

import sys

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.worker.execution.protocol import Execution, SessionFactory
from pupsourcing_sa.worker.execution.threads import Threads

__all__ = ["execution_for", "is_async_sessionmaker"]


def execution_for(factory: SessionFactory, concurrency: int) -> Execution:
    """Return an execution for the factory. Call this inside the event loop."""
    if isinstance(factory, sessionmaker):
        return Threads(factory, concurrency)
    from pupsourcing_sa.worker.execution.greenlets import Greenlets

    return Greenlets(factory, concurrency)


def is_async_sessionmaker(factory: object) -> bool:
    """Return True for an ``async_sessionmaker``.

    Without greenlet its module cannot be imported. If the module has not been imported, there is no such object.
    """
    asyncio_extension = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio_extension is not None and isinstance(factory, asyncio_extension.async_sessionmaker)
