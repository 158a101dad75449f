"""Consumers: what a user writes to follow the log.

A consumer is any object with a ``name`` and a ``handle``, or a function made one by `consumer`. The worker calls it
with a session and an event; what it writes through that session is committed together with the consumer's checkpoint.

Optional attributes of a consumer:

==================  ==================================================================================================
``aggregate_types``  only events of these types of aggregate; absent or empty means all
``event_types``      only events of these types; absent or empty means all
``partitions``       into how many shares the aggregates are split by the hash of their id, 1 by default; each share
                     keeps a checkpoint of its own, and one share at a time keeps the order of an aggregate's events
``handle_batch``     called with a list of events instead of ``handle`` with each, also where there are both
``batch_size``       at most so many events are handled in one transaction; otherwise what the worker's settings say
``max_attempts``     after so many failed attempts at an event its partition is parked: it stands still until somebody
                     has dealt with the event. Otherwise it is tried again for ever
==================  ==================================================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_names, check_text
from pupsourcing_sa.event import PersistedEvent

__all__ = ["BatchConsumer", "Consumer", "Handler", "Scope", "Subscription", "consumer"]

_LONGEST_NAME: Final = 255
_MAX_PARTITIONS: Final = 2**15


class Handler(Protocol):
    """A function that handles one event: ``handle(session, event)``."""

    def __call__(self, session: Any, event: PersistedEvent, /) -> Any: ...


@runtime_checkable
class Consumer(Protocol):
    """What the worker needs of a consumer; the module's documentation lists what else it may have.

    ``handle`` must not commit or roll back: the worker does, together with the checkpoint.
    """

    @property
    def name(self) -> str:
        """Names the checkpoint; it must stay the same for ever."""

    def handle(self, session: Any, event: PersistedEvent, /) -> Any:
        """Handle one event, writing through the session."""


class BatchConsumer(Protocol):
    """A consumer that gets the events of a batch together, instead of one after the other."""

    @property
    def name(self) -> str:
        """As that of a `Consumer`."""

    def handle_batch(self, session: Any, events: list[PersistedEvent], /) -> Any:
        """Handle one or more events, in their order, writing through the session."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which events a consumer wants: everything that is not ``None`` must match.

    Attributes:
        aggregate_types: types of aggregate, or ``None`` for all.
        event_types: types of event, or ``None`` for all.
        correlation_id: only events with it, or ``None`` for all.
        partitions: into how many shares the aggregates are split.
        partition: which of the shares, from 0.
    """

    aggregate_types: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None
    correlation_id: str | None = None
    partitions: int = 1
    partition: int = 0

    @classmethod
    def of(
        cls,
        *,
        aggregate_types: Iterable[str] | None = None,
        event_types: Iterable[str] | None = None,
        correlation_id: str | None = None,
    ) -> Scope:
        """A scope from what a caller gives: any iterable of names, where none and empty mean all.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named.
        """
        check_text("correlation_id", correlation_id, is_optional=True)
        return cls(
            check_names("aggregate_types", aggregate_types), check_names("event_types", event_types), correlation_id
        )


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer as the worker sees it: checked, with every default filled in."""

    name: str
    scope: Scope
    handle: Callable[[Any, PersistedEvent], Any] | None
    handle_batch: Callable[[Any, Sequence[PersistedEvent]], Any] | None
    batch_size: int | None = None
    max_attempts: int | None = None

    @classmethod
    def of(cls, consumer: object) -> Subscription:
        """Check a consumer.

        Raises:
            TypeError: it lacks a name or a handler, or an attribute has the wrong type.
            ValueError: an attribute has an impossible value.
        """
        if isinstance(consumer, type):
            raise TypeError(
                f"a consumer must be an object, not the class {consumer.__name__}; write {consumer.__name__}()"
            )
        name = getattr(consumer, "name", None)
        if not isinstance(name, str):
            raise TypeError(
                f"{consumer!r} is no consumer: it needs a name; a function becomes one by @consumer('name')"
            )
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(
                f"the name of a consumer must have 1 to {_LONGEST_NAME} printable characters, not {name!r:.80}"
            )
        handle, handle_batch = getattr(consumer, "handle", None), getattr(consumer, "handle_batch", None)
        if not callable(handle_batch) and not callable(handle):
            raise TypeError(f"consumer {name!r} needs a method handle(session, event) or handle_batch(session, events)")
        if callable(handle_batch):
            _check_parameters(name, handle_batch, "session, events")
        else:
            _check_parameters(name, handle, "session, event")
        partitions = _integer(consumer, name, "partitions", 1, maximum=_MAX_PARTITIONS)
        scope = Scope.of(
            aggregate_types=getattr(consumer, "aggregate_types", None),
            event_types=getattr(consumer, "event_types", None),
        )
        return cls(
            name,
            replace(scope, partitions=partitions),
            handle,
            handle_batch,
            batch_size=_integer(consumer, name, "batch_size", None),
            max_attempts=_integer(consumer, name, "max_attempts", None),
        )


