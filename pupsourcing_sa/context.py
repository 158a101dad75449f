"""Ambient values for events: the ids that connect an event with the request or the event that caused it.

`event_context` sets them for a block. Every `Event` that is created in the block has them, unless it gets others. The
worker sets them around each handler, so events that a handler appends carry their cause. Web applications use
`EventContextMiddleware` (ASGI) or `WSGIEventContextMiddleware`.

The values belong to the current thread or task, as `contextvars` define it. Threads that you start do not inherit them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

from pupsourcing_sa._checks import check_text, check_type

__all__ = [
    "NO_CONTEXT",
    "EventContext",
    "EventContextMiddleware",
    "WSGIEventContextMiddleware",
    "caused_by",
    "causes",
    "current_event_context",
    "event_context",
]

_NO_METADATA: Final[Mapping[str, Any]] = MappingProxyType({})


class _Cause(Protocol):
    """The event that caused others; a `PersistedEvent`."""

    @property
    def event_id(self) -> UUID: ...
    @property
    def correlation_id(self) -> str | None: ...
    @property
    def trace_id(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class EventContext:
    """Values that new events have by default.

    Attributes:
        correlation_id: as for `Event`.
        causation_id: as for `Event`.
        trace_id: as for `Event`.
        metadata: merged into the metadata of events; the values of an event win.
    """

    correlation_id: str | None = None
    causation_id: str | None = None
    trace_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NO_METADATA)


#: The context outside of all blocks.
NO_CONTEXT: Final = EventContext()
#: The worker sets an event for each handler. Its ids are decoded only if the handler creates an event.
_current: ContextVar[EventContext | _Cause] = ContextVar("pupsourcing_sa.event_context", default=NO_CONTEXT)


def current_event_context() -> EventContext:
    """Return the default values of an event that is created here."""
    current = _current.get()
    if isinstance(current, EventContext):
        return current
    event_id = str(current.event_id)
    return EventContext(current.correlation_id or event_id, event_id, current.trace_id)


@contextmanager
def event_context(
    *,
    correlation_id: str | None = None,
    causation_id: str | None = None,
    trace_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    inherit: bool = True,
) -> Iterator[EventContext]:
    """Set default values of events for a block. Blocks may be nested.

    Args:
        correlation_id: id of the request or process that the events belong to.
        causation_id: id of the command or event that causes the events.
        trace_id: id of the trace.
        metadata: merged into the metadata of the events, which win.
        inherit: keep the values of the surrounding block that are not given here.

    Returns:
        The values that apply in the block.

    Raises:
        TypeError, ValueError: a value cannot be stored. The message names the argument.

    >>> from pupsourcing_sa import Event
    >>> with event_context(correlation_id="request-1", metadata={"user": "ann"}):
    ...     event = Event(aggregate_type="User", aggregate_id="u1", event_type="UserRegistered", payload={})
    >>> event.correlation_id, dict(event.metadata)
    ('request-1', {'user': 'ann'})
    """
    base = current_event_context() if inherit else NO_CONTEXT
    given = {"correlation_id": correlation_id, "causation_id": causation_id, "trace_id": trace_id}
    values: dict[str, Any] = {name: check_text(name, value) for name, value in given.items() if value is not None}
    if metadata is not None:
        check_type("metadata", metadata, Mapping, "a mapping")
        _check_json(metadata)
        values["metadata"] = MappingProxyType({**base.metadata, **metadata})
    context = replace(base, **values)
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def _check_json(metadata: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"metadata must be JSON: {error}") from None


@contextmanager
def caused_by(event: _Cause) -> Iterator[None]:
    """Make an event the cause of the events that are created in the block.

    They get its id as ``causation_id``, its ``trace_id``, and its ``correlation_id`` or, if it has none, its id.
    """
    token = _current.set(event)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def causes() -> Iterator[Callable[[_Cause], object]]:
    """Return a function that makes an event the cause of the events that are created until the next call.

    This is `caused_by` for one event after the other, without a block for each. In the block, events have no other
    default values.
    """
    token = _current.set(NO_CONTEXT)
    try:
        yield _current.set
    finally:
        _current.reset(token)


# -- web applications ------------------------------------------------------------------------------------------

_ASGIApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
_WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]

#: Headers are written by clients. Other values are replaced by a new id.
_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def _from_headers(request_id: str, traceparent: str) -> EventContext:
    trace = _TRACEPARENT.fullmatch(traceparent)
    return EventContext(
        correlation_id=request_id if _ID.fullmatch(request_id) else str(uuid4()),
        trace_id=None if trace is None else trace[1],
    )


class EventContextMiddleware:
    """ASGI middleware that sets an `event_context` for each request and each WebSocket connection.

    Args:
        app: the application.
        header: the header with the request's id, which becomes the ``correlation_id``. Without it, or with an id that
            is longer than 128 characters or not printable ASCII, the request gets a new UUID.

    The ``trace_id`` is taken from the header ``traceparent``, if there is one.
    """

    def __init__(self, app: _ASGIApp, header: str = "X-Request-ID") -> None:
        self._app = app
        self._header = header.lower().encode("ascii")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        token = _current.set(_from_headers(headers.get(self._header, ""), headers.get(b"traceparent", "")))
        try:
            await self._app(scope, receive, send)
        finally:
            _current.reset(token)


class WSGIEventContextMiddleware:
    """WSGI middleware that sets an `event_context` for each request, as `EventContextMiddleware` does.

    Args:
        app: the application.
        header: the header with the request's id.
    """

    def __init__(self, app: _WSGIApp, header: str = "X-Request-ID") -> None:
        self._app = app
        self._header = f"HTTP_{header.upper().replace('-', '_')}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        values = _from_headers(environ.get(self._header, ""), environ.get("HTTP_TRACEPARENT", ""))
        context = copy_context()

        def begin() -> Iterable[bytes]:
            _current.set(values)
            return self._app(environ, start_response)

        return _Response(context.run(begin), context)


class _Response:
    """The response, which may be produced by a generator. Each step of it runs in the request's context."""

    def __init__(self, response: Iterable[bytes], context: Context) -> None:
        self._response = response
        self._context = context

    def __iter__(self) -> Iterator[bytes]:
        chunks = self._context.run(iter, self._response)
        while (chunk := self._context.run(next, chunks, None)) is not None:
            yield chunk

    def close(self) -> None:
        close = getattr(self._response, "close", None)
        if close is not None:
            self._context.run(close)
