"""The worker's settings.

The text, the default and the range of a setting are written once, in its field. The docstring of `WorkerConfig` and
``pupsourcing-sa worker --help`` are built from them, and a test compares docs/reference/worker.md with them.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from pupsourcing_sa._checks import MAX_INTEGER, MAX_SECONDS, check_int, check_seconds, check_type
from pupsourcing_sa.status import HEARTBEAT_TIMEOUT

__all__ = ["WorkerConfig", "default_text"]

_Class = TypeVar("_Class", bound=type)


def _setting_metadata(group: str, help: str, **more: Any) -> dict[str, Any]:  # noqa: A002 - the word that users of click know
    """Return the metadata of a setting: its group in ``--help``, its text, and the largest value or the choices."""
    return {"group": group, "help": help, **more}


def _count(group: str, help: str) -> dict[str, Any]:  # noqa: A002
    return _setting_metadata(group, help, max=MAX_INTEGER)


def _seconds(group: str, help: str) -> dict[str, Any]:  # noqa: A002
    return _setting_metadata(group, help, max=MAX_SECONDS)


def _documented(cls: _Class) -> _Class:
    """Add the settings' texts to the docstring, which ``python -OO`` removes."""
    if cls.__doc__ is not None:
        entries = [
            textwrap.fill(
                f"{setting.name}: {setting.metadata['help']}" + _default(setting.default),
                width=112,
                initial_indent=" " * 4,
                subsequent_indent=" " * 8,
            )
            for setting in fields(cls)
        ]
        # Since Python 3.13 the compiler removes the indentation of docstrings.
        cls.__doc__ = inspect.cleandoc(cls.__doc__) + "\n\nAttributes:\n" + "\n".join(entries) + "\n"
    return cls


def default_text(value: object) -> str:
    """Return the default of a setting as the documentation shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(value: object) -> str:
    return "" if value is None else f" Default: {default_text(value)}."


@_documented
@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Settings of a worker. Times are in seconds."""

    batch_size: int = field(
        default=500,
        metadata=_count(
            "Batches",
            "Maximum number of events in one transaction, unless the consumer sets its own batch_size. Larger batches "
            "are faster but hold row locks longer.",
        ),
    )
    batch_bytes: int = field(
        default=32 * 2**20,
        metadata=_count(
            "Batches",
            "Maximum number of bytes of payloads and metadata in one transaction, unless the consumer sets its own "
            "batch_bytes. A larger event is a batch of its own. A batch needs about three times as much memory.",
        ),
    )
    batch_time: float = field(
        default=5.0,
        metadata=_seconds(
            "Batches",
            "Commit a batch after this time even if events remain. A running handler is not interrupted, and "
            "handle_batch always receives the whole batch.",
        ),
    )
    concurrency: int = field(
        default=8,
        metadata=_count(
            "Batches",
            "Maximum number of batches that run at the same time, each on its own connection. The node needs up to "
            "three more connections from the engine's pool.",
        ),
    )
    dispatcher: Literal["poll", "notify"] | None = field(
        default=None,
        metadata=_setting_metadata(
            "Finding new events",
            "poll checks the log at intervals. notify also listens on the store's notify_channel, on a connection "
            "that must not go through PgBouncer. The default is notify if the store has a channel, otherwise poll.",
            choices=("poll", "notify"),
        ),
    )
    poll_interval: float = field(
        default=0.05,
        metadata=_seconds(
            "Finding new events",
            "Time between two checks of the log while events arrive. Adds to each event's latency.",
        ),
    )
    max_poll_interval: float = field(
        default=0.5,
        metadata=_seconds(
            "Finding new events", "Upper limit of the poll interval, which doubles while no events arrive."
        ),
    )
    reconcile_interval: float = field(
        default=5.0,
        metadata=_seconds(
            "Finding new events", "Poll interval while the node listens, in case a notification is missed."
        ),
    )
    heartbeat_interval: float = field(
        default=2.0,
        metadata=_seconds("Nodes", "Time between two heartbeats of the node."),
    )
    heartbeat_timeout: float = field(
        default=HEARTBEAT_TIMEOUT,
        metadata=_seconds(
            "Nodes",
            "Presume a node dead after this time without a heartbeat. Other nodes then take over its partitions and "
            "terminate the transactions of its batches. At least twice the heartbeat interval.",
        ),
    )
    rebalance_interval: float = field(
        default=1.0,
        metadata=_seconds("Nodes", "Time between two checks of the partitions that are assigned to the node."),
    )
    retry_delay: float = field(
        default=0.5,
        metadata=_seconds(
            "Failures and shutdown",
            "Delay before a failed batch is retried. It doubles with each failure and has jitter.",
        ),
    )
    max_retry_delay: float = field(
        default=60.0,
        metadata=_seconds("Failures and shutdown", "Upper limit of the retry delay."),
    )
    stall_warning: float = field(
        default=30.0,
        metadata=_seconds(
            "Failures and shutdown",
            "Log a warning when a batch runs for this time, or when an open transaction holds newer events back for "
            "this time.",
        ),
    )
    hide_parameters: bool = field(
        default=True,
        metadata=_setting_metadata(
            "Failures and shutdown",
            "Record and log a database error without the parameters of the statement and the values that the server "
            "and the driver quote.",
        ),
    )
    shutdown_timeout: float = field(
        default=30.0,
        metadata=_seconds(
            "Failures and shutdown",
            "Time for running batches to finish after a stop request. Batches that still run are then rolled back.",
        ),
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type == "int":
                object.__setattr__(self, setting.name, check_int(setting.name, value, minimum=1, maximum=MAX_INTEGER))
            elif setting.type == "float":
                object.__setattr__(self, setting.name, check_seconds(setting.name, value))
            elif setting.type == "bool":
                check_type(setting.name, value, bool, "True or False")
        if self.dispatcher not in (None, "poll", "notify"):
            raise ValueError(f"dispatcher must be 'poll', 'notify' or None, not {self.dispatcher!r}")
        for lower, upper in (("poll_interval", "max_poll_interval"), ("retry_delay", "max_retry_delay")):
            if getattr(self, lower) > getattr(self, upper):
                raise ValueError(f"{lower} must not be greater than {upper}")
        if self.heartbeat_timeout < 2 * self.heartbeat_interval:
            raise ValueError(
                "heartbeat_timeout must be at least twice heartbeat_interval, so that one late heartbeat is tolerated"
            )
