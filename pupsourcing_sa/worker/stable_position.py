"""The stable position inside a node: published by the dispatcher, awaited by the processors."""

from __future__ import annotations

import asyncio

__all__ = ["StablePosition"]


class StablePosition:
    """The latest known stable position, which processors can wait for.

    It belongs to one event loop, on which no other code runs between the check of the value and the wait for the next.

    Attributes:
        value: the position. It grows while the server stays the same.
        server_identity: the server and database that the position was read from. A promoted standby that lacks the last
            commits issues lower positions again, so on another server the value starts over.
    """

    def __init__(self) -> None:
        self.value = 0
        self.server_identity: str | None = None
        self._moved = asyncio.Event()

    def publish(self, position: int, server_identity: str | None = None) -> bool:
        """Publish a position and wake all waiting processors. Return False, and do nothing, if it is not new."""
        if position <= self.value and server_identity == self.server_identity:
            return False
        self.value, self.server_identity = position, server_identity
        self.wake()
        return True

    async def beyond(
        self, position: int, stopping: asyncio.Event | None = None, *, server_identity: str | None = None
    ) -> int:
        """Wait until the stable position lies beyond this one, and return it.

        It also returns when the server has changed, or when the waiting processor is stopped.

        Args:
            position: the position up to which everything has been read.
            stopping: the caller's stop event. Call `wake` after setting it.
            server_identity: the server that ``position`` belongs to; ``None`` for any.
        """
        while (
            self.value <= position
            and server_identity in (None, self.server_identity)
            and not (stopping and stopping.is_set())
        ):
            await self._moved.wait()
        return self.value

    def wake(self) -> None:
        """Make all waiting processors check their conditions again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
