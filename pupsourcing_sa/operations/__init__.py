"""Operations on consumers, for operators.

**The operator's transaction.** Every operation is part of the caller's transaction, in this order::

    lead     the advisory lock of the leader: no node joins, declares or plans
    lock     SELECT … FROM consumer_checkpoints … FOR UPDATE: waits for running batches, and keeps the next ones out
    decide   from what was read under the lock
    change   each locked row is also updated or deleted. A batch whose snapshot is older then fails and is retried
    audit    a row in consumer_operations, with the rows before and after
    commit   by the caller

The transaction must be READ COMMITTED: a snapshot from before the lock would not show what a batch has committed.
Nodes take these locks in the same order, and none of them takes the first while it holds the second. Running nodes
notice the change under the lock of their next batch, or at their next tick.
"""

from __future__ import annotations

from pupsourcing_sa.operations._async import AsyncConsumerOperations
from pupsourcing_sa.operations._result import OperationResult
from pupsourcing_sa.operations._sync import ConsumerOperations

__all__ = ["AsyncConsumerOperations", "ConsumerOperations", "OperationResult"]
