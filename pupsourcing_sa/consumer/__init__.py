"""Consumers: handlers that follow the log.

A consumer is a function decorated with `consumer`, or any object with a ``name`` and a ``handle`` method. The worker
calls it with a session and an event. The worker then commits the consumer's checkpoint together with the changes that
the handler made through the session.

Optional attributes of a consumer:

===================  =================================================================================================
``aggregate_types``  process only events of these aggregate types; by default all
``event_types``      process only events of these event types; by default all
``partitions``       number of partitions (default 1); an aggregate's partition is a hash of its id. Each partition has
                     its own checkpoint and keeps its events in order, so different nodes can process them in parallel
``handle_batch``     called with a list of events; takes precedence over ``handle``
``batch_size``       maximum number of events per transaction; by default the worker's ``batch_size``
``batch_bytes``      maximum number of bytes of payloads and metadata per transaction; by default the worker's
                     ``batch_bytes``
``max_attempts``     number of failed attempts at an event after which its partition is parked, that is, paused until an
                     operator intervenes; by default the worker retries the event until it succeeds
``isolation``        isolation level of a batch: ``"REPEATABLE READ"`` (default), ``"SERIALIZABLE"``, or
                     ``"READ COMMITTED"``, under which a handler may overwrite changes that other transactions make to
                     the rows that it has read
===================  =================================================================================================

An attribute with a similar name, such as ``aggregate_type``, is refused.
"""

from __future__ import annotations

from pupsourcing_sa.consumer.decorator import consumer
from pupsourcing_sa.consumer.protocol import AsyncConsumer, BatchConsumer, Consumer, Handler, SyncConsumer
from pupsourcing_sa.consumer.scope import Scope
from pupsourcing_sa.consumer.subscription import ISOLATION_LEVELS, IsolationLevel, Subscription
from pupsourcing_sa.consumer.typed import TypedConsumer

__all__ = [
    "ISOLATION_LEVELS",
    "AsyncConsumer",
    "BatchConsumer",
    "Consumer",
    "Handler",
    "IsolationLevel",
    "Scope",
    "Subscription",
    "SyncConsumer",
    "TypedConsumer",
    "consumer",
]
