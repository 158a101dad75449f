"""The worker's settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from pupsourcing_sa._checks import MAX_INTEGER, check_int, check_seconds
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT

__all__ = ["WorkerConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """How a worker works. Times are in seconds.

    Attributes:
        batch_size: at most so many events are handled in one transaction, unless the consumer has a ``batch_size`` of
            its own. More are faster and keep row locks and other consumers' view of the read model waiting for longer.
        batch_time: a batch that has taken so long is committed with the events that it has come to. A handler that is
            running is not interrupted, and a ``handle_batch`` gets all of its events at once.
        concurrency: at most so many batches run at the same time, each with a connection of its own. The engine's pool
            should allow three more, for the dispatcher, its listener while it connects, and the node.
        dispatcher: ``"poll"`` looks at the log at intervals; ``"notify"`` also waits for the notifications of a store
            with a ``notify_channel``, on a connection of its own that no PgBouncer may share. By default the latter if
            the store has a channel.
        poll_interval: pause between two looks at the log while events arrive: the latency of an event.
        max_poll_interval: the pause grows up to this while none do.
        reconcile_interval: instead of it, while notifications are listened to.
        heartbeat_interval: how often the node says that it is alive.
        heartbeat_timeout: a node that was silent for so long is taken for dead: its partitions go to others, and a
            transaction in which it holds one is ended.
        rebalance_interval: how often the assignments are looked at, and planned anew if need be.
        retry_delay: pause before a failed batch is tried again; it doubles with each failure, with jitter.
        max_retry_delay: up to this.
        stall_warning: a stable position that stands still for so long, while there are events above it, is reported
            together with the transaction that holds it back; so is a batch that runs for so long, with its event.
        shutdown_timeout: how long running batches may go on after a stop was asked for, before they are rolled back.
    """

    batch_size: int = 500
    batch_time: float = 5.0
    concurrency: int = 8
    dispatcher: Literal["poll", "notify"] | None = None
    poll_interval: float = 0.05
    max_poll_interval: float = 0.5
    reconcile_interval: float = 5.0
    heartbeat_interval: float = 2.0
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT
    rebalance_interval: float = 1.0
    retry_delay: float = 0.5
    max_retry_delay: float = 60.0
    stall_warning: float = 30.0
    shutdown_timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "dispatcher":
                value = getattr(self, field.name)
                if field.type == "int":
                    check_int(field.name, value, minimum=1, maximum=MAX_INTEGER)
                else:
                    check_seconds(field.name, value)
        if self.dispatcher not in (None, "poll", "notify"):
            raise ValueError(f"dispatcher must be 'poll', 'notify' or None, not {self.dispatcher!r}")
        for least, most in (("poll_interval", "max_poll_interval"), ("retry_delay", "max_retry_delay")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} must not be greater than {most}")
        if self.heartbeat_timeout < 2 * self.heartbeat_interval:
            raise ValueError(
                "heartbeat_timeout must be at least twice heartbeat_interval: one late beat is not a death"
            )
