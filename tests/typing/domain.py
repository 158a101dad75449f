"""Event classes and typed consumers, for type checkers: what they accept, and what they must reject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventRegistry, EventStore, Recorded, TypedConsumer, event_context
from pupsourcing_sa.registry import Upcasted
from pupsourcing_sa.worker import Worker

events = EventRegistry()


@events.register("OrderPlaced", version=2, aliases={"OrderCreated"})
@dataclass(frozen=True)
class OrderPlaced:
    total: int


@events.register("OrderShipped")
@dataclass(frozen=True)
class OrderShipped:
    by: str


@events.upcast("OrderPlaced", from_version=1)
def with_total(old: dict[str, Any]) -> dict[str, Any]:
    return old | {"total": 0}


@events.upcast("OrderChanged", from_version=1)
def split(old: dict[str, Any]) -> list[Upcasted]:
    return [Upcasted("OrderShipped", 1, old)]


def total_of(order: OrderPlaced) -> int:
    return order.total  # the decorator keeps the class


orders = TypedConsumer("orders", events, partitions=4, coverage=OrderPlaced | OrderShipped)


@orders.handles(OrderPlaced)
def placed(session: Session, event: Recorded[OrderPlaced]) -> None:
    print(event.data.total + total_of(event.data))
    print(event.data.by)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


@orders.handles_batch(OrderShipped)
def shipped(session: Session, events: Sequence[Recorded[OrderShipped]]) -> None:
    print([event.data.by for event in events])


both = TypedConsumer("both", events)


@both.handles(OrderPlaced, OrderShipped)
async def either(session: AsyncSession, event: Recorded[OrderPlaced | OrderShipped]) -> None:
    data = event.data
    print(data.total if isinstance(data, OrderPlaced) else data.by)


def workers(engine: Engine, async_engine: AsyncEngine) -> list[Worker]:
    store = EventStore()
    return [
        Worker(sessionmaker(engine), store, [orders]),
        Worker(async_sessionmaker(async_engine), store, [both]),
    ]


wrong = TypedConsumer("wrong", events)


@wrong.handles(OrderPlaced)  # type: ignore[arg-type, type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
def of_another_class(session: Session, event: Recorded[OrderShipped]) -> None: ...


@wrong.handles(OrderPlaced)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
async def wrong_session(session: Session, event: Recorded[OrderPlaced]) -> None: ...


@wrong.handles(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
def not_a_coroutine(session: AsyncSession, event: Recorded[OrderPlaced]) -> None: ...


@wrong.handles(OrderPlaced, OrderShipped)  # type: ignore[arg-type, type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
def of_one_class_only(session: Session, event: Recorded[OrderPlaced]) -> None: ...


wrong.handles("OrderPlaced")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
TypedConsumer("wrong", events, partition=4)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def forgotten_await(session: AsyncSession, event: Recorded[OrderPlaced | OrderShipped]) -> None:
    with event_context(correlation_id="request"), event.as_cause():
        either(session, event)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
