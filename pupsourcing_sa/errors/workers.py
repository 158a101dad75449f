"""Errors of workers and consumers."""

from __future__ import annotations

import shlex

from pupsourcing_sa.errors.base import PupsourcingError

__all__ = [
    "HandlerTransactionError",
    "LogMismatchError",
    "OperationRefusedError",
    "PartitionParkedError",
    "PartitionsError",
]


class PartitionsError(PupsourcingError, ValueError):
    """A consumer's code and the tables differ in its number of partitions.

    Attributes:
        consumer: name of the consumer.
        declared: number of partitions in the code.
        existing: number of partitions in the tables.
    """

    def __init__(self, consumer: str, declared: int, existing: int) -> None:
        self.consumer = consumer
        self.declared = declared
        self.existing = existing
        super().__init__(
            f"consumer {consumer!r} has partitions = {declared}, but the tables have {existing}, to which the "
            f"checkpoints belong. Set partitions = {existing}, or give the consumer another name. To start it "
            "from the beginning, stop its workers and delete its assignments, its checkpoints and what it wrote"
        )


class LogMismatchError(PupsourcingError, ValueError):
    """A consumer's checkpoints belong to another log.

    Their positions mean nothing in this log: the consumer would skip events.

    Attributes:
        consumer: name of the consumer.
        log: the log that the worker follows, as the database names it.
        existing: the log that the checkpoints belong to.
    """

    def __init__(self, consumer: str, log: str, existing: str) -> None:
        self.consumer = consumer
        self.log = log
        self.existing = existing
        super().__init__(
            f"consumer {consumer!r} would follow the log {log}, but its checkpoints belong to the log {existing}. Give "
            "one of the two consumers another name, or use other WorkerTables for each log, such as in another schema. "
            f"If {existing} was renamed to {log}, run pupsourcing-sa consumers adopt-log {shlex.quote(consumer)}"
        )


class OperationRefusedError(PupsourcingError):
    """An operation on a consumer is not safe, or there is no such consumer. Nothing was changed.

    Attributes:
        operation: name of the method of `ConsumerOperations`.
        consumer: name of the consumer.
        reason: why it was refused, and the remedy.
    """

    def __init__(self, operation: str, consumer: str, reason: str) -> None:
        self.operation = operation
        self.consumer = consumer
        self.reason = reason
        super().__init__(f"{operation} of consumer {consumer!r} is refused: {reason}")


class PartitionParkedError(PupsourcingError):
    """The partition is parked until an operator resolves the event that failed.

    Attributes:
        consumer: name of the consumer.
        partition: number of the partition, from 0.
        position: global position of the event that failed.
    """

    def __init__(self, consumer: str, partition: int, position: int) -> None:
        self.consumer = consumer
        self.partition = partition
        self.position = position
        super().__init__(
            f"partition {partition} of consumer {consumer!r} is parked on the event at {position}. Fix the "
            "cause, which is in the column error of its checkpoint, then set parked_at to NULL"
        )


class HandlerTransactionError(PupsourcingError):
    """A handler committed or rolled back its session, which only the worker may do, or caught an error that aborted it.

    The worker rolls back the batch and counts a failure. A handler that executes ``COMMIT`` as SQL has already
    committed its changes. In that case the worker parks the partition, and the message explains how to continue.
    """
