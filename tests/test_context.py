"""Ambient values of events: blocks, causes, tasks and threads, and the middleware for web applications."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pupsourcing_sa import Event, PersistedEvent, event_context
from pupsourcing_sa.context import (
    EventContextMiddleware,
    WSGIEventContextMiddleware,
    caused_by,
    current_event_context,
)

IDS = ("correlation_id", "causation_id", "trace_id")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def new_event(**values: Any) -> Event:
    return Event(aggregate_type="User", aggregate_id="u1", event_type="UserRegistered", payload={}, **values)


def ids(event: Event) -> tuple[str | None, ...]:
    return tuple(getattr(event, name) for name in IDS)


def test_events_have_the_values_of_the_innermost_block() -> None:
    with event_context(correlation_id="c1", metadata={"user": "ann", "ip": "::1"}):
        with event_context(causation_id="k", trace_id="t", metadata={"user": "bob"}) as context:
            event = new_event()
            assert ids(event) == ("c1", "k", "t")
            assert event.metadata == {"user": "bob", "ip": "::1"} == context.metadata
            given = new_event(correlation_id="c2", metadata={"user": "eve"})
            assert ids(given) == ("c2", "k", "t")
            assert given.metadata == {"user": "eve", "ip": "::1"}
            with event_context(inherit=False):
                assert ids(new_event()) == (None, None, None)
        assert ids(new_event()) == ("c1", None, None)
    assert ids(new_event()) == (None, None, None)
    assert not new_event().metadata


def test_a_block_that_fails_ends() -> None:
    with pytest.raises(KeyError), event_context(correlation_id="c1"):
        raise KeyError
    assert new_event().correlation_id is None


@pytest.mark.parametrize(("correlation_id", "expected"), [("c1", "c1"), (None, "event")])
def test_a_cause_gives_its_ids(correlation_id: str | None, expected: str) -> None:
    cause = PersistedEvent(
        global_position=1,
        aggregate_version=1,
        aggregate_type="Order",
        aggregate_id="o1",
        event_type="OrderPlaced",
        payload={},
        correlation_id=correlation_id,
        trace_id="t",
    )
    with event_context(metadata={"user": "ann"}), caused_by(cause):
        event = new_event()
        with event_context(trace_id="t2"):
            assert ids(new_event()) == (event.correlation_id, str(cause.event_id), "t2")
    assert ids(event) == (correlation_id or str(cause.event_id), str(cause.event_id), "t")
    assert not event.metadata


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"correlation_id": 5}, TypeError, "correlation_id must be a str"),
        ({"causation_id": ""}, ValueError, "causation_id must not be empty"),
        ({"trace_id": "a\0"}, ValueError, "trace_id must not contain NUL"),
        ({"metadata": [1]}, TypeError, "metadata must be a mapping"),
        ({"metadata": {"a": object()}}, TypeError, "metadata must be JSON"),
        ({"metadata": {"a": float("nan")}}, ValueError, "metadata must be JSON"),
    ],
)
def test_values_are_checked_at_the_block(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), event_context(**values):
        pass
    with event_context(metadata={"a": 1}), pytest.raises(TypeError, match="metadata must be a mapping"):
        new_event(metadata=[1])


def test_tasks_and_threads_have_contexts_of_their_own() -> None:
    found: list[str | None] = []

    async def work(name: str, barrier: asyncio.Barrier) -> str | None:
        with event_context(correlation_id=name):
            await barrier.wait()
            return new_event().correlation_id

    async def main() -> list[str | None]:
        barrier = asyncio.Barrier(3)
        return await asyncio.gather(*(work(name, barrier) for name in "abc"))

    assert asyncio.run(main()) == ["a", "b", "c"]
    with event_context(correlation_id="outer"):
        thread = threading.Thread(target=lambda: found.append(new_event().correlation_id))
        thread.start()
        thread.join()
    assert found in ([None], ["outer"])  # threads inherit the context with -X thread_inherit_context


# -- web applications ------------------------------------------------------------------------------------------


def asgi_values(headers: list[tuple[bytes, bytes]], **options: Any) -> tuple[str | None, ...]:
    found: list[tuple[str | None, ...]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(ids(new_event()))

    async def call() -> None:
        middleware = EventContextMiddleware(app, **options)
        await middleware({"type": "http", "headers": headers}, None, None)
        await middleware({"type": "lifespan"}, None, None)

    asyncio.run(call())
    request, lifespan = found
    assert lifespan == (None, None, None)
    return request


def wsgi_values(headers: list[tuple[bytes, bytes]], **options: Any) -> tuple[str | None, ...]:
    found: list[tuple[str | None, ...]] = []
    closed: list[tuple[str | None, ...]] = []

    def app(environ: Any, start_response: Any) -> Any:
        try:
            found.append(ids(new_event()))
            yield b"a"
            found.append(ids(new_event()))
            yield b"b"
        finally:
            closed.append(ids(new_event()))

    environ = {f"HTTP_{name.decode().upper().replace('-', '_')}": value.decode("latin-1") for name, value in headers}
    response: Any = WSGIEventContextMiddleware(app, **options)(environ, None)
    chunks = iter(response)
    assert next(chunks) == b"a"
    assert ids(new_event()) == (None, None, None), "the server runs between two chunks"
    assert list(chunks) == [b"b"]
    response.close()
    (request,) = {*found, *closed}
    assert len(found) == 2
    assert current_event_context().correlation_id is None
    return request


@pytest.mark.parametrize("values", [asgi_values, wsgi_values])
def test_a_request_gives_its_ids(values: Any) -> None:
    request = [(b"x-request-id", b"r1"), (b"traceparent", TRACEPARENT.encode())]
    assert values(request) == ("r1", None, "0af7651916cd43dd8448eb211c80319c")
    assert values([(b"x-correlation-id", b"c1")], header="X-Correlation-ID") == ("c1", None, None)


@pytest.mark.parametrize("values", [asgi_values, wsgi_values])
@pytest.mark.parametrize("request_id", [b"", b"a b", b"a" * 129, b"\xff", b"\x1b[2J"])
def test_an_unusable_request_id_is_replaced(values: Any, request_id: bytes) -> None:
    correlation_id, _, trace_id = values([(b"x-request-id", request_id), (b"traceparent", b"00-xyz")])
    assert len(correlation_id) == 36
    assert trace_id is None
