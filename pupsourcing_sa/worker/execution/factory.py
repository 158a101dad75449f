"""The execution that fits a session factory."""

from __future__ import annotations

import sys

from sqlalchemy.orm import sessionmaker

from pupsourcing_sa.worker.execution.protocol import Execution, SessionFactory
from pupsourcing_sa.worker.execution.threads import Threads

__all__ = ["execution_for", "is_async_sessionmaker"]


def execution_for(factory: SessionFactory, concurrency: int) -> Execution:
    """The execution that fits a session factory; to be called inside the event loop."""
    if isinstance(factory, sessionmaker):
        return Threads(factory, concurrency)
    from pupsourcing_sa.worker.execution.greenlets import Greenlets

    return Greenlets(factory, concurrency)


def is_async_sessionmaker(factory: object) -> bool:
    """Whether it is one; without greenlet there is none, and its module cannot be imported."""
    asyncio_extension = sys.modules.get("sqlalchemy.ext.asyncio")
    return asyncio_extension is not None and isinstance(factory, asyncio_extension.async_sessionmaker)