def _check_parameters(name: str, handler: Any, expected: str) -> None:
    """See that it can be called, now and not with the first event, whose failure it would be."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # something of C that does not tell
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(f"the handler of consumer {name!r} must take ({expected}), not {signature}: {error}") from error


_Default = TypeVar("_Default", int, None)


def _integer(
    consumer: object, name: str, attribute: str, default: _Default, *, maximum: int = MAX_INTEGER
) -> int | _Default:
    """An attribute of a consumer that is a number from 1; ``None`` is allowed where it is the default."""
    value = getattr(consumer, attribute, default)
    check_int(f"{attribute} of consumer {name!r}", value, minimum=1, maximum=maximum, is_optional=default is None)
    return value


class _FunctionConsumer:
    """A handler function with what makes it a consumer; calling it calls the function."""

    def __init__(
        self,
        handle: Handler,
        name: str,
        aggregate_types: Iterable[str] | None,
        event_types: Iterable[str] | None,
        partitions: int,
        batch_size: int | None,
        max_attempts: int | None,
    ) -> None:
        self.name = name
        self.aggregate_types = aggregate_types
        self.event_types = event_types
        self.partitions = partitions
        self.batch_size = batch_size
        self.max_attempts = max_attempts
        self.handle = handle
        update_wrapper(self, handle)

    def __call__(self, session: Any, event: PersistedEvent) -> Any:
        return self.handle(session, event)

    def __repr__(self) -> str:
        return f"<consumer {self.name!r}>"


def consumer(
    name: str,
    *,
    aggregate_types: Iterable[str] | None = None,
    event_types: Iterable[str] | None = None,
    partitions: int = 1,
    batch_size: int | None = None,
    max_attempts: int | None = None,
) -> Callable[[Handler], _FunctionConsumer]:
    """Make a consumer of a handler function.

    Args:
        name: names the consumer's checkpoint; it must stay the same for ever.
        aggregate_types: only events of these types of aggregate; all by default.
        event_types: only events of these types; all by default.
        partitions: into how many shares the aggregates are split, 1 or more.
        batch_size: at most so many events are handled in one transaction, 1 or more; as the worker's settings say by
            default.
        max_attempts: after so many failed attempts at an event its partition is parked, 1 or more; by default the event
            is tried again for ever.

    Raises:
        TypeError: an argument has the wrong type, or what is decorated is not a function.
        ValueError: an argument has an impossible value.

    The result can still be called like the function.

    >>> @consumer("user_count", aggregate_types={"User"})
    ... def user_count(session, event): ...
    >>> user_count.name
    'user_count'
    """
    if callable(name):
        raise TypeError("a consumer needs a name: write @consumer('user_count')")

    def decorate(handle: Handler) -> _FunctionConsumer:
        if not callable(handle) or isinstance(handle, type):
            raise TypeError(f"@consumer({name!r}) decorates a function, not {handle!r}")
        made = _FunctionConsumer(handle, name, aggregate_types, event_types, partitions, batch_size, max_attempts)
        Subscription.of(made)
        return made

    return decorate
