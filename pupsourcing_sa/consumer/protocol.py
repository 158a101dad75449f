"""The interface of a consumer."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from pupsourcing_sa.event import PersistedEvent

__all__ = ["AsyncConsumer", "BatchConsumer", "Consumer", "Handler", "SyncConsumer"]

_Session_contra = TypeVar("_Session_contra", contravariant=True)


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


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _HandlesEvents(_Named, Protocol[_Session_contra]):
    def handle(self, session: _Session_contra, event: PersistedEvent, /) -> None: ...


class _HandlesBatches(_Named, Protocol[_Session_contra]):
    def handle_batch(self, session: _Session_contra, events: list[PersistedEvent], /) -> None: ...


class _AwaitsEvents(_Named, Protocol[_Session_contra]):
    def handle(self, session: _Session_contra, event: PersistedEvent, /) -> Awaitable[None]: ...


class _AwaitsBatches(_Named, Protocol[_Session_contra]):
    def handle_batch(self, session: _Session_contra, events: list[PersistedEvent], /) -> Awaitable[None]: ...


#: A consumer whose handler is a function that takes a session of this class.
SyncConsumer: TypeAlias = _HandlesEvents[_Session_contra] | _HandlesBatches[_Session_contra]
#: A consumer whose handler is a coroutine function that takes a session of this class.
AsyncConsumer: TypeAlias = _AwaitsEvents[_Session_contra] | _AwaitsBatches[_Session_contra]
