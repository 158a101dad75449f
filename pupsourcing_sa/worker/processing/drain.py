"""The drain of a partition: it processes everything up to a position, then ends.

Unlike a processor, it raises the failures of handlers and counts none of them. It belongs to no node. If another
process runs the partition, the drain waits until that process has reached the position.
"""

from __future__ import annotations

import asyncio

from pupsourcing_sa.postgres.errors import is_query_canceled
from pupsourcing_sa.worker.classification import is_lost_race
from pupsourcing_sa.worker.lifecycle.service import Service
from pupsourcing_sa.worker.lifecycle.tasks import wait_for_event
from pupsourcing_sa.worker.processing.context import PartitionContext
from pupsourcing_sa.worker.processing.failures import Failures
from pupsourcing_sa.worker.processing.outcomes import (
    BatchCommitted,
    BatchError,
    BatchFailed,
    BatchInterrupted,
    ShuttingDown,
)
from pupsourcing_sa.worker.processing.turns import Turns

__all__ = ["DrainProcessor"]


class DrainProcessor(Service):
    """The service that processes one partition up to a position.

    Its task raises `PartitionParkedError` if the partition is parked, and the exception of a handler.

    Args:
        context: the partition.
        up_to: a stable position.
        server_identity: the server and database that it belongs to; ``None`` to trust that it is the session's.
    """

    def __init__(self, context: PartitionContext, up_to: int, server_identity: str | None = None) -> None:
        super().__init__(context.name)
        self._context = context
        self._up_to = up_to
        self._server_identity = server_identity
        self._failures = Failures(context)
        self._turns = Turns(context, self._failures, self.stopping)

    async def _run(self) -> None:
        failure: Exception | None = None
        while self._turns.state.last.scanned < self._up_to and not self.stopping.is_set():
            try:
                has_lock = await self._turns.run(self._up_to, self._server_identity, is_draining=True)
            except ShuttingDown:
                return
            except BatchCommitted as committed:
                await self._failures.park(committed)
                failure = committed
            except Exception as error:
                if await self._is_retried(error):
                    continue
                failure = error
            # Raise outside of the except block, whose exception would become the context.
            if failure is not None:
                raise self._unwrapped(failure)
            if not has_lock:
                if await self._checkpoint() >= self._up_to:
                    return
                await wait_for_event(self.stopping, self._context.config.poll_interval)

    async def _checkpoint(self) -> int:
        """Return the position of the checkpoint, which another process moves."""
        read = self._context.checkpoint.read
        return await self._context.execution(self.name, lambda session, _: read(session))

    async def _is_retried(self, error: Exception) -> bool:
        """Return True if another batch may succeed. Reduce that batch if it helps."""
        if is_lost_race(error):
            if isinstance(error, BatchInterrupted):
                self._turns.lose_race(error)
            await wait_for_event(self.stopping, await self._failures.interrupted(error))
            return True
        if is_query_canceled(error) and not self._turns.state.limits.is_smallest:
            self._turns.shrink()
            return True
        if isinstance(error, (BatchFailed, BatchInterrupted)):
            self._turns.narrow(error)
            if not error.is_isolated:
                return True
            if isinstance(error, BatchFailed) and self._turns.may_have_lost_race(error):
                await wait_for_event(self.stopping, self._failures.race_lost(error.__cause__ or error))
                return True
        return False

    def _unwrapped(self, error: Exception) -> BaseException:
        """Return the exception that the handler raised."""
        cause = error.__cause__
        if not isinstance(error, BatchError) or cause is None:
            return error
        if isinstance(cause, asyncio.CancelledError):  # a task that raises it would count as cancelled
            consumer = self._context.subscription.name
            cancelled = RuntimeError(f"the handler of consumer {consumer!r} was cancelled")
            cancelled.__cause__ = cause
            cause = cancelled
        return cause
