"""The benchmarks of event classes.

**Append.** Each operation makes objects of a registered class and appends them. The baseline makes `Event` objects with
the same payloads as dictionaries, and appends them.

**Decode.** The events are a page of the log in memory, of five types. The store's side gets ``data`` of each event. The
baseline calls the decoder of msgspec for each payload, found by its type in a dictionary. An older version has an
upcaster, whose work the baseline does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy.orm import Session

from pupsourcing_sa import Event, EventRegistry, EventStore, NoStream, PersistedEvent
from tests.benchmarks.cases import Case, Database, Side, store

__all__ = ["TYPED_CASES"]

_DECODED = 500
_registry = EventRegistry()


@dataclass(frozen=True, slots=True)
class _Money:
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class _Line:
    sku: str
    quantity: int
    price: _Money


@_registry.register("UserRegistered")
@dataclass(frozen=True, slots=True)
class _UserRegistered:
    user_id: UUID
    name: str
    newsletter: bool = False


@_registry.register("OrderPlaced", version=2)
@dataclass(frozen=True, slots=True)
class _OrderPlaced:
    order_id: UUID
    lines: list[_Line]
    currency: str


@_registry.upcast("OrderPlaced", from_version=1)
def _(old: dict[str, Any]) -> dict[str, Any]:
    return old | {"currency": "EUR"}


@_registry.register("PaymentReceived")
@dataclass(frozen=True, slots=True)
class _PaymentReceived:
    order_id: UUID
    amount: _Money
    method: str | None = None


@_registry.register("CustomerEdited")
@dataclass(frozen=True, slots=True)
class _CustomerEdited:
    old: dict[str, str]
    new: dict[str, str]


@_registry.register("StockCounted")
@dataclass(frozen=True, slots=True)
class _StockCounted:
    counts: dict[str, int] = field(default_factory=dict)
    shelves: frozenset[str] = frozenset()


_typed_store = EventStore(store.tables, registry=_registry)


def _order() -> _OrderPlaced:
    lines = [_Line("PUP-4711-BLUE-XL", number, _Money(4990, "EUR")) for number in (1, 2)]
    return _OrderPlaced(uuid4(), lines, "EUR")


def _append(size: int, database: Database) -> tuple[Side, Side]:
    def typed(given: tuple[str, list[_OrderPlaced]]) -> int:
        with Session(database.engine) as session:
            _typed_store.append(session, NoStream(), given[1], aggregate=("Order", given[0]))
            session.commit()
        return size

    def raw(given: tuple[str, list[dict[str, Any]]]) -> int:
        events = [
            Event(aggregate_type="Order", aggregate_id=given[0], event_type="OrderPlaced", event_version=2, payload=one)
            for one in given[1]
        ]
        with Session(database.engine) as session:
            store.append(session, NoStream(), events)
            session.commit()
        return size

    def objects(count: int) -> Sequence[Any]:
        return [(str(uuid4()), [_order() for _ in range(size)]) for _ in range(count)]

    def payloads(count: int) -> Sequence[Any]:
        return [(name, [_plain(order) for order in orders]) for name, orders in objects(count)]

    return Side(objects, typed), Side(payloads, raw)


def _plain(order: _OrderPlaced) -> dict[str, Any]:
    return asdict(order) | {"order_id": str(order.order_id)}


def _decode(database: Database) -> tuple[Side, Side]:
    money, key = _Money(4990, "EUR"), uuid4()
    objects: list[Any] = [
        _UserRegistered(key, "Ann"),
        _order(),
        _PaymentReceived(key, money, "card"),
        _CustomerEdited({"city": "Delft"}, {"city": "Leiden"}),
        _StockCounted({"a": 1, "b": 2}, frozenset({"17-B-42", "17-B-43"})),
    ]
    encoded = [_registry.encode(one) for one in objects]
    decoders = {name: msgspec.json.Decoder(type(one)).decode for (name, *_), one in zip(encoded, objects, strict=True)}
    rows = [
        PersistedEvent(
            global_position=number + 1,
            aggregate_version=number + 1,
            aggregate_type="Order",
            aggregate_id="o1",
            event_type=one.event_type,
            event_version=one.event_version,
            payload=one.payload,
            registry=_registry,
        )
        for number, one in enumerate(encoded * (_DECODED // len(encoded)))
    ]
    values = [event._row for event in rows]

    def fresh(count: int) -> list[list[PersistedEvent]]:
        return [PersistedEvent.from_rows(values, _registry) for _ in range(min(count, 200))]

    def typed(events: list[PersistedEvent]) -> int:
        count = len([event.data for event in events])
        events.clear()  # the events keep their data, which the garbage collector would visit in all later pages
        return count

    def bare(events: list[PersistedEvent]) -> int:
        return len([decoders[event._row[5]](event._row[7]) for event in events])

    return Side(fresh, typed), Side(fresh, bare)


TYPED_CASES: dict[str, Case] = {
    "event classes, append 1 event": Case(partial(_append, 1)),
    "event classes, append 10 events": Case(partial(_append, 10), goal=0.87),
    "event classes, decode five types": Case(_decode, goal=0.67),
}
