"""Every timeout of a shutdown, and how they add up.

The timeline after SIGTERM, SIGINT or ``Worker.stop()``. T is ``WorkerConfig.shutdown_timeout``::

    seconds
    0         no new batches. A tick in flight gets CANCEL; then the node hands over its partitions.
              Running batches may finish; heartbeats continue.
    T         batches that still run are rolled back: ROLL_BACK, then they are cancelled and left behind.
              The node deletes its row: LEAVE. An async engine closes its connections: CLOSE.
    T + 4.5   the worker has stopped, even when the server answers nothing.
    T + 5     WATCHDOG: after a signal, a worker that has not stopped ends its process, with status 1.

    The command ``pupsourcing-sa worker`` and its supervisor (``--processes``) add:

    stopped + 5   EXIT: the process ends even when threads of the application do not.
    T + 15        NODE_KILL: the supervisor kills a node that has not ended.
    T + 17        SUPERVISOR_EXIT: the supervisor ends itself.

A second signal ends the process at once. PostgreSQL then rolls back its open transactions.

The worst case, for a server that stops answering: each wait may take CANCEL more, because a driver may need to be
cancelled twice (see `cancel_all`)::

    tick in flight   2 × CANCEL             0.8
    hand over            CANCEL             0.4
    roll back        ROLL_BACK + CANCEL     1.4
    leave            LEAVE + CANCEL         1.9
                                            ───
                                            4.5 < WATCHDOG

CLOSE is not part of the sum. By then the node has left, and the watchdog may end a process that still waits to close
its connections. ``tests/worker/test_shutdown.py`` checks the sums.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CANCEL_SECONDS",
    "CLOSE_SECONDS",
    "EXIT_SECONDS",
    "LAST_LOG_SECONDS",
    "LEAVE_SECONDS",
    "NODE_KILL_SECONDS",
    "ROLL_BACK_SECONDS",
    "SUPERVISOR_EXIT_SECONDS",
    "WATCHDOG_SECONDS",
]

#: Time for a cancelled task to end before it is cancelled again.
CANCEL_SECONDS: Final = 0.4
#: Time for running batches to roll back before they are cancelled.
ROLL_BACK_SECONDS: Final = 1.0
#: Time for the transaction in which a node leaves. Otherwise the other nodes remove it after ``heartbeat_timeout``.
LEAVE_SECONDS: Final = 1.5
#: Time for an async engine to close its connections.
CLOSE_SECONDS: Final = 1.0
#: Time after ``shutdown_timeout`` at which a worker that has not stopped ends its process. A signal or the supervisor
#: starts this timer; ``Worker.stop()`` does not, because the caller owns the process.
WATCHDOG_SECONDS: Final = 5.0
#: Time to log why the process ends. The log may be a full pipe whose reader hangs.
LAST_LOG_SECONDS: Final = 1.0
#: Time for the threads of the application to end after the worker of a command has stopped.
EXIT_SECONDS: Final = 5.0
#: Time after ``shutdown_timeout`` at which the supervisor kills a node.
NODE_KILL_SECONDS: Final = 15.0
#: Time after `NODE_KILL_SECONDS` at which the supervisor ends itself.
SUPERVISOR_EXIT_SECONDS: Final = 2.0
