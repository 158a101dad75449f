"""Operations on consumers, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pupsourcing_sa.operations._result import OperationResult
from pupsourcing_sa.operations._sync import ConsumerOperations
from pupsourcing_sa.postgres.connections import async_session_of
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT
from pupsourcing_sa.store import AsyncEventStore, EventStore
from pupsourcing_sa.tables import WorkerTables

if TYPE_CHECKING:
    from pupsourcing_sa.postgres.connections import AsyncSessionArgument

__all__ = ["AsyncConsumerOperations"]

_ALTERNATIVE = "use ConsumerOperations for a Session or a Connection"


class AsyncConsumerOperations:
    """The operations of `ConsumerOperations`, for an ``AsyncSession`` or an ``AsyncConnection``."""

    def __init__(
        self,
        tables: WorkerTables,
        store: EventStore | AsyncEventStore,
        *,
        actor: str,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
    ) -> None:
        self._sync = ConsumerOperations(tables, store, actor=actor, heartbeat_timeout=heartbeat_timeout)

    async def remove(self, session: AsyncSessionArgument, name: str) -> OperationResult:
        """Delete everything that the tables know about a consumer; see `ConsumerOperations.remove`."""
        return await async_session_of(session, _ALTERNATIVE).run_sync(self._sync.remove, name)

    async def adopt_log(self, session: AsyncSessionArgument, name: str) -> OperationResult:
        """Let a consumer follow the store's log; see `ConsumerOperations.adopt_log`."""
        return await async_session_of(session, _ALTERNATIVE).run_sync(self._sync.adopt_log, name)
