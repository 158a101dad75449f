"""Typed consumers without a database: handlers, parts, runs, coverage, and refusals."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest

from pupsourcing_sa import Event, EventRegistry, PersistedEvent, Recorded, TypedConsumer, consumer
from pupsourcing_sa.consumer import Subscription
from pupsourcing_sa.errors import EventDecodingError, UnknownEventTypeError
from pupsourcing_sa.registry import Upcasted


@dataclass(frozen=True)
class Placed:
    total: int


@dataclass(frozen=True)
class Moved:
    city: str


@dataclass(frozen=True)
class Noted:
    text: str


class AsDict(TypedDict):
    total: int


def registry() -> EventRegistry:
    events = EventRegistry()
    events.register("Placed", version=2, aliases={"Created"})(Placed)
    events.upcast("Placed", from_version=1, into=())(lambda old: [])
    events.register("Moved")(Moved)
    events.register("Noted")(Noted)
    events.upcast("Changed", from_version=1, into={"Moved", "Noted"})(
        lambda old: [Upcasted("Moved", 1, {"city": old["city"]}), Upcasted("Noted", 1, {"text": old["text"]})]
    )
    return events


CALLS: list[Any] = []


def consumer_of(*, is_async: bool, **options: Any) -> TypedConsumer:
    """Return a consumer that notes what its handlers get."""
    orders = TypedConsumer("orders", registry(), **options)
    CALLS.clear()

    def note(kind: str, events: Any) -> None:
        cause = Event(aggregate_type="A", aggregate_id="a", event_type="E", payload={}).causation_id
        CALLS.append((kind, events.data if isinstance(events, PersistedEvent) else [e.data for e in events], cause))

    if is_async:

        @orders.handles(Placed)
        async def placed(session: Any, event: Recorded[Placed]) -> None:
            await asyncio.sleep(0)
            note("one", event)

        @orders.handles_batch(Moved)
        async def moved(session: Any, events: Sequence[Recorded[Moved]]) -> None:
            note("many", events)
    else:
        orders.handles(Placed)(lambda session, event: note("one", event))
        orders.handles_batch(Moved)(lambda session, events: note("many", events))
    return orders


def stored(position: int, event_type: str, payload: Any, version: int = 1, events: Any = None) -> PersistedEvent:
    return PersistedEvent(
        global_position=position,
        aggregate_version=1,
        aggregate_type="Order",
        aggregate_id="o1",
        event_type=event_type,
        event_version=version,
        payload=payload,
        registry=events,
    )


def run(orders: TypedConsumer, events: list[PersistedEvent]) -> None:
    result = orders.handle_batch(None, events)  # type: ignore[misc]
    if asyncio.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.parametrize("is_async", [False, True])
def test_each_handler_gets_the_events_of_its_classes_in_order(is_async: bool) -> None:
    orders = consumer_of(is_async=is_async)
    known = orders.registry
    first = stored(1, "Placed", {"total": 1}, 2, known)
    events = [
        first,
        stored(2, "Moved", {"city": "Bern"}, 1, known),
        stored(3, "Changed", {"city": "Basel", "text": "x"}, 1, known),  # the other part has no handler
        stored(4, "Placed", {}, 1, known),  # becomes no event
        stored(5, "Moved", {"city": "Chur"}, 1, known),
        stored(6, "Foreign", {}, 1, known),
        stored(7, "Created", {"total": 2}, 2, known),
    ]
    run(orders, events)
    calls = list(CALLS)
    assert calls == [
        ("one", Placed(1), str(first.event_id)),
        ("many", [Moved("Bern"), Moved("Basel"), Moved("Chur")], None),
        ("one", Placed(2), str(events[-1].event_id)),
    ]
    assert orders.event_types == {"Placed", "Created", "Moved", "Changed"}


def test_a_consumer_of_single_events_has_no_handler_of_batches() -> None:
    orders = TypedConsumer("orders", registry())
    got: list[Any] = []
    orders.handles(Moved, Noted)(lambda session, event: got.append(event.data))
    assert orders.handle_batch is None
    orders.handle(None, stored(1, "Changed", {"city": "Bern", "text": "x"}, 1, orders.registry))
    assert got == [Moved("Bern"), Noted("x")]


def test_an_undecodable_event_fails_alone() -> None:
    orders = TypedConsumer("orders", registry())
    orders.handles(Moved)(lambda session, event: None)
    with pytest.raises(EventDecodingError, match="event at 7"):
        orders.handle(None, stored(7, "Moved", {"city": 5}, 1, orders.registry))


def test_all_events_if_unknown_ones_are_errors() -> None:
    orders = consumer_of(is_async=False, unknown="raise", aggregate_types={"Order"})
    assert orders.event_types is None
    for event_type, payload, problem in (
        ("Foreign", {}, "'Foreign' is not registered"),
        ("Noted", {"text": "x"}, "'Noted' has no handler in consumer 'orders'"),
    ):
        with pytest.raises(UnknownEventTypeError, match=problem):
            orders.handle(None, stored(1, event_type, payload, 1, orders.registry))


def test_options_are_those_of_every_consumer() -> None:
    """An option that `consumer` gets later must be added to `TypedConsumer`, too."""
    expected = dict(inspect.signature(consumer).parameters)
    del expected["event_types"]  # derived from the classes
    assert expected.items() <= inspect.signature(TypedConsumer).parameters.items()
    options = {
        "partitions": 4,
        "batch_size": 7,
        "batch_bytes": 9,
        "max_attempts": 3,
        "isolation": "READ COMMITTED",
        "reacts": True,
    }
    assert {"name", "aggregate_types", *options} == expected.keys()
    orders = consumer_of(is_async=False, aggregate_types={"Order"}, **options)
    subscription = Subscription.of(orders)
    assert subscription.scope.partitions == options.pop("partitions")
    assert subscription.scope.aggregate_types == ("Order",)
    assert subscription.scope.event_types == ("Changed", "Created", "Moved", "Placed")
    assert {name: getattr(subscription, name) for name in options} == options


@pytest.mark.parametrize(
    ("coverage", "missing"), [(Placed | Moved, None), (Placed | Noted, "Noted"), (Moved, None), (None, None)]
)
def test_coverage_of_a_union(coverage: Any, missing: str | None) -> None:
    orders = consumer_of(is_async=False, coverage=coverage)
    if missing is None:
        Subscription.of(orders)
    else:
        with pytest.raises(TypeError, match=f"no handler of {missing}, which coverage= lists"):
            Subscription.of(orders)


def test_refusals() -> None:
    orders = consumer_of(is_async=False)
    with pytest.raises(ValueError, match="has a handler of Placed already"):
        orders.handles(Placed)
    for wrong in ("Placed", AsDict, Placed(1)):
        with pytest.raises(TypeError, match="needs event classes other than TypedDict"):
            orders.handles(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="needs an event class"):
        orders.handles()  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="handles\\(\\) decorates a function"):
        orders.handles(Noted)(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"must take \(session, event\)"):
        orders.handles(Noted)(lambda event: None)  # type: ignore[call-overload]

    async def coroutine(session: Any, event: Any) -> None: ...

    with pytest.raises(TypeError, match="both functions and coroutine functions"):
        orders.handles(Noted)(coroutine)

    def returns_coroutine(session: Any, event: Any) -> Any:
        found = coroutine(session, event)
        found.close()
        return found

    orders.handles(Noted)(returns_coroutine)
    with pytest.raises(TypeError, match="not a coroutine function. Declare it with async def"):
        orders.handle(None, stored(1, "Noted", {"text": "x"}, 1, orders.registry))
    with pytest.raises(TypeError, match="has no handler; decorate one"):
        Subscription.of(TypedConsumer("orders", registry()))
    foreign = TypedConsumer("orders", EventRegistry())
    foreign.handles(Placed)(lambda session, event: None)
    with pytest.raises(TypeError, match="Placed is not registered"):
        Subscription.of(foreign)
    with pytest.raises(TypeError, match="registry must be an EventRegistry"):
        TypedConsumer("orders", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown must be 'raw' or 'raise'"):
        TypedConsumer("orders", registry(), unknown="skip")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coverage must be a union of event classes"):
        TypedConsumer("orders", registry(), coverage=5)


def test_handlers_are_judged_as_those_of_every_consumer() -> None:
    """Calling a generator runs nothing. A callable object may be a coroutine function."""
    orders = consumer_of(is_async=False)

    @orders.handles(Noted)  # type: ignore[arg-type]
    def runs_nothing(session: Any, event: Any) -> Any:
        yield

    with pytest.raises(TypeError, match="must not be a generator"):
        orders.handle(None, stored(1, "Noted", {"text": "x"}, 1, orders.registry))

    class Callable:
        async def __call__(self, session: Any, event: Any) -> None:
            CALLS.append("called")

    deliveries = TypedConsumer("deliveries", orders.registry)
    deliveries.handles(Noted)(Callable())
    asyncio.run(deliveries.handle(None, stored(1, "Noted", {"text": "x"}, 1, orders.registry)))
    assert CALLS[-1] == "called"
