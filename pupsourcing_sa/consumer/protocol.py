"""The interface of a consumer."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pupsourcing_sa.event import PersistedEvent

__all__ = ["BatchConsumer", "Consumer", "Handler"]


class Handler(Protocol):
    """A function that handles one event: ``handle(session, event)``."""

    def __call__(self, session: Any, event: PersistedEvent, /) -> Any: ...


@runtime_checkable
class Consumer(Protocol):
    """An object that handles events one by one. `pupsourcing_sa.consumer` lists its optional attributes.

    ``handle`` must not commit or roll back. The worker commits, together with the checkpoint.
    """

    @property
    def name(self) -> str:
        """The name of the checkpoint. Never change it: under another name the consumer starts at the first event."""

    def handle(self, session: Any, event: PersistedEvent, /) -> Any:
        """Handle one event; write through the session."""


class BatchConsumer(Protocol):
    """An object that handles the events of a batch together."""

    @property
    def name(self) -> str:
        """The name of the checkpoint, as for a `Consumer`."""

    def handle_batch(self, session: Any, events: list[PersistedEvent], /) -> Any:
        """Handle one or more events in order; write through the session."""
