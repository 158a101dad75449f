"""Hooks for tracing and metrics: spans around the worker's operations, and events.

Pass an object with the two methods of `Telemetry` to the `Worker`. Without one, the worker collects nothing.

The worker enters a span before an operation and leaves it afterwards, with the exception if the operation failed. The
``data`` of a span or event is a ``dict``. It always contains ``worker``, the worker's id. The worker adds the last
column of the table before it leaves the span. Names are stable: they never change their meaning.

==========================  =======================================  ==================================================
span                        data on entering                         added on leaving
==========================  =======================================  ==================================================
``worker.batch``            ``consumer``, ``partition``              ``events``, ``position``; neither if locked out
``worker.rebalance``                                                 ``is_leader``; if True, ``nodes``, ``moved``
``worker.look``                                                      ``position``: the stable position
==========================  =======================================  ==================================================

==========================  =========================================================================================
event                       data
==========================  =========================================================================================
``worker.started``          ``consumers``
``worker.stopped``
``worker.rejoined``         no further data: the node was presumed dead and registered again
``worker.node_removed``     ``node``: id of the node, which had sent no heartbeat
``worker.assigned``         ``consumer``, ``partition``
``worker.revoked``          ``consumer``, ``partition``
``worker.event_failed``     ``consumer``, ``partition``, ``event_id``, ``event_type``, ``global_position``,
                            ``attempts``, ``retry_after`` in seconds
``worker.parked``           ``consumer``, ``partition``, ``event_id``, ``event_type``, ``global_position``,
                            ``attempts``
``worker.recovered``        ``consumer``, ``partition``, ``failures``: an event was processed after failures
``worker.batch_retried``    ``consumer``, ``partition``, ``retry_after`` in seconds: the batch was interrupted by a
                            failure that no event caused, such as a deadlock or a lost connection
``worker.batch_overdue``    ``consumer``, ``partition``, ``seconds`` for which the batch has been running, and either
                            ``event_id``, ``event_type``, ``global_position`` of the event being handled, or
                            ``first_position`` and ``last_position`` of the batch; neither before it has read events
``worker.holder_ended``     ``consumer``, ``partition``, ``pid``: terminated a dead node's transaction, which held the
                            checkpoint
``worker.locked_out``       ``consumer``, ``partition``, ``seconds``, ``pid``, ``gid``, ``user``, ``application_name``,
                            ``state``, ``age``, ``query``: another transaction has locked the checkpoint for this time.
                            Only the first three if PostgreSQL does not expose the transaction
``worker.stalled``          ``position``, ``seconds``, ``holders``: the stable position is stalled
``worker.listening``        ``channel``
``worker.listener_lost``    ``channel``, ``retry_after`` in seconds
==========================  =========================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

__all__ = ["NO_TELEMETRY", "Hooks", "Telemetry"]

_logger = logging.getLogger("pupsourcing_sa.telemetry")


class Telemetry(Protocol):
    """The interface that a worker calls. The module's documentation lists the names and their data.

    Both methods are called from the event loop and from the threads of handlers, so they must not block. The worker
    logs exceptions that they raise, and continues.

    >>> from contextlib import contextmanager
    >>> class Printed:
    ...     @contextmanager
    ...     def span(self, name, data):
    ...         yield
    ...         print(name, data)
    ...
    ...     def event(self, name, data):
    ...         print(name, data)
    >>> with Hooks(Printed()).span("worker.look", worker="a") as data:
    ...     data["position"] = 5
    worker.look {'worker': 'a', 'position': 5}
    """

    def span(self, name: str, data: dict[str, Any], /) -> AbstractContextManager[Any]:
        """Return a context manager around an operation. It must not suppress the operation's exception."""

    def event(self, name: str, data: dict[str, Any], /) -> None:
        """Record an event."""


class Hooks:
    """The worker's side of a `Telemetry`. Its failures are logged and do not affect the worker.

    Args:
        telemetry: the user's object, or ``None``.
        report: returns the exception that a span or the log gets in place of another.
        common: data of every span and event.
    """

    __slots__ = ("_common", "_report", "_telemetry")

    def __init__(
        self,
        telemetry: Telemetry | None = None,
        *,
        report: Callable[[BaseException], BaseException] = lambda error: error,
        **common: Any,
    ) -> None:
        self._telemetry = telemetry
        self._report = report
        self._common = common

    @contextmanager
    def span(self, name: str, **data: Any) -> Iterator[dict[str, Any]]:
        """Wrap a block in a span. The block can add to the yielded data."""
        if self._telemetry is None:
            yield data
            return
        data = self._common | data
        try:
            span = self._telemetry.span(name, data)
            span.__enter__()
        except Exception as failure:
            self._log(name, failure)
            yield data
            return
        try:
            yield data
        except BaseException as error:
            self._leave(name, span, error)
            raise
        self._leave(name, span, None)

    def event(self, name: str, **data: Any) -> None:
        """Report an event."""
        if self._telemetry is not None:
            try:
                self._telemetry.event(name, self._common | data)
            except Exception as failure:
                self._log(name, failure)

    def _leave(self, name: str, span: AbstractContextManager[Any], error: BaseException | None) -> None:
        error = None if error is None else self._report(error)
        try:
            span.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except Exception as raised:
            # A generator-based context manager raises the operation's own exception again.
            if raised is not error:
                self._log(name, raised)

    def _log(self, name: str, failure: Exception) -> None:
        # The operation's own exception may be its context.
        _logger.error("telemetry failed; the worker continues", exc_info=self._report(failure), extra={"hook": name})


#: Hooks without a `Telemetry`.
NO_TELEMETRY: Final = Hooks()
