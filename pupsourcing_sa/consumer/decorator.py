"""The decorator that makes a function a consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pupsourcing_sa.consumer.subscription import IsolationLevel, Subscription
from pupsourcing_sa.event import PersistedEvent

__all__ = ["consumer"]


_Session = TypeVar("_Session")
_Result = TypeVar("_Result")


class _FunctionConsumer(Generic[_Session, _Result]):
    """A handler function with the attributes of a consumer. Calling it calls the function."""

    if TYPE_CHECKING:
        # An attribute at run time. As a method, it matches the protocols of consumers.
        def handle(self, session: _Session, event: PersistedEvent, /) -> _Result: ...

    def __init__(
        self,
        handle: Callable[[_Session, PersistedEvent], _Result],
        name: str,
        aggregate_types: Iterable[str] | None,
        event_types: Iterable[str] | None,
        partitions: int,
        batch_size: int | None,
        batch_bytes: int | None,
        max_attempts: int | None,
        isolation: IsolationLevel,
        reacts: bool,
    ) -> None:
        self.name = name
        self.aggregate_types = aggregate_types
        self.event_types = event_types
        self.partitions = partitions
        self.batch_size = batch_size
        self.batch_bytes = batch_bytes
        self.max_attempts = max_attempts
        self.isolation = isolation
        self.reacts = reacts
        vars(self)["handle"] = handle
        update_wrapper(self, handle)

    def __call__(self, session: _Session, event: PersistedEvent) -> _Result:
        return self.handle(session, event)

    def __repr__(self) -> str:
        return f"<consumer {self.name!r}>"


class _Decorator(Protocol):
    def __call__(
        self, handle: Callable[[_Session, PersistedEvent], _Result], /
    ) -> _FunctionConsumer[_Session, _Result]: ...


def consumer(
    name: str,
    *,
    aggregate_types: Iterable[str] | None = None,
    event_types: Iterable[str] | None = None,
    partitions: int = 1,
    batch_size: int | None = None,
    batch_bytes: int | None = None,
    max_attempts: int | None = None,
    isolation: IsolationLevel = "REPEATABLE READ",
    reacts: bool = False,
) -> _Decorator:
    """Make a handler function a consumer. You can still call it as a function.

    Args:
        name: name of the consumer's checkpoint. Never change it: under another name the consumer starts at the first
            event.
        aggregate_types: process only events of these aggregate types; by default all.
        event_types: process only events of these event types; by default all.
        partitions: number of partitions; an aggregate's partition is a hash of its id.
        batch_size: maximum number of events per transaction; by default the worker's setting.
        batch_bytes: maximum number of bytes of payloads and metadata per transaction; by default the worker's setting.
        max_attempts: number of failed attempts at an event after which its partition is parked; by default the worker
            retries the event until it succeeds.
        isolation: isolation level of a batch: ``"REPEATABLE READ"``, ``"SERIALIZABLE"``, or ``"READ COMMITTED"``, under
            which the handler may overwrite changes that other transactions make to the rows that it has read.
        reacts: True for a reaction, whose effects must not be repeated for old events, such as appends, orders and
            mails. It begins at the stable position at which a worker first declares it. By default a consumer begins at
            the first event.

    Raises:
        TypeError: an argument has the wrong type, or the decorated object is not a function.
        ValueError: an argument has an invalid value.

    >>> @consumer("user_count", aggregate_types={"User"})
    ... def user_count(session, event): ...
    >>> user_count.name
    'user_count'
    """
    if callable(name):
        raise TypeError("a consumer needs a name: write @consumer('user_count')")

    def decorate(handle: Callable[[_Session, PersistedEvent], _Result], /) -> _FunctionConsumer[_Session, _Result]:
        if not callable(handle) or isinstance(handle, type):
            raise TypeError(f"@consumer({name!r}) decorates a function, not {handle!r}; use it above a def")
        decorated = _FunctionConsumer(
            handle,
            name,
            aggregate_types,
            event_types,
            partitions,
            batch_size,
            batch_bytes,
            max_attempts,
            isolation,
            reacts,
        )
        # Report mistakes at import, not when the worker starts.
        Subscription.of(decorated)
        return decorated

    return decorate
