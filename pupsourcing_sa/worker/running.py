"""The column ``worker_nodes.running``: the process of a node and what it is at, as a JSON object.

=============  =================================================================  ==============================
key            value                                                              written
=============  =================================================================  ==============================
``process``    host, id and start of the process; null if the system hides them   when the node joins
``batches``    the batches that run                                               with each heartbeat
``announced``  the event that is handled alone in careful mode; null otherwise    before the event, and after it
=============  =================================================================  ==============================

The column shows operators what a node is at. When the node dies, it is the evidence of the reason.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Text, bindparam, cast, func
from sqlalchemy.dialects.postgresql import JSONB

from pupsourcing_sa.status.model import RunningBatch, read_batches, read_object
from pupsourcing_sa.worker.partition import Partition

__all__ = ["Announcement", "merged", "read_running", "to_text"]


@dataclass(frozen=True, slots=True)
class Announcement:
    """An event that a node handles alone, with the consumer's policy for it.

    Attributes:
        consumer: name of the consumer.
        partition: number of the partition.
        position: position of the event.
        event_id: id of the event.
        event_type: type of the event.
        max_attempts: number of failed attempts after which the partition is parked; ``None`` for never.
    """

    consumer: str
    partition: int
    position: int
    event_id: str
    event_type: str
    max_attempts: int | None

    @property
    def key(self) -> Partition:
        """The partition."""
        return Partition(self.consumer, self.partition)


def to_text(**keys: Any) -> str:
    """Return these keys as JSON, for `merged`. Values may be dataclasses."""
    return json.dumps(keys, default=asdict)


def merged(running: Column[Any]) -> ColumnElement[Any]:
    """Return the column with the keys of the parameter ``running``, the JSON text of `to_text`.

    The text is cast in the statement, because an engine may have a JSON serializer of its own.
    """
    empty = cast("{}", JSONB)
    return func.coalesce(running, empty, type_=JSONB).concat(cast(bindparam("running", type_=Text()), JSONB))


def read_running(text: str | None) -> tuple[list[RunningBatch], Announcement | None]:
    """Return the batches and the announcement of a column that was read as text; none if it cannot be understood."""
    found = json.loads(text) if text else None
    if not isinstance(found, dict):
        return [], None
    return read_batches(found.get("batches")), read_object(Announcement, found.get("announced"))
