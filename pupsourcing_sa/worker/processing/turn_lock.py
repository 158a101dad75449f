"""The turn lock: while partitions of a consumer lose races, they run one at a time in this process.

It only saves work, because the database finds every lost race. Other nodes do not wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pupsourcing_sa.worker.processing.races import TurnPeriod

__all__ = ["TurnLock"]


class TurnLock:
    """The lock of one consumer. Used on the event loop only.

    Args:
        max_wait: number of seconds after which a partition runs beside the others, because a handler may hang.
        clock: returns seconds, as ``time.monotonic`` does.
    """

    def __init__(self, max_wait: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_wait = max_wait
        self._clock = clock
        self._period = TurnPeriod()
        self._lock = asyncio.Lock()
        #: Number of partitions that run beside others, and an event that is set while it is 0.
        self._beside = 0
        self._is_free = asyncio.Event()
        self._is_free.set()

    def lost(self) -> None:
        """Note that a partition has lost a race beside others."""
        self._period = self._period.lost(self._clock())

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wrap some batches of a partition, and yield True if no other partition runs meanwhile."""
        is_alone = self._clock() < self._period.until and await self._acquire()
        if is_alone:
            try:
                yield True
            finally:
                self._lock.release()
            return
        self._beside += 1
        self._is_free.clear()
        try:
            yield False
        finally:
            self._beside -= 1
            if not self._beside:
                self._is_free.set()

    async def _acquire(self) -> bool:
        try:
            async with asyncio.timeout(self._max_wait):
                await self._lock.acquire()
                try:
                    await self._is_free.wait()
                except BaseException:
                    self._lock.release()
                    raise
        except TimeoutError:
            return False
        return True
