"""A partition of a consumer, and the state of its checkpoint."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Partition", "PartitionState"]


class Partition(NamedTuple):
    """A partition of a consumer.

    Attributes:
        consumer: name of the consumer.
        number: number of the partition, from 0.
    """

    consumer: str
    number: int


class PartitionState(NamedTuple):
    """The state of a partition, from its row in the table or from the processor that runs it.

    Attributes:
        position: position of the checkpoint; -1 if it is not known.
        is_waiting: True if the next event has failed and the row has the time of the next attempt.
    """

    position: int
    is_waiting: bool
