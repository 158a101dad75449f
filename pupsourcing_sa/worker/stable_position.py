"""The stable position as the processors see it: published by the dispatcher, waited for by everyone else."""

from __future__ import annotations

import asyncio

__all__ = ["StablePosition"]


class StablePosition:
    """A number that only grows, and a way to wait until it has.

    Used from one event loop, where nothing can happen between looking at the value and waiting for the next.

    Attributes:
        value: the number.
        origin: the server and database that it is true of. On another one, which has taken over without the last
            commits of the former, there are events still to come below it, and it begins anew from what it is there.
    """

    def __init__(self) -> None:
        self.value = 0
        self.origin: str | None = None
        self._moved = asyncio.Event()

    def publish(self, position: int, origin: str | None = None) -> bool:
        """Wake up everyone if the position has moved; an older value than the last one is still true and ignored."""
        if position <= self.value and origin == self.origin:
            return False
        self.value, self.origin = position, origin
        self.wake()
        return True

    async def beyond(self, position: int, stopping: asyncio.Event | None = None, *, origin: str | None = None) -> int:
        """The stable position, once it lies beyond this one, is another database's, or nobody is to wait any more.

        Args:
            position: what has been scanned.
            origin: of which database; ``None`` for any.
            stopping: set, and followed by `wake`, when this one is not to wait any more.
        """
        while self.value <= position and origin in (None, self.origin) and not (stopping and stopping.is_set()):
            await self._moved.wait()
        return self.value

    def wake(self) -> None:
        """Have everyone look again at what they wait for."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
