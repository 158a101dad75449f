"""The worker of the scenarios: ``pupsourcing-sa worker tests.scenarios.application:make_worker``.

Its consumers record each event that they apply, with the node, so that tests can query the database afterwards. An
event may be an *order* to a consumer: it determines what happens in the middle of the batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from pupsourcing_sa import EventStore, PersistedEvent
from pupsourcing_sa.worker import Worker, WorkerConfig
from tests.scenarios import pooler

__all__ = ["CHANNEL", "GATE", "ORDER", "REACHED", "VARIABLE", "Follows", "NodeSettings", "Order", "make_worker"]

#: The environment variable with the `NodeSettings`, as JSON.
VARIABLE: Final = "SCENARIO_NODE"
#: The channel that appends notify.
CHANNEL: Final = "scenario"
#: The event type of orders.
ORDER: Final = "Ordered"
#: Keys of advisory locks that a handler takes in shared mode. The first one waits until the test releases it.
GATE: Final = 1
#: The second one only shows that the handler has reached it.
REACHED: Final = 2

_APPLIED: Final = text(
    "INSERT INTO applied (consumer, node, position, aggregate_id, version)"
    " VALUES (:consumer, :node, :position, :aggregate_id, :version)"
)
_BEFORE: Final = {
    "wait": text(f"SELECT pg_advisory_xact_lock_shared({GATE}) IS NOT NULL"),
    "hang": text(f"SELECT pg_advisory_xact_lock_shared({REACHED}) IS NOT NULL"),
    "block": text(f"SELECT pg_advisory_xact_lock_shared({REACHED}) IS NOT NULL"),
    "fail": text("SELECT EXISTS (SELECT FROM healed)"),
    "die": text("SELECT true"),
}


@dataclass(frozen=True, kw_only=True)
class Follows:
    """Options of a consumer. One that handles ``by_batch`` ignores all orders but those to die."""

    partitions: int = 1
    by_batch: bool = False
    max_attempts: int | None = None


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """Settings of a node at its start.

    Attributes:
        name: name that the node writes with each event that it applies.
        url: URL of the database, ``postgresql+psycopg://…``.
        driver: ``psycopg``, or ``async-psycopg`` or ``asyncpg`` with coroutine handlers.
        consumers: its consumers, by name.
        config: settings that differ from the defaults of ``WorkerConfig``.
        channel: the ``notify_channel`` of its store.
        is_pooled: True if the URL is that of the pooler.
    """

    name: str
    url: str
    driver: str
    consumers: Mapping[str, Follows]
    config: Mapping[str, Any] = field(default_factory=dict)
    channel: str | None = None
    is_pooled: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, value: str) -> NodeSettings:
        found = json.loads(value)
        return cls(**found | {"consumers": {name: Follows(**each) for name, each in found["consumers"].items()}})


@dataclass(frozen=True)
class Order:
    """The payload of an order.

    Attributes:
        consumer: the consumer that follows it.
        what: ``wait`` at the gate, ``hang`` without end, ``block`` the event loop too, ``fail`` until the table
            ``healed`` has a row, or let the process ``die``.
        node: the only node that follows it; by default every node.
    """

    consumer: str
    what: str
    node: str | None = None


class PoisonedError(Exception):
    """The error of an order to fail."""


class _Recorder:
    """Base of the three kinds of consumers."""

    def __init__(self, name: str, follows: Follows, node: str) -> None:
        self.name = name
        self.partitions = follows.partitions
        self.max_attempts = follows.max_attempts
        self._node = node

    def _row(self, event: PersistedEvent) -> dict[str, Any]:
        return {
            "consumer": self.name,
            "node": self._node,
            "position": event.global_position,
            "aggregate_id": event.aggregate_id,
            "version": event.aggregate_version,
        }

    def _order(self, event: PersistedEvent) -> str | None:
        if event.event_type != ORDER:
            return None
        order = Order(**event.json())
        return order.what if order.consumer == self.name and order.node in (None, self._node) else None

    def _die(self) -> None:
        """End the process as a crash or the kernel does, without any clean-up."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _fail(self, event: PersistedEvent) -> None:
        raise PoisonedError(f"{self.name} cannot digest {event.global_position}")


class _ByEvent(_Recorder):
    def handle(self, session: Session, event: PersistedEvent) -> None:
        session.execute(_APPLIED, self._row(event))
        if (what := self._order(event)) is None:
            return
        is_healed = session.scalar(_BEFORE[what])
        if what in ("hang", "block"):
            threading.Event().wait()
        if what == "die":
            self._die()
        if what == "fail" and not is_healed:
            self._fail(event)


class _ByBatch(_Recorder):
    def handle_batch(self, session: Session, events: Sequence[PersistedEvent]) -> None:
        session.execute(_APPLIED, [self._row(event) for event in events])
        if any(self._order(event) == "die" for event in events):
            self._die()


class _Coroutine(_Recorder):
    async def handle(self, session: AsyncSession, event: PersistedEvent) -> None:
        await session.execute(_APPLIED, self._row(event))
        if (what := self._order(event)) is None:
            return
        is_healed = await session.scalar(_BEFORE[what])
        if what == "hang":
            await asyncio.Event().wait()
        if what == "block":
            threading.Event().wait()
        if what == "die":
            self._die()
        if what == "fail" and not is_healed:
            self._fail(event)


def make_worker() -> Worker:
    """Return the worker that the environment describes."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    settings = NodeSettings.from_json(os.environ[VARIABLE])
    config = WorkerConfig(**settings.config)
    by_event: type[_Recorder] = _ByEvent if settings.driver == "psycopg" else _Coroutine
    return Worker(
        _session_factory(settings, connections=config.concurrency + 4),
        EventStore(notify_channel=settings.channel),
        [
            (_ByBatch if follows.by_batch else by_event)(name, follows, settings.name)
            for name, follows in settings.consumers.items()
        ],
        config=config,
    )


def _session_factory(settings: NodeSettings, connections: int) -> Any:
    driver = settings.driver.removeprefix("async-")
    options: dict[str, Any] = {"pool_size": connections, "max_overflow": 0}
    if settings.is_pooled:
        options["connect_args"] = pooler.OPTIONS[driver]
    if settings.driver == "psycopg":
        return sessionmaker(create_engine(settings.url, **options))
    engine: AsyncEngine = create_async_engine(make_url(settings.url).set(drivername=f"postgresql+{driver}"), **options)
    return async_sessionmaker(engine)


def _die_with_parent() -> None:
    """End this process when the tests are killed: they hold the other end of its standard input."""
    os.read(sys.stdin.fileno(), 1)  # not with the file object, which Python closes at its exit
    os._exit(3)
