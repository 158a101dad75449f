"""Hooks around what the worker does: spans for tracing, and events for counting.

A `Worker` is given an object with two methods, `Telemetry`'s; without one, nothing is called and nothing is collected.
A span is entered before the work and left after it, with the exception if it fails; ``data`` is a ``dict`` that has, on
entering, what the first column says, and on leaving, what the second adds; and always ``worker``, the id of the worker.
Names never change their meaning.

==========================  =======================================  ==================================================
span                        data on entering                         added on leaving
==========================  =======================================  ==================================================
``worker.batch``            ``consumer``, ``partition``              ``events``, ``position``
``worker.rebalance``                                                 ``is_leader``, ``nodes``, ``moved``
``worker.look``                                                      ``position``
==========================  =======================================  ==================================================

==========================  =========================================================================================
event                       data
==========================  =========================================================================================
``worker.started``          ``consumers``
``worker.stopped``
``worker.rejoined``         nothing more: it had been taken for dead
``worker.node_removed``     ``node``: which was silent for too long
``worker.assigned``         ``consumer``, ``partition``
``worker.revoked``          ``consumer``, ``partition``
``worker.event_failed``     ``consumer``, ``partition``, ``event_id``, ``event_type``, ``global_position``,
                            ``attempts``, ``retry_after`` in seconds
``worker.parked``           ``consumer``, ``partition``, ``event_id``, ``event_type``, ``global_position``,
                            ``attempts``
``worker.recovered``        ``consumer``, ``partition``, ``failures``
``worker.batch_retried``    ``consumer``, ``partition``, ``retry_after`` in seconds: after a deadlock or an outage
``worker.batch_overdue``    ``consumer``, ``partition``, ``seconds`` for which the batch has been running, and
                            ``event_id``, ``event_type``, ``global_position`` of the event that its handler is at, or
                            ``first_position`` and ``last_position`` of its events
``worker.holder_ended``     ``consumer``, ``partition``, ``pid``: a dead node's transaction held the checkpoint
``worker.locked_out``       ``consumer``, ``partition``, ``seconds``, ``pid``, ``gid``, ``user``, ``application_name``,
                            ``state``, ``age``, ``query``: a transaction has had the checkpoint locked for so long; only
                            the first three where PostgreSQL does not tell which
``worker.stalled``          ``position``, ``seconds``, ``holders``: the stable position stands still
``worker.listening``        ``channel``
``worker.listener_lost``    ``channel``, ``retry_after`` in seconds
==========================  =========================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

__all__ = ["NO_TELEMETRY", "Hooks", "Telemetry"]

_logger = logging.getLogger("pupsourcing_sa.telemetry")


class Telemetry(Protocol):
    """What a worker calls; the module's documentation has the names and their data.

    Both methods are called from the event loop and from the threads in which handlers run; they must not block. What
    they raise is logged and otherwise ignored.

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
        """Wrap a piece of work: a context manager, left with the exception if there is one. It must not swallow it."""

    def event(self, name: str, data: dict[str, Any], /) -> None:
        """Take notice of something that happened once."""


class Hooks:
    """Calls a `Telemetry`, if there is one, and keeps its failures away from the work.

    Args:
        telemetry: the user's object, or ``None``.
        common: what the data of each span and event has.
    """

    __slots__ = ("_common", "_telemetry")

    def __init__(self, telemetry: Telemetry | None = None, **common: Any) -> None:
        self._telemetry = telemetry
        self._common = common

    @contextmanager
    def span(self, name: str, **data: Any) -> Iterator[dict[str, Any]]:
        """A span around the block, which adds to the data that it is given."""
        if self._telemetry is None:
            yield data
            return
        data = self._common | data
        try:
            span = self._telemetry.span(name, data)
            span.__enter__()
        except Exception:
            _failed(name)
            yield data
            return
        try:
            yield data
        except BaseException as error:
            self._leave(name, span, error)
            raise
        self._leave(name, span, None)

    def event(self, name: str, **data: Any) -> None:
        if self._telemetry is not None:
            try:
                self._telemetry.event(name, self._common | data)
            except Exception:
                _failed(name)

    def _leave(self, name: str, span: AbstractContextManager[Any], error: BaseException | None) -> None:
        try:
            span.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except Exception as raised:
            if raised is not error:  # what a generator lets through is the error itself
                _failed(name)


def _failed(name: str) -> None:
    _logger.exception("telemetry failed; the worker goes on", extra={"hook": name})


#: Calls nothing.
NO_TELEMETRY: Final = Hooks()
