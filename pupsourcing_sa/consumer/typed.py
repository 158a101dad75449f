"""Consumers of event classes: each handler receives the events of its classes.

The event types of the consumer are derived from the classes of its handlers. They include the aliases of each class,
and every stored type whose upcasters may return it. Otherwise old events would never arrive, and nothing would report
it.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import groupby
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, Union, overload

from pupsourcing_sa._checks import check_type
from pupsourcing_sa.consumer.handlers import check_parameters, is_coroutine_function, refuse_awaitable
from pupsourcing_sa.errors import UnknownEventTypeError
from pupsourcing_sa.event import PersistedEvent, Recorded
from pupsourcing_sa.registry import EventRegistry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from pupsourcing_sa.consumer.subscription import IsolationLevel

__all__ = ["TypedConsumer"]

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_D = TypeVar("_D")
_E = TypeVar("_E")
_Session = TypeVar("_Session", bound="Session")
_AsyncSession = TypeVar("_AsyncSession", bound="AsyncSession")


class _Decorator(Protocol[_E]):
    """A decorator that returns the function, and accepts only a handler of these events."""

    @overload
    def __call__(
        self, handler: Callable[[_AsyncSession, Recorded[_E]], Coroutine[Any, Any, None]], /
    ) -> Callable[[_AsyncSession, Recorded[_E]], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(
        self, handler: Callable[[_Session, Recorded[_E]], None], /
    ) -> Callable[[_Session, Recorded[_E]], None]: ...


class _BatchDecorator(Protocol[_E]):
    """The decorator of handlers of several events; see `_Decorator`."""

    @overload
    def __call__(
        self, handler: Callable[[_AsyncSession, Sequence[Recorded[_E]]], Coroutine[Any, Any, None]], /
    ) -> Callable[[_AsyncSession, Sequence[Recorded[_E]]], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(
        self, handler: Callable[[_Session, Sequence[Recorded[_E]]], None], /
    ) -> Callable[[_Session, Sequence[Recorded[_E]]], None]: ...


class _Handler(typing.NamedTuple):
    function: Callable[[Any, Any], Any]
    is_of_batch: bool


class TypedConsumer:
    """A consumer with a handler for each event class. Its handlers are functions or coroutine functions, not both.

    Args:
        name: name of the consumer's checkpoint, as for `consumer`.
        registry: the event classes; the registry of the store that the worker reads.
        aggregate_types: process only events of these aggregate types; by default all.
        partitions, batch_size, batch_bytes, max_attempts, isolation, reacts: as for `consumer`.
        unknown: ``"raw"`` to receive only the events that a handler may get; ``"raise"`` to receive all events of the
            aggregate types, and to fail at one that no handler gets.
        coverage: a union of event classes. The worker refuses the consumer if one of them has no handler.

    Raises:
        TypeError, ValueError: an argument is invalid.

    >>> from dataclasses import dataclass
    >>> from pupsourcing_sa import EventRegistry, Recorded
    >>> events = EventRegistry()
    >>> @events.register("OrderPlaced")
    ... @dataclass(frozen=True)
    ... class OrderPlaced:
    ...     total: int
    >>> orders = TypedConsumer("orders", events)
    >>> @orders.handles(OrderPlaced)
    ... def placed(session, event: Recorded[OrderPlaced]) -> None:
    ...     print(event.data.total)
    >>> orders.event_types
    frozenset({'OrderPlaced'})
    """

    def __init__(
        self,
        name: str,
        registry: EventRegistry,
        *,
        aggregate_types: Iterable[str] | None = None,
        partitions: int = 1,
        batch_size: int | None = None,
        batch_bytes: int | None = None,
        max_attempts: int | None = None,
        isolation: IsolationLevel = "REPEATABLE READ",
        reacts: bool = False,
        unknown: Literal["raw", "raise"] = "raw",
        coverage: Any = None,
    ) -> None:
        check_type("name", name, str, "a str")
        check_type("registry", registry, EventRegistry, "an EventRegistry")
        if unknown not in ("raw", "raise"):
            raise ValueError(f"unknown must be 'raw' or 'raise', not {unknown!r}")
        self.name = name
        self.registry = registry
        self.aggregate_types = aggregate_types
        self.partitions = partitions
        self.batch_size = batch_size
        self.batch_bytes = batch_bytes
        self.max_attempts = max_attempts
        self.isolation = isolation
        self.reacts = reacts
        self._unknown = unknown
        self._coverage = () if coverage is None else _classes_of(coverage)
        self._handlers: dict[type[Any], _Handler] = {}
        self._is_async: bool | None = None

    # -- handlers ----------------------------------------------------------------------------------------------

    @overload
    def handles(self, a: type[_A], /) -> _Decorator[_A]: ...
    @overload
    def handles(self, a: type[_A], b: type[_B], /) -> _Decorator[_A | _B]: ...
    @overload
    def handles(self, a: type[_A], b: type[_B], c: type[_C], /) -> _Decorator[_A | _B | _C]: ...
    @overload
    def handles(self, a: type[_A], b: type[_B], c: type[_C], d: type[_D], /) -> _Decorator[_A | _B | _C | _D]: ...
    def handles(self, *classes: type[Any]) -> Any:
        """Register a handler of one event. This is a decorator that returns the function.

        Args:
            classes: the classes of the events that the handler gets.

        Raises:
            TypeError: an argument is no class, or there is none; the function does not take (session, event), or the
                consumer has both functions and coroutine functions.
            ValueError: a class has a handler already.
        """
        return self._decorator(classes, is_of_batch=False)

    @overload
    def handles_batch(self, a: type[_A], /) -> _BatchDecorator[_A]: ...
    @overload
    def handles_batch(self, a: type[_A], b: type[_B], /) -> _BatchDecorator[_A | _B]: ...
    @overload
    def handles_batch(self, a: type[_A], b: type[_B], c: type[_C], /) -> _BatchDecorator[_A | _B | _C]: ...
    @overload
    def handles_batch(
        self, a: type[_A], b: type[_B], c: type[_C], d: type[_D], /
    ) -> _BatchDecorator[_A | _B | _C | _D]: ...
    def handles_batch(self, *classes: type[Any]) -> Any:
        """Register a handler of several events. It is called once for each run of consecutive events of its classes.

        Args:
            classes: the classes of the events that the handler gets.

        Raises:
            TypeError, ValueError: as for `handles`.
        """
        return self._decorator(classes, is_of_batch=True)

    def _decorator(self, classes: tuple[type[Any], ...], *, is_of_batch: bool) -> Callable[[Any], Any]:
        if not classes:
            raise TypeError("handles() needs an event class, as in @orders.handles(OrderPlaced)")
        for cls in classes:
            if not isinstance(cls, type) or typing.is_typeddict(cls):
                raise TypeError(f"handles() needs event classes other than TypedDict, not {cls!r}")
            if cls in self._handlers:
                raise ValueError(f"consumer {self.name!r} has a handler of {cls.__qualname__} already")

        def decorate(function: Any) -> Any:
            if not callable(function) or isinstance(function, type):
                raise TypeError(f"handles() decorates a function, not {function!r}")
            expected = "session, events" if is_of_batch else "session, event"
            check_parameters(f"the handler {function!r}", function, expected)
            is_async = is_coroutine_function(function)
            if self._is_async not in (None, is_async):
                raise TypeError(
                    f"consumer {self.name!r} has both functions and coroutine functions as handlers; use one kind, as "
                    "the worker's session has one kind"
                )
            self._is_async = is_async
            self._handlers |= dict.fromkeys(classes, _Handler(function, is_of_batch))
            return function

        return decorate

    # -- as a consumer -----------------------------------------------------------------------------------------

    @property
    def event_types(self) -> frozenset[str] | None:
        """The stored types of the events that it receives; ``None`` for all.

        Raises:
            TypeError: there is no handler, one of a class that is not registered, or none of a class in ``coverage``.
            ValueError: the registry is incomplete.
        """
        if not self._handlers:
            raise TypeError(f"consumer {self.name!r} has no handler; decorate one with handles()")
        missing = [cls.__qualname__ for cls in self._coverage if cls not in self._handlers]
        if missing:
            raise TypeError(f"consumer {self.name!r} has no handler of {', '.join(missing)}, which coverage= lists")
        types = self.registry.stored_types(*self._handlers)
        return None if self._unknown == "raise" else types

    if TYPE_CHECKING:
        # A property at run time. As a method, it matches the protocols of consumers.
        def handle(self, session: Any, event: PersistedEvent, /) -> Any: ...

    else:

        @property
        def handle(self) -> Callable[[Any, PersistedEvent], Any]:
            """The handler of one event, for the worker and for tests."""
            return self._handle_async if self._is_async else self._handle

    @property
    def handle_batch(self) -> Callable[[Any, Sequence[PersistedEvent]], Any] | None:
        """The handler of a batch; ``None`` if every handler gets one event."""
        if not any(handler.is_of_batch for handler in self._handlers.values()):
            return None
        return self._handle_batch_async if self._is_async else self._handle_batch

    def __repr__(self) -> str:
        return f"<TypedConsumer {self.name!r}>"

    def _handle(self, session: Any, event: PersistedEvent) -> None:
        for part, handler in self._parts(event):
            refuse_awaitable(handler.function, handler.function(session, part))

    async def _handle_async(self, session: Any, event: PersistedEvent) -> None:
        for part, handler in self._parts(event):
            await handler.function(session, part)

    def _handle_batch(self, session: Any, events: Sequence[PersistedEvent]) -> None:
        for handler, run in self._runs(events):
            if handler.is_of_batch:
                refuse_awaitable(handler.function, handler.function(session, run))
                continue
            for part in run:
                with part.as_cause():
                    refuse_awaitable(handler.function, handler.function(session, part))

    async def _handle_batch_async(self, session: Any, events: Sequence[PersistedEvent]) -> None:
        for handler, run in self._runs(events):
            if handler.is_of_batch:
                await handler.function(session, run)
                continue
            for part in run:
                with part.as_cause():
                    await handler.function(session, part)

    def _runs(self, events: Sequence[PersistedEvent]) -> Iterator[tuple[_Handler, list[PersistedEvent]]]:
        """Group consecutive events of one handler."""
        parts = (pair for event in events for pair in self._parts(event))
        for handler, run in groupby(parts, key=lambda pair: pair[1]):
            yield handler, [part for part, _ in run]

    def _parts(self, event: PersistedEvent) -> Iterator[tuple[PersistedEvent, _Handler]]:
        """Return the parts of an event that have a handler, with their handlers."""
        if event.is_raw and self._unknown == "raw":
            return
        for part in event.parts():
            handler = self._handlers.get(type(part.data))
            if handler is not None:
                yield part, handler
            elif self._unknown == "raise":
                raise UnknownEventTypeError(part.event_type, is_retired=False, consumer=self.name)


def _classes_of(union: Any) -> tuple[type[Any], ...]:
    """Return the classes of a union, or the class that is given instead."""
    classes = typing.get_args(union) if typing.get_origin(union) in (Union, UnionType) else (union,)
    for cls in classes:
        check_type("coverage", cls, type, "a union of event classes")
    return classes
