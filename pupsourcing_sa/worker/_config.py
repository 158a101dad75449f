"""The worker's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["WorkerConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """How a worker works. Times are in seconds.

    Attributes:
        batch_size: at most so many events are handled in one transaction. More are faster and keep row locks and other
            consumers' view of the read model waiting for longer.
        concurrency: at most so many batches run at the same time, each with a connection of its own. The engine's pool
            should allow one more.
        poll_interval: pause between two looks at the log while events arrive: the latency of an event.
        max_poll_interval: the pause grows up to this while none do.
        retry_delay: pause before a failed batch is tried again; it doubles with each failure, with jitter.
        max_retry_delay: up to this.
        shutdown_timeout: how long `stop` lets running batches finish before they are rolled back.
    """

    batch_size: int = 100
    concurrency: int = 8
    poll_interval: float = 0.05
    max_poll_interval: float = 0.5
    retry_delay: float = 0.5
    max_retry_delay: float = 60.0
    shutdown_timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                expected = "an int" if whole else "a number of seconds"
                raise TypeError(f"{field.name} must be {expected}, not {type(value).__name__}")
            if not math.isfinite(value) or value <= 0:
                raise ValueError(f"{field.name} must be greater than 0, not {value}")
        for least, most in (("poll_interval", "max_poll_interval"), ("retry_delay", "max_retry_delay")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} must not be greater than {most}")
